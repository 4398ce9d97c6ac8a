//! What a database server's processes have used.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::postgres::Cluster;

/// Reads the processor time and the memory of one cluster's processes.
pub struct Meter {
    postmaster: u32,
}

/// The processor time of each process, as of one instant.
pub struct Used(BTreeMap<u32, Duration>);

impl Meter {
    pub fn of(cluster: &Cluster) -> Self {
        let file = cluster.dir.join("data/postmaster.pid");
        let postmaster = fs::read_to_string(file).unwrap();
        Self { postmaster: postmaster.lines().next().unwrap().parse().unwrap() }
    }

    pub fn used(&self) -> Used {
        Used(self.processes().into_iter().filter_map(|pid| Some((pid, cpu(pid)?))).collect())
    }

    /// The processor time since then. A process that ended in between is not counted.
    pub fn since(&self, before: &Used) -> Duration {
        let spent = |(pid, now): (&u32, &Duration)| {
            now.saturating_sub(before.0.get(pid).copied().unwrap_or_default())
        };
        self.used().0.iter().map(spent).sum()
    }

    /// The processor time since the server started.
    pub fn since_start(&self) -> Duration {
        self.since(&Used(BTreeMap::new()))
    }

    /// How many sessions of this database there are.
    pub fn sessions(&self, database: &str) -> usize {
        let is_session = |pid: &u32| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).split(' ').any(|word| word == database)
        };
        self.processes().iter().filter(|pid| is_session(pid)).count()
    }

    /// The private memory of all processes in KiB, and how many processes there are.
    pub fn private_kib(&self) -> (u64, usize) {
        let processes = self.processes();
        let private = |pid: &u32| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
            let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
            Some(lines.filter_map(kib).sum::<u64>())
        };
        (processes.iter().filter_map(private).sum(), processes.len())
    }

    fn processes(&self) -> Vec<u32> {
        let file = format!("/proc/{0}/task/{0}/children", self.postmaster);
        let children = fs::read_to_string(file).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

/// `None`: it has just ended.
fn cpu(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
