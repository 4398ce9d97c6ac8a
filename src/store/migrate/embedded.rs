//! The migrations, as files of this program.

refinery::embed_migrations!("migrations");

/// The table of those that were applied.
pub(super) const HISTORY: &str = "gatepost.schema_history";
