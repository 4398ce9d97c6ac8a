//! While a fault lasts, Bob tries what he may not.

use super::{SPACING_MS, Scene};
use crate::lab::{Ears, Fault, Flood, LAN_OTHER, LAN_SERVER, Ping, Ways, eventually, way};

/// Datagrams to each host, before, during and after a fault.
const ROUNDS: usize = 5;

/// Alice may reach both hosts of the LAN, Bob one of them.
pub fn scene() -> Scene {
    Scene::open_with(|lab| {
        lab.database.exec(&format!(
            "update policy_destinations set destination = '{LAN_SERVER}/32'
                 where policy_id = (select id from policies where name = 'bob')"
        ));
    })
}

/// Pings that a fault may cost nothing, or for a while.
pub fn ping(scene: &Scene) -> Ping {
    scene.alice.ping(LAN_SERVER, SPACING_MS)
}

/// The hosts of the LAN hear what Bob sends.
pub struct Tries<'a> {
    scene: &'a Scene,
    ears: Ears,
}

impl<'a> Tries<'a> {
    pub fn open(scene: &'a Scene) -> Self {
        let lan = &scene.lab.lan;
        Self { scene, ears: Ears::open(&[(lan, LAN_SERVER), (lan, LAN_OTHER)]) }
    }

    /// Causes a fault while Bob sends datagrams to both hosts: those that no policy allows never come. In
    /// the end the agent is ready.
    #[track_caller]
    pub fn cause(&self, fault: Fault<'_>, cause: impl FnOnce(), repaired: impl FnMut() -> bool) {
        let bob = &self.scene.bob;
        let allowed = Ways::from(way(&bob.name, &bob.address, LAN_SERVER));
        let begin = || -> Flood {
            let sources: &[&str] = &[&bob.address];
            self.ears.flood(&[(bob, sources)], &[LAN_SERVER, LAN_OTHER], allowed.clone())
        };
        let tries = begin();
        tries.await_arrivals(&allowed, ROUNDS);
        let mut anew = None;
        let cause = || {
            cause();
            // New connections, too.
            anew.insert(begin()).await_rounds(ROUNDS);
        };
        fault.cause(cause, repaired);
        tries.await_arrivals(&allowed, ROUNDS);
        assert_eq!(self.ears.leaked(), []);
        eventually("ready", || self.scene.is_ready());
    }
}
