//! Configuration and secrets are read again while the agent runs.

use std::fs;

use nix::sys::signal::Signal;

use crate::lab::{BINARY, Fault, GATEWAY_TUNNEL, Lab, eventually, run};

#[test]
fn changed_configuration_is_followed_without_losing_a_packet() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let agent = lab.start();
    alice.connect();
    let ping = alice.ping(GATEWAY_TUNNEL, 20);
    ping.await_answers(5);
    let says = |what: &str| eventually(what, || lab.log().contains(what));

    // A login that is refused is no database that is unreachable.
    let role = lab.database.role();
    lab.database.exec(&format!("alter role {role} nologin"));
    let end_sessions =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'");
    lab.database.exec(&end_sessions);
    says("login refused");
    let database = || lab.status()["database"].clone();
    eventually("the status says so", || database()["unavailable"] == "refuses");
    says("the database refuses this agent");
    lab.database.exec(&format!("alter role {role} login"));
    agent.signal(Signal::SIGHUP);
    eventually("it is connected", || database()["connected"] == true);
    assert_eq!(database()["unavailable"], serde_json::Value::Null);

    // SIGHUP makes it read what may change, and name the rest.
    let logs_denied = || {
        let table = lab.gateway.run("nft", &["list", "table", "inet", "gatepost"]);
        table.contains("log ")
    };
    assert!(logs_denied());
    lab.write_config("[firewall]\ndeny_log = false\n[sync]\nmode = \"poll\"\n");
    agent.signal(Signal::SIGHUP);
    says("the new values of these keys need a restart: sync.mode");
    eventually("denied packets are not logged any more", || !logs_denied());

    // A file that cannot be used changes nothing.
    lab.write_config("[firewall]\ndeny_lgo = true\n");
    agent.signal(Signal::SIGHUP);
    says("the former configuration and secrets stay in force");
    says("did you mean `deny_log`?");
    lab.write_config("");
    fs::write(lab.folder.path().join("psk.keys"), "k1 no-key\n").unwrap();
    agent.signal(Signal::SIGHUP);
    says("psk_keys, line 1");
    assert!(!logs_denied());

    ping.await_answers(5);
    let pinged = ping.end();
    assert_eq!(pinged.lost, 0);
    let what = "login refused; configuration with an unknown key, then SIGHUP";
    Fault::told(&lab, what, "what was read before stays in force, and the agent says so", pinged);
    assert_eq!(lab.status()["sync"]["refused_steps"], 0);
}

#[test]
fn preshared_keys_stay_while_the_sealing_keys_are_away_over_a_restart() {
    let lab = Lab::open();
    let folder = lab.folder.path();
    let (keys, away) = (folder.join("psk.keys"), folder.join("psk.keys.away"));
    fs::write(&keys, format!("k1 {}\n", run("wg", &["genpsk"]))).unwrap();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let agent = lab.start();
    let preshared = run("wg", &["genpsk"]);
    lab.database.exec(&format!(
        "update wireguard_peers set preshared_key_ciphertext = '{}'",
        alice.sealed(&lab, &preshared)
    ));
    let has_it = || lab.wg_show("preshared-keys").iter().any(|it| it.contains(&preshared));
    eventually("the gateway has the preshared key", has_it);
    alice.preshare(&preshared);
    alice.connect();
    let ping = alice.ping(GATEWAY_TUNNEL, 20);
    ping.await_answers(5);

    fs::rename(&keys, &away).unwrap();
    agent.end(Signal::SIGKILL);
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert!(code != 0 && err.contains("sealing key"), "{code}: {out}{err}");
    assert!(has_it(), "`run --once` took the preshared key away");
    let _agent = lab.launch(BINARY.as_ref());
    let why = || lab.ask_status().map_or_else(|_| String::new(), |it| it["why"].to_string());
    eventually("the agent says so", || why().contains("sealing key"));
    assert!(has_it(), "the next agent took the preshared key away");
    ping.await_answers(5);
    assert_eq!(ping.end().lost, 0);
    alice.connect();
}
