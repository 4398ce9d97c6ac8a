//! Where secrets are looked for.

use std::path::PathBuf;

/// Where to look for secrets that no key of the configuration names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SecretSearch {
    /// Nowhere: an administrator logs in, not the gateway.
    #[default]
    None,
    /// In systemd's `$CREDENTIALS_DIRECTORY`, else beside the configuration, where a command that an
    /// operator runs finds what the unit passes to the agent.
    Gateway { credentials_dir: Option<PathBuf> },
}
