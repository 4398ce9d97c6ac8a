//! Faults under traffic, each a row of docs/faults.md.

mod clients;
mod clocks;
mod database;
pub mod disk;
mod files;
mod firewalls;
mod full;
mod last_good;
mod limits;
mod link;
mod managers;
mod peers;
mod stopped;
mod tries;
mod userland;

use crate::lab::{Agent, Client, Lab, eventually, policy_rows};

/// The time between two pings.
const SPACING_MS: u32 = 20;

/// A gateway with two clients that reach the LAN.
struct Scene {
    agent: Agent,
    alice: Client,
    bob: Client,
    lab: Lab,
}

impl Scene {
    fn open() -> Self {
        Self::open_with(|_| ())
    }

    /// `prepare` comes before the agent starts.
    fn open_with(prepare: impl FnOnce(&Lab)) -> Self {
        let lab = Lab::open();
        let (alice, bob) = (lab.client("alice"), lab.client("bob"));
        for client in [&alice, &bob] {
            lab.database.exec(&client.rows());
            lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
        }
        prepare(&lab);
        let agent = lab.start();
        for client in [&alice, &bob] {
            client.connect();
            eventually("the LAN answers", || client.reaches(crate::lab::LAN_SERVER));
        }
        let seen = "2 = (select count(*) from devices where last_seen_at is not null)";
        eventually(seen, || lab.database.holds(seen));
        Self { agent, alice, bob, lab }
    }

    fn repairs(&self) -> u64 {
        self.lab.status()["sync"]["drift_repaired"].as_u64().unwrap()
    }

    fn is_ready(&self) -> bool {
        self.lab.status()["state"] == "ready"
    }

    /// Whether the kernel has no peer but this one.
    fn has_only(&self, client: &Client) -> bool {
        self.lab.kernel_peers() == [client.key.as_str()]
    }

    fn holds_both(&self) -> bool {
        self.lab.kernel_peers().len() == 2
    }

    /// SQL that admits again who was revoked.
    fn admission(&self) -> &'static str {
        "update devices set status = 'active', revoked_at = null"
    }
}
