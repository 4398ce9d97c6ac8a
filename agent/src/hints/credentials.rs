//! The login at the broker: one line with user and password.

use std::str::FromStr;

use zeroize::Zeroizing;

/// User and password. It has no `Debug`: the password stays out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Zeroizing<String>,
}

/// Why a text is no login. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error("has no line USER:PASSWORD")]
    NoColon,
    #[error(
        "is a NATS credentials file with a JWT, which is not supported: write a line USER:PASSWORD"
    )]
    Jwt,
    #[error("has more than one line: write USER:PASSWORD")]
    Lines,
}

impl FromStr for Login {
    type Err = LoginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("BEGIN NATS USER JWT") {
            return Err(LoginError::Jwt);
        }
        let line = text.trim_matches(['\r', '\n']);
        if line.contains('\n') {
            return Err(LoginError::Lines);
        }
        let (user, password) = line.split_once(':').ok_or(LoginError::NoColon)?;
        if user.is_empty() {
            return Err(LoginError::NoColon);
        }
        Ok(Self { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_one_line_and_a_password_may_hold_colons() {
        let login: Login = "fra-1:a:b\n".parse().ok().unwrap();
        assert_eq!((&*login.user, &**login.password), ("fra-1", "a:b"));
        let error = |text: &str| text.parse::<Login>().err().unwrap();
        assert_eq!(error("fra-1"), LoginError::NoColon);
        assert_eq!(error(":secret"), LoginError::NoColon);
        assert_eq!(error("a:b\nc:d"), LoginError::Lines);
        assert_eq!(error("-----BEGIN NATS USER JWT-----\neyJ\n"), LoginError::Jwt);
    }
}
