//! A WireGuard client: a device, its rows in the database, its pings.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{
    Backend, GATEWAY, GATEWAY_WAN, LISTEN_PORT, Lab, Space, echo, eventually, new_keys, run,
    write_secret,
};

/// What a client sends through the tunnel.
const NETWORKS: [&str; 4] = ["10.99.0.0/16", "10.20.0.0/24", "fd99::/64", "fd20::/64"];
/// A ping that is not answered by then, when pinging ends, is lost.
const LATE: Duration = Duration::from_secs(2);

/// A client in a namespace of its own, called after its user.
pub struct Client {
    pub name: String,
    pub space: Space,
    /// Its address in the tunnel.
    pub address: String,
    /// Another one, which its rows may announce.
    pub address6: String,
    pub key: String,
    link: String,
    gateway_key: String,
    folder: PathBuf,
    /// Its userspace device, where that is the backend.
    device: Option<Child>,
}

impl Client {
    pub(super) fn build(name: &str, space: Space, link: String, host: u8, lab: &Lab) -> Self {
        let folder = lab.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let wan_address = format!("address add 198.51.100.{host}/24 dev eth0");
        space.ip(&["link set lo up", &wan_address, "link set eth0 up"]);
        space.within(echo::allow);
        let device = match lab.backend {
            Backend::Kernel => {
                space.run("ip", &["link", "add", &link, "type", "wireguard"]);
                None
            }
            Backend::Userspace => {
                Some(start_device(lab, &space, &link, &folder.join("device.log")))
            }
        };
        let (private_key, key) = new_keys();
        let key_file = folder.join("private.key");
        write_secret(&key_file, &private_key);
        space.run("wg", &["set", &link, "private-key", key_file.to_str().unwrap()]);
        let (address, address6) = (format!("10.99.0.{host}"), format!("fd99::{host}"));
        let mut setup = vec![format!("link set {link} up")];
        setup.extend(NETWORKS.map(|network| format!("route add {network} dev {link}")));
        setup.extend([&address, &address6].map(|it| format!("address add {it} dev {link}")));
        space.ip(&setup.iter().map(String::as_str).collect::<Vec<_>>());
        let client = Self {
            name: name.to_owned(),
            space,
            address,
            address6,
            key,
            link,
            gateway_key: lab.gateway_key.clone(),
            folder,
            device,
        };
        client.dial();
        client
    }

    /// Gives it these addresses too, so that it can send from them.
    pub fn hold(&self, addresses: &[&str]) {
        for address in addresses {
            self.space.run("ip", &["address", "replace", address, "dev", &self.link]);
        }
    }

    /// Takes address and peer from a configuration for `wg-quick`.
    pub fn use_profile(&self, profile: &str) {
        let address = profile.lines().find_map(|line| line.strip_prefix("Address = ")).unwrap();
        let (_, peer) = profile.split_once("[Peer]").unwrap();
        let file = self.folder.join("peer.conf");
        fs::write(&file, format!("[Peer]{peer}")).unwrap();
        self.hold(&[address]);
        if address != format!("{}/32", self.address) {
            self.space.output("ip", &["address", "delete", &self.address, "dev", &self.link]);
        }
        self.space.run("wg", &["set", &self.link, "peer", &self.gateway_key, "remove"]);
        self.space.run("wg", &["addconf", &self.link, file.to_str().unwrap()]);
    }

    /// Takes everything but the routes from a configuration with its private key, as `wg-quick` reads it.
    pub fn come_up(&self, profile: &str) {
        let (file, stripped) = (self.folder.join("wg0.conf"), self.folder.join("stripped.conf"));
        write_secret(&file, profile);
        fs::write(&stripped, run("wg-quick", &["strip", file.to_str().unwrap()])).unwrap();
        self.space.run("wg", &["setconf", &self.link, stripped.to_str().unwrap()]);
    }

    /// SQL that announces this address for its peer, besides the one that it has.
    pub fn announcement(&self, address: &str) -> String {
        format!(
            "update wireguard_peers set allowed_ips = array['{address}'::cidr]
                 where public_key = '{}'",
            self.key
        )
    }

    /// SQL for its user, its device, its peer and its address.
    pub fn rows(&self) -> String {
        peer_rows(&self.name, &self.key, &self.address)
    }

    /// SQL that revokes its device.
    pub fn revocation(&self) -> String {
        format!(
            "update devices set status = 'revoked', revoked_at = now() where device_fingerprint = '{}'",
            self.name
        )
    }

    /// Removes the gateway and adds it again: WireGuard itself would retry only after 5 s.
    pub fn dial(&self) {
        let peer = ["set", &self.link, "peer", &self.gateway_key];
        self.space.run("wg", &[&peer[..], &["remove"]].concat());
        let (endpoint, networks) = (format!("{GATEWAY_WAN}:{LISTEN_PORT}"), NETWORKS.join(","));
        let preshared = self.folder.join("preshared.key");
        let mut arguments =
            [&peer[..], &["endpoint", &endpoint, "allowed-ips", &networks]].concat();
        if preshared.exists() {
            arguments.extend(["preshared-key", preshared.to_str().unwrap()]);
        }
        self.space.run("wg", &arguments);
    }

    /// Whether one ping is answered within half a second.
    pub fn reaches(&self, address: &str) -> bool {
        self.is_answered(address, Duration::from_millis(500))
    }

    /// One ping must be answered, however long a busy machine takes for it.
    #[track_caller]
    pub fn must_reach(&self, address: &str, what: &str) {
        let is_answered = self.is_answered(address, Duration::from_secs(10));
        assert!(is_answered, "{} does not reach {address}: {what}", self.name);
    }

    fn is_answered(&self, address: &str, within: Duration) -> bool {
        let address = address.parse().unwrap();
        self.space.within(|| echo::is_answered(address, within))
    }

    /// From its next handshake on it has this preshared key with the gateway.
    pub fn preshare(&self, key: &str) {
        let file = self.folder.join("preshared.key");
        write_secret(&file, key);
        let peer = ["set", &self.link, "peer", &self.gateway_key];
        let file = ["preshared-key", file.to_str().unwrap()];
        self.space.run("wg", &[&peer[..], &file].concat());
    }

    /// It has no preshared key any more, and a new session.
    pub fn forget_preshared_key(&self) {
        fs::remove_file(self.folder.join("preshared.key")).unwrap();
        self.connect();
    }

    /// The envelope of its preshared key with the gateway, sealed by the keys in `psk.keys`.
    pub fn sealed(&self, lab: &Lab, preshared: &str) -> String {
        let gateway = format!("select id from gateways where name = '{GATEWAY}'");
        let gateway = lab.database.value(&gateway);
        let mut sealing = Command::new(super::BINARY)
            .args(["psk", "seal", "--gateway", &gateway, "--peer", &self.key, "--keys"])
            .arg(lab.folder.path().join("psk.keys"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        sealing.stdin.take().unwrap().write_all(preshared.as_bytes()).unwrap();
        let sealed = sealing.wait_with_output().unwrap();
        assert!(sealed.status.success(), "{sealed:?}");
        String::from_utf8(sealed.stdout).unwrap().trim().to_owned()
    }

    /// Dials until the gateway answers.
    #[track_caller]
    pub fn connect(&self) {
        eventually(&format!("{} is answered by the gateway", self.name), || {
            self.dial();
            self.reaches(super::GATEWAY_TUNNEL)
        });
    }

    /// Pings in the background, one every `spacing_ms`, until ended.
    pub fn ping(&self, address: &str, spacing_ms: u32) -> Ping {
        let log = self.folder.join(format!("ping-{address}-{spacing_ms}"));
        let mut command = Command::new("ping");
        let spacing_secs = format!("{}.{:03}", spacing_ms / 1000, spacing_ms % 1000);
        command.args(["-nD", "-i", &spacing_secs, address]).stdout(File::create(&log).unwrap());
        Ping { child: self.space.spawn(&mut command), log }
    }

    /// How many packets have come through the tunnel.
    pub fn received_packets(&self) -> u64 {
        let counters =
            self.space.within(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let ours = counters.lines().find_map(|line| line.trim().strip_prefix(&self.link)).unwrap();
        ours.trim_start_matches(':').split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends a datagram to each of these ports. A full queue only loses some.
    pub fn send_udp(&self, address: &str, ports: impl Iterator<Item = u16> + Send) {
        self.space.within(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            for port in ports {
                let _ = socket.send_to(b"?", (address, port));
            }
        });
    }

    /// Opens a TCP connection.
    pub fn tcp(&self, address: &str, port: u16) -> std::io::Result<TcpStream> {
        let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
        self.space.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(device) = &mut self.device {
            let _ = device.kill();
            let _ = device.wait();
        }
    }
}

/// SQL for a user, a device, a peer and an allocation; key and address may be invalid.
pub fn peer_rows(name: &str, key: &str, address: &str) -> String {
    format!(
        "insert into users (role_id, username, display_name, password_hash)
             select id, '{name}', '{name}', '!' from roles;
         insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select id, '{name}-laptop', 'linux', '{name}', '{key}' from users where username = '{name}';
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, '{key}', '{address}' from devices, gateways
             where device_fingerprint = '{name}' and gateways.name = '{GATEWAY}';
         insert into ip_allocations (gateway_id, device_id, address)
             select gateway_id, device_id, assigned_ip from wireguard_peers where public_key = '{key}'
             on conflict do nothing"
    )
}

/// SQL for a policy that allows a user a destination.
pub fn policy_rows(name: &str, user: &str, destination: &str) -> String {
    format!(
        "insert into policies (name) values ('{name}');
         insert into policy_destinations (policy_id, destination)
             select id, '{destination}' from policies where name = '{name}';
         insert into policy_targets (policy_id, target_type, target_id)
             select policies.id, 'user', users.id from policies, users
             where policies.name = '{name}' and username = '{user}'"
    )
}

/// SQL for a policy that allows users 41 hosts of the LAN, from [`LAN_SERVER`](super::LAN_SERVER) on each second
/// one: more than the kernel gets without a set.
pub fn wide_policy_rows(name: &str, users: &[&str]) -> String {
    format!(
        "insert into policies (name) values ('{name}');
         insert into policy_destinations (policy_id, destination)
             select id, (inet '{LAN_SERVER}' + 2 * n)::cidr from policies, generate_series(0, 40) as n
             where name = '{name}';
         insert into policy_targets (policy_id, target_type, target_id)
             select policies.id, 'user', users.id from policies, users
             where policies.name = '{name}' and username = any ('{{{}}}')",
        users.join(","),
        LAN_SERVER = super::LAN_SERVER
    )
}

fn start_device(lab: &Lab, space: &Space, link: &str, log: &Path) -> Child {
    let mut command = lab.command(&["device", link]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log).unwrap());
    let mut child = space.spawn(&mut command);
    eventually("a userspace device answers", || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{link} ended: {}", fs::read_to_string(log).unwrap());
        space.output("wg", &["show", link]).status.success()
    });
    child
}

/// A running `ping`.
pub struct Ping {
    child: Child,
    log: PathBuf,
}

/// Its result: the number of the last answered ping, how many before it were not answered, and the longest
/// time between two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinged {
    pub last: usize,
    pub lost: usize,
    pub longest_gap: Duration,
}

impl Ping {
    /// The packets and datagrams that came to the host that pings, and those that it dropped.
    pub fn counters(&self) -> String {
        let read =
            |file| fs::read_to_string(format!("/proc/{}/net/{file}", self.child.id())).unwrap();
        let [snmp, links] = ["snmp", "dev"].map(read);
        let datagrams = snmp.lines().filter(|line| line.starts_with("Udp:"));
        datagrams.chain(links.lines()).collect::<Vec<_>>().join("\n")
    }

    /// How many answers came so far.
    pub fn answers(&self) -> usize {
        self.answered().len()
    }

    /// Waits for so many more answers.
    #[track_caller]
    pub fn await_answers(&self, more: usize) {
        let wanted = self.answers() + more;
        eventually("pings are answered", || self.answers() >= wanted);
    }

    /// Its log, and which pings were not answered, each with the second of the answer before it.
    pub fn unanswered(&self) -> String {
        let answered = self.answered();
        let last = answered.keys().last().copied().unwrap_or_default();
        let missing = (1..last).filter(|number| !answered.contains_key(number));
        let before = |number: usize| answered.range(..number).next_back().map(|(_, at)| *at);
        let missing: Vec<_> = missing.map(|number| (number, before(number))).collect();
        format!("{}: {missing:?}", self.log.display())
    }

    /// Ends it. What was sent after the last answer is not counted. An answer may overtake another one, so those
    /// that are missing by now have until [`LATE`] to come.
    pub fn end(mut self) -> Pinged {
        let last = self.answered().keys().last().copied().unwrap_or_default();
        let begin = Instant::now();
        let answered = loop {
            let mut answered = self.answered();
            answered.retain(|number, _| *number <= last);
            if answered.len() == last || begin.elapsed() >= LATE {
                break answered;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let lost = last - answered.len();
        if lost > 0 {
            println!("{lost} of {last} pings are lost, in {}", self.unanswered());
        }
        let times: Vec<f64> = answered.values().copied().collect();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        Pinged { last, lost, longest_gap: Duration::from_secs_f64(longest) }
    }

    /// The numbers of the answered pings, each once, with the second at which the answer came.
    fn answered(&self) -> BTreeMap<usize, f64> {
        let text = fs::read_to_string(&self.log).unwrap();
        let answer = |line: &str| {
            let number = line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok()?;
            Some((number, line.strip_prefix('[')?.split(']').next()?.parse().ok()?))
        };
        text.lines().filter(|line| line.contains("bytes from")).filter_map(answer).collect()
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
