//! The control sockets of a userspace device: an abstract one for agents, whose name belongs to the
//! network namespace, and a file for `wg`, whose name belongs to all that share the folder.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use zeroize::Zeroizing;

use super::error::DeviceError;
use crate::dataplane::wireguard::{abstract_name, is_trusted, listens, open, socket_path};
use crate::model::InterfaceName;

/// The text of a request, and where its answer goes.
pub(super) type Question = (Zeroizing<String>, oneshot::Sender<Zeroizing<String>>);

/// A request that is longer is none of ours.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Takes the device's name in this network namespace.
///
/// # Errors
/// [`DeviceError::Running`]; [`DeviceError::Socket`]: a process that is not to be trusted has the name.
pub(super) fn take_name(name: &InterfaceName) -> Result<StdListener, DeviceError> {
    let address = SocketAddr::from_abstract_name(abstract_name(name));
    match address.and_then(|address| StdListener::bind_addr(&address)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            open(name)?;
            Err(DeviceError::Running(name.clone()))
        }
        bound => bound.map_err(|source| DeviceError::Listen {
            name: name.clone(),
            address: format!("@{}", abstract_name(name)),
            source,
        }),
    }
}

/// The socket file for `wg`. Dropping it removes the file, if it is still this one.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Makes it, unless another device has it: one of this name in another network namespace.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn bind(name: &InterfaceName) -> io::Result<Option<(Self, StdListener)>> {
        Self::bind_at(socket_path(name))
    }

    fn bind_at(path: PathBuf) -> io::Result<Option<(Self, StdListener)>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        if listens(&path) {
            return Ok(None);
        }
        // `wg` deletes a socket that refuses it, as this one would between bind(2) and listen(2). So the
        // socket gets its name when it listens; `wg` looks only at names in `.sock`.
        let draft = path.with_extension(std::process::id().to_string());
        let named = StdListener::bind(&draft).and_then(|listener| {
            let inode = std::fs::symlink_metadata(&draft)?.ino();
            std::fs::rename(&draft, &path)?;
            Ok((inode, listener))
        });
        match named {
            Ok((inode, listener)) => Ok(Some((Self { path, inode }, listener))),
            Err(error) => {
                let _ = std::fs::remove_file(&draft);
                Err(error)
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Answers on a socket for as long as the process lives.
///
/// # Errors
/// The socket cannot be used.
pub(super) fn answer_on(
    listener: StdListener,
    questions: mpsc::Sender<Question>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, questions.clone()))),
                // Too many open files, say: others close theirs.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

/// Answers one connection, request by request. Abstract names have no permissions, so a stranger is
/// turned away before a byte is read.
async fn converse(mut stream: UnixStream, questions: mpsc::Sender<Question>) {
    match stream.peer_cred() {
        Ok(peer) if is_trusted(peer.uid()) => {}
        Ok(peer) => {
            let (uid, pid) = (peer.uid(), peer.pid().unwrap_or_default());
            warn!(uid, pid, "process {pid} of user {uid} connected and was turned away");
            return;
        }
        Err(_) => return,
    }
    let mut received = Zeroizing::new(Vec::new());
    while let Some(request) = next_request(&mut stream, &mut received).await {
        let (answer, answered) = oneshot::channel();
        if questions.send((request, answer)).await.is_err() {
            return;
        }
        let Ok(answer) = answered.await else { return };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The lines up to the next empty one. `None`: the other side is done, or speaks something else.
async fn next_request(
    stream: &mut UnixStream,
    received: &mut Zeroizing<Vec<u8>>,
) -> Option<Zeroizing<String>> {
    let mut searched = 0;
    loop {
        let end = received[searched..].windows(2).position(|two| two == b"\n\n");
        if let Some(end) = end.map(|end| searched + end) {
            let request = std::str::from_utf8(&received[..=end]).ok()?;
            let request = Zeroizing::new(request.to_owned());
            received.drain(..end + 2);
            return Some(request);
        }
        searched = received.len().saturating_sub(1);
        let mut chunk = Zeroizing::new([0; 16 * 1024]);
        match stream.read(&mut *chunk).await {
            Ok(len) if len > 0 && received.len() < MAX_REQUEST_BYTES => {
                received.extend_from_slice(&chunk[..len]);
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::errno::Errno;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    use super::*;

    const SYS_LISTEN: i64 = if cfg!(target_arch = "aarch64") { 201 } else { 50 };

    /// From now on this thread's sockets can be bound and cannot listen: the moment between the two lasts.
    fn never_listen() {
        let filter = SeccompFilter::new(
            [(SYS_LISTEN, vec![])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(Errno::EOPNOTSUPP as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let names = std::fs::read_dir(folder).unwrap().map(name);
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_socket_file_has_no_name_for_wg_before_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wg0.sock");
        let bind = || {
            never_listen();
            SocketFile::bind_at(path.clone()).err().unwrap()
        };
        let refused = std::thread::scope(|scope| scope.spawn(bind).join().unwrap());
        assert_eq!(refused.raw_os_error(), Some(Errno::EOPNOTSUPP as i32), "{refused}");
        assert_eq!(names(folder.path()), [""; 0], "something is left behind");
        let bound = SocketFile::bind_at(path.clone()).unwrap();
        assert_eq!(names(folder.path()), ["wg0.sock"]);
        assert!(listens(&path));
        drop(bound);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
