//! `database.require_auth`: by which method a server may ask the agent to log in. As in libpq 16, a
//! request for another method is refused before anything is sent in answer.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The server's request, in the words of libpq's `require_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The password in clear text.
    Password,
    Md5,
    ScramSha256,
    Gss,
    Sspi,
    /// Nothing: the server lets the role in.
    None,
}

impl Method {
    const ALL: [Self; 6] =
        [Self::Password, Self::Md5, Self::ScramSha256, Self::Gss, Self::Sspi, Self::None];

    /// The method of an authentication request (PostgreSQL manual, "Message Formats").
    pub(super) const fn of_request(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            3 => Some(Self::Password),
            5 => Some(Self::Md5),
            7 => Some(Self::Gss),
            9 => Some(Self::Sspi),
            10 => Some(Self::ScramSha256),
            _ => None,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
            Self::Gss => "gss",
            Self::Sspi => "sspi",
            Self::None => "none",
        }
    }
}

/// The methods that `database.require_auth` allows: never none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequireAuth(BTreeSet<Method>);

/// Why a text is no list of methods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequireAuthError {
    #[error("contains {0:?}: write scram-sha-256, md5, password or none")]
    Unknown(String),
    #[error(
        "contains {0}, which Gatepost does not speak: write scram-sha-256, md5, password or none"
    )]
    Unsupported(&'static str),
    #[error(
        "mixes methods with and without !: write those that are allowed, or those that are not"
    )]
    Mixed,
    #[error("allows no method: write scram-sha-256, md5, password or none")]
    Empty,
}

impl FromStr for RequireAuth {
    type Err = RequireAuthError;

    /// Methods separated by commas; or, each with `!` before it, those that are not allowed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> =
            text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        let negated = words.iter().filter(|word| word.starts_with('!')).count();
        if negated != 0 && negated != words.len() {
            return Err(RequireAuthError::Mixed);
        }
        let mut named = BTreeSet::new();
        for word in words {
            let word = word.trim_start_matches('!');
            let method = Method::ALL.into_iter().find(|method| method.word() == word);
            let method = method.ok_or_else(|| RequireAuthError::Unknown(word.to_owned()))?;
            if negated == 0 && matches!(method, Method::Gss | Method::Sspi) {
                return Err(RequireAuthError::Unsupported(method.word()));
            }
            named.insert(method);
        }
        if negated != 0 {
            named = Method::ALL.into_iter().filter(|method| !named.contains(method)).collect();
        }
        if named.is_empty() { Err(RequireAuthError::Empty) } else { Ok(Self(named)) }
    }
}

impl fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|method| method.word()).collect();
        f.write_str(&words.join(","))
    }
}

/// Which requests for a login are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    allowed: RequireAuth,
    /// The default of this release: md5 over verified TLS is answered, with a warning.
    tolerates_md5: bool,
}

/// The answer to a server's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Answered,
    /// Answered, and a later release will refuse it.
    Tolerated,
    Refused,
}

impl Rule {
    /// The rule of the setting, or the default over TCP. `encrypted`: over verified TLS.
    /// `has_certificate`: the client shows one, so that a server need not ask.
    pub fn new(setting: Option<RequireAuth>, encrypted: bool, has_certificate: bool) -> Self {
        let tolerates_md5 = encrypted && setting.is_none();
        let allowed = setting.unwrap_or_else(|| {
            let none = has_certificate.then_some(Method::None);
            RequireAuth(none.into_iter().chain([Method::ScramSha256]).collect())
        });
        Self { allowed, tolerates_md5 }
    }

    pub fn judge(&self, asked: Method) -> Verdict {
        if self.allowed.0.contains(&asked) {
            Verdict::Answered
        } else if self.tolerates_md5 && asked == Method::Md5 {
            Verdict::Tolerated
        } else {
            Verdict::Refused
        }
    }

    pub fn refusal(&self, asked: Method) -> RefusedMethod {
        RefusedMethod { asked, allowed: self.allowed.clone() }
    }
}

/// A server asked for a method that is not allowed. Nothing was sent in answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedMethod {
    pub asked: Method,
    pub allowed: RequireAuth,
}

impl fmt::Display for RefusedMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asks = match self.asked {
            Method::Password => "asks for the password in clear text",
            Method::Md5 => "asks for an MD5 hash of the password",
            Method::ScramSha256 => "asks for a login by SCRAM-SHA-256",
            Method::Gss => "asks for a login by GSSAPI",
            Method::Sspi => "asks for a login by SSPI",
            Method::None => "asks for no login (`trust` in pg_hba.conf, or it is not your server)",
        };
        let (word, allowed) = (self.asked.word(), &self.allowed);
        write!(
            f,
            "the server {asks}, and database.require_auth allows only {allowed}; nothing was sent: "
        )?;
        match self.asked {
            Method::Gss | Method::Sspi => {
                f.write_str("let pg_hba.conf ask this role for scram-sha-256")
            }
            Method::Md5 | Method::Password => write!(
                f,
                "set the role's password again with password_encryption = 'scram-sha-256' and let \
                 pg_hba.conf ask for scram-sha-256, or write require_auth = \"{allowed},{word}\" in \
                 section [database]"
            ),
            Method::None | Method::ScramSha256 => {
                write!(
                    f,
                    "if this is right, write require_auth = \"{allowed},{word}\" in section [database]"
                )
            }
        }
    }
}

impl std::error::Error for RefusedMethod {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequireAuth, RequireAuthError> {
        text.parse()
    }

    #[test]
    fn methods_are_listed_or_excluded() {
        let methods = parse("scram-sha-256, none").unwrap();
        assert_eq!(methods.to_string(), "scram-sha-256,none");
        assert_eq!(parse("!password,!md5").unwrap().to_string(), "scram-sha-256,gss,sspi,none");
        assert_eq!(parse("scram-sha-256,!md5"), Err(RequireAuthError::Mixed));
        assert_eq!(parse("scram"), Err(RequireAuthError::Unknown("scram".into())));
        assert_eq!(parse("gss"), Err(RequireAuthError::Unsupported("gss")));
        assert_eq!(parse(" ,"), Err(RequireAuthError::Empty));
    }

    #[test]
    fn by_default_only_scram_is_answered_and_md5_over_tls_tolerated() {
        let judge =
            |encrypted, certificate, asked| Rule::new(None, encrypted, certificate).judge(asked);
        for encrypted in [false, true] {
            assert_eq!(judge(encrypted, false, Method::ScramSha256), Verdict::Answered);
            assert_eq!(judge(encrypted, false, Method::Password), Verdict::Refused);
            assert_eq!(judge(encrypted, false, Method::None), Verdict::Refused);
            assert_eq!(judge(encrypted, true, Method::None), Verdict::Answered);
        }
        assert_eq!(judge(true, false, Method::Md5), Verdict::Tolerated);
        assert_eq!(judge(false, false, Method::Md5), Verdict::Refused);
        let scram = Rule::new(Some(parse("scram-sha-256").unwrap()), true, true);
        assert_eq!(scram.judge(Method::Md5), Verdict::Refused);
        assert_eq!(scram.judge(Method::None), Verdict::Refused);
    }
}
