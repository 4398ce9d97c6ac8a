//! Names who sent a denied packet, and says what denies it.

use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::View;
use super::status::{DeniedEnd, DeniedPacket, Timestamp};
use crate::model::policy::{Explanation, Quoted, Verdict, dns_addresses};
use crate::model::{Denial, DesiredState, PeerRow};

impl View<'_> {
    /// Describes denied packets that became known at this time.
    #[must_use]
    pub fn denied(&self, denials: &[Denial], at: SystemTime) -> Vec<DeniedPacket> {
        let desired = self.rows.desired;
        denials.iter().map(|denial| denied(desired, denial, Timestamp(at))).collect()
    }
}

fn denied(desired: Option<&DesiredState>, denial: &Denial, at: Timestamp) -> DeniedPacket {
    let row_of = |address| desired.and_then(|desired| row_of(desired, address));
    let (sender, receiver) = (row_of(denial.from), row_of(denial.to));
    let (reason, policy) = match desired {
        None => ("no rows were read yet, so that nothing is granted".to_owned(), None),
        Some(desired) => why(desired, denial, sender, receiver),
    };
    let end = |address, row: Option<&PeerRow>| DeniedEnd {
        address,
        user: row.map(|row| row.username.to_string()).unwrap_or_default(),
        device: row.map(|row| row.device_name.to_string()).unwrap_or_default(),
    };
    let (from, to) = (end(denial.from, sender), end(denial.to, receiver));
    DeniedPacket { at, from, to, service: denial.service.to_string(), reason, policy }
}

/// The admitted peer with the longest prefix that contains an address.
fn row_of(desired: &DesiredState, address: IpAddr) -> Option<&PeerRow> {
    let longest = IpNet::from(address).max_prefix_len();
    let prefixes = (0..=longest).rev().filter_map(|len| IpNet::new(address, len).ok());
    prefixes.map(|prefix| prefix.trunc()).find_map(|prefix| desired.row_at(&prefix))
}

/// Why it is denied, and by which policy.
fn why(
    desired: &DesiredState,
    denial: &Denial,
    sender: Option<&PeerRow>,
    receiver: Option<&PeerRow>,
) -> (String, Option<String>) {
    let explained = |row: &PeerRow, destination| {
        let servers = [desired.gateway_dns(), &dns_addresses(&row.dns_servers)].concat();
        desired.policies().explain(row.user_id, row.device_id, &servers, destination)
    };
    let is_own = |address| desired.interface().addresses.iter().any(|own| own.addr() == address);
    match (sender, receiver) {
        (Some(sender), _) => verdict(&explained(sender, denial.to), denial.to),
        (None, Some(_)) if is_own(denial.from) => {
            ("the gateway may not open it: setting policy.gateway_may_open".to_owned(), None)
        }
        // Only an answer may pass, and that only as far as the peer may reach the sender.
        (None, Some(receiver)) if !denial.opens => {
            let (why, policy) = verdict(&explained(receiver, denial.from), denial.from);
            (format!("not an answer that the peer may have: {why}"), policy)
        }
        (None, Some(_)) => {
            ("opened from outside the tunnel: setting policy.allow_inbound".to_owned(), None)
        }
        (None, None) => ("neither address belongs to a peer of this gateway".to_owned(), None),
    }
}

fn verdict(explained: &Explanation, destination: IpAddr) -> (String, Option<String>) {
    let decided_by = explained.decided_by.as_ref().map(|decided| &decided.policy.policy_name);
    match (explained.verdict, decided_by) {
        (Verdict::Deny, Some(name)) => {
            (format!("policy {} denies it", Quoted(name)), Some(name.to_string()))
        }
        (Verdict::Deny, None) => ("no policy".to_owned(), None),
        // The rows have changed since, the peer is held or has too many flows, or the other end
        // opened the flow.
        (Verdict::Allow, _) => {
            (format!("though its policies allow {destination} now, see `gatepost explain`"), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Effect, GatewayRow, PolicyRow, Service, SnapshotRows, TargetType, UserId};
    use crate::test_rows::{id, local, peer_row, policy_row, snapshot, target};

    const ALICE: &str = "10.8.0.3";

    fn desired() -> DesiredState {
        let alice = PeerRow {
            user_id: UserId(id(1u8)),
            device_name: "laptop".into(),
            username: "alice".into(),
            assigned_ip: format!("{ALICE}/32").parse().unwrap(),
            ..peer_row(3)
        };
        let policy = |number, net: &str, effect| PolicyRow {
            name: format!("policy-{number}"),
            effect,
            destinations: vec![net.parse().unwrap()],
            targets: vec![target(TargetType::User, id(1u8))],
            ..policy_row(number)
        };
        let policies = vec![
            policy(1, "172.16.1.0/24", Effect::Allow),
            policy(2, "172.16.2.0/24", Effect::Deny),
        ];
        let rows = snapshot(vec![alice]);
        let vpn_cidr = "10.8.0.0/16".parse().unwrap();
        let gateway = GatewayRow { vpn_cidr, ..rows.gateway.clone() };
        let rows = SnapshotRows { gateway, policies, ..rows };
        DesiredState::build(Arc::new(local()), rows).unwrap()
    }

    fn line(desired: Option<&DesiredState>, from: &str, to: &str, opens: bool) -> String {
        let denial = Denial {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            service: Service::Port { protocol: 6, port: 443 },
            opens,
        };
        denied(desired, &denial, Timestamp(SystemTime::UNIX_EPOCH)).line()
    }

    #[test]
    fn reason_names_peer_and_policy() {
        let desired = desired();
        let cases = [
            (ALICE, "10.20.0.5", "alice/laptop -> 10.20.0.5 tcp/443: no policy"),
            (
                ALICE,
                "172.16.2.9",
                "alice/laptop -> 172.16.2.9 tcp/443: policy \"policy-2\" denies it",
            ),
            (
                ALICE,
                "172.16.1.9",
                "alice/laptop -> 172.16.1.9 tcp/443: though its policies allow 172.16.1.9 now, see \
                 `gatepost explain`",
            ),
            (
                "172.16.1.9",
                ALICE,
                "172.16.1.9 -> alice/laptop tcp/443: opened from outside the tunnel: setting \
                 policy.allow_inbound",
            ),
            (
                "10.8.0.1",
                ALICE,
                "10.8.0.1 -> alice/laptop tcp/443: the gateway may not open it: setting \
                 policy.gateway_may_open",
            ),
            (
                "10.8.0.77",
                "10.20.0.5",
                "10.8.0.77 -> 10.20.0.5 tcp/443: neither address belongs to a peer of this gateway",
            ),
        ];
        for (from, to, wanted) in cases {
            assert_eq!(line(Some(&desired), from, to, true), wanted);
        }
        assert_eq!(
            line(Some(&desired), "10.20.0.5", ALICE, false),
            "10.20.0.5 -> alice/laptop tcp/443: not an answer that the peer may have: no policy"
        );
        assert_eq!(
            line(None, ALICE, "10.20.0.5", true),
            "10.8.0.3 -> 10.20.0.5 tcp/443: no rows were read yet, so that nothing is granted"
        );
    }
}
