//! The host's clock is set, as the agent sees it. A userspace device, which outlives agents, keeps its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{BINARY, Fault, LAN_SERVER, eventually, run};

const HOUR_SECS: i64 = 3_600;
/// Long enough for the step, short enough to wait for.
const AHEAD: &str = "5 s";

/// A clock that a file sets.
struct Clock {
    file: PathBuf,
    agent: PathBuf,
}

impl Clock {
    /// libfaketime answers for the kernel's clock; the steady clock stays what it is.
    fn new(folder: &Path) -> Self {
        let (file, agent) = (folder.join("clock"), folder.join("agent"));
        let arch = std::env::consts::ARCH;
        let library = format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1");
        assert!(Path::new(&library).exists(), "no {library}: tests/install-deps.sh test");
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1\nexec {BINARY} \"$@\"\n",
            file.display()
        );
        fs::write(&agent, script).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        let clock = Self { file, agent };
        clock.set(0);
        clock
    }

    /// From now on it is so much off.
    fn set(&self, off_secs: i64) {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{off_secs:+}s\n")).unwrap();
        fs::rename(next, &self.file).unwrap();
    }
}

fn now_secs() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

#[test]
fn clock_that_is_set_ends_no_session_and_moves_no_revocation() {
    let Scene { agent, alice, bob, lab } = Scene::open();
    let clock = Clock::new(lab.folder.path());
    agent.end(Signal::SIGTERM);
    let mut agent = lab.launch(&clock.agent);
    let since_1970 = now_secs();
    let steps = [
        ("is set 2 h ahead", 2 * HOUR_SECS),
        ("is set 2 h back", -2 * HOUR_SECS),
        ("is at 1970 at the start of the agent", -since_1970),
    ];
    for (what, off_secs) in steps {
        lab.await_ready();
        lab.database.exec("update devices set status = 'active', revoked_at = null");
        eventually("both are in", || lab.kernel_peers().len() == 2);
        bob.dial();
        eventually("the LAN answers", || bob.reaches(LAN_SERVER));
        let ping = alice.ping(LAN_SERVER, SPACING_MS);
        if off_secs == -since_1970 {
            clock.set(off_secs);
            agent.end(Signal::SIGTERM);
            agent = lab.launch(&clock.agent);
            lab.await_ready();
        }
        lab.database.exec(&format!(
            "update devices set revoked_at = clock_timestamp() + '{AHEAD}' where device_fingerprint = '{}'",
            bob.name
        ));
        eventually("the agent follows", || {
            lab.database.holds(
            "not exists (select from gateways where last_sync_at < (select max(updated_at) from devices))",
        )
        });
        assert_eq!(lab.kernel_peers().len(), 2, "{what}: the revocation came before the step");
        let has_come = "exists (select from devices where revoked_at <= clock_timestamp())";
        Fault::new(
            &lab,
            &format!("the host's clock {what}, while a revocation is scheduled"),
            "it comes at its time by the database's clock; no session ends",
        )
        .spares(ping)
        .cause(|| clock.set(off_secs), || lab.kernel_peers() == [alice.key.as_str()]);
        assert!(lab.database.holds(has_come), "{what}: it came too early");
        let at = lab.status()["sync"]["last_pass"]["at"].as_str().unwrap().to_owned();
        let at: i64 = run("date", &["-d", &at, "+%s"]).parse().unwrap();
        let off = at - now_secs() - off_secs;
        assert!(off.abs() < HOUR_SECS, "{what}: the agent's clock was at {at}");
    }
}
