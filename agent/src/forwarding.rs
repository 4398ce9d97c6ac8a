//! The kernel settings that a gateway needs: written for each boot, and applied.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const CONTENT: &str = include_str!("../../systemd/sysctl.d/60-gatepost.conf");
const NAME: &str = "60-gatepost.conf";

/// Where a host keeps its kernel settings.
pub struct Places<'a> {
    /// For the next boot: /etc/sysctl.d.
    pub folder: &'a Path,
    /// In force: /proc/sys.
    pub kernel: &'a Path,
}

/// The result of the preparation.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The file, if it was not there before: one that is there is its administrator's.
    pub written: Option<PathBuf>,
    /// `name = value` of each setting that was changed.
    pub applied: Vec<String>,
}

/// Writes the file unless it is there, and sets what it says and the kernel does not have yet.
///
/// # Errors
/// Those of the files.
pub fn prepare(places: &Places<'_>) -> io::Result<Prepared> {
    let path = places.folder.join(NAME);
    let written = match File::options().write(true).create_new(true).open(&path) {
        Ok(mut file) => {
            file.write_all(CONTENT.as_bytes())?;
            Some(path.clone())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
        Err(error) => return Err(error),
    };
    let mut applied = Vec::new();
    for (name, value) in settings(&fs::read_to_string(&path)?) {
        let file = places.kernel.join(name.replace('.', "/"));
        if fs::read_to_string(&file)?.trim() != value {
            fs::write(&file, value)?;
            applied.push(format!("{name} = {value}"));
        }
    }
    Ok(Prepared { written, applied })
}

fn settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_once_and_applied_where_they_differ() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, kernel) = (folder.path().join("etc"), folder.path().join("sys"));
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(kernel.join("net/ipv4/conf/all")).unwrap();
        let [forward, mark] = ["net/ipv4/ip_forward", "net/ipv4/conf/all/src_valid_mark"]
            .map(|name| kernel.join(name));
        fs::write(&forward, "0\n").unwrap();
        fs::write(&mark, "1\n").unwrap();
        let places = Places { folder: &etc, kernel: &kernel };
        let file = etc.join("60-gatepost.conf");
        let prepared = prepare(&places).unwrap();
        assert_eq!(prepared.written.as_ref(), Some(&file));
        assert_eq!(prepared.applied, ["net.ipv4.ip_forward = 1"]);
        assert_eq!(fs::read_to_string(&forward).unwrap(), "1");

        // What an administrator has put into the file holds.
        fs::write(&file, "net.ipv4.ip_forward = 0\n").unwrap();
        let prepared = prepare(&places).unwrap();
        assert_eq!(
            (prepared.written, prepared.applied),
            (None, vec!["net.ipv4.ip_forward = 0".to_owned()])
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "net.ipv4.ip_forward = 0\n");
    }
}
