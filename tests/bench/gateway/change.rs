//! One changed peer, at one size and at another.

use std::time::Duration;

use super::RARE_REPORT;
use super::figures::{Bar, Row, median, quantile, words};
use super::fleet::Fleet;
use super::reader::{Peers, cpu_time};

const CHANGES: usize = 60;

/// What one change costs on a gateway of so many peers.
pub struct Costs {
    size: String,
    to_kernel: Vec<Duration>,
    cpu: Duration,
}

/// Revokes devices one by one and admits them again.
pub fn measure(fleet: &Fleet) -> Costs {
    fleet.configure(RARE_REPORT);
    let agent = fleet.start();
    std::thread::sleep(Duration::from_secs(2));
    let peers = Peers::open(&fleet.lab.gateway);
    let database = &fleet.lab.database;
    let mut to_kernel = Vec::new();
    let before = cpu_time(&agent);
    for number in 0..CHANGES / 2 {
        // Spread over all of them.
        let device = 1 + number * (fleet.peers / CHANGES);
        let address = database.value(&format!(
            "select host(assigned_ip) from wireguard_peers join devices on devices.id = device_id
             where device_fingerprint = '{device}'"
        ));
        for (status, present) in [("revoked", false), ("active", true)] {
            database.exec(&format!(
                "update devices set status = '{status}' where device_fingerprint = '{device}'"
            ));
            to_kernel.push(peers.until(&address, present));
        }
    }
    let cpu = (cpu_time(&agent) - before) / u32::try_from(CHANGES).unwrap();
    Costs { size: fleet.size(), to_kernel, cpu }
}

impl Costs {
    /// Beside those of a smaller gateway.
    pub fn print(&self, smaller: Option<&Self>) {
        let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
        let bar = || if smaller.is_some() { Bar::Ratio(2.0) } else { Bar::None };
        let half = median(&self.to_kernel);
        Row {
            what: "one changed peer: commit to kernel, median (p99)",
            size: self.size.clone(),
            ours: format!("{} ({})", words(half), words(quantile(&self.to_kernel, 99))),
            beside: smaller.map_or_else(String::new, |smaller| {
                format!("{} at {}", words(median(&smaller.to_kernel)), smaller.size)
            }),
            ratio: smaller.map(|smaller| ratio(half, median(&smaller.to_kernel))),
            bar: bar(),
        }
        .print();
        Row {
            what: "one changed peer: processor time of the agent",
            size: self.size.clone(),
            ours: words(self.cpu),
            beside: smaller.map_or_else(String::new, |smaller| {
                format!("{} at {}", words(smaller.cpu), smaller.size)
            }),
            ratio: smaller.map(|smaller| ratio(self.cpu, smaller.cpu)),
            bar: bar(),
        }
        .print();
    }
}
