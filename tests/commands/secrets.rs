//! Secrets of commands, which the unit may pass to the agent alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;

use crate::gatepost::Gatepost;
use crate::postgres::{Cluster, Setup};

const KEY: &str = "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=";
const ENROLL: [&str; 7] =
    ["enroll", "--endpoint", "x:1", "--listen-port", "1", "--vpn-cidr", "10.8.0.0/24"];

#[test]
fn run_ends_with_78_before_it_binds_anything_if_no_restart_can_help() {
    let database = "[database]\nurl = \"postgres://gw@127.0.0.1:1/vpn\"";
    let cases = [
        (format!("{database}\ntls = \"disable\""), "psk.keys: psk_keys, line 1: "),
        (format!("{database}\ntls_ca_file = \"gone.pem\""), "database.tls_ca_file "),
    ];
    for (database, said) in cases {
        let gatepost = Gatepost::with(&format!("[gateway]\nname = \"fra-1\"\n{database}"));
        gatepost.run(&["key", "generate"]).must_exit(0);
        if said.starts_with("psk.keys") {
            gatepost.write("psk.keys", "k1 no-key\n");
            let found = gatepost.run(&["check"]).must_exit(78).stdout;
            assert!(found.contains("wrong   psk_keys   "), "{found}");
        }
        for command in [&["run"][..], &["run", "--once"], &["plan"]] {
            let done = gatepost.run(command).must_exit(78);
            let error = done.error(&gatepost);
            assert!(error.contains(&format!("gatepost: {said}")), "{error}");
            assert_eq!(done.stdout, "", "nothing was read that it could report");
        }
        let bound = std::fs::read_dir(gatepost.path("")).unwrap();
        let bound = bound.filter(|it| it.as_ref().unwrap().file_name() != "psk.keys").count();
        assert_eq!(bound, 2, "only the configuration and the key may exist");
    }
}

#[test]
fn commands_without_sealing_keys_cut_no_peer() {
    let (cluster, role) = (Cluster::shared(), "commands_sealed");
    let database = cluster.database(None);
    let url = cluster.socket_url(role, &database);
    let config = format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}");
    let gatepost = Gatepost::with(&config);
    let owner = ["--database-url", &cluster.socket_url("postgres", &database)];
    gatepost.run(&[&["migrate"], &owner[..]].concat()).must_exit(0);
    gatepost.run(&[&["grant", "fra-1", role, "--create"], &owner[..]].concat()).must_exit(0);
    gatepost.run(&ENROLL).must_exit(0);
    cluster.psql(
        &database,
        "insert into roles (name) values ('staff');
         insert into users (role_id, username, display_name, password_hash)
             select id, 'alice', 'Alice', '!' from roles;
         insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select id, 'laptop', 'linux', 'a', 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=' from users;
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip, preshared_key_ciphertext)
             select d.id, g.id, d.public_key, '10.8.0.2', 'gp1.k1.AAAA' from devices d, gateways g",
    );
    let said = "1 peer with a preshared key, but this host has no psk_keys to open it";
    let plan = gatepost.run(&["plan"]);
    // Without privileges it cannot read the kernel.
    assert!(plan.stdout.contains(said) || plan.stderr.contains("kernel"), "{}", plan.stderr);
    assert!(!plan.stdout.contains("peer add"), "{}", plan.stdout);
    let found = gatepost.run(&["check"]).stdout;
    assert!(found.contains("warning psk_keys   1 peer with a preshared key"), "{found}");

    gatepost.write("psk.keys", KEY);
    let found = gatepost.run(&["check"]).stdout;
    assert!(found.contains("ok      psk_keys   1 key\n"), "{found}");
    let planned = gatepost.run(&["plan"]);
    assert!(!planned.stderr.contains("psk_keys"), "{}", planned.stderr);
}

#[test]
fn plan_refuses_the_role_of_another_gateway() {
    let (cluster, role) = (Cluster::shared(), "commands_elsewhere");
    let database = cluster.database(None);
    let url = cluster.socket_url(role, &database);
    let gatepost =
        Gatepost::with(&format!("[gateway]\nname = \"ber-1\"\n[database]\nurl = {url:?}"));
    let owner = ["--database-url", &cluster.socket_url("postgres", &database)];
    gatepost.run(&[&["migrate"], &owner[..]].concat()).must_exit(0);
    gatepost.run(&[&["grant", "ber-1", role, "--create"], &owner[..]].concat()).must_exit(0);
    gatepost.run(&ENROLL).must_exit(0);
    let mut plan = gatepost.command(&["plan"]);
    let done: crate::gatepost::Done =
        plan.env("GATEPOST_GATEWAY_NAME", "fra-1").output().unwrap().into();
    let said = "gatepost: role acts for gateway \"ber-1\", but [gateway] name is \"fra-1\"";
    assert!(done.must_exit(78).stderr.starts_with(said));
}

/// The steps of README.md, on a server that asks for passwords over TCP.
#[test]
fn passwords_come_from_files() {
    let cluster = Cluster::start(&Setup { host_auth: "scram-sha-256", ..Setup::default() });
    let database = cluster.database(None);
    cluster.psql(&database, "alter role postgres password 'of the owner'");
    let url = cluster.tcp_url("fra_1", &database);
    let config =
        format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}\ntls = \"disable\"");
    let gatepost = Gatepost::with(&config);
    gatepost.write("owner.password", "of the owner\n");
    gatepost.write("db.password", "of the gateway\n");
    let owner_url = cluster.tcp_url("postgres", &database);
    let owner = ["--database-url", &owner_url, "--database-password-file", "owner.password"];
    let as_owner = |args: &[&str]| gatepost.run(&[args, &owner[..]].concat());

    let without = gatepost.run(&["migrate", "--database-url", &owner_url]).must_exit(1);
    assert!(without.stderr.contains("password"), "the gateway's password is not the owner's");
    as_owner(&["migrate"]).must_exit(0);
    let role = ["fra-1", "fra_1", "--create", "--role-password-file", "db.password"];
    as_owner(&[&["grant"], &role[..]].concat()).must_exit(0);
    gatepost.run(&ENROLL).must_exit(0);

    let explicit = owner_url.replace("postgres@", "postgres:of%20the%20owner@");
    let mut migrate = gatepost.command(&["migrate"]);
    migrate.env("GATEPOST_DATABASE_URL", &explicit);
    migrate.env("GATEPOST_DATABASE_PASSWORD_FILE", "db.password");
    let done: crate::gatepost::Done = migrate.output().unwrap().into();
    assert_eq!(done.must_exit(0).stdout, "the schema is up to date\n");
}

/// The kernel gives `/proc/PID/mem` of a process that cannot be dumped to root.
#[test]
fn process_that_reads_secrets_cannot_be_dumped() {
    const NOBODY: u32 = 65534;
    let gatepost = Gatepost::with("");
    let listener = UnixListener::bind(gatepost.path("control.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    for (path, mode) in [("", 0o755), ("control.sock", 0o666), ("gatepost.toml", 0o644)] {
        fs::set_permissions(gatepost.path(path), Permissions::from_mode(mode)).unwrap();
    }
    let mut command = gatepost.command(&["status"]);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY);
    }
    let mut asking = command.spawn().unwrap();
    while listener.accept().is_err() {
        assert_eq!(asking.try_wait().unwrap(), None, "it ended before it asked");
        std::thread::yield_now();
    }
    let owner = fs::metadata(format!("/proc/{}/mem", asking.id())).unwrap().uid();
    asking.kill().unwrap();
    asking.wait().unwrap();
    assert_eq!(owner, 0);
}
