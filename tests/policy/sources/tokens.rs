//! Splits a source into words and signs, without comments and texts.

/// The words and signs of a source.
pub fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let end = end_of(&chars, at);
        let first = chars[at];
        let is_kept =
            first != '"' && first != '\'' && !first.is_whitespace() && !is_comment(&chars, at);
        if is_kept && !starts_raw_text(&chars, at) {
            tokens.push(chars[at..end].iter().collect());
        }
        at = end;
    }
    tokens
}

const fn is_part_of_word(found: char) -> bool {
    found == '_' || found.is_ascii_alphanumeric()
}

fn is_comment(chars: &[char], at: usize) -> bool {
    chars[at] == '/' && matches!(chars.get(at + 1), Some('/' | '*'))
}

/// Whether `r"`, `r#"`, `br"` or `br#"` stands here.
fn starts_raw_text(chars: &[char], at: usize) -> bool {
    let rest = &chars[at..];
    let rest = rest.strip_prefix(&['b']).unwrap_or(rest);
    let Some(rest) = rest.strip_prefix(&['r']) else { return false };
    rest.iter().find(|it| **it != '#') == Some(&'"')
}

/// Where the token that begins here ends.
fn end_of(chars: &[char], at: usize) -> usize {
    let until = |from: usize, ends: &dyn Fn(usize) -> bool| {
        (from..chars.len()).find(|index| ends(*index)).unwrap_or(chars.len())
    };
    let next = chars.get(at + 1);
    match chars[at] {
        '/' if next == Some(&'/') => until(at, &|index| chars[index] == '\n'),
        '/' if next == Some(&'*') => {
            until(at + 2, &|index| chars[index..].starts_with(&['*', '/'])).saturating_add(2)
        }
        _ if starts_raw_text(chars, at) => {
            let quote = until(at, &|index| chars[index] == '"');
            let marks = chars[at..quote].iter().filter(|it| **it == '#').count();
            let mut ends = vec!['"'];
            ends.resize(marks + 1, '#');
            until(quote + 1, &|index| chars[index..].starts_with(&ends)) + ends.len()
        }
        '"' => {
            let mut end = at + 1;
            while chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            end + 1
        }
        // A character, or the mark of a lifetime.
        '\'' if next == Some(&'\\') => until(at + 3, &|index| chars[index] == '\'') + 1,
        '\'' if chars.get(at + 2) == Some(&'\'') => at + 3,
        ':' | '-' | '='
            if matches!((chars[at], next), (':', Some(':')) | ('-' | '=', Some('>'))) =>
        {
            at + 2
        }
        found if is_part_of_word(found) => until(at, &|index| !is_part_of_word(chars[index])),
        _ => at + 1,
    }
}
