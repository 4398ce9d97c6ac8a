//! The last good rows on disk are spoilt, and the agent starts while the database is away.

use std::fs;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{BINARY, Fault, GATEWAY, LAN_SERVER, eventually};

/// What becomes of the file: its text, changed, and what the agent says of it.
struct Spoil {
    what: &'static str,
    spoil: fn(&str) -> String,
    said: &'static str,
}

const SPOILS: [Spoil; 4] = [
    Spoil {
        what: "torn",
        spoil: |text| text[..text.len() - 40].to_owned(),
        said: "was altered, or written with another private key",
    },
    Spoil {
        what: "altered, to let in another address",
        spoil: |text| text.replacen("10.99.0.12", "10.99.0.77", 1),
        said: "was altered, or written with another private key",
    },
    Spoil {
        what: "of another gateway",
        spoil: |text| text.replace(GATEWAY, "ams-9"),
        said: "was altered, or written with another private key",
    },
    Spoil {
        what: "of a newer version",
        spoil: |text| text.replacen("gatepost-last-good 2", "gatepost-last-good 3", 1),
        said: "was written by another version of gatepost (\"gatepost-last-good 3\"",
    },
];

#[test]
fn spoilt_last_good_rows_are_named_and_grant_nothing() {
    let mut scene = Scene::open();
    for Spoil { what, spoil, said } in SPOILS {
        let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
        let kept = || lab.status()["last_good"]["state"] == "kept";
        eventually("the rows are kept", || kept() && scene.is_ready() && scene.holds_both());
        let path = lab.folder.path().join("last-good");
        let ping = alice.ping(LAN_SERVER, SPACING_MS);
        scene.agent.end(Signal::SIGKILL);
        let good = fs::read_to_string(&path).unwrap();
        assert_ne!(spoil(&good), good, "{what}");
        fs::write(&path, spoil(&good)).unwrap();
        lab.relay.refuse();
        lab.database.exec(&bob.revocation());
        let told = lab.log().matches(said).count();
        scene.agent = lab.launch(BINARY.as_ref());
        eventually(what, || lab.log().matches(said).count() > told);
        eventually("not ready", || lab.gatepost(&["status"]).0 == 3);
        // What the former agent left stays until the rows are known.
        assert_eq!(lab.kernel_peers().len(), 2, "{what}");
        ping.await_answers(5);
        Fault::new(
            lab,
            &format!("last good rows {what}, and the agent killed while the database is away"),
            "not used, and named; nothing is granted or taken until the rows can be read",
        )
        .spares(ping)
        .cause(|| lab.relay.accept(), || lab.kernel_peers() == [alice.key.as_str()]);
        lab.database.exec(scene.admission());
    }
}
