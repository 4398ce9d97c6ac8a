//! How a userspace device is reached: by an abstract name, which belongs to the network namespace.
//!
//! A device that the last version of Gatepost started has only a file in `/var/run/wireguard`, whose
//! name other network namespaces may share. It is used if it was made in this one.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket, sockopt::PeerCredentials,
};
use nix::unistd::{User, geteuid};
use zeroize::Zeroizing;

use super::error::UserspaceError;
use crate::model::InterfaceName;

const SOCKET_DIRECTORY: &str = "/var/run/wireguard";
/// The sockets of the calling thread's network namespace, with the names of their files.
const SOCKETS_HERE: &str = "/proc/thread-self/net/unix";
/// The users that the package makes: the device faces the internet, so it is not the agent's.
const OUR_USERS: [&str; 2] = ["gatepost", "gatepost-device"];
/// A working device answers in milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The name of the abstract socket, without the zero byte before it.
pub(crate) fn abstract_name(name: &InterfaceName) -> String {
    format!("gatepost/{name}")
}

/// The socket file, which `wg` uses.
pub(crate) fn socket_path(name: &InterfaceName) -> PathBuf {
    PathBuf::from(SOCKET_DIRECTORY).join(format!("{name}.sock"))
}

/// Whether keys may be told to this user, and requests taken: only root, this process's own user, and
/// the users of agent and device may know them.
pub(crate) fn is_trusted(uid: u32) -> bool {
    let has_it = |name| matches!(User::from_name(name), Ok(Some(user)) if user.uid.as_raw() == uid);
    uid == 0 || uid == geteuid().as_raw() || OUR_USERS.into_iter().any(has_it)
}

/// A connection to a device.
pub(crate) struct Connection {
    pub stream: UnixStream,
    pub generation: Generation,
    /// The process that listens; `None`: one that this process cannot see.
    pub process_id: Option<i32>,
}

/// The abilities of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// It changes a peer without ending its session.
    Current,
    /// One that the last version started: it cannot change a peer that is there.
    Former,
}

/// Connects to the device of this name in this network namespace.
///
/// # Errors
/// [`UserspaceError::Stranger`]; [`UserspaceError::Silent`]: no device, or one that hangs.
pub(crate) fn open(name: &InterfaceName) -> Result<Connection, UserspaceError> {
    let silent = |source| UserspaceError::Silent { name: name.clone(), source };
    let connect = |address: io::Result<UnixAddr>| address.and_then(|address| connect(&address));
    let named = UnixAddr::new_abstract(abstract_name(name).as_bytes()).map_err(io::Error::from);
    match connect(named) {
        Ok(stream) => trusted(name, stream, Generation::Current),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let path = socket_path(name);
            if !is_made_here(&path) {
                return Err(silent(error));
            }
            let stream = connect(UnixAddr::new(&path).map_err(io::Error::from)).map_err(silent)?;
            trusted(name, stream, Generation::Former)
        }
        Err(error) => Err(silent(error)),
    }
}

/// Whether a device of this name is there. One that hangs is.
///
/// # Errors
/// [`UserspaceError::Stranger`]. [`UserspaceError::Unasked`] if this process cannot ask, because it has no
/// file descriptor or memory left.
pub(crate) fn is_there(name: &InterfaceName) -> Result<bool, UserspaceError> {
    match open(name) {
        Ok(_) => Ok(true),
        Err(UserspaceError::Silent { name, source }) if is_out_of_something(&source) => {
            Err(UserspaceError::Unasked { name, source })
        }
        Err(UserspaceError::Silent { source, .. }) => {
            Ok(source.kind() == io::ErrorKind::WouldBlock)
        }
        Err(error) => Err(error),
    }
}

fn is_out_of_something(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// Whether a device of this name is there and may be used.
///
/// # Errors
/// [`UserspaceError::Unasked`]
pub(crate) fn answers(name: &InterfaceName) -> Result<bool, UserspaceError> {
    match is_there(name) {
        Err(UserspaceError::Stranger { .. }) => Ok(false),
        asked => asked,
    }
}

/// The number of the device's process.
pub(crate) fn process_id(name: &InterfaceName) -> Option<i32> {
    open(name).ok()?.process_id
}

/// Whether a process, of whatever network namespace, listens on a socket file. A killed device leaves
/// its file behind without one.
pub(crate) fn listens(path: &Path) -> bool {
    match UnixAddr::new(path).map_err(io::Error::from).and_then(|address| connect(&address)) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Asks one request, and waits for the whole answer.
pub(super) fn converse(mut stream: UnixStream, request: &str) -> io::Result<Zeroizing<String>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::with_capacity(64 * 1024));
    let mut chunk = Zeroizing::new([0; 16 * 1024]);
    loop {
        match stream.read(&mut *chunk)? {
            0 => break,
            len => answer.extend_from_slice(&chunk[..len]),
        }
        if is_complete(&answer) {
            break;
        }
    }
    if !is_complete(&answer) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = std::str::from_utf8(&answer)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// An answer ends with a line `errno=` and an empty one. Nothing read before that is believed.
fn is_complete(answer: &[u8]) -> bool {
    let tail = &answer[answer.len().saturating_sub(32)..];
    let start = tail.windows(6).rposition(|window| window == b"errno=");
    start.is_some_and(|start| tail[start..].ends_with(b"\n\n"))
}

/// Names do not tell who has them, so the kernel is asked, before a byte is written.
fn trusted(
    name: &InterfaceName,
    stream: UnixStream,
    generation: Generation,
) -> Result<Connection, UserspaceError> {
    let credentials = getsockopt(&stream, PeerCredentials)
        .map_err(|errno| UserspaceError::Silent { name: name.clone(), source: errno.into() })?;
    let (uid, pid) = (credentials.uid(), credentials.pid());
    if !is_trusted(uid) {
        return Err(UserspaceError::Stranger { name: name.clone(), uid, pid });
    }
    // Zero is a process that this one cannot see, and to a signal the whole of our own group.
    Ok(Connection { stream, generation, process_id: (pid > 0).then_some(pid) })
}

/// Connects within the time that an answer may take: a process that hangs accepts no connection, and
/// when its queue is full, connecting would block for ever.
fn connect(address: &UnixAddr) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None)?);
    // It counts for connecting, too: `unix_stream_connect` in net/unix/af_unix.c.
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket::connect(stream.as_raw_fd(), address)?;
    Ok(stream)
}

/// Whether a socket of this network namespace has this file.
fn is_made_here(path: &Path) -> bool {
    let sockets = std::fs::read(SOCKETS_HERE).unwrap_or_default();
    names_file(&String::from_utf8_lossy(&sockets), path)
}

/// As paths, because the last version wrote a slash twice.
fn names_file(sockets: &str, path: &Path) -> bool {
    let mut files = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    files.any(|file| Path::new(file) == path)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::Backlog;

    use super::*;

    #[test]
    fn connecting_to_a_device_that_hangs_fails_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wg.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let address = UnixAddr::new(&path).unwrap();
        let waiting = connect(&address).unwrap();
        let asked = std::time::Instant::now();
        assert_eq!(connect(&address).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(asked.elapsed() < 2 * ANSWER_TIMEOUT);
        assert!(listens(&path));
        drop((waiting, listener));
        assert!(!listens(&path));
    }

    #[test]
    fn a_socket_file_is_found_among_the_sockets_of_the_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wg.sock");
        assert!(!is_made_here(&path));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_made_here(&path));
        let text = "Num RefCount Protocol Flags Type St Inode Path\n\
                    0: 00000002 00000000 00010000 0001 01 18 /run//a.sock\n\
                    0: 00000002 00000000 00010000 0001 01 19\n";
        assert!(names_file(text, "/run/a.sock".as_ref()));
        assert!(!names_file(text, "/run/a".as_ref()));
    }

    #[test]
    fn an_answer_is_complete_only_with_its_last_line() {
        assert!(is_complete(b"errno=0\n\n"));
        assert!(is_complete(b"listen_port=1\nerrno=98\n\n"));
        assert!(!is_complete(b"listen_port=1\n\n"));
        assert!(!is_complete(b"errno=0\n"));
        assert!(!is_complete(b""));
    }
}
