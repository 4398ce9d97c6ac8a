//! One moment by the database's clock and by this host's steady clock, on disk beside the rows.
//!
//! From it an agent that is restarted while the database is away knows the database's time, but for how long
//! the read took, however this host's clock is set, until the host boots.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Cache;
use super::writer::write_line;
use crate::reconcile::clock;
use crate::reconcile::shell::replace::replace;

/// When rows were read.
#[derive(Debug, Serialize, Deserialize)]
struct Moment {
    database: SystemTime,
    /// How long the host had been up.
    up: Duration,
    /// The boot since which that counts.
    boot: String,
}

impl Cache {
    fn moment_path(&self) -> PathBuf {
        self.path.with_added_extension("clock")
    }

    /// Keeps what the database's clock showed when this host had been `up` for so long. Where it cannot be
    /// written, an older moment of the same boot is as good.
    pub(super) fn keep_moment(&self, database: SystemTime, up: Duration) {
        let Some(boot) = clock::boot() else { return };
        let (mut chain, moment) = (self.sealer.begin(), Moment { database, up, boot });
        drop(replace(&self.moment_path(), |file| write_line(file, &mut chain, &moment)));
    }

    /// The database's time now; `None`: the host has booted since it was read, or it never was.
    pub(in crate::reconcile::shell) fn database_now(&self) -> Option<SystemTime> {
        let line = fs::read_to_string(self.moment_path()).ok()?;
        let moment: Moment = self.open_moment(&line).ok()?;
        let since = clock::up().checked_sub(moment.up)?;
        (clock::boot()? == moment.boot).then(|| moment.database.checked_add(since)).flatten()
    }

    fn open_moment(&self, line: &str) -> io::Result<Moment> {
        let text = self.sealer.begin().open(line.trim_end()).map(str::to_owned);
        let text = text.ok_or(io::ErrorKind::InvalidData)?;
        Ok(serde_json::from_str(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PrivateKey;

    fn cache(folder: &tempfile::TempDir, key: u8) -> Cache {
        let key = PrivateKey::from_random([key; 32]);
        Cache::new(folder.path().join("last-good"), &key)
    }

    #[test]
    fn an_agent_that_is_restarted_knows_the_databases_time_until_the_host_boots() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, hour) = (cache(&folder, 1), Duration::from_secs(3_600));
        assert_eq!(kept.database_now(), None);
        let (read_at, up) = (SystemTime::UNIX_EPOCH + hour, clock::up());
        kept.keep_moment(read_at, up);
        let now = kept.database_now().unwrap();
        let passed = clock::up().saturating_sub(up);
        assert!((read_at..=read_at + passed).contains(&now), "{now:?}");
        assert_eq!(cache(&folder, 2).database_now(), None, "another key wrote it");
        // A boot begins to count anew, and has another name.
        kept.keep_moment(read_at, clock::up() + hour);
        assert_eq!(kept.database_now(), None);
        let boot = Moment { database: read_at, up: Duration::ZERO, boot: "another".into() };
        let mut chain = kept.sealer.begin();
        replace(&kept.moment_path(), |file| write_line(file, &mut chain, &boot)).unwrap();
        assert_eq!(kept.database_now(), None);
    }
}
