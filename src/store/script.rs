//! A file of SQL as single statements, which one transaction can run. Pure.
//!
//! The rules are those of psql: a semicolon ends a statement, but for one within quotes, comments,
//! parentheses or the `begin atomic ... end` of a function.

/// One statement, without its semicolon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Where it begins.
    pub line: usize,
    pub text: String,
    /// It inserts, updates, deletes or merges: its result is the number of the rows that it changed. Of a
    /// `with`, what stands behind it counts.
    pub is_change: bool,
}

/// Why a file cannot be run in a transaction that is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    #[error(
        "line {line}: {word} cannot stand here: all statements run in one transaction, which is rolled \
         back: leave it out"
    )]
    Transaction { line: usize, word: String },
    #[error(
        "line {line}: {command} is a command of psql, not SQL: leave it out, or write its result"
    )]
    MetaCommand { line: usize, command: String },
    #[error("line {line}: {name} is a variable of psql: write its value")]
    Variable { line: usize, name: String },
    #[error("line {line}: COPY from or to the client needs psql: write INSERT, or name a file")]
    Copy { line: usize },
    #[error("line {line}: what begins here with {quote} does not end")]
    Unterminated { line: usize, quote: String },
    #[error("there is no statement")]
    Empty,
}

/// Splits a file. All of it is checked before the first statement can run.
///
/// # Errors
/// The first thing in it that cannot run.
pub fn split(text: &str) -> Result<Vec<Statement>, ScriptError> {
    let text = text.trim_start_matches('\u{feff}');
    let mut scanner = Scanner { text, at: 0, line: 1 };
    let mut statements = Vec::new();
    while let Some(statement) = scanner.statement()? {
        statements.push(statement);
    }
    if statements.is_empty() { Err(ScriptError::Empty) } else { Ok(statements) }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

/// The parsed part of one statement.
#[derive(Default)]
struct Seen {
    /// In upper case, outside quotes.
    words: Vec<String>,
    /// What a `with` leads to, or the first word.
    verb: Option<String>,
    parentheses: usize,
    /// Open `begin` and `case` of a function's body in SQL.
    bodies: usize,
}

/// How many words of a statement are kept: enough to recognize it. COPY keeps more.
const WORDS: usize = 64;
const CHANGES: [&str; 4] = ["INSERT", "UPDATE", "DELETE", "MERGE"];

impl Seen {
    fn word(&mut self, word: &str) {
        let word = word.to_ascii_uppercase();
        if self.parentheses == 0 && self.is_routine() {
            match word.as_str() {
                "BEGIN" => self.bodies += 1,
                "CASE" if self.bodies > 0 => self.bodies += 1,
                "END" => self.bodies = self.bodies.saturating_sub(1),
                _ => {}
            }
        }
        if self.verb.is_none() && self.parentheses == 0 && self.is_verb(&word) {
            self.verb = Some(word.clone());
        }
        if self.words.len() < WORDS {
            self.words.push(word);
        }
    }

    fn is_verb(&self, word: &str) -> bool {
        match self.words.first() {
            None => word != "WITH",
            Some(first) => first == "WITH" && (word == "SELECT" || CHANGES.contains(&word)),
        }
    }

    fn is_routine(&self) -> bool {
        let words: Vec<&str> = self.words.iter().take(4).map(String::as_str).collect();
        let kind = match words[..] {
            ["CREATE", "OR", "REPLACE", kind] | ["CREATE", kind, ..] => kind,
            _ => return false,
        };
        ["FUNCTION", "PROCEDURE"].contains(&kind)
    }

    fn check(&self, line: usize) -> Result<(), ScriptError> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let ends = |word: &str| ScriptError::Transaction { line, word: word.to_owned() };
        match words[..] {
            [word @ ("BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "ABORT"), ..] => Err(ends(word)),
            ["START", "TRANSACTION", ..] => Err(ends("START TRANSACTION")),
            ["PREPARE", "TRANSACTION", ..] => Err(ends("PREPARE TRANSACTION")),
            ["COPY", ..] if words.iter().any(|it| ["STDIN", "STDOUT"].contains(it)) => {
                Err(ScriptError::Copy { line })
            }
            _ => Ok(()),
        }
    }
}

impl<'a> Scanner<'a> {
    /// The next statement; `None`: the text has ended.
    fn statement(&mut self) -> Result<Option<Statement>, ScriptError> {
        let mut seen = Seen::default();
        // The first character that is no space and in no comment.
        let mut start: Option<(usize, usize)> = None;
        while let Some(next) = self.rest().chars().next() {
            if self.skip_comment()? {
                continue;
            }
            if next.is_whitespace() {
                self.advance(next.len_utf8());
                continue;
            }
            if next == ';' && seen.parentheses == 0 && seen.bodies == 0 {
                let end = self.at;
                self.advance(1);
                match start {
                    Some(start) => return self.finish(start, end, &seen).map(Some),
                    None => continue,
                }
            }
            start.get_or_insert((self.at, self.line));
            self.token(next, &mut seen)?;
        }
        start.map(|start| self.finish(start, self.text.len(), &seen)).transpose()
    }

    fn finish(
        &self,
        (start, line): (usize, usize),
        end: usize,
        seen: &Seen,
    ) -> Result<Statement, ScriptError> {
        seen.check(line)?;
        let text = self.text[start..end].trim_end().to_owned();
        let is_change = seen.verb.as_deref().is_some_and(|verb| CHANGES.contains(&verb));
        Ok(Statement { line, text, is_change })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.text[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
    }

    /// Passes the rest of a quote or comment that begins here: `skip` bytes, then all to the end of `close`.
    fn pass(&mut self, skip: usize, close: &str) -> Result<(), ScriptError> {
        let rest = self.rest();
        let found = rest[skip..].find(close).ok_or_else(|| self.unterminated(&rest[..skip]))?;
        self.advance(skip + found + close.len());
        Ok(())
    }

    fn unterminated(&self, quote: &str) -> ScriptError {
        ScriptError::Unterminated { line: self.line, quote: quote.to_owned() }
    }

    fn skip_comment(&mut self) -> Result<bool, ScriptError> {
        let rest = self.rest();
        if rest.starts_with("--") {
            self.advance(rest.find('\n').unwrap_or(rest.len()));
            return Ok(true);
        }
        if !rest.starts_with("/*") {
            return Ok(false);
        }
        // They nest.
        let (mut depth, mut at) = (1, 2);
        while depth > 0 {
            let ahead = &rest[at..];
            let (open, close) = (ahead.find("/*"), ahead.find("*/"));
            let close = close.ok_or_else(|| self.unterminated("/*"))?;
            match open.filter(|open| *open < close) {
                Some(open) => (depth, at) = (depth + 1, at + open + 2),
                None => (depth, at) = (depth - 1, at + close + 2),
            }
        }
        self.advance(at);
        Ok(true)
    }

    /// Passes one token, which `next` begins.
    fn token(&mut self, next: char, seen: &mut Seen) -> Result<(), ScriptError> {
        let rest = self.rest();
        let line = self.line;
        match next {
            '\'' => self.pass(1, "'"),
            '"' => self.pass(1, "\""),
            '$' => self.dollar(),
            '\\' => {
                let command = rest.split_whitespace().next().unwrap_or("\\").to_owned();
                Err(ScriptError::MetaCommand { line, command })
            }
            ':' if rest.starts_with("::") || rest.starts_with(":=") => {
                self.advance(2);
                Ok(())
            }
            ':' if rest.starts_with(":'") || rest.starts_with(":\"") => {
                let name = rest.split([' ', ',', ')', ';', '\n']).next().unwrap_or(":").to_owned();
                Err(ScriptError::Variable { line, name })
            }
            '(' => {
                seen.parentheses += 1;
                self.advance(1);
                Ok(())
            }
            ')' => {
                seen.parentheses = seen.parentheses.saturating_sub(1);
                self.advance(1);
                Ok(())
            }
            letter if letter.is_alphabetic() || letter == '_' => {
                let is_part = |c: char| c.is_alphanumeric() || "_$".contains(c);
                let word = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
                if word.eq_ignore_ascii_case("e") && rest[1..].starts_with('\'') {
                    return self.escapes();
                }
                seen.word(word);
                self.advance(word.len());
                Ok(())
            }
            other => {
                self.advance(other.len_utf8());
                Ok(())
            }
        }
    }

    /// `E'...'`, in which a backslash takes the next character's meaning.
    fn escapes(&mut self) -> Result<(), ScriptError> {
        let mut escaped = false;
        for (index, c) in self.rest().char_indices().skip(2) {
            if c == '\'' && !escaped {
                self.advance(index + 1);
                return Ok(());
            }
            escaped = c == '\\' && !escaped;
        }
        Err(self.unterminated("E'"))
    }

    /// `$tag$...$tag$`; any other `$` stands for itself.
    fn dollar(&mut self) -> Result<(), ScriptError> {
        let rest = self.rest();
        let tag = rest[1..].find('$').map(|end| &rest[..end + 2]);
        let is_tag = |tag: &&str| {
            let name = &tag[1..tag.len() - 1];
            !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        match tag.filter(is_tag) {
            Some(tag) => self.pass(tag.len(), tag),
            None => {
                self.advance(1);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        split(text).unwrap().into_iter().map(|statement| statement.text).collect()
    }

    #[test]
    fn semicolons_within_something_end_no_statement() {
        assert_eq!(texts("select 1; ; select 2"), ["select 1", "select 2"]);
        for one in [
            "select 'a;b', \"c;d\", 'it''s;'",
            r"select E'a\';b', e'\\'",
            "select $$a;b$$, $tag$ ; $$ ; $tag$, $1",
            "select 1 -- a; b\n + 2",
            "select /* a; /* b; */ c; */ 1",
            "create rule r as on delete to t do (select 1; select 2)",
            "create function f() returns int begin atomic select case when true then 1 end; select 2; end",
            "create or replace procedure p() language sql begin atomic insert into t values (1); end",
            "do $$ begin perform 1; end $$",
            "select a::text, b[1:2] from t",
        ] {
            assert_eq!(texts(&format!("{one};\nselect 2;")), [one, "select 2"]);
        }
    }

    #[test]
    fn statements_that_change_rows_are_told_from_others() {
        let is_change = |text: &str| split(text).unwrap()[0].is_change;
        for change in [
            "update devices set name = 'x'",
            "/* why */ Delete from users",
            "insert into users select 1",
            "merge into users using devices on true when matched then delete",
            "with gone as (select 1), more as materialized (select 2) update devices set name = 'x'",
        ] {
            assert!(is_change(change), "{change}");
        }
        for other in [
            "select 'update' from devices for update",
            "with gone as (delete from users returning id) select from gone",
            "create function f() returns void begin atomic update devices set name = 'x'; end",
            "explain update devices set name = 'x'",
            "alter table users add column update int",
            "(select 1)",
        ] {
            assert!(!is_change(other), "{other}");
        }
    }

    #[test]
    fn what_would_end_the_transaction_is_refused_with_its_line() {
        for word in [
            "begin",
            "Commit",
            "end",
            "rollback",
            "abort",
            "start transaction",
            "prepare transaction 'a'",
            "rollback to savepoint a",
            "/* x */ commit and chain",
        ] {
            let error = split(&format!("select 1;\n{word};")).unwrap_err();
            assert!(matches!(error, ScriptError::Transaction { line: 2, .. }), "{word}: {error}");
        }
        assert_eq!(texts("prepare p as select 1; savepoint a; select 'commit'").len(), 3);
    }

    #[test]
    fn what_only_psql_understands_is_refused() {
        let error = |text: &str| split(text).unwrap_err().to_string();
        assert!(error("select 1;\n\\set a b").starts_with("line 2: \\set is a command of psql"));
        assert!(error("select 1 \\gset").starts_with("line 1: \\gset is"));
        assert!(error("select :'user'").starts_with("line 1: :'user' is a variable of psql"));
        assert!(error("copy t (a) from stdin;\n1\n\\.").starts_with("line 1: COPY"));
        assert_eq!(error("select 'a\n;"), "line 1: what begins here with ' does not end");
        assert_eq!(error("select 1; /* a"), "line 1: what begins here with /* does not end");
        assert_eq!(error(" -- nothing\n ; "), "there is no statement");
    }
}
