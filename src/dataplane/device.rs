//! The userspace WireGuard device: a process of its own, which outlives the agent.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use defguard_wireguard_rs::error::WireguardInterfaceError;
use defguard_wireguard_rs::{Userspace, WGApi, WireguardInterfaceApi};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use tracing::warn;

use super::wireguard::{answers, process_id, socket_path};
use crate::model::InterfaceName;

/// Why a userspace device could not be run or started.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "{0} is a number, and the userspace device would take it for an open file: give the \
         interface a name with a letter in it"
    )]
    NumericName(InterfaceName),
    #[error("a userspace device {0} is running already: stop that one first")]
    Running(InterfaceName),
    #[error(
        "the userspace device {name} cannot be made: {source} (it needs /dev/net/tun, \
         CAP_NET_ADMIN and a name that no other link has)"
    )]
    Create { name: InterfaceName, source: WireguardInterfaceError },
    #[error("the thread of the userspace device {0} panicked: see the output before this line")]
    Panicked(InterfaceName),
    #[error("cannot watch {path}, the socket of the userspace device")]
    Watch { path: String, source: io::Error },
    #[error("cannot start `{exe} device {name}`")]
    Start { exe: String, name: InterfaceName, source: io::Error },
    #[error(
        "`{exe} device {name}` ended with {status} before it was ready: run it by hand to see why"
    )]
    Died { exe: String, name: InterfaceName, status: String },
    #[error("`{exe} device {name}` was not ready after {} s", READY_TIMEOUT.as_secs())]
    Late { exe: String, name: InterfaceName },
    #[error("cannot stop process {pid} of the userspace device {name}: {errno}")]
    Stop { name: InterfaceName, pid: i32, errno: Errno },
    #[error("cannot remove {path}, which a killed userspace device left behind")]
    StaleSocket { path: String, source: io::Error },
}

/// The line that says that the device answers.
const READY: &str = "ready";
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the device in the foreground and returns when its socket is removed, which is how such
/// devices are told to stop. Prints `ready` once it answers.
///
/// `SIGTERM` and `SIGINT` end the process at once: the kernel then removes the link, and what is
/// left of the socket is removed when it is stopped or started again. An orderly exit is impossible:
/// the embedded device reads these signals from a descriptor of its own and stops its threads, but not
/// the process. So it is created in a thread of its own, where it blocks them, and this function
/// unblocks them in the calling thread, which must have no handler for them.
///
/// # Errors
/// When the device cannot be made.
pub fn run_userspace_device(name: &InterfaceName) -> Result<(), DeviceError> {
    check_name(name)?;
    if answers(name) {
        return Err(DeviceError::Running(name.clone()));
    }
    remove_stale_socket(name)?;
    // The parent process may have blocked them, and a blocked signal ends nothing.
    let _ = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_unblock();
    let (made, device) = channel();
    let (stop, stopped) = channel();
    let owner = name.clone();
    let thread = thread::spawn(move || own_device(&owner, &made, &stopped));
    let created = device.recv().map_err(|_| DeviceError::Panicked(name.clone()))?;
    created.map_err(|source| DeviceError::Create { name: name.clone(), source })?;
    let removed = say_ready_and_wait(name).map_err(|source| DeviceError::Watch {
        path: socket_path(name).display().to_string(),
        source,
    });
    drop(stop);
    // A panic in it has been reported by the panic itself, and the device is gone either way.
    let _ = thread.join();
    removed
}

/// Starts `exe device <name> --serve alone` so that it outlives this process, and returns when it
/// answers. Does nothing where a device of this name answers already.
///
/// # Errors
/// When it cannot be started or dies.
pub fn spawn_device(exe: &Path, name: &InterfaceName) -> Result<(), DeviceError> {
    check_name(name)?;
    if answers(name) {
        return Ok(());
    }
    remove_stale_socket(name)?;
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

/// Stops the device of this name, if there is one, and removes its socket.
///
/// # Errors
/// When its process may not be stopped.
pub fn stop_device(name: &InterfaceName) -> Result<(), DeviceError> {
    if let Some(pid) = process_id(name) {
        match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(DeviceError::Stop { name: name.clone(), pid, errno }),
        }
    }
    remove_socket(name)
}

/// Lets the device of this name, if there is one, end as failed, so that its service starts it again:
/// its link was deleted, so it cannot carry packets any more.
pub(super) fn abandon_device(name: &InterfaceName) -> Result<(), DeviceError> {
    remove_socket(name)
}

fn check_name(name: &InterfaceName) -> Result<(), DeviceError> {
    // The embedded device takes a name that parses as a number for a descriptor that it inherited.
    match name.as_str().parse::<i32>() {
        Ok(_) => Err(DeviceError::NumericName(name.clone())),
        Err(_) => Ok(()),
    }
}

fn remove_stale_socket(name: &InterfaceName) -> Result<(), DeviceError> {
    if answers(name) { Ok(()) } else { remove_socket(name) }
}

fn remove_socket(name: &InterfaceName) -> Result<(), DeviceError> {
    let path = socket_path(name);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DeviceError::StaleSocket { path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

/// Creates the device, reports the result, and keeps it until the other side hangs up.
fn own_device(
    name: &InterfaceName,
    made: &Sender<Result<(), WireguardInterfaceError>>,
    stopped: &Receiver<()>,
) {
    let create = || {
        let mut device = WGApi::<Userspace>::new(name.as_str())?;
        device.create_interface()?;
        Ok(device)
    };
    match create() {
        Ok(device) => {
            let _ = made.send(Ok(()));
            let _ = stopped.recv();
            drop(device);
        }
        Err(error) => drop(made.send(Err(error))),
    }
}

fn say_ready_and_wait(name: &InterfaceName) -> io::Result<()> {
    let path = socket_path(name);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(directory, gone)?;
    // The process that started it may be gone and not wait for the line any more.
    let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
    while path.exists() {
        inotify.read_events()?;
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
            warn!(interface = %name, status, "the userspace device {name} ended with {status}");
        } else {
            let _ = report.send(Some(status));
        }
    });
    reported
}
