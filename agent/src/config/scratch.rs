//! A folder and an environment for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::{Config, ConfigError, Source, load};

/// A folder with a configuration in it, and an environment.
pub struct Scratch {
    pub folder: tempfile::TempDir,
    variables: BTreeMap<String, String>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: BTreeMap::new() }
    }

    pub fn with(mut self, variable: &str, value: &str) -> Self {
        self.variables.insert(variable.to_owned(), value.to_owned());
        self
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn load(&self, text: &str) -> Result<Config, ConfigError> {
        let file = Some(self.file("gatepost.toml", text));
        load(Source { file, variables: self.variables.clone() })
    }

    /// The error's text, with the folder's changing name taken out.
    pub fn error(&self, text: &str) -> String {
        let error = self.load(text).unwrap_err().to_string();
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }
}
