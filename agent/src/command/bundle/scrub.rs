//! Takes secrets out of text. Pure.

/// What stands for a secret.
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
        known.split_inclusive('\n').map(without_passwords).collect()
    }
}

/// `scheme://user:PASSWORD@host`, and what follows `password=`.
fn without_passwords(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(['/', '?', '"', '\'', ' ', '\n']).unwrap_or(after.len());
        let (authority, others) = after.split_at(end);
        text += before;
        text += "://";
        match authority.rsplit_once('@') {
            Some((login, host)) => {
                let user = login.split(':').next().unwrap_or_default();
                let password = if login.contains(':') { format!(":{MARK}") } else { String::new() };
                text += &format!("{user}{password}@{host}");
            }
            None => text += authority,
        }
        rest = others;
    }
    text += rest;
    without_settings(&text)
}

fn without_settings(line: &str) -> String {
    const KEY: &str = "password=";
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once(KEY) {
        let end = after.find(['&', '"', '\'', ' ', '\n']).unwrap_or(after.len());
        text += &format!("{before}{KEY}{MARK}");
        rest = &after[end..];
    }
    text + rest
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
             postgres://gw@db1/vpn http://x.example/a:b@c\n"
        );
    }
}
