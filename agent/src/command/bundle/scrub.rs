//! Takes secrets out of text. Pure.

/// Replaces a secret.
const MARK: &str = "[secret]";
/// Words as long as this in a secret's file are secrets by themselves, such as a key after its name.
const LONG_WORD: usize = 16;
/// A single character would take every other text apart.
const SHORTEST: usize = 2;

/// Knows what to take out.
pub struct Scrubber {
    /// The longest first, so that no part of one stays.
    secrets: Vec<String>,
}

impl Scrubber {
    /// `files`: the text of each file that holds a secret. Its lines, and the long words in them.
    pub fn new<'a>(files: impl Iterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<String> = Vec::new();
        for line in files.flat_map(str::lines).map(str::trim) {
            if line.starts_with("-----") || line.len() < SHORTEST {
                continue;
            }
            secrets.push(line.to_owned());
            // A line USER:PASSWORD.
            let password = line.split_once(':').map(|(_, password)| password.trim());
            let password = password.filter(|password| password.len() >= SHORTEST);
            secrets.extend(password.map(str::to_owned));
            let long = line.split_whitespace().filter(|word| word.len() >= LONG_WORD);
            secrets.extend(long.map(str::to_owned));
        }
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { secrets }
    }

    /// The text without the secrets, and without passwords in URLs and settings.
    pub fn scrub(&self, text: &str) -> String {
        let known = self.secrets.iter().fold(text.to_owned(), |text, it| text.replace(it, MARK));
        let mut scrubbed = String::new();
        let mut open_value: Option<&str> = None;
        for line in known.split_inclusive('\n') {
            if let Some(end) = open_value {
                open_value = Some(end).filter(|end| !line.contains(end));
                continue;
            }
            open_value = opened_secret(line);
            scrubbed += &without_logins(&without_settings(line));
        }
        scrubbed
    }
}

/// `scheme://user:PASSWORD@host`. The password may contain what should be percent-encoded.
fn without_logins(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        text += before;
        text += "://";
        let word = &after[..end_of_word(before, after)];
        let masked = word.rfind('@').and_then(|at| Some((word[..at].find(':')?, at)));
        match masked {
            Some((colon, at)) => {
                text += &format!("{}:{MARK}", &after[..colon]);
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    text + rest
}

/// Where a URL ends: with its quote or at a space, but in a setting with the line, because a quote or a
/// space may be the mistake in it.
fn end_of_word(before: &str, after: &str) -> usize {
    let scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let opening = before.trim_end_matches(scheme);
    if opening.trim_end_matches(['"', '\'']).trim_end().ends_with('=') {
        return after.len();
    }
    let end = match opening.chars().next_back().filter(|c| ['"', '\''].contains(c)) {
        Some(quote) => after.find([quote, '\n']),
        None => after.find(char::is_whitespace),
    };
    end.unwrap_or(after.len())
}

/// `key = VALUE`, and `key=VALUE` in the query of a URL, where the key says that the value is secret.
fn without_settings(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('=') {
        text += before;
        let (start, key) = last_key(&text);
        if !is_secret(key) {
            text.push('=');
            rest = after;
            continue;
        }
        if start.ends_with(['?', '&']) {
            let end = after.find(['&', '"', '\'', ' ', '\n']).unwrap_or(after.len());
            text += &format!("={MARK}");
            rest = &after[end..];
        } else {
            let end = if line.ends_with('\n') { "\n" } else { "" };
            return format!("{} = {MARK}{end}", text.trim_end());
        }
    }
    text + rest
}

/// Returns the text that ends the value of a secret's line, if it is on a later line.
fn opened_secret(line: &str) -> Option<&'static str> {
    let (before, value) = line.split_once('=')?;
    let (start, key) = last_key(before);
    if !start.trim().is_empty() || !is_secret(key) {
        return None;
    }
    let value = value.trim_start();
    let ends = [("\"\"\"", "\"\"\""), ("'''", "'''"), ("[", "]")];
    ends.into_iter().find_map(|(begin, end)| {
        let inside = value.strip_prefix(begin)?;
        (!inside.contains(end)).then_some(end)
    })
}

/// The text before the key at its end, and the key.
fn last_key(text: &str) -> (&str, &str) {
    let part = |c: char| c.is_alphanumeric() || "_-.\"'".contains(c);
    let text = text.trim_end();
    text.split_at(text.trim_end_matches(part).len())
}

fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 7] =
        ["password", "token", "secret", "private_key", "psk", "credential", "login"];
    let key = key.trim_matches(['"', '\'']).to_lowercase();
    WORDS.iter().any(|word| key.contains(word)) && !key.ends_with("_file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_passwords_are_taken_out() {
        let files = ["k1 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n", "pass word\n", "x\n"];
        let scrubber = Scrubber::new(files.into_iter());
        let text = "key AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=, pass word, x\n\
                    url = \"postgres://gw:p%40ss@db1,db2/vpn?password=abc&b=c\"\n\
                    postgres://gw@db1/vpn http://x.example/a:b@c\n";
        assert_eq!(
            scrubber.scrub(text),
            "key [secret], [secret], x\n\
             url = \"postgres://gw:[secret]@db1,db2/vpn?password=[secret]&b=c\"\n\
             postgres://gw@db1/vpn http://x.example/a:[secret]@c\n"
        );
    }

    fn scrubbed(text: &str) -> String {
        Scrubber::new(std::iter::empty()).scrub(text)
    }

    #[test]
    fn passwords_that_break_their_url_are_taken_out() {
        for password in
            ["pa/ss", "pa?ss", "p@/ss", "pa'ss", "pa\"ss", "pa ss", "a:b", "a://b", "a#b"]
        {
            for quote in ["\"", "'", ""] {
                let with = |password: &str| {
                    format!("url = {quote}postgres://gw:{password}@db:5432/vpn{quote}\n")
                };
                assert_eq!(scrubbed(&with(password)), with(MARK));
            }
        }
        for (text, expected) in [
            ("at postgres://gw:pa/ss@db/vpn now", "at postgres://gw:[secret]@db/vpn now"),
            ("\"tls://gw:a b'c@n1\", x:y@z", "\"tls://gw:[secret]@n1\", x:y@z"),
            ("'tls://n1:4222', x@z\n", "'tls://n1:4222', x@z\n"),
            ("postgres://db/vpn?password=a@b&c=d", "postgres://db/vpn?password=[secret]&c=d"),
        ] {
            assert_eq!(scrubbed(text), expected);
        }
    }

    #[test]
    fn values_of_secret_keys_are_taken_out() {
        for (text, expected) in [
            ("password = \"a b & c\" # d", "password = [secret]"),
            ("  db_token='a'\n", "  db_token = [secret]\n"),
            ("database.password=a\nx = 1\n", "database.password = [secret]\nx = 1\n"),
            ("\"secret\"   =   'a'", "\"secret\" = [secret]"),
            ("3 | private_key = \"a\"", "3 | private_key = [secret]"),
            ("#psk=a", "#psk = [secret]"),
            ("hints = { url = \"u\", login = \"a\" }", "hints = { url = \"u\", login = [secret]"),
            ("psk = [\n  \"a\",\n]\nx = 1\n", "psk = [secret]\nx = 1\n"),
            ("token = \"\"\"\na\n\"\"\"\nx = 1\n", "token = [secret]\nx = 1\n"),
        ] {
            assert_eq!(scrubbed(text), expected);
        }
        let files = "password_file = \"db.password\"\ncredentials_file = 'a'\nname = \"fra-1\"\n";
        assert_eq!(scrubbed(files), files);
    }

    #[test]
    fn password_of_a_login_is_taken_out() {
        let scrubber = Scrubber::new(["fra-1:pa:ss\n", "u:x\n"].into_iter());
        assert_eq!(
            scrubber.scrub("fra-1:pa:ss, fra-1, pa:ss, x, u:x\n"),
            "[secret], fra-1, [secret], x, [secret]\n"
        );
    }
}
