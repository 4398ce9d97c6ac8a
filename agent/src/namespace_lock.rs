//! One agent for each network namespace: two would undo each other's changes for ever.

use std::fmt::{self, Display};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where agents look for each other, whatever their configuration says.
pub const FOLDER: &str = "/run/gatepost";

/// The network namespace of this process.
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// The longest text of a holder that is read, in bytes.
const HOLDER_BYTES: u64 = 1024;

/// Held while an agent runs. The kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct NamespaceLock {
    _file: Flock<File>,
}

/// How an agent is named to a second one.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub pid: u32,
    pub gateway: &'a str,
    pub control_socket: &'a Path,
}

impl Display for Holder<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, gateway, control_socket } = self;
        write!(out, "pid {pid}, gateway {gateway}, control socket {}", control_socket.display())
    }
}

/// Why an agent has no lock.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceLockError {
    #[error(
        "another agent ({holder}) serves this network namespace: stop it first, or run this one in another namespace"
    )]
    Taken { holder: String },
    #[error("cannot lock {}: {source}", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl NamespaceLock {
    /// Takes the lock of this process's network namespace in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// [`NamespaceLockError::Taken`] if another agent holds it, [`NamespaceLockError::Unusable`] if
    /// that cannot be told.
    pub fn take(folder: &Path, holder: Holder<'_>) -> Result<Self, NamespaceLockError> {
        let number = std::fs::metadata(OWN_NAMESPACE)
            .map_err(|source| NamespaceLockError::Unusable { path: OWN_NAMESPACE.into(), source })?
            .ino();
        let path = folder.join(format!("netns-{number}.lock"));
        let unusable = |source| NamespaceLockError::Unusable { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(unusable)?;
        let file = open(folder, &path).map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                // The name is for people. The lock holds without it.
                let _ =
                    file.set_len(0).and_then(|()| file.write_all(holder.to_string().as_bytes()));
                Ok(Self { _file: file })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(NamespaceLockError::Taken { holder: read(file) })
            }
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }
}

/// Opens the file, and leaves it to the folder's owner: after root's agent comes the service's own user.
/// It is never removed, because then two agents could lock two files of one name.
fn open(folder: &Path, path: &Path) -> io::Result<File> {
    // The folder's owner is not root: a link or a second name may lead to a file of root's.
    let no_link = nix::libc::O_NOFOLLOW;
    let file =
        File::options().read(true).append(true).create(true).custom_flags(no_link).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file with one name"));
    }
    let owner = std::fs::metadata(folder)?;
    // Both fail for another user than root, whose file it is then.
    let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
    let _ = file.set_permissions(Permissions::from_mode(0o660));
    Ok(file)
}

/// Reads the text that the holder wrote about itself. The holder may not have written it yet.
fn read(file: File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_BYTES).read_to_string(&mut text) {
        Ok(_) if !text.is_empty() => text,
        _ => "which has not said its name yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

    use super::*;

    fn holder(pid: u32, gateway: &str) -> Holder<'_> {
        Holder { pid, gateway, control_socket: Path::new("/run/gatepost/control.sock") }
    }

    #[test]
    fn second_agent_is_told_the_first_ones_name_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("gatepost");
        let first = NamespaceLock::take(&folder, holder(41, "a-gateway-of-a-long-name")).unwrap();
        let refused = NamespaceLock::take(&folder, holder(42, "fra-2")).unwrap_err().to_string();
        let name =
            "pid 41, gateway a-gateway-of-a-long-name, control socket /run/gatepost/control.sock";
        assert!(refused.contains(name), "{refused}");
        drop(first);
        let _second = NamespaceLock::take(&folder, holder(42, "fra-2")).unwrap();
        let refused = NamespaceLock::take(&folder, holder(43, "fra-3")).unwrap_err().to_string();
        assert!(
            refused.contains("(pid 42, gateway fra-2,") && !refused.contains("long"),
            "{refused}"
        );
    }

    #[test]
    fn folder_that_cannot_be_made_is_another_error_than_a_second_agent() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = NamespaceLock::take(&file, holder(41, "fra-1")).unwrap_err();
        assert!(matches!(error, NamespaceLockError::Unusable { .. }), "{error}");
    }
}
