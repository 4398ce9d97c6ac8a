//! Tables with aligned columns.

use super::text::printable;

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug, Clone)]
pub struct Table<const N: usize> {
    headings: [&'static str; N],
    /// Which columns are aligned to the right, as numbers and ages are.
    right: [bool; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table. A heading that begins with `>` aligns its column to the right.
    #[must_use]
    pub fn new(headings: [&'static str; N]) -> Self {
        let right = headings.map(|heading| heading.starts_with('>'));
        let headings = headings.map(|heading| heading.trim_start_matches('>'));
        Self { headings, right, rows: Vec::new() }
    }

    /// Adds a row. Cells are made [`printable`]; an empty cell becomes a dash.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(
            |cell| {
                if cell.is_empty() { "-".to_owned() } else { printable(&cell) }
            },
        ));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, headings first, without trailing blanks.
    #[must_use]
    pub fn render(&self) -> String {
        let headings = self.headings.map(str::to_owned);
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let blanks = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                let gap = if column == 0 { "" } else { "  " };
                if self.right[column] {
                    line.extend([gap, &blanks, cell]);
                } else {
                    line.extend([gap, cell, &blanks]);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["USER", ">AGE", "NOTE"]);
        table.row(["anna".into(), "12 s".into(), "a\nb".into()]);
        table.row(["Zoë".into(), "119 min".into(), String::new()]);
        assert_eq!(
            table.render(),
            "USER      AGE  NOTE\n\
             anna     12 s  a\u{fffd}b\n\
             Zoë   119 min  -\n"
        );
    }
}
