//! The resources that the process itself uses, by the names that every client library of Prometheus gives them.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

use super::text::{Family, head, sample};

/// All of them.
pub const FAMILIES: [Family; 6] = [
    ("process_cpu_seconds_total", "counter", "User and system CPU time spent"),
    ("process_resident_memory_bytes", "gauge", "Resident memory"),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory"),
    ("process_open_fds", "gauge", "Open file descriptors"),
    ("process_max_fds", "gauge", "The most file descriptors that may be open"),
    ("process_start_time_seconds", "gauge", "Start of the process since the Unix epoch"),
];

/// Appends them as they are now. What cannot be read is left out.
pub fn append(out: &mut String, started_at: Option<SystemTime>) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // One of them is that of the folder.
    let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1));
    let started = started_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let values = [
        cpu().map(|time| time.as_secs_f64().to_string()),
        bytes(&status, "VmRSS:").map(|bytes| bytes.to_string()),
        bytes(&status, "VmSize:").map(|bytes| bytes.to_string()),
        open.map(|count| count.to_string()),
        getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft.to_string()),
        started.map(|since| since.as_secs_f64().to_string()),
    ];
    for (family, value) in FAMILIES.into_iter().zip(values) {
        if let Some(value) = value {
            head(out, family);
            sample(out, family, "", &[], value);
        }
    }
}

fn cpu() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let time = |time: nix::sys::time::TimeVal| {
        let micros = u64::try_from(time.tv_usec()).ok()?;
        Some(
            Duration::from_secs(u64::try_from(time.tv_sec()).ok()?) + Duration::from_micros(micros),
        )
    };
    Some(time(usage.user_time())? + time(usage.system_time())?)
}

/// A figure in KiB of `/proc/self/status`.
fn bytes(status: &str, label: &str) -> Option<u64> {
    let figure = status.lines().find_map(|line| line.strip_prefix(label))?;
    let kib: u64 = figure.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_tells_everything_of_itself() {
        let mut text = String::new();
        append(&mut text, Some(UNIX_EPOCH + Duration::from_millis(1_500)));
        for (name, kind, _) in FAMILIES {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n{name} ")), "{name}\n{text}");
        }
        assert!(text.ends_with("process_start_time_seconds 1.5\n"), "{text}");
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tgatepost\nVmSize:\t  200 kB\nVmRSS:\t     16 kB\n";
        assert_eq!((bytes(status, "VmRSS:"), bytes(status, "Vm:")), (Some(16_384), None));
    }
}
