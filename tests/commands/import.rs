//! `gatepost import`: what it prints is what PostgreSQL takes and a gateway serves.

use std::fs;
use std::sync::Arc;

use gatepost::model::{DesiredState, Local, PresharedKey, PrivateKey};
use gatepost::store::{ConnectOptions, Store};

use crate::documents::blocks;
use crate::gatepost::{Done, Gatepost, mode};
use crate::postgres::Cluster;
use crate::rows;

const KEY: &str = "aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=";
const PSK: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const FILE: &str = "\
[Interface]
Address = 10.99.0.1/24, fd99::1/64
ListenPort = 51821
MTU = 1400
PrivateKey = aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=

# alice/laptop
[Peer]
PublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
PresharedKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=
AllowedIPs = 10.99.0.2/32, fd99::2/128

# o'neil'); drop table users; --
[Peer]
PublicKey = gCtIt9iGCMpVtL3bN/xnQrdx2yKmsw93Xv1IL5iJLws=
AllowedIPs = 10.99.0.3/32, 192.168.5.0/24, 10.99.0.9/32
";

/// A host with a migrated database, and with the file of a gateway that runs without Gatepost.
struct Site {
    gatepost: Gatepost,
    database: String,
}

impl Site {
    fn new() -> Self {
        let cluster = Cluster::shared();
        let database = cluster.database(None);
        let gatepost = Gatepost::with("[gateway]\nname = \"fra-1\"\n");
        gatepost.write("wg0.conf", FILE);
        gatepost.write("private.key", KEY);
        let url = cluster.socket_url("postgres", &database);
        gatepost.run(&["migrate", "--database-url", &url]).must_exit(0);
        Self { gatepost, database }
    }

    fn psql(&self, sql: &str) -> String {
        Cluster::shared().psql(&self.database, sql)
    }

    /// Runs a file as the page about importing does.
    fn run_file(&self, name: &str) -> Done {
        let cluster = Cluster::shared();
        let script = format!("psql -qX -1 -v ON_ERROR_STOP=1 -f {name}");
        let mut command = self.gatepost.shell(&script);
        command.env("PGHOST", &cluster.dir).env("PGPORT", cluster.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", &self.database);
        command.output().unwrap().into()
    }

    /// What the gateway makes of the rows.
    fn desired(&self) -> DesiredState {
        let role = format!("import_{}", self.database);
        let url = Cluster::shared().socket_url("postgres", &self.database);
        let grant = ["grant", "fra-1", &role, "--create", "--database-url", &url];
        self.gatepost.run(&grant).must_exit(0);
        let url = Cluster::shared().socket_url(&role, &self.database);
        let store = Store::connect(&ConnectOptions::new(&url)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (rows, _) = runtime.block_on(store.snapshot()).unwrap();
        let psk_keys = fs::read_to_string(self.gatepost.path("psk.keys")).unwrap();
        let local = Local {
            private_key: KEY.parse::<PrivateKey>().unwrap(),
            psk_keys: psk_keys.parse().unwrap(),
            ..rows::local()
        };
        DesiredState::build(Arc::new(local), rows).unwrap()
    }
}

#[test]
fn printed_sql_gives_every_peer_what_it_had() {
    let site = Site::new();
    let sealed = site.gatepost.run(&["import", "./wg0.conf"]).must_exit(1);
    assert_eq!(sealed.stdout, "");
    assert!(sealed.stderr.contains("1 peer has a preshared key"), "{}", sealed.stderr);
    assert!(sealed.stderr.contains("name them with --keys"), "{}", sealed.stderr);

    site.gatepost.write("psk.keys", &format!("k1 {PSK}\n"));
    let printed = site.gatepost.run(&["import", "wg0.conf"]).must_exit(0);
    assert!(!printed.stdout.contains(PSK) && !printed.stdout.contains(KEY), "{}", printed.stdout);
    assert!(printed.stderr.contains("gateways.endpoint is empty"), "{}", printed.stderr);
    for line in [
        "addresses = [\"10.99.0.1/24\", \"fd99::1/64\"]",
        "mtu_bytes = 1400",
        "masquerade = \"none\"",
        "name = \"wg0\"",
    ] {
        assert!(printed.stdout.contains(&format!("\n--   {line}\n")), "{line}: {}", printed.stdout);
    }
    site.gatepost.write("import.sql", &printed.stdout);
    site.run_file("import.sql").must_exit(0);

    let desired = site.desired();
    assert_eq!(desired.interface().listen_port, 51821);
    let peers: Vec<_> = desired.peers().values().map(|peer| peer.allowed_ips.to_string()).collect();
    assert_eq!(
        peers,
        ["10.99.0.3/32,10.99.0.9/32,192.168.5.0/24", "10.99.0.2/32,fd99::2/128"],
        "{printed}",
        printed = printed.stdout
    );
    let preshared: Vec<_> =
        desired.peers().values().map(|peer| peer.preshared_key.clone()).collect();
    assert_eq!(preshared, [None, Some(PSK.parse::<PresharedKey>().unwrap())]);
    for (prefix, profile) in &desired.firewall().assignments {
        for to in ["10.20.0.1", "198.41.0.4", "10.99.0.2", "fd20::1"] {
            assert!(profile.allows(to.parse().unwrap()), "{prefix} to {to}");
        }
    }
    assert!(desired.firewall().base.allow_inbound);
    let names = "select string_agg(username || ' ' || name, ', ' order by username)
                 from devices d join users u on u.id = d.user_id";
    assert_eq!(site.psql(names), "alice laptop, o'neil'); drop table users; wg0");
    let unallocated = "select count(*) from wireguard_peers p where not exists (select from
        ip_allocations a where a.device_id = p.device_id and a.address = p.assigned_ip
        and a.gateway_id = p.gateway_id and a.status = 'allocated')";
    assert_eq!(site.psql(unallocated), "0");

    // A second time nothing of it is written.
    let again = site.run_file("import.sql");
    assert!(again.code != 0 && again.stderr.contains("duplicate key"), "{}", again.stderr);
    assert_eq!(site.psql("select count(*) from wireguard_peers"), "2");
}

#[test]
fn existing_users_get_the_devices() {
    let site = Site::new();
    site.gatepost.write("psk.keys", &format!("k1 {PSK}\n"));
    site.psql(
        "insert into roles (name) values ('staff');
         insert into users (role_id, username, display_name, password_hash)
             select id, 'Alice', 'Alice', 'hash' from roles where name = 'staff';
         insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
             select id, 'phone', 'unknown', 'phone', '', now() from users where username = 'Alice'",
    );
    let printed = site.gatepost.run(&["import", "wg0.conf"]).must_exit(0).stdout;
    site.gatepost.write("import.sql", &printed);
    site.run_file("import.sql").must_exit(0);
    let theirs = "select count(*) || ' ' || min(password_hash) from users where username = 'alice'";
    assert_eq!(site.psql(theirs), "1 hash");
    assert_eq!(site.desired().peers().len(), 2);
    // Her other device, which may be a peer of another gateway, gains nothing.
    let targets = "select string_agg(t.target_type || ' ' || d.name, ', ' order by d.name)
                   from policy_targets t left join devices d on d.id = t.target_id";
    assert_eq!(site.psql(targets), "device laptop, device wg0");
    assert_eq!(site.psql("select count(*) from group_memberships"), "0");

    // A user who was deleted gets none: nothing at all is written.
    let site = Site::new();
    site.gatepost.write("psk.keys", &format!("k1 {PSK}\n"));
    site.psql(
        "insert into roles (name) values ('staff');
         insert into users (role_id, username, display_name, password_hash, deleted_at)
             select id, 'alice', 'Alice', 'hash', now() from roles",
    );
    site.gatepost.write("import.sql", &printed);
    let refused = site.run_file("import.sql");
    assert!(refused.stderr.contains("null value in column \"user_id\""), "{}", refused.stderr);
    assert_eq!(site.psql("select count(*) from gateways"), "0");
}

#[test]
fn lines_that_cannot_be_used_are_named_and_nothing_is_printed() {
    let gatepost = Gatepost::with("[gateway]\nname = \"fra-1\"\n");
    gatepost.write("wg0.conf", &FILE.replace("ListenPort = 51821", "ListenPort = none"));
    let refused = gatepost.run(&["import", "./wg0.conf"]).must_exit(1);
    assert_eq!(
        (refused.stdout.as_str(), refused.stderr.as_str()),
        (
            "",
            "gatepost: ./wg0.conf cannot be imported:\n  \
             line 3: ListenPort \"none\" is no port: write 1 to 65535\n"
        )
    );
    let missing = gatepost.run(&["import", "gp-no-such-link"]).must_exit(1).stderr;
    assert!(missing.contains("no WireGuard interface gp-no-such-link"), "{missing}");
    let missing = gatepost.run(&["import", "no-such.conf"]).must_exit(1).stderr;
    assert!(missing.starts_with("gatepost: cannot read no-such.conf: No such file"), "{missing}");
}

/// All but the package and systemd, with the file in the place of the interface.
#[test]
fn the_commands_of_the_import_page_run() {
    let site = Site::new();
    let cluster = Cluster::shared();
    let owner = cluster.socket_url("postgres", &site.database);
    let role = format!("page_{}", site.database);
    let url = cluster.socket_url(&role, &site.database);
    site.gatepost.write(
        "gatepost.toml",
        &format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}\n"),
    );
    site.gatepost.write("db.password", "a-password\n");
    fs::remove_file(site.gatepost.path("private.key")).unwrap();
    let before = format!(
        "owner='--database-url {owner}'\nsystemctl() {{ echo \"$@\" >>units; }}\n\
         wg() {{ echo {KEY}; }}\ncd() {{ :; }}\n"
    );
    let mut ran = 0;
    for (_, block) in blocks("docs/import.md").into_iter().flat_map(|(_, blocks)| blocks) {
        let block = block
            .replace("import wg0", "import ./wg0.conf")
            .replace(" -g gatepost", "")
            .replace("gatepost_fra_1", &role)
            .replace("postgres://postgres@db1/vpn", &owner)
            // The first needs root, the others an agent.
            .replace("gatepost check", ":")
            .replace("gatepost plan", "! gatepost plan")
            .replace("gatepost status", ":");
        let done: Done = site.gatepost.shell(&format!("{before}{block}")).output().unwrap().into();
        done.must_exit(0);
        ran += 1;
    }
    assert_eq!(ran, 5);
    assert_eq!(site.psql("select public_key is not null from gateways"), "t");
    // The agent, which reads it, is of group gatepost.
    assert_eq!(mode(&site.gatepost.path("psk.keys")), 0o640);
    let units = fs::read_to_string(site.gatepost.path("units")).unwrap();
    assert_eq!(units, "disable wg-quick@wg0\nenable --now gatepost\n");
}
