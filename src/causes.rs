//! An error as one line of text.

use std::error::Error;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Example {
        #[error("reading the device")]
        Plain(#[source] std::io::Error),
        #[error("reading the device: {0}")]
        Quoting(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_named_once() {
        let cause = || std::io::Error::other("no memory");
        assert_eq!(causes(&Example::Plain(cause())), "reading the device: no memory");
        assert_eq!(causes(&Example::Quoting(cause())), "reading the device: no memory");
    }
}
