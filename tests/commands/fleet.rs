//! The files of deploy/fleet, which operators copy: they load, and say what the documents say.

use std::fs;

use crate::documents::root;
use crate::gatepost::Gatepost;

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The value of a setting that a file has once: `key = value` or `key: value`.
#[track_caller]
fn value(path: &str, key: &str) -> String {
    let file = text(path);
    let lines = file.lines().map(str::trim).filter_map(|line| line.strip_prefix(key));
    let values = lines.filter_map(|rest| rest.trim_start().strip_prefix(['=', ':']));
    let values = Vec::from_iter(values.map(|value| value.trim().trim_matches('"')));
    let [value] = values[..] else { panic!("{path} has {key} {} times", values.len()) };
    value.to_owned()
}

#[test]
fn each_file_of_the_fleet_is_in_its_table() {
    let page = text("deploy/fleet/README.md");
    let mut found = 0;
    for entry in fs::read_dir(root().join("deploy/fleet")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".sh") || name == "README.md" {
            continue;
        }
        assert!(page.contains(&format!("`{name}`")), "{name} is in no row");
        found += 1;
    }
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let named = Vec::from_iter(rows.flat_map(|row| row.split('`').skip(1).step_by(2)));
    let files = named.iter().filter(|word| word.contains('.'));
    assert_eq!(files.count(), found, "{named:?}");
}

/// With what differs between hosts filled in, and without certificates, which would have to exist.
fn filled_in(path: &str) -> String {
    let file = text(path);
    let lines = file.lines().filter(|line| !line.starts_with("tls_ca_file"));
    let lines = lines.map(|line| line.replace("10.77.0.", "127.0.0."));
    let lines = lines.map(|line| line.replace("@name@", "gw1").replace("@link@", "gw1"));
    lines.map(|line| line.replace("@folder@", "/nonexistent") + "\n").collect()
}

#[test]
fn configurations_of_gateways_and_bells_load() {
    let gatepost = Gatepost::with("");
    gatepost.write("pool.password", "secret");
    gatepost.write("bell.password", "secret");
    gatepost.write("hints.login", "user:secret");
    gatepost.write("gatepost.toml", &filled_in("deploy/fleet/gateway.toml"));
    let done = gatepost.run(&["status"]).must_exit(4);
    assert!(done.stderr.contains("/nonexistent/control.sock"), "{}", done.stderr);
    // Nothing listens at its places.
    let bell = filled_in("deploy/fleet/bell.toml")
        .replace("127.0.0.1,127.0.0.2/", "127.0.0.1:1,127.0.0.2:1/");
    gatepost.write("gatepost.toml", &bell);
    let done = gatepost.run(&["bell", "--check"]).must_exit(1);
    assert!(done.stderr.contains("as role gatepost_bell_a"), "{}{}", done.stdout, done.stderr);
}

#[test]
fn the_documents_have_the_numbers_and_names_of_the_files() {
    let (scale, security) = (text("docs/scale.md"), text("docs/security.md"));
    let (pool, gateway) = ("deploy/fleet/pgbouncer.ini", text("deploy/fleet/gateway.toml"));
    let says = |page: &str, words: &str| assert!(page.contains(words), "no page says: {words}");

    says(&scale, &format!("PgBouncer with {} sessions", value(pool, "default_pool_size")));
    says(&scale, &format!("PgBouncer in {} mode", value(pool, "pool_mode")));
    let ended = value(pool, "query_timeout");
    says(&security, &format!("`query_timeout` in PgBouncer ends each after {ended} s"));
    assert_eq!(value(pool, "idle_transaction_timeout"), "10");
    says(&security, "set `idle_transaction_timeout` in PgBouncer");
    // A wait for a session ends before the agent gives up: 5 s after its own limit of 30 s.
    assert!(value(pool, "query_wait_timeout").parse::<u32>().unwrap() < 35);
    assert!(ended.parse::<u32>().unwrap() > 35);

    let port = value(pool, "listen_port");
    says(&gateway, &format!("gatepost_pool@10.77.0.1:{port},10.77.0.2:{port}/vpn?"));
    says(&scale, "--pool-role gatepost_pool ");
    says(&text("deploy/fleet/bell.toml"), "postgres://gatepost_bell_a@10.77.0.1,10.77.0.2/vpn?");
    says(&scale, "grant --bell gatepost_bell_a ");
    let broker = value("deploy/nats-server.conf", "listen");
    let port = broker.split(':').next_back().unwrap();
    for file in ["gateway", "bell"] {
        says(&text(&format!("deploy/fleet/{file}.toml")), &format!("tls://10.77.0.3:{port}\""));
    }
    // A pool that passes settings on shows tokens of one gateway to the next: the tests use the same.
    let tested = text("tests/support/pooler.rs");
    for key in ["server_reset_query", "server_reset_query_always", "pool_mode"] {
        says(&tested, &format!("{key} = {}", value(pool, key)));
    }
    assert_eq!(value("deploy/fleet/patroni.yml", "synchronous_mode"), "true");
    assert_eq!(value("deploy/fleet/patroni.yml", "log_parameter_max_length"), "0");
}
