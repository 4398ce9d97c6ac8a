//! The host's block list on disk: JSON, so that an operator can read and correct it.
//!
//! A list that cannot be read is not taken for an empty one: nothing is granted until it can.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::replace::replace;
use crate::model::{Block, BlockList, Whom};
use crate::reconcile::view::status::BlockStatus;

/// Why the block list cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlockFileError {
    #[error(
        "the block list {path} cannot be read, so nothing is granted: {why}; correct it, or remove it, \
         which lifts every block, and run `gatepost resync`"
    )]
    Unreadable { path: PathBuf, why: String },
    #[error("the block list {path} cannot be {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

/// The file of the block list. Clones share what is to be written.
#[derive(Debug, Clone)]
pub struct BlockFile {
    path: PathBuf,
    /// The list to write next.
    newest: Arc<Mutex<Arc<BlockList>>>,
    /// Held by the one that writes.
    writing: Arc<Mutex<()>>,
}

impl BlockFile {
    /// Touches nothing.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, newest: Arc::default(), writing: Arc::default() }
    }

    /// The list; empty if there is no file.
    ///
    /// # Errors
    /// [`BlockFileError::Unreadable`]
    pub fn load(&self) -> Result<BlockList, BlockFileError> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BlockList::default()),
            Err(error) => Err(self.unreadable(error.to_string())),
            Ok(text) => parse(&text).map_err(|why| self.unreadable(why)),
        }
    }

    /// Like [`Self::load`], with the error in the list.
    #[must_use]
    pub fn load_or_deny(&self) -> BlockList {
        self.load().unwrap_or_else(|error| BlockList::unreadable(error.to_string().into()))
    }

    /// This is what [`Self::save`] writes from now on.
    pub(super) fn set(&self, list: Arc<BlockList>) {
        *self.newest.lock() = list;
    }

    /// Puts the list on the disk. A crash leaves the old list or the new one.
    ///
    /// # Errors
    /// When it cannot be written, or the earlier list was not read and would be lost.
    pub(super) fn save(&self) -> Result<(), BlockFileError> {
        let _alone = self.writing.lock();
        let list = Arc::clone(&self.newest.lock());
        if let Some(why) = list.why_unreadable() {
            let source = io::Error::other(why.to_owned());
            return Err(self.io("written", source));
        }
        let blocks: Vec<BlockStatus> = list.iter().map(BlockStatus::from).collect();
        let mut text =
            serde_json::to_vec_pretty(&blocks).map_err(|error| self.io("written", error.into()))?;
        text.push(b'\n');
        let replaced = replace(&self.path, |file| file.write_all(&text));
        replaced.map(drop).map_err(|(doing, source)| self.io(doing, source))
    }

    fn unreadable(&self, why: String) -> BlockFileError {
        BlockFileError::Unreadable { path: self.path.clone(), why }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> BlockFileError {
        BlockFileError::Io { path: self.path.clone(), doing, source }
    }
}

pub(super) fn parse(text: &[u8]) -> Result<BlockList, String> {
    let blocks: Vec<BlockStatus> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let read = |BlockStatus { kind, id, name, since }| {
        let whom = Whom::parse(&kind, &id)
            .ok_or_else(|| format!("{kind:?} {id:?} is no user, device, key or address"))?;
        Ok((whom, Block { name: name.into(), since: since.0 }))
    };
    blocks.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;

    fn list() -> BlockList {
        let block = Block { name: "alice/laptop".into(), since: SystemTime::UNIX_EPOCH };
        BlockList::from_iter([(Whom::Address("10.8.0.7".parse().unwrap()), block)])
    }

    #[test]
    fn list_comes_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/blocked");
        let file = BlockFile::new(path.clone());
        assert!(file.load().unwrap().is_empty());
        file.set(Arc::new(list()));
        file.save().unwrap();
        assert_eq!(BlockFile::new(path.clone()).load().unwrap(), list());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn unreadable_list_is_named_grants_nothing_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blocked");
        for text in [
            "",
            "[{\"kind\":\"user\"",
            r#"[{"kind":"group","id":"1","name":"","since":"1970-01-01T00:00:00Z"}]"#,
        ] {
            fs::write(&path, text).unwrap();
            let file = BlockFile::new(path.clone());
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("gatepost resync"));
            let denies = file.load_or_deny();
            assert!(denies.why_unreadable().is_some());
            file.set(Arc::new(denies));
            file.save().unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn list_that_cannot_be_written_leaves_the_former() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blocked");
        let file = BlockFile::new(path.clone());
        file.set(Arc::new(list()));
        file.save().unwrap();
        fs::create_dir(path.with_extension("new")).unwrap();
        file.set(Arc::default());
        assert!(file.save().unwrap_err().to_string().contains("blocked"));
        assert_eq!(file.load().unwrap(), list());
    }
}
