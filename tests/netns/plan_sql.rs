//! `gatepost plan --sql`: what a transaction would change, before anything is committed.

use std::fs;

use crate::lab::{LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn plan_of_a_file_names_the_peers_that_it_would_cut_off_and_changes_nothing() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    let bob = lab.client("bob");
    lab.database.exec(&alice.rows());
    lab.database.exec(&bob.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    let _agent = lab.start();
    alice.connect();
    eventually("the LAN answers", || alice.reaches(LAN_SERVER));
    let before = (lab.kernel_peers(), lab.gateway.firewall());
    let file = lab.folder.path().join("change.sql");
    let database = &lab.database;
    let url = lab.relay.url("postgres", database.name(), database.admin_password());
    let plan = |sql: &str| {
        fs::write(&file, sql).unwrap();
        lab.gatepost(&["plan", "--sql", file.to_str().unwrap(), "--database-url", &url])
    };

    let (code, out, error) = plan(&format!(
        "{};\nalter table users add column shoe_size int;\ndelete from policy_destinations;",
        alice.revocation()
    ));
    assert_eq!((code, error.as_str()), (2, ""), "{out}");
    for part in [
        "  alice/alice-laptop is cut off\n",
        "\nthe statements would cut off 1 device\n",
        "  users: others can neither read nor write it\n",
        "  devices: others read it, and write other rows\n",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert_eq!((lab.kernel_peers(), lab.gateway.firewall()), before);
    alice.must_reach(LAN_SERVER, "nothing has changed");
    assert!(lab.database.holds("not exists (select from devices where revoked_at is not null)"));

    let (code, out, error) = plan("update users set display_name = 'Alice'");
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.contains("\nthe statements would cut off no device\n"), "{out}");

    let slip = "update users set display_name = 'Alice';\n\
                update devices set status = 'revoked'\n  where name = 'alice-labtop'";
    let (code, out, error) = plan(slip);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let told = "  statement 2 (line 2) changed no row: update devices set status = 'revoked' where name = \
                'alice-labtop'\n";
    assert!(out.contains(told) && !out.contains("statement 1"), "{out}");

    let (code, out, error) = plan("delete from wireguard_peers;\ncommit;");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        error.contains("line 2: COMMIT cannot stand here: all statements run in one"),
        "{error}"
    );
    assert_eq!(lab.database.value("select count(*) from wireguard_peers"), "2");
}
