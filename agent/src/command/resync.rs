//! `gatepost resync`: a comparison by the running agent.

use std::time::Duration;

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{count, print, printable, span};
use gatepost::reconcile::status::Status;

/// Has the agent compare everything again, and waits until the kernel is proven equal.
///
/// # Errors
/// No agent, or the pass failed.
pub fn resync(config: &Config) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    let before = client.status()?;
    client.resync()?;
    print(&told(&before, &client.status()?))?;
    Ok(Exit::Success)
}

/// Describes the result of the comparison.
fn told(before: &Status, after: &Status) -> String {
    let found = match &after.sync.last_pass {
        Some(pass) if after.sync.last_pass != before.sync.last_pass => {
            let took = span(Duration::from_millis(pass.duration_ms));
            format!("what differed is put right ({} in {took})", count(pass.steps, "step"))
        }
        _ => "nothing differed".to_owned(),
    };
    let state = after.state.to_string();
    format!("compared everything again: {found}; the gateway is {}\n", printable(&state))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use gatepost::reconcile::status::{PassStatus, State, Timestamp};

    use super::*;

    #[test]
    fn what_was_put_right_is_told() {
        let before = Status { state: State::Ready, ..Status::default() };
        assert_eq!(
            told(&before, &before),
            "compared everything again: nothing differed; the gateway is ready\n"
        );
        let mut after = before.clone();
        let at = Timestamp(SystemTime::UNIX_EPOCH);
        after.sync.last_pass = Some(PassStatus { at, duration_ms: 12, steps: 3, refused: 0 });
        assert_eq!(
            told(&before, &after),
            "compared everything again: what differed is put right (3 steps in 12 ms); the gateway is \
             ready\n"
        );
        let later = Status { state: State::Ready, ..after.clone() };
        assert!(told(&after, &later).contains("nothing differed"), "that pass came before");
    }
}
