//! Replaces a file as a whole: a crash leaves the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The failed action on the file, and its cause.
pub(super) type Failure = (&'static str, io::Error);

/// Writes the file anew, for its owner alone, and puts it in place. Creates its folder.
///
/// # Errors
/// The step that failed. The old file is there unless it was the last one, [`sync_folder`].
pub(super) fn replace<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<T>,
) -> Result<(File, T), Failure> {
    if let Some(folder) = folder(path) {
        fs::create_dir_all(folder).map_err(|error| ("given a folder", error))?;
    }
    let new = new_path(path);
    let mut options = OpenOptions::new();
    let options = options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(|error| ("created", error))?;
    let written = write(&mut file).and_then(|written| file.sync_all().map(|()| written));
    let written = written.map_err(|error| ("written", error));
    let placed = written.and_then(|written| {
        fs::rename(&new, path).map(|()| written).map_err(|error| ("put in place", error))
    });
    let written = placed.inspect_err(|_| {
        // It may take the room that is needed now.
        drop(fs::remove_file(&new));
    })?;
    sync_folder(path)?;
    Ok((file, written))
}

/// Where the file is written before it is put in place.
fn new_path(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Makes sure that the file's name, or its absence, is on the disk.
pub(super) fn sync_folder(path: &Path) -> Result<(), Failure> {
    let Some(folder) = folder(path) else { return Ok(()) };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| ("put on disk", error))
}

fn folder(path: &Path) -> Option<&Path> {
    path.parent().filter(|folder| !folder.as_os_str().is_empty())
}
