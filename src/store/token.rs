//! Behind one pool many gateways log in as one role, and each names itself by a token in every call.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, RowStream};
use zeroize::Zeroizing;

/// Functions that act for no gateway, and one that an owner of the database calls.
const WITHOUT_TOKEN: [&str; 5] = ["unwatched", "misfits", "prune", "enroll", "rewritten"];

const PREFIX: &str = "gpt_";
const DIGITS: usize = 64;

/// A gateway's token. `Debug` prints no part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

/// The text is no token. It is not repeated: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no token: put what `gatepost grant --token` printed into it")]
pub struct TokenError;

impl Token {
    /// Of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Zeroizing::new(format!("{PREFIX}{digits}")))
    }

    /// The text, for the operator who asked for it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest that the database knows.
    pub(super) fn digest(&self) -> Vec<u8> {
        Sha256::digest(self.0.as_bytes()).to_vec()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TokenError)?;
        let is_digit = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        if digits.len() != DIGITS || !digits.bytes().all(is_digit) {
            return Err(TokenError);
        }
        Ok(Self(Zeroizing::new(text.trim().to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// A session in which calls name the gateway, if the role does not.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub client: &'a Client,
    pub token: Option<&'a Token>,
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

impl Caller<'_> {
    pub async fn query_typed(
        self,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        let Some(token) = self.token else {
            return self.client.query_typed(query, parameters).await;
        };
        let (query, text) = (with_token(query, parameters.len() + 1), token.expose());
        self.client.query_typed(&query, &with(parameters, &text)).await
    }

    pub async fn query_typed_one(
        self,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Row, Error> {
        let Some(token) = self.token else {
            return self.client.query_typed_one(query, parameters).await;
        };
        let (query, text) = (with_token(query, parameters.len() + 1), token.expose());
        self.client.query_typed_one(&query, &with(parameters, &text)).await
    }

    /// A query without parameters, whose rows are decoded as they arrive.
    pub async fn stream(self, query: &str) -> Result<RowStream, Error> {
        match self.token {
            None => self.client.query_typed_raw(query, std::iter::empty::<(&str, Type)>()).await,
            Some(token) => {
                let token = std::iter::once((token.expose(), Type::TEXT));
                self.client.query_typed_raw(&with_token(query, 1), token).await
            }
        }
    }

    pub async fn batch_execute(self, statements: &str) -> Result<(), Error> {
        self.client.batch_execute(statements).await
    }
}

fn with<'a>(parameters: &[Parameter<'a>], token: &'a &str) -> Vec<Parameter<'a>> {
    let mut all = parameters.to_vec();
    all.push((token, Type::TEXT));
    all
}

/// The query with parameter `number` as the first argument of each function that acts for a gateway.
fn with_token(query: &str, number: usize) -> String {
    const SCHEMA: &str = "gatepost.";
    let mut parts = query.split(SCHEMA);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(SCHEMA);
        match part.split_once('(') {
            Some((name, rest)) if acts_for_a_gateway(name) => {
                let comma = if rest.starts_with(')') { "" } else { ", " };
                text.push_str(&format!("{name}(${number}{comma}{rest}"));
            }
            _ => text.push_str(part),
        }
    }
    text
}

/// Whether this is the name of a function with a token, and not another text before a parenthesis.
fn acts_for_a_gateway(name: &str) -> bool {
    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name && !name.is_empty() && !WITHOUT_TOKEN.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::super::connect::RIGHTS;
    use super::*;

    #[test]
    fn token_is_the_first_argument_of_each_function_of_a_gateway() {
        assert_eq!(
            with_token("select news from gatepost.news($1, $2)", 3),
            "select news from gatepost.news($3, $1, $2)"
        );
        assert_eq!(
            with_token("select gatepost.attach($1), gatepost.unwatched()", 2),
            "select gatepost.attach($2, $1), gatepost.unwatched()"
        );
        assert_eq!(with_token("select gatepost.merge()", 1), "select gatepost.merge($1)");
        let prune = "select gatepost.prune(pg_catalog.make_interval(secs => $1))";
        assert_eq!(with_token(prune, 2), prune);
        assert_eq!(with_token(RIGHTS, 1), RIGHTS, "it acts for no gateway");
    }

    #[test]
    fn tokens_are_told_from_other_text_and_never_printed() {
        let token = Token::from_random(&[0xab; 32]);
        assert_eq!(format!("{}\n", token.expose()).parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token(secret)");
        for wrong in ["", "hunter2", "gpt_", "gpt_00", &token.expose().to_uppercase()] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError), "{wrong}");
        }
        assert!(!TokenError.to_string().contains("hunter2"));
    }
}
