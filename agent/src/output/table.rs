//! Tables with aligned columns.

use super::text::printable;

/// Between two columns.
const GAP_CHARS: usize = 2;

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
        self.render_rows([usize::MAX; N]).iter().map(|row| row.clone() + "\n").collect()
    }

    /// As wide as the widest cell of a column among those of at most so many characters, and the heading.
    #[must_use]
    pub fn width(&self, column: usize, most_chars: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        let cells = cells.filter(|chars| *chars <= most_chars);
        cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
    }

    /// Each row, headings first. A cell of more characters than `most_chars` of its column ends its line, and
    /// what follows it is in its own columns on the next one.
    #[must_use]
    pub fn render_rows(&self, most_chars: [usize; N]) -> Vec<String> {
        let widths = std::array::from_fn(|column| self.width(column, most_chars[column]));
        let headings = self.headings.map(str::to_owned);
        let rows = std::iter::once(&headings).chain(&self.rows);
        rows.map(|row| self.render_row(row, &widths)).collect()
    }

    fn render_row(&self, row: &[String; N], widths: &[usize; N]) -> String {
        let mut text = String::new();
        let mut line = String::new();
        let mut begin = 0;
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let chars = cell.chars().count();
            let blanks = if self.right[column] { width.saturating_sub(chars) } else { 0 };
            let before = (begin + blanks).saturating_sub(line.chars().count());
            line.extend([&" ".repeat(before), cell.as_str()]);
            if chars > *width && column + 1 < N {
                text.extend([&line, "\n"]);
                line.clear();
            }
            begin += width + GAP_CHARS;
        }
        text + line.trim_end()
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

    #[test]
    fn long_cell_ends_its_line_and_the_row_goes_on_in_its_columns() {
        let mut table = Table::new(["NAME", "ADDRESS", ">AGE"]);
        table.row(["anna".into(), "10.0.0.1".into(), "12 s".into()]);
        table.row(["a-long-name".into(), "10.0.0.2".into(), "9 s".into()]);
        table.row(["ben".into(), "fd00:1111:2222::3".into(), "9 s".into()]);
        assert_eq!(
            table.render_rows([6, 9, 9]).join("\n"),
            "\
NAME  ADDRESS    AGE
anna  10.0.0.1  12 s
a-long-name
      10.0.0.2   9 s
ben   fd00:1111:2222::3
                 9 s"
        );
    }
}
