//! The userspace WireGuard device: a process of its own, which outlives the agent.
//!
//! ```text
//! agent, wg --socket--> request --> engine --+-- GotaTun
//!                                            +-- transport: TUN, UDP
//! ```

mod allowed;
mod edit;
mod engine;
mod error;
mod in_flight;
mod outgoing;
mod port;
mod reading;
mod request;
mod serve;
mod socket;
mod takings;
mod transport;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::info;

#[cfg(any(test, feature = "fuzzing"))]
pub(super) use request::Request;

use super::wireguard::{is_there, listens, process_id, socket_path};
use crate::model::InterfaceName;
use error::{READY, READY_TIMEOUT, check_name};

pub use error::DeviceError;
pub use serve::run_userspace_device;

/// How long a process may take to end that was killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts `exe device <name> --serve alone` so that it outlives this process, and returns when it
/// answers. Does nothing where a device of this name answers already.
///
/// # Errors
/// When it cannot be started or dies, and when a stranger has its name.
pub fn spawn_device(exe: &Path, name: &InterfaceName) -> Result<(), DeviceError> {
    check_name(name)?;
    if is_there(name)? {
        return Ok(());
    }
    let exe_text = exe.display().to_string();
    let start = |source| DeviceError::Start { exe: exe_text.clone(), name: name.clone(), source };
    // A process group of its own: what stops the agent's terminal or the agent leaves it running.
    let child = Command::new(exe)
        .args(["device", name.as_str(), "--serve", "alone"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(start)?;
    match watch(child, name).recv_timeout(READY_TIMEOUT) {
        Ok(None) => Ok(()),
        Ok(Some(status)) => Err(DeviceError::Died { exe: exe_text, name: name.clone(), status }),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(DeviceError::Late { exe: exe_text, name: name.clone() })
        }
    }
}

/// Stops the device of this name in this network namespace, if there is one.
///
/// # Errors
/// When its process may not be stopped.
pub fn stop_device(name: &InterfaceName) -> Result<(), DeviceError> {
    end_device(name, Signal::SIGTERM)
}

/// Ends the device of this name, if there is one, as failed, so that its service starts it again: its
/// link is gone, so it cannot carry packets any more.
pub(super) fn abandon_device(name: &InterfaceName) -> Result<(), DeviceError> {
    end_device(name, Signal::SIGKILL)
}

fn end_device(name: &InterfaceName, signal: Signal) -> Result<(), DeviceError> {
    let Some(pid) = process_id(name) else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => return Err(DeviceError::Stop { name: name.clone(), pid, errno }),
    }
    // The next one of this name needs its socket and its link.
    let asked = Instant::now();
    while process_id(name) == Some(pid) {
        if asked.elapsed() > END_TIMEOUT {
            return Err(DeviceError::StillThere { name: name.clone(), pid });
        }
        thread::sleep(Duration::from_millis(5));
    }
    // A device of the last version leaves its file behind, as does one that was killed.
    let path = socket_path(name);
    if !listens(&path) {
        let _ = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Reports once: `None` when the child is ready, its status when it ended before. Then waits for its
/// end, so that no zombie is left.
fn watch(mut child: Child, name: &InterfaceName) -> Receiver<Option<String>> {
    let (report, reported) = channel();
    let name = name.clone();
    thread::spawn(move || {
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            let _ = BufReader::new(output).read_line(&mut line);
        }
        let ready = line.trim_end() == READY;
        if ready {
            let _ = report.send(None);
        }
        let status = match child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if ready {
            // The repair, which follows, is the warning.
            info!(interface = %name, status, "the userspace device {name} ended with {status}");
        } else {
            let _ = report.send(Some(status));
        }
    });
    reported
}
