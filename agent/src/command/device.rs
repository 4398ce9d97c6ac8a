//! `gatepost device`: the userspace WireGuard device, in a process of its own.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use gatepost::model::InterfaceName;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Serve;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::{runtime, wiring};

/// Runs the device in a child process until SIGTERM or SIGINT, then removes what it leaves behind.
///
/// The embedded device handles these signals itself and cannot clean up after them, so it needs a
/// parent that does.
///
/// # Errors
/// No TUN device, no rights, a name that is taken; [`CommandError::DeviceEnded`],
/// [`CommandError::DeviceSocketRemoved`].
pub fn supervise(name: &InterfaceName) -> Result<Exit, CommandError> {
    runtime::on_this_thread()?.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut device = Command::new(std::env::current_exe()?)
            .args(["device", name.as_str(), "--serve", "with-parent"])
            .kill_on_drop(true)
            .spawn()?;
        let stopped = tokio::select! {
            status = device.wait() => return ended(name, status?),
            _ = terminate.recv() => stop(name, &mut device).await,
            _ = interrupt.recv() => stop(name, &mut device).await,
        };
        stopped.map(|()| Exit::Success)
    })
}

/// Runs the device in this process.
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
    // A device that does not answer yet was not told to stop.
    device.start_kill()?;
    device.wait().await?;
    Ok(())
}

/// The outcome where the device ended before this process was told to stop.
fn ended(name: &InterfaceName, status: ExitStatus) -> Result<Exit, CommandError> {
    // A terminal signals parent and child alike; `gatepost down` signals only the device.
    const STOPPED: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
    let name = name.clone();
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(0), _) => Err(CommandError::DeviceSocketRemoved { name }),
        // The child has printed its error.
        (Some(_), _) => Ok(Exit::Failure),
        (None, Some(Ok(signal))) if STOPPED.contains(&signal) => Ok(Exit::Success),
        (None, _) => Err(CommandError::DeviceEnded { name, status }),
    }
}
