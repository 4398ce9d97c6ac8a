//! Secrets on disk are replaced, removed or unreadable while the agent runs.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{BINARY, Fault, LAN_SERVER, eventually, run};
use crate::troubles::secured::Secured;

/// What becomes of a file. Root may read any file, so that only a folder in its place is unreadable.
#[derive(Clone, Copy)]
enum Spoil {
    Remove,
    Block,
    Replace,
}

impl Spoil {
    fn spoil(self, path: &Path) {
        if let Self::Replace = self {
            return fs::write(path, "no key\n").unwrap();
        }
        fs::remove_file(path).unwrap();
        if let Self::Block = self {
            fs::create_dir(path).unwrap();
        }
    }
}

#[test]
fn spoilt_secrets_change_nothing_while_the_agent_runs() {
    let scene = Scene::open_with(|lab| {
        let keys = format!("k1 {}\n", run("wg", &["genpsk"]));
        fs::write(lab.folder.path().join("psk.keys"), keys).unwrap();
    });
    let (lab, alice) = (&scene.lab, &scene.alice);
    let read = "what was read before stays in force, and the agent says so";
    let stays = "the former configuration and secrets stay in force";
    // The private key is read at the start alone.
    let unread = "read at the start alone: nothing changes";
    let again = "SIGHUP: read configuration and secrets again";
    // A password may be any text, and a host need not have sealing keys.
    let faults = [
        ("private key removed, then SIGHUP", unread, again, "private.key", Spoil::Remove),
        ("private key unreadable, then SIGHUP", unread, again, "private.key", Spoil::Block),
        (
            "private key replaced by another text, then SIGHUP",
            unread,
            again,
            "private.key",
            Spoil::Replace,
        ),
        ("sealing keys unreadable, then SIGHUP", read, stays, "psk.keys", Spoil::Block),
        (
            "sealing keys replaced by another text, then SIGHUP",
            read,
            stays,
            "psk.keys",
            Spoil::Replace,
        ),
        ("password removed, then SIGHUP", read, stays, "db.password", Spoil::Remove),
        ("password unreadable, then SIGHUP", read, stays, "db.password", Spoil::Block),
    ];
    for (what, expected, said, file, spoil) in faults {
        let told = || lab.log().matches(said).count();
        let path = lab.folder.path().join(file);
        let (right, before) = (fs::read_to_string(&path).unwrap(), told());
        let spoil_and_tell = || {
            spoil.spoil(&path);
            scene.agent.signal(Signal::SIGHUP);
        };
        Fault::new(lab, what, expected)
            .spares(alice.ping(LAN_SERVER, SPACING_MS))
            .cause(spoil_and_tell, || told() > before);
        assert!(scene.is_ready(), "{what}: {}", lab.status()["why"]);
        let _ = fs::remove_dir(&path);
        fs::write(&path, &right).unwrap();
    }
}

#[test]
fn private_key_that_is_lost_stops_the_next_agent_and_no_session() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let path = lab.folder.path().join("private.key");
    let right = fs::read_to_string(&path).unwrap();
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    fs::remove_file(&path).unwrap();
    scene.agent.end(Signal::SIGTERM);
    let status = lab.launch(BINARY.as_ref()).wait();
    assert_eq!(status.code(), Some(78), "{}", lab.log());
    ping.await_answers(10);
    let mut next = None;
    Fault::new(
        lab,
        "private key lost, then a restart",
        "exit 78 with the file's name; serves once it is back",
    )
    .spares(ping)
    .cause(
        || {
            fs::write(&path, &right).unwrap();
            next = Some(lab.launch(BINARY.as_ref()));
        },
        || lab.gatepost(&["status"]).0 == 0,
    );
}

#[test]
fn password_that_was_changed_is_followed_once_the_file_has_it() {
    let scene = Scene::open_with(|lab| lab.database.require_password());
    let (lab, alice) = (&scene.lab, &scene.alice);
    let role = lab.database.role();
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    lab.database.exec(&format!("alter role {role} password 'another-password'"));
    lab.database.exec(&format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'"
    ));
    eventually("the login is refused", || lab.status()["database"]["unavailable"] == "refuses");
    ping.await_answers(50);
    let path = lab.folder.path().join("db.password");
    Fault::new(
        lab,
        "password changed in the database first",
        "sessions go on; followed once the file has it",
    )
    .spares(ping)
    .cause(
        || fs::write(&path, "another-password\n").unwrap(),
        || lab.status()["database"]["connected"] == true && scene.is_ready(),
    );
}

#[test]
fn certificate_file_that_is_gone_is_named_once_it_is_needed() {
    let mut server = None;
    let scene = Scene::open_with(|lab| server = Some(Secured::of(lab)));
    let (lab, alice, server) = (&scene.lab, &scene.alice, server.unwrap());
    let trusted = lab.folder.path().join("known.pem");
    let told = || lab.log().matches("the former password and certificates stay in use").count();
    let kept = || lab.log().contains("the former configuration and secrets stay in force");
    let sessions = || lab.relay.ended();
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let before = sessions();
    Fault::new(
        lab,
        "file of database.tls_ca_file removed, then SIGHUP, and the sessions cut",
        "what was read before stays in force, and the agent says so",
    )
    .spares(ping)
    .cause(
        || {
            fs::remove_file(&trusted).unwrap();
            scene.agent.signal(Signal::SIGHUP);
            eventually("the file is named", kept);
            lab.relay.cut();
        },
        || sessions() > before && lab.status()["database"]["connected"] == true && scene.is_ready(),
    );
    assert_eq!(told(), 0, "the certificate that was read serves: {}", lab.log());

    // Only now another one is needed.
    server.serve("unknown");
    lab.relay.cut();
    eventually("the server is refused", || lab.status()["database"]["unavailable"] == "refuses");
    eventually("the file is named", || told() > 0);
    let named = format!("database.tls_ca_file {} cannot be read", trusted.display());
    assert!(lab.log().contains(&named), "{}", lab.log());
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    Fault::new(
        lab,
        "certificate of the database's server replaced while the file of database.tls_ca_file is gone",
        "the file is named; followed once it is there",
    )
    .spares(ping)
    .cause(
        || {
            fs::copy(lab.folder.path().join("unknown.pem"), &trusted).unwrap();
        },
        || lab.status()["database"]["connected"] == true && scene.is_ready(),
    );
    assert_eq!(told(), 1, "{}", lab.log());
}
