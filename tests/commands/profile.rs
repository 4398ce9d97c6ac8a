//! `gatepost profile`: a device keeps the key that it has unless it gets another.

use std::io::Write;
use std::process::Stdio;

use crate::gatepost::{Done, Gatepost};
use crate::postgres::Cluster;

/// Alice's laptop, with a peer on each of two gateways.
struct Laptop {
    gatepost: Gatepost,
    database: String,
    url: String,
}

impl Laptop {
    fn new() -> Self {
        let cluster = Cluster::shared();
        let database = cluster.database(None);
        let url = cluster.socket_url("postgres", &database);
        let gatepost = Gatepost::with(&format!("[database]\nurl = {url:?}"));
        let laptop = Self { gatepost, database, url };
        laptop.gatepost.run(&["migrate", "--database-url", &laptop.url]).must_exit(0);
        let [fra, ber] = ["fra.key", "ber.key"].map(|name| laptop.generate(name));
        laptop.psql(&format!(
            "insert into roles (name) values ('staff');
             insert into users (role_id, username, display_name, password_hash)
                 select id, 'alice', 'Alice', '!' from roles;
             insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr) values
                 ('fra-1', 'fra.example:51820', 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=', 51820, '10.8.0.0/24'),
                 ('ber-1', 'ber.example:51820', 'gCtIt9iGCMpVtL3bN/xnQrdx2yKmsw93Xv1IL5iJLws=', 51820, '10.9.0.0/24');
             insert into devices (user_id, name, platform, device_fingerprint, public_key)
                 select id, 'laptop', 'linux', 'a', '{fra}' from users;
             insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
                 select d.id, g.id, case g.name when 'fra-1' then '{fra}' else '{ber}' end,
                     case g.name when 'fra-1' then inet '10.8.0.2' else inet '10.9.0.2' end
                 from devices d, gateways g",
        ));
        laptop
    }

    fn generate(&self, file: &str) -> String {
        let done = self.gatepost.run(&["key", "generate", file]).must_exit(0);
        done.stdout.split_whitespace().last().unwrap().to_owned()
    }

    fn psql(&self, sql: &str) -> String {
        Cluster::shared().psql(&self.database, sql).trim().to_owned()
    }

    /// What profiles may change.
    fn rows(&self) -> String {
        self.psql(
            "select g.name, p.public_key, d.public_key, p.profile_revision, p.last_profile_issued_at
             from wireguard_peers p join gateways g on g.id = gateway_id
             join devices d on d.id = device_id order by 1",
        )
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let args = ["profile", "alice/laptop", "--gateway", "fra-1", "--database-url", &self.url];
        [&args, more].concat()
    }
}

#[test]
fn key_that_cannot_be_shown_or_printed_replaces_none() {
    let laptop = Laptop::new();
    let before = laptop.rows();
    let full = format!("gatepost {} > /dev/full", laptop.args(&["--new-key"]).join(" "));
    let full: Done = laptop
        .gatepost
        .shell(&full.replace(&laptop.url, "\"$URL\""))
        .env("URL", &laptop.url)
        .output()
        .unwrap()
        .into();
    assert!(full.must_exit(1).stderr.contains("No space left on device"));
    assert_eq!(laptop.rows(), before);

    laptop.psql("update wireguard_peers set dns_servers = array(select 'host' || n || '.a-long-domain-name.example' from generate_series(1, 99) n)");
    let qr = laptop.gatepost.run(&laptop.args(&["--new-key", "--qr"])).must_exit(1).stderr;
    assert!(qr.contains("too long for a QR code"), "{qr}");
    assert_eq!(laptop.rows(), before);
}

#[test]
fn new_key_is_for_one_gateway_and_the_others_are_named() {
    let laptop = Laptop::new();
    let kept = laptop.psql("select public_key from wireguard_peers where assigned_ip = '10.9.0.2'");
    let done = laptop.gatepost.run(&laptop.args(&["--new-key", "--json"])).must_exit(0);
    let said = "the key that alice/laptop has on gateway ber-1 stays valid";
    assert!(done.stderr.contains(said) && !done.stderr.contains("fra-1 stays"), "{}", done.stderr);
    let profile: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let key = "select public_key from wireguard_peers where assigned_ip =";
    assert_eq!(profile["public_key"], laptop.psql(&format!("{key} '10.8.0.2'")));
    assert_eq!(laptop.psql(&format!("{key} '10.9.0.2'")), kept);
    let again = laptop.gatepost.run(&laptop.args(&[])).must_exit(0);
    assert!(!again.stderr.contains("stays valid"), "{}", again.stderr);
}

#[test]
fn preshared_key_is_opened_and_sealed_again_for_a_new_key() {
    let laptop = Laptop::new();
    let psk = "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=\n";
    laptop.gatepost.write("sealing.keys", psk);
    let preshared = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let of_peer = |column: &str| {
        laptop.psql(&format!("select {column} from wireguard_peers where assigned_ip = '10.8.0.2'"))
    };
    let (gateway, peer) = (of_peer("gateway_id"), of_peer("public_key"));
    let seal = ["psk", "seal", "--gateway", &gateway, "--peer", &peer, "--keys", "sealing.keys"];
    let envelope = laptop.gatepost.run_with_input(&seal, preshared).must_exit(0).stdout;
    laptop.psql(&format!(
        "update wireguard_peers set preshared_key_ciphertext = '{}' where public_key = '{peer}'",
        envelope.trim()
    ));
    let before = laptop.rows();
    let refused = laptop.gatepost.run(&laptop.args(&[])).must_exit(1).stderr;
    assert!(refused.contains("preshared key") && refused.contains("--keys"), "{refused}");
    assert_eq!(laptop.rows(), before);

    let keys = ["--keys", "sealing.keys"];
    let issued = laptop.gatepost.run(&laptop.args(&keys)).must_exit(0).stdout;
    assert!(issued.contains(&format!("PresharedKey = {preshared}\n")), "{issued}");
    let renewed = laptop.gatepost.run(&laptop.args(&[&keys[..], &["--new-key"]].concat()));
    let renewed = renewed.must_exit(0).stdout;
    assert!(renewed.contains(&format!("PresharedKey = {preshared}\n")), "{renewed}");
    let (peer, envelope) = (of_peer("public_key"), of_peer("preshared_key_ciphertext"));
    assert!(!before.contains(&peer));
    let open = ["psk", "open", "--gateway", &gateway, "--peer", &peer, "--keys", "sealing.keys"];
    let opened = laptop.gatepost.run_with_input(&open, &envelope).must_exit(0).stdout;
    assert_eq!(opened.trim(), preshared);
}

#[test]
fn what_a_row_allows_is_routed_and_both_lists_of_dns_servers_are_named() {
    let laptop = Laptop::new();
    laptop.psql(
        "update gateways set dns_servers = array['10.8.0.1'] where name = 'fra-1';
         update wireguard_peers set dns_servers = array['corp.example'],
             allowed_ips = array['172.16.5.0/24', 'fd00:5::/32', '192.168.7.0/24']::cidr[]
             where assigned_ip = '10.8.0.2'",
    );
    // 192.168.7.0/24 is behind the client itself, and it has no address of IPv6.
    let config = format!(
        "[database]\nurl = {:?}\n[interface]\nsite_prefixes = [\"192.168.0.0/16\"]",
        laptop.url
    );
    laptop.gatepost.write("gatepost.toml", &config);
    let issued = laptop.gatepost.run(&laptop.args(&[])).must_exit(0).stdout;
    assert!(issued.contains("AllowedIPs = 172.16.5.0/24\n"), "{issued}");
    assert!(issued.contains("DNS = 10.8.0.1, corp.example\n"), "{issued}");
}

#[test]
fn key_that_changes_meanwhile_is_not_taken_for_the_former() {
    let laptop = Laptop::new();
    let mut command = laptop.gatepost.command(&laptop.args(&["--private-key-file", "-"]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It has read the rows, and waits for the private key.
    let waits = "select count(*) from pg_stat_activity
        where datname = current_database() and state = 'idle' and query = 'rollback'";
    while laptop.psql(waits) != "1" {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
    }
    let new = laptop.generate("new.key");
    laptop.psql(&format!(
        "update wireguard_peers set public_key = '{new}' where assigned_ip = '10.8.0.2'"
    ));
    let before = laptop.rows();
    let key = std::fs::read(laptop.gatepost.path("fra.key")).unwrap();
    child.stdin.take().unwrap().write_all(&key).unwrap();
    let done = Done::from(child.wait_with_output().unwrap()).must_exit(1);
    assert!(
        done.stderr.contains("has changed meanwhile: run the command again"),
        "{}",
        done.stderr
    );
    assert_eq!((done.stdout.as_str(), laptop.rows()), ("", before));
}

#[test]
fn slip_in_a_name_is_answered_with_the_nearest_and_a_device_without_a_peer_is_told_apart() {
    let laptop = Laptop::new();
    let before = laptop.rows();
    let profile = |who: &str| {
        let args = ["profile", who, "--database-url", &laptop.url];
        laptop.gatepost.run(&args).must_exit(1).stderr
    };
    for slip in ["alcie/laptop", "alice/Laptop"] {
        let said = profile(slip);
        let near = format!("no user has a device {slip} (did you mean alice/laptop?): add it");
        assert!(said.contains(&near), "{said}");
    }
    let stranger = profile("zoe/tablet");
    assert!(stranger.contains("no user has a device zoe/tablet: add it"), "{stranger}");
    laptop.psql(
        "insert into devices (user_id, name, platform, device_fingerprint, public_key)
         select id, 'laptop2', 'linux', 'b', 'b' from users",
    );
    let without = profile("alice/laptop2");
    assert!(without.contains("alice/laptop2 has no peer on any gateway"), "{without}");
    assert_eq!(laptop.rows(), before);
}
