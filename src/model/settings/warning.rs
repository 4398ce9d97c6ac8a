//! Rows of `settings` that are not used as they are written.

use std::fmt;

use crate::model::limit::SETTING_BYTES;
use crate::model::policy::Quoted;

/// A row of `settings` that is not used as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SettingWarning {
    pub category: String,
    pub key: String,
    pub flaw: SettingFlaw,
}

/// The flaw of a setting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SettingFlaw {
    UnknownKey {
        nearest: Option<&'static str>,
    },
    /// `expected` says what would be right, and what is done instead.
    BadValue {
        value: Box<str>,
        expected: &'static str,
    },
    /// As `BadValue`, of a value that was not read to its end.
    TooLong {
        expected: &'static str,
    },
}

impl fmt::Display for SettingWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting {} in category {}: ", Quoted(&self.key), Quoted(&self.category))?;
        match &self.flaw {
            SettingFlaw::UnknownKey { nearest: Some(nearest) } => {
                write!(f, "no such key, the row is ignored; nearest is \"{nearest}\"")
            }
            SettingFlaw::UnknownKey { nearest: None } => {
                f.write_str("no such key, the row is ignored")
            }
            SettingFlaw::BadValue { value, expected } => {
                write!(f, "{} is not {expected}", Quoted(value))
            }
            SettingFlaw::TooLong { expected } => {
                write!(f, "a value of more than {SETTING_BYTES} bytes is not {expected}")
            }
        }
    }
}

/// The key that this one was probably meant to be.
pub(super) fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LEAST_LIKENESS: f64 = 0.6;
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(key, name), name))
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
