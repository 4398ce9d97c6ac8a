//! One packet that the firewall denied.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::reconcile::name::{is_device, is_user, name_of};
use crate::reconcile::view::time::Timestamp;

/// A denied packet, as `gatepost denied` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedPacket {
    /// When the agent read it from the kernel, by this host's clock.
    pub at: Timestamp,
    pub from: DeniedEnd,
    pub to: DeniedEnd,
    /// `tcp/443`, `icmp/8` or `gre`.
    pub service: String,
    /// Why the rows, as they are now, deny it.
    pub reason: String,
    /// The policy that denies it; `null`: none does.
    pub policy: Option<String>,
}

/// Sender or receiver of a denied packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedEnd {
    pub address: IpAddr,
    /// The peer whose address it is; empty: no admitted peer's.
    pub user: String,
    pub device: String,
}

impl DeniedPacket {
    /// The packet without its time: "alice/laptop -> 10.20.0.5 tcp/443: no policy".
    #[must_use]
    pub fn line(&self) -> String {
        format!("{}: {}", self.route(), self.reason)
    }

    /// From where to where, and for what: "alice/laptop -> 10.20.0.5 tcp/443".
    #[must_use]
    pub fn route(&self) -> String {
        format!("{} -> {} {}", self.from.name(), self.to.name(), self.service)
    }

    /// Whether `who` (a user, a device, `user/device` or an address) sent or should have got it.
    #[must_use]
    pub fn concerns(&self, who: &str) -> bool {
        [&self.from, &self.to].into_iter().any(|end| end.is(who))
    }
}

impl DeniedEnd {
    /// "alice/laptop", or the address where it is no peer's.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.user.as_str(), self.device.as_str()) {
            ("", "") => self.address.to_string(),
            (user, device) => name_of(user, device),
        }
    }

    fn is(&self, who: &str) -> bool {
        let by_name = !self.user.is_empty()
            && (is_user(&self.user, who) || is_device(&self.user, &self.device, who));
        by_name || who.parse().is_ok_and(|address: IpAddr| address == self.address)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn packet_concerns_both_ends_by_any_of_their_names() {
        let end = |address: &str, user: &str, device: &str| DeniedEnd {
            address: address.parse().unwrap(),
            user: user.into(),
            device: device.into(),
        };
        let packet = DeniedPacket {
            at: Timestamp(SystemTime::UNIX_EPOCH),
            from: end("10.8.0.2", "alice", "laptop"),
            to: end("10.20.0.5", "", ""),
            service: "tcp/443".into(),
            reason: "no policy".into(),
            policy: None,
        };
        assert_eq!(packet.line(), "alice/laptop -> 10.20.0.5 tcp/443: no policy");
        for who in ["alice", "Alice", "laptop", "Alice/laptop", "10.8.0.2", "10.20.0.5"] {
            assert!(packet.concerns(who), "{who}");
        }
        for who in ["", "bob", "bob/laptop", "10.8.0.3"] {
            assert!(!packet.concerns(who), "{who}");
        }
    }
}
