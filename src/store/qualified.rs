//! Names that a query leaves to the session to find. A session of a pool had other gateways before, and
//! the server looks for a type or a table among the temporary ones first.

use std::collections::BTreeSet;
use std::path::Path;

use super::connect::RIGHTS;

/// Files whose queries an owner of the database sends, in a session of its own.
const OF_AN_OWNER: [&str; 6] =
    ["grant.rs", "profile.rs", "rehearse.rs", "ineffective.rs", "migrate.rs", "script.rs"];

/// Types that are words of the grammar: the server takes its own.
const TYPE_WORDS: [&str; 5] = ["boolean", "bigint", "integer", "interval", "smallint"];

/// Words of the grammar that stand before a parenthesis or after `from`, and name nothing.
const WORDS: [&str; 24] = [
    "and", "any", "array", "as", "coalesce", "exists", "extract", "filter", "from", "greatest",
    "in", "lateral", "least", "not", "nullif", "on", "or", "over", "row", "select", "then",
    "using", "values", "when",
];

/// A piece of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Sign(char),
    Text,
}

/// Splits off comments, texts and names, which may be qualified.
fn tokens(query: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest) = (Vec::new(), query);
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    while let Some(first) = rest.chars().next() {
        let skipped = if let Some(comment) = rest.strip_prefix("--") {
            2 + comment.find('\n').unwrap_or(comment.len())
        } else if let Some(text) = rest.strip_prefix('\'') {
            tokens.push(Token::Text);
            1 + text.find('\'').map_or(text.len(), |end| end + 1)
        } else if is_of_a_name(first) {
            let end = rest.find(|c| !is_of_a_name(c)).unwrap_or(rest.len());
            tokens.push(Token::Name(&rest[..end]));
            end
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[skipped..];
    }
    tokens
}

/// The names of queries of a `with` clause: `name as (` and `name (column, ...) as (`.
fn queries_of_with<'a>(tokens: &[Token<'a>]) -> BTreeSet<&'a str> {
    let is_column = |token: &Token<'_>| matches!(token, Token::Name(_) | Token::Sign(','));
    let named = tokens.iter().enumerate().filter_map(|(at, token)| {
        let Token::Name(name) = *token else { return None };
        let mut rest = &tokens[at + 1..];
        if let [Token::Sign('('), columns @ ..] = rest {
            let end = columns.iter().position(|token| !is_column(token))?;
            rest = columns.get(end..)?.strip_prefix(&[Token::Sign(')')])?;
        }
        rest.starts_with(&[Token::Name("as"), Token::Sign('(')]).then_some(name)
    });
    named.collect()
}

/// The casts, functions and relations of a query that name no schema. A query of the `with` clause and an
/// alias hide every table.
fn unqualified(query: &str) -> BTreeSet<String> {
    let tokens = tokens(query);
    let own = queries_of_with(&tokens);
    let mut found = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let Token::Name(name) = *token else { continue };
        let before = |back: usize| at.checked_sub(back).map(|at| tokens[at]);
        let is_cast = (before(1), before(2)) == (Some(Token::Sign(':')), Some(Token::Sign(':')));
        let is_called = tokens.get(at + 1) == Some(&Token::Sign('('));
        // `join (select ...) alias (column)`.
        let is_alias = is_called && before(1) == Some(Token::Sign(')'));
        let is_read = matches!(before(1), Some(Token::Name("from" | "join")));
        let is_named = name.contains('.') || name.starts_with(|c: char| c.is_ascii_digit());
        let is_harmless = if is_cast {
            TYPE_WORDS.contains(&name)
        } else if is_called || is_read {
            WORDS.contains(&name) || is_alias || own.contains(name)
        } else {
            true
        };
        if !is_named && !is_harmless {
            found.insert(name.to_owned());
        }
    }
    found
}

/// The texts of a source file before its tests.
fn texts(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n").replace("\\\"", " ").replace("'\"'", "");
    code.split('"').skip(1).step_by(2).map(|text| text.replace("\\\n", " ")).collect()
}

#[test]
fn what_a_query_leaves_to_the_session_is_found() {
    let found = |query| Vec::from_iter(unqualified(query));
    assert_eq!(found("select $1::jsonb, a::text[], 'x'::regclass"), ["jsonb", "regclass", "text"]);
    assert_eq!(found("select lower(a), pg_catalog.left(b, 1) from users u"), ["lower", "users"]);
    assert_eq!(found("with a as (select 1) select coalesce(x, 1) from a join b on true"), ["b"]);
    let none = "select a::pg_catalog.text, b::integer from gatepost.peers($1) -- lower(a)";
    assert_eq!(found(none), Vec::<String>::new());
}

#[test]
fn no_query_of_an_agent_leaves_a_name_to_the_session() {
    assert_eq!(unqualified(RIGHTS), BTreeSet::new(), "rights.sql");
    let (mut queries, mut wrong) = (0, Vec::new());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if !file.is_file() || name == "qualified.rs" || OF_AN_OWNER.contains(&&*name) {
            continue;
        }
        for text in texts(&std::fs::read_to_string(&file).unwrap()) {
            let is_query = ["select ", "with ", "begin", "set ", "gatepost."];
            if is_query.iter().any(|begin| text.trim_start().starts_with(begin)) {
                queries += 1;
                let names = unqualified(&text);
                wrong.extend((!names.is_empty()).then(|| format!("{name}: {names:?} in {text}")));
            }
        }
    }
    assert!(queries > 25, "{queries} queries were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
