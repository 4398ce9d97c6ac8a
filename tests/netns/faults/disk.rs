//! A full disk and a read-only one, under the state directory.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{BINARY, Fault, LAN_SERVER, Lab, eventually, run};

/// A file system of its own for the last good rows.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts it, and configures the agent to use it.
    pub fn mount(lab: &Lab, size: &str) -> Self {
        let folder = lab.folder.path().join("state");
        fs::create_dir(&folder).unwrap();
        let path = folder.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs", path]);
        let config = fs::read_to_string(lab.config()).unwrap();
        fs::write(lab.config(), config.replace("/last-good\"", "/state/last-good\"")).unwrap();
        Self(folder)
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    pub fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

fn last_good(lab: &Lab) -> String {
    lab.status()["last_good"]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn full_disk_keeps_withdrawals_for_the_next_boot() {
    let mut disk = None;
    let mut scene = Scene::open_with(|lab| disk = Some(Disk::mount(lab, "256k")));
    let disk = disk.unwrap();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    eventually("the rows are kept", || last_good(lab) == "kept");
    disk.fill();
    Fault::new(
        lab,
        "disk full while a revocation is committed",
        "carried out, and kept in the room reserved for it",
    )
    .spares(alice.ping(LAN_SERVER, SPACING_MS))
    .cause(
        || lab.database.exec(&bob.revocation()),
        || scene.has_only(alice) && ["kept", "withdrawals"].contains(&&*last_good(lab)),
    );
    // The host boots while the database is unreachable.
    lab.relay.refuse();
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    scene.agent.end(Signal::SIGKILL);
    scene.agent = lab.launch(BINARY.as_ref());
    eventually("the agent has the last good rows", || lab.gatepost(&["status"]).0 == 0);
    assert!(scene.has_only(alice), "who was revoked came back");
    lab.relay.accept();
    eventually("the database is back", || lab.status()["database"]["connected"] == true);
    Fault::new(
        lab,
        "disk full at the start, then room again",
        "serves without; rows are kept again",
    )
    .spares(ping)
    .cause(
        || {
            disk.make_room();
            lab.database.exec(scene.admission());
            assert_eq!(lab.gatepost(&["resync"]).0, 0);
        },
        || scene.holds_both() && last_good(lab) == "kept",
    );
}

#[test]
fn read_only_state_directory_is_told_and_serves() {
    let mut disk = None;
    let mut scene = Scene::open_with(|lab| disk = Some(Disk::mount(lab, "1m")));
    let disk = disk.unwrap();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    eventually("the rows are kept", || last_good(lab) == "kept");
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    scene.agent.end(Signal::SIGTERM);
    disk.remount("ro");
    scene.agent = lab.start();
    Fault::new(
        lab,
        "read-only state directory while a revocation is committed",
        "carried out; degraded, because the file on disk still admits the revoked peer",
    )
    .spares(ping)
    .cause(
        || lab.database.exec(&bob.revocation()),
        || scene.has_only(alice) && last_good(lab) == "out_of_date",
    );
    eventually("degraded", || lab.status()["state"] == "degraded");
    disk.remount("rw");
    lab.database.exec(scene.admission());
    assert_eq!(lab.gatepost(&["resync"]).0, 0);
    eventually("kept again, and ready", || last_good(lab) == "kept" && scene.is_ready());
}
