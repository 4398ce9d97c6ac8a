//! One line of docs/faults.md for each fault that a test caused and saw survived: `make faults` collects them.

use std::fmt;
use std::time::Duration;

/// What became of a fault. A test prints it last, after it has asserted all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// What happened.
    pub fault: &'a str,
    /// What the agent makes of it.
    pub expected: &'a str,
    /// For how long the peers that it concerns may go without an answer. No other peer may lose any.
    pub bound: Bound,
    /// What was lost, where packets were sent meanwhile.
    pub lost: Option<Lost>,
    /// From the fault, or from the end of one that lasts, until the kernel was what the rows ask for, where
    /// that was measured.
    pub converged_in: Option<Duration>,
    /// Where it ran, such as `userspace WireGuard`.
    pub tier: &'a str,
}

/// For how long peers that a fault concerns may go without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every tier that uses this file has all of them")]
pub enum Bound {
    /// The test has seen that they lose no packet.
    None,
    /// The test has seen that it takes no longer.
    Within(Duration),
    /// Until somebody ends the fault.
    WhileItLasts,
    /// The test sends no packets of peers meanwhile.
    NotMeasured,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("0"),
            Self::Within(bound) => write!(f, "{}", bound.as_millis()),
            Self::WhileItLasts => f.write_str("as long as it lasts"),
            Self::NotMeasured => f.write_str("not measured"),
        }
    }
}

/// Pings that were not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub pings: usize,
    pub of: usize,
    /// The longest time without an answer, if any was lost.
    pub outage: Duration,
}

impl Row<'_> {
    /// Prints it after the name of the test, which is that of its thread.
    pub fn print(&self) {
        let lost = self.lost.map_or_else(
            || "not measured | -".to_owned(),
            |Lost { pings, of, outage }| format!("{pings} of {of} | {}", outage.as_millis()),
        );
        println!(
            "FAULT {} | {} | {} | {lost} | {} | {} | {}",
            self.fault,
            self.expected,
            self.bound,
            self.converged_in.map_or_else(|| "-".to_owned(), |it| it.as_millis().to_string()),
            self.tier,
            std::thread::current().name().unwrap_or("?"),
        );
    }
}

/// A fault of the database, where no packets are sent.
pub fn row(fault: &str, expected: &str, converged_in: Option<Duration>) {
    let bound = Bound::NotMeasured;
    Row { fault, expected, bound, lost: None, converged_in, tier: "PostgreSQL" }.print();
}
