//! `gatepost peers`: every peer of this gateway.

use std::time::{Duration, SystemTime};

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Table, age, bytes, truncated};
use gatepost::reconcile::status::{PeerState, PeerStatus};

/// Figures that are not older are those of now.
const FRESH: Duration = Duration::from_secs(2);

/// Prints every peer.
///
/// # Errors
/// No agent, or a wrong answer.
pub fn peers(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let mut peers = Vec::new();
    Client::new(&config.control.socket).peers(|peer| peers.push(peer))?;
    if json {
        output::print_json(&peers)?;
    } else {
        output::print(&describe(&peers, SystemTime::now()))?;
    }
    Ok(Exit::Success)
}

/// The peers as a table, and their number.
#[must_use]
pub fn describe(peers: &[PeerStatus], now: SystemTime) -> String {
    let mut table = Table::new([
        "USER",
        "DEVICE",
        "ADDRESS",
        "ENDPOINT",
        ">HANDSHAKE",
        ">RECEIVED",
        ">SENT",
        "POLICIES",
        "STATE",
    ]);
    for peer in peers {
        table.row(cells(peer, now));
    }
    let is_in_kernel =
        |peer: &&PeerStatus| matches!(peer.state, PeerState::InKernel | PeerState::Held { .. });
    let in_kernel = peers.iter().filter(is_in_kernel).count();
    let total = output::count(peers.len() as u64, "peer");
    let age = peers.iter().filter_map(|peer| peer.read_at).map(|at| at.age(now)).min();
    let is_old = |age: &Duration| *age > FRESH;
    let as_of =
        age.filter(is_old).map(|age| format!("; endpoints and figures as of {}", output::age(age)));
    let summary = format!("{total}, {in_kernel} in the kernel{}\n", as_of.unwrap_or_default());
    if table.is_empty() { summary } else { format!("{}\n{summary}", table.render()) }
}

fn cells(peer: &PeerStatus, now: SystemTime) -> [String; 9] {
    let addresses = peer.addresses.iter().map(|prefix| {
        if prefix.prefix_len() == prefix.max_prefix_len() {
            prefix.addr().to_string()
        } else {
            prefix.to_string()
        }
    });
    let handshake = peer.last_handshake_at.map(|at| age(at.age(now)));
    [
        truncated(&peer.user),
        truncated(&peer.device),
        addresses.collect::<Vec<_>>().join(" "),
        peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        handshake.unwrap_or_else(|| "never".to_owned()),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
        peer.policies.iter().map(|name| truncated(name)).collect::<Vec<_>>().join(", "),
        peer.state.text(),
    ]
}

#[cfg(test)]
mod tests {
    use gatepost::model::{DeviceId, PeerId, UserId};
    use uuid::Uuid;

    use super::*;
    use gatepost::reconcile::status::Timestamp;

    fn peer(user: &str, device: &str, state: PeerState) -> PeerStatus {
        PeerStatus {
            state,
            peer_id: Some(PeerId(Uuid::nil())),
            user: user.into(),
            user_id: Some(UserId(Uuid::nil())),
            device: device.into(),
            device_id: Some(DeviceId(Uuid::nil())),
            public_key: String::new(),
            addresses: vec!["10.8.0.7/32".parse().unwrap()],
            read_at: Some(Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000))),
            endpoint: None,
            last_handshake_at: None,
            rx_bytes: 0,
            tx_bytes: 0,
            policies: vec![],
        }
    }

    #[test]
    fn table_shows_each_peer() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut anna = peer("anna", "laptop", PeerState::InKernel);
        anna.endpoint = Some("203.0.113.9:40001".parse().unwrap());
        anna.last_handshake_at = Some(Timestamp(now - Duration::from_secs(12)));
        anna.rx_bytes = 3_565_159;
        anna.tx_bytes = 812;
        anna.addresses.push("192.168.7.0/24".parse().unwrap());
        anna.policies = vec!["staff".into(), "printers".into()];
        let why = "its public key is not base64".to_owned();
        let ben = peer("ben", "phone", PeerState::Quarantined { reason: why });
        let (reason, since) = ("its row is gone".to_owned(), SystemTime::UNIX_EPOCH);
        let mut gone = peer("", "", PeerState::Held { reason, since });
        gone.tx_bytes = 7;
        assert_eq!(
            describe(&[anna, ben, gone], now),
            "\
USER  DEVICE  ADDRESS                  ENDPOINT           HANDSHAKE  RECEIVED   SENT  POLICIES         STATE
anna  laptop  10.8.0.7 192.168.7.0/24  203.0.113.9:40001   12 s ago   3.4 MiB  812 B  staff, printers  ok
ben   phone   10.8.0.7                 -                      never       0 B    0 B  -                quarantined: its public key is not base64
-     -       10.8.0.7                 -                      never       0 B    7 B  -                held: its row is gone

3 peers, 2 in the kernel
"
        );
    }

    #[test]
    fn old_figures_say_as_of_when_they_are() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_030);
        let text = describe(&[peer("anna", "laptop", PeerState::InKernel)], now);
        assert!(
            text.ends_with("1 in the kernel; endpoints and figures as of 30 s ago\n"),
            "{text}"
        );
    }

    #[test]
    fn no_peers_print_a_zero_count() {
        assert_eq!(describe(&[], SystemTime::UNIX_EPOCH), "0 peers, 0 in the kernel\n");
    }
}
