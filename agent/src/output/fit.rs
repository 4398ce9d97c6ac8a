//! Sentences that fit a terminal. Pure.

/// The text with each line that is wider than so many columns broken between words. What continues a line
/// stands below the value of a label, or indented. What is between backticks is never broken: it is a command to
/// copy.
#[must_use]
pub fn fitted(text: &str, columns: usize) -> String {
    let mut fitted = String::new();
    for line in text.lines() {
        if width(line) <= columns {
            fitted.push_str(line);
        } else {
            fitted.push_str(&broken(line, columns));
        }
        fitted.push('\n');
    }
    fitted
}

fn broken(line: &str, columns: usize) -> String {
    let indent = "\n".to_owned() + &" ".repeat(indent(line));
    let mut text = String::new();
    // Of the last line of `text`.
    let mut at = 0;
    for (number, word) in words(line).into_iter().enumerate() {
        let is_begun = at >= indent.len();
        if is_begun && at + 1 + width(word) > columns {
            text.truncate(text.trim_end_matches(' ').len());
            text.push_str(&indent);
            at = indent.len() - 1;
        } else if number > 0 {
            text.push(' ');
            at += 1;
        }
        text.push_str(word);
        at += width(word);
    }
    text
}

/// Where a value begins that stands two blanks or more behind its label; without a label two columns further
/// than the line.
fn indent(line: &str) -> usize {
    const MOST_LABEL_CHARS: usize = 24;
    let begin = line.len() - line.trim_start().len();
    let label = line[begin..].find("  ").map(|end| {
        let rest = &line[begin + end..];
        width(&line[..begin + end]) + rest.len() - rest.trim_start().len()
    });
    label.filter(|value| *value <= MOST_LABEL_CHARS).unwrap_or(begin + 2)
}

/// What blanks separate, but for those between backticks.
fn words(line: &str) -> Vec<&str> {
    let mut is_command = false;
    let is_break = |letter: char| {
        is_command ^= letter == '`';
        letter == ' ' && !is_command
    };
    line.split(is_break).collect()
}

/// The columns of a text: colours take none.
fn width(text: &str) -> usize {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().map_or(0, |part| part.chars().count());
    let others =
        parts.map(|part| part.split_once('m').map_or("", |(_, rest)| rest).chars().count());
    first + others.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_continue_below_their_value() {
        let text = "\
state      ready
interface  gatepost0, kernel WireGuard, UDP port 51820

warnings
  anna/laptop is left out: its key is wrong
";
        assert_eq!(
            fitted(text, 32),
            "\
state      ready
interface  gatepost0, kernel
           WireGuard, UDP port
           51820

warnings
  anna/laptop is left out: its
    key is wrong
"
        );
        assert_eq!(fitted(text, 80), text);
    }

    #[test]
    fn command_and_long_word_stay_whole() {
        let text = "run `nft insert rule inet filter forward iifname x accept` and look again\n";
        assert_eq!(
            fitted(text, 20),
            "run\n  `nft insert rule inet filter forward iifname x accept`\n  and look again\n"
        );
        let word = "a".repeat(30);
        assert_eq!(fitted(&format!("{word} b\n"), 20), format!("{word}\n  b\n"));
        assert_eq!(fitted(&format!("  {word}\n"), 20), format!("  {word}\n"));
    }

    #[test]
    fn colours_take_no_column() {
        let text = "state      \u{1b}[32mready\u{1b}[0m and well\n";
        assert_eq!(fitted(text, 25), text);
        assert_eq!(fitted(text, 24), "state      \u{1b}[32mready\u{1b}[0m and\n           well\n");
    }
}
