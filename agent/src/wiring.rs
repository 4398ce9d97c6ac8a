//! The few calls from the commands into the loop and the data plane, in one place.

use std::net::IpAddr;

use gatepost::model::{InterfaceName, PrivateKey};

use crate::config::Config;
use crate::handles::LoopEnd;
use crate::status::{Explanation, PlanReport};

/// Why a command got no answer from the library.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("this build cannot {0} yet")]
    NotWired(&'static str),
}

/// What the loop needs beside its [`LoopEnd`].
#[expect(dead_code, reason = "the reconcile loop's end")]
#[derive(Debug)]
pub struct RunOptions<'a> {
    pub config: &'a Config,
    pub private_key: PrivateKey,
    /// One full pass and a report, then return.
    pub once: bool,
}

/// Runs the reconcile loop until `end.stop` becomes true, or for one pass.
pub async fn run(options: RunOptions<'_>, end: LoopEnd) -> Result<(), WiringError> {
    drop((options, end));
    Err(WiringError::NotWired("run the loop"))
}

/// What a pass would change.
pub async fn plan(_config: &Config) -> Result<PlanReport, WiringError> {
    Err(WiringError::NotWired("plan"))
}

/// The verdict, from the database alone.
pub async fn explain(
    _config: &Config,
    _who: &str,
    _destination: IpAddr,
) -> Result<Explanation, WiringError> {
    Err(WiringError::NotWired("explain without a running agent"))
}

/// Runs the userspace device in the foreground.
pub fn run_device(_name: &InterfaceName) -> Result<(), WiringError> {
    Err(WiringError::NotWired("run a userspace device"))
}

/// Removes what is ours from the kernel; says what that was.
pub async fn down(_config: &Config) -> Result<Vec<String>, WiringError> {
    Err(WiringError::NotWired("remove the interface"))
}
