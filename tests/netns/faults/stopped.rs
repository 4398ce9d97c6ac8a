//! The agent's own process is stopped, or killed for its memory.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{Agent, BINARY, Fault, LAN_SERVER};

#[test]
fn stopped_agent_cuts_nobody_off_and_catches_up() {
    let scene = Scene::open();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    scene.agent.signal(Signal::SIGSTOP);
    lab.database.exec(&bob.revocation());
    ping.await_answers(100);
    assert!(scene.holds_both(), "a stopped agent revoked a peer");
    Fault::new(
        lab,
        "agent stopped (SIGSTOP) while a revocation is committed",
        "carried out when the agent continues",
    )
    .spares(ping)
    .cause(|| scene.agent.signal(Signal::SIGCONT), || scene.has_only(alice));
}

#[test]
fn agent_out_of_memory_is_killed_and_the_next_one_goes_on() {
    let mut scene = Scene::open();
    let group = Group::of(&scene.agent);
    let (lab, alice) = (&scene.lab, &scene.alice);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    lab.database.exec(
        "insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select users.id, 'd' || n, 'linux', 'd' || n, encode(sha256(n::text::bytea), 'base64')
             from users, generate_series(1, 5000) as n where username = 'alice';
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, devices.public_key, inet '10.99.4.0' + substr(devices.name, 2)::int
             from devices, gateways where devices.name ~ '^d[0-9]+$'",
    );
    let status = scene.agent.wait();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    assert!(group.kills() > 0, "it was not its memory");
    lab.database.exec("delete from wireguard_peers where assigned_ip >= '10.99.4.0'");
    let mut next = None;
    Fault::new(lab, "agent out of memory (cgroup limit)", "killed; the next agent goes on")
        .spares(ping)
        .cause(|| next = Some(lab.launch(BINARY.as_ref())), || lab.gatepost(&["status"]).0 == 0);
}

/// A control group that a process of 5,000 peers more does not fit into.
struct Group {
    folder: PathBuf,
    events: &'static str,
}

impl Group {
    fn of(agent: &Agent) -> Self {
        const MORE_KIB: u64 = 512;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = Path::new("/sys/fs/cgroup").join(if unified { "" } else { "memory" });
        let folder = root.join(format!("gatepost-test-{}", agent.pid()));
        let (limit, events) = match unified {
            true => ("memory.max", "memory.events"),
            false => ("memory.limit_in_bytes", "memory.oom_control"),
        };
        if unified {
            fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("cgroup.procs"), agent.pid().to_string()).unwrap();
        // What it had before counts elsewhere, and what it allocates from now on here.
        fs::write(folder.join(limit), (MORE_KIB * 1024).to_string()).unwrap();
        Self { folder, events }
    }

    fn kills(&self) -> u32 {
        let text = fs::read_to_string(self.folder.join(self.events)).unwrap();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap();
        kills.parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is in use until its last process has been waited for.
        let tries = std::iter::repeat_n((), 50);
        let _ = tries.map(|()| fs::remove_dir(&self.folder)).find(|removed| {
            std::thread::sleep(Duration::from_millis(if removed.is_ok() { 0 } else { 20 }));
            removed.is_ok()
        });
    }
}
