//! Files that hold a private key.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gatepost::model::{KeyError, PrivateKey};

/// Why a private key was neither generated nor read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(
        "{} already exists, and a new key would lock out every client; to replace it, remove it first",
        path.display()
    )]
    Exists { path: PathBuf },
    #[error("cannot write the private key {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the private key {}: {source}", located(path))]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the private key {} {source}", located(path))]
    Wrong {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("cannot get random bytes from the kernel: {0}")]
    Random(getrandom::Error),
}

/// How an error names the file that it read.
fn located(path: &Path) -> String {
    match path.to_str() {
        Some("-") => "on standard input".to_owned(),
        _ => format!("in {}", path.display()),
    }
}

/// Generates a private key into a new file that only this user may read.
///
/// # Errors
/// [`KeyFileError::Exists`] before anything is changed; [`KeyFileError::Write`].
pub fn generate(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyFileError::Random)?;
    let key = PrivateKey::from_random(bytes);
    create(path, &format!("{}\n", key.expose_text())).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => KeyFileError::Write { path: path.to_owned(), source },
    })?;
    Ok(key)
}

/// Writes a new file of mode 0600 completely or not at all: first under a temporary name, then as a
/// hard link, which unlike a rename never replaces a file.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = write_synced(&draft, text).and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    written?;
    removed?;
    // The directory entry must survive a power cut, too.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Reads a private key from a file, or from standard input if `path` is `-`.
///
/// # Errors
/// [`KeyFileError::Read`], [`KeyFileError::Wrong`].
pub fn read(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().take(4096).read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let text = text.map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    let wrong = |source| KeyFileError::Wrong { path: path.to_owned(), source };
    text.trim().parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_generated_once_and_for_this_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private.key");
        let key = generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap(), key);

        let error = generate(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
        assert_eq!(read(&path).unwrap(), key, "the key must be untouched");
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "no draft may be left behind");
    }

    #[test]
    fn missing_folder_is_named() {
        let error = generate(Path::new("/nowhere/private.key")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write the private key /nowhere/private.key: "),
            "{error}"
        );
    }
}
