//! One gateway with its peers, their users, groups and policies; and the raw tools on the same.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::figures::{grouped, timed};
use super::lab::{Agent, Lab, run};

/// The interface that the raw tools fill.
pub const RAW: &str = "raw";
/// Devices of each user.
const DEVICES: usize = 5;
/// Groups of users, each with a policy of five destinations.
const TEAMS: usize = 200;

pub struct Fleet {
    pub lab: Lab,
    pub peers: usize,
}

impl Fleet {
    /// Every user is in one team, and every fifth in the group `staff`.
    pub fn make(peers: usize) -> Self {
        let lab = Lab::open();
        lab.database.exec(&rows(peers));
        lab.database.exec("truncate gatepost.change");
        lab.database.exec("vacuum analyze");
        Self { lab, peers }
    }

    pub fn size(&self) -> String {
        format!("{} peers", grouped(self.peers))
    }

    /// `wg setconf` of the same peers on an interface beside ours.
    pub fn setconf(&self) -> Duration {
        let rows = self.lab.database.column(
            "select public_key || ' ' || host(assigned_ip) from wireguard_peers order by assigned_ip",
        );
        assert_eq!(rows.len(), self.peers);
        let mut config = format!("[Interface]\nPrivateKey = {}\n", run("wg", &["genkey"]));
        for row in rows {
            let (key, address) = row.split_once(' ').unwrap();
            write!(config, "[Peer]\nPublicKey = {key}\nAllowedIPs = {address}/32\n").unwrap();
        }
        let file = self.lab.folder.path().join("raw.conf");
        fs::write(&file, config).unwrap();
        self.lab.gateway.run("ip", &["link", "add", RAW, "type", "wireguard"]);
        timed(|| self.lab.gateway.run("wg", &["setconf", RAW, file.to_str().unwrap()]))
    }

    /// The rows of a snapshot, over the agent's own way to the database and in a session that is open
    /// already, thrown away undecoded.
    pub fn bare_snapshot(&self) -> Duration {
        let database = &self.lab.database;
        let url = self.lab.relay.url(database.role(), database.name(), database.role_password());
        let mut psql = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &url, "-o", "/dev/null"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut asks = psql.stdin.take().unwrap();
        let mut answers = BufReader::new(psql.stderr.take().unwrap()).lines();
        let mut until_done = |statements: &str| {
            writeln!(asks, "{statements}\n\\warn done").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), "done");
        };
        until_done("select 1;");
        let copy = |read| format!("copy (select * from gatepost.snapshot_{read}()) to stdout;\n");
        let copies: String = ["peers", "memberships", "policies"].map(copy).concat();
        let took = timed(|| until_done(&copies));
        drop(asks);
        assert!(psql.wait().unwrap().success(), "psql reads a snapshot");
        took
    }

    pub fn once(&self) {
        let (code, out, err) = self.lab.gatepost(&["run", "--once"]);
        assert_eq!(code, 0, "{out}{err}");
    }

    /// With this under `[report]`.
    pub fn configure(&self, report: &str) {
        self.lab.write_config("");
        let file = self.lab.config();
        let text = fs::read_to_string(&file).unwrap();
        let fast = "heartbeat = \"1s\"\ninterval = \"1s\"";
        assert!(text.contains(fast), "the laboratory's own [report]");
        fs::write(file, text.replace(fast, report)).unwrap();
    }

    /// The same, and with this `sync.mode`.
    pub fn configure_mode(&self, report: &str, mode: &str) {
        self.configure(report);
        let file = self.lab.config();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, format!("{text}\n[sync]\nmode = \"{mode}\"\n")).unwrap();
    }

    /// The mode in use.
    pub fn mode(&self) -> String {
        self.lab.status()["sync"]["mode"].as_str().unwrap().to_owned()
    }

    /// A ready agent that has nothing left to do.
    pub fn start(&self) -> Agent {
        let agent = self.lab.launch(super::lab::BINARY.as_ref());
        let deadline = Instant::now() + Duration::from_secs(600);
        while self.lab.gatepost(&["status"]).0 != 0 {
            assert!(Instant::now() < deadline, "not ready in 600 s:\n{}", self.lab.log());
            std::thread::sleep(Duration::from_millis(500));
        }
        agent
    }

    /// No agent has kept the last good rows.
    pub fn forget_rows(&self) {
        drop(fs::remove_file(self.lab.folder.path().join("last-good")));
    }

    /// Until an agent has put the last good rows on disk: until then it holds them twice.
    pub fn await_kept_rows(&self) {
        let file = self.lab.folder.path().join("last-good");
        let deadline = Instant::now() + Duration::from_secs(300);
        while !file.exists() {
            assert!(Instant::now() < deadline, "no rows kept in 300 s:\n{}", self.lab.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many passes proved the kernel equal.
    pub fn passes(&self) -> u64 {
        self.lab.status()["sync"]["passes"].as_u64().unwrap()
    }

    /// `gateways.last_sync_at`
    pub fn last_sync(&self) -> String {
        self.lab.database.value("select last_sync_at from gateways")
    }
}

fn rows(peers: usize) -> String {
    let users = peers.div_ceil(DEVICES);
    format!(
        "update gateways set vpn_cidr = '10.64.0.0/10';
         insert into users (role_id, username, display_name, password_hash)
             select id, 'user' || n, 'user', '!' from roles, generate_series(1, {users}) as n;
         insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
             select users.id, 'd' || n, 'linux', n, encode(sha256(n::text::bytea), 'base64'), now()
             from generate_series(1, {peers}) as n join users on username = 'user' || (1 + n % {users});
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip, allowed_ips)
             select devices.id, gateways.id, devices.public_key,
                 '10.64.0.1'::inet + device_fingerprint::int, '{{0.0.0.0/0,::/0}}'
             from devices, gateways;
         insert into ip_allocations (gateway_id, device_id, address)
             select gateway_id, device_id, assigned_ip from wireguard_peers;
         create index on devices (device_fingerprint);
         insert into groups (name) select 'team' || n from generate_series(1, {TEAMS}) as n;
         insert into groups (name) values ('staff'), ('guests');
         insert into group_memberships (group_id, user_id)
             select groups.id, users.id from users
             join groups on groups.name = 'team' || (1 + substr(username, 5)::int % {TEAMS});
         insert into group_memberships (group_id, user_id)
             select groups.id, users.id from users, groups
             where groups.name = 'staff' and substr(username, 5)::int % 5 = 0;
         insert into policies (name) select name from groups;
         insert into policy_targets (policy_id, target_type, target_id)
             select policies.id, 'group', groups.id from policies join groups using (name);
         insert into policy_destinations (policy_id, destination)
             select id, set_masklen('172.16.0.0'::inet + (row_number() over (order by name) * 5 + k) * 256, 24)::cidr
             from policies, generate_series(0, 4) as k"
    )
}
