//! An error and what it wraps.

use std::error::Error;
use std::{io, iter};

/// The error and its causes, separated by `: `. A cause whose text is already part of the line, as
/// of an error that quotes its source, is left out.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The error and those that it wraps, from the outermost. An [`io::Error`] hides what it wraps from
/// [`Error::source`].
pub fn chain<'a>(
    outer: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    }
    iter::successors(Some(outer), |error| inner(*error))
}

/// The outermost error of this type in the chain.
#[must_use]
pub fn find<'a, T: Error + 'static>(outer: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(outer).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Example {
        #[error("reading the device")]
        Plain(#[source] io::Error),
        #[error("reading the device: {0}")]
        Quoting(#[source] io::Error),
    }

    #[test]
    fn each_cause_is_named_once() {
        let cause = || io::Error::other("no memory");
        assert_eq!(causes(&Example::Plain(cause())), "reading the device: no memory");
        assert_eq!(causes(&Example::Quoting(cause())), "reading the device: no memory");
    }

    #[test]
    fn error_within_an_io_error_is_found() {
        let inner = io::Error::other(Example::Plain(io::Error::other("no memory")));
        let outer = io::Error::other(inner);
        assert!(matches!(find(&outer), Some(Example::Plain(_))));
        assert!(find::<std::fmt::Error>(&outer).is_none());
    }
}
