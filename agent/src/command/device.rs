//! `gatepost device`: the userspace WireGuard device, in a process of its own.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use gatepost::model::InterfaceName;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Serve;
use crate::exit::{CommandError, Exit};
use crate::wiring;

/// Runs the device until SIGTERM or SIGINT.
///
/// The embedded device takes these signals for itself and cannot end in order, so it serves in a
/// child of this process, which waits for them and removes what the device leaves behind.
///
/// # Errors
/// No TUN device, no rights, a name that is taken; the device died by itself, or because somebody
/// removed its socket.
pub fn keep(name: &InterfaceName) -> Result<Exit, CommandError> {
    super::small_runtime()?.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut device = Command::new(std::env::current_exe()?)
            .args(["device", name.as_str(), "--serve", "with-parent"])
            .kill_on_drop(true)
            .spawn()?;
        let ended = tokio::select! {
            ended = device.wait() => return judge(name, ended?),
            _ = terminate.recv() => stop(name, &mut device).await,
            _ = interrupt.recv() => stop(name, &mut device).await,
        };
        ended.map(|()| Exit::Success)
    })
}

/// Is the device's process.
///
/// # Errors
/// No TUN device, no rights, a name that is taken.
pub fn serve(name: &InterfaceName, serve: Serve) -> Result<Exit, CommandError> {
    if serve == Serve::WithParent {
        set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)?;
    }
    wiring::serve_device(name)?;
    Ok(Exit::Success)
}

async fn stop(name: &InterfaceName, device: &mut Child) -> Result<(), CommandError> {
    wiring::stop_device(name)?;
    // It may not answer yet, and then nothing told it.
    device.start_kill()?;
    device.wait().await?;
    Ok(())
}

/// What to say when the device ended by itself.
fn judge(name: &InterfaceName, ended: ExitStatus) -> Result<Exit, CommandError> {
    // Told to stop before this process was: a terminal tells both, `gatepost down` only the device.
    const STOPPED: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
    match (ended.code(), ended.signal().map(Signal::try_from)) {
        (Some(0), _) => Err(CommandError::Refused(format!(
            "somebody removed the socket of the userspace device {name}: every session through it \
             is gone"
        ))),
        // It has said why.
        (Some(_), _) => Ok(Exit::Failure),
        (None, Some(Ok(signal))) if STOPPED.contains(&signal) => Ok(Exit::Success),
        (None, _) => Err(CommandError::Refused(format!(
            "the userspace device {name} ended with {ended}: every session through it is gone"
        ))),
    }
}
