//! The kernel's state by other means than the agent's, at a cost that does not grow with the peers.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use gatepost::dataplane::nft::Nft;
use nix::errno::Errno;
use nix::time::clock_getcpuclockid;

use super::lab::{Agent, Space};

const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(1);

/// What the agent has used of a processor.
pub fn cpu_time(agent: &Agent) -> Duration {
    clock_getcpuclockid(agent.pid()).unwrap().now().unwrap().into()
}

/// Whether WireGuard has a peer for an address: for one that it knows it lacks an endpoint, for
/// any other a key.
pub struct Peers(UdpSocket);

impl Peers {
    pub fn open(gateway: &Space) -> Self {
        Self(gateway.within(|| UdpSocket::bind("0.0.0.0:0").unwrap()))
    }

    pub fn has(&self, address: &str) -> bool {
        match self.0.send_to(b"?", (address, 9)) {
            Err(error) if error.raw_os_error() == Some(Errno::EDESTADDRREQ as i32) => true,
            Err(error) if error.raw_os_error() == Some(Errno::ENOKEY as i32) => false,
            other => panic!("{address}: {other:?}"),
        }
    }

    /// How long until it has one, or has none any more.
    pub fn until(&self, address: &str, present: bool) -> Duration {
        let started = Instant::now();
        while self.has(address) != present {
            assert!(started.elapsed() < PATIENCE, "{address} not within {PATIENCE:?}");
            std::thread::sleep(PAUSE);
        }
        started.elapsed()
    }
}

/// The number that every change of a ruleset raises.
pub fn generation(gateway: &Space) -> u32 {
    gateway.within(|| Nft::open().unwrap().generation().unwrap())
}

/// How long until the ruleset is of another generation.
pub fn until_changed(gateway: &Space, since: u32) -> Duration {
    gateway.within(|| {
        let mut nft = Nft::open().unwrap();
        let started = Instant::now();
        while nft.generation().unwrap() == since {
            assert!(started.elapsed() < PATIENCE, "no change of the firewall in {PATIENCE:?}");
            std::thread::sleep(PAUSE);
        }
        started.elapsed()
    })
}

const TRACING: &str = "/sys/kernel/tracing";
const SET_DEVICE: &str = "wg_set_device";

/// Counts what is written to WireGuard (calls of the kernel's own function) and to nftables.
pub struct WriteCount<'a> {
    gateway: &'a Space,
    generation: u32,
    calls: Option<u64>,
}

pub struct Written {
    /// `None`: this kernel cannot be asked.
    wireguard: Option<u64>,
    pub nftables: u32,
}

impl<'a> WriteCount<'a> {
    pub fn begin(gateway: &'a Space) -> Self {
        if calls().is_none() {
            let _ = std::process::Command::new("mount")
                .args(["-t", "tracefs", "tracefs", TRACING])
                .output();
            // Once, and until the guest's end: to take a probe out of running code is a risk of its own.
            let _ = fs::write(
                format!("{TRACING}/kprobe_events"),
                format!("p:{SET_DEVICE} {SET_DEVICE}\n"),
            );
            let _ = fs::write(format!("{TRACING}/events/kprobes/{SET_DEVICE}/enable"), "1");
        }
        Self { gateway, generation: generation(gateway), calls: calls() }
    }

    pub fn end(self) -> Written {
        let nftables = generation(self.gateway).wrapping_sub(self.generation);
        let wireguard = calls().zip(self.calls).map(|(now, before)| now - before);
        Written { wireguard, nftables }
    }
}

/// How often the kernel was asked to change a WireGuard device since this is counted.
fn calls() -> Option<u64> {
    let profile = fs::read_to_string(format!("{TRACING}/kprobe_profile")).ok()?;
    let line = profile.lines().find(|line| line.contains(SET_DEVICE))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Written {
    /// What was not counted is not nothing.
    pub fn is_nothing(&self) -> bool {
        self.wireguard == Some(0) && self.nftables == 0
    }

    pub fn is_counted(&self) -> bool {
        self.wireguard.is_some_and(|calls| calls > 0) && self.nftables > 0
    }

    pub fn wireguard_words(&self) -> String {
        self.wireguard.map_or_else(|| "(not counted)".to_owned(), |calls| calls.to_string())
    }
}
