//! The status for an operator.

use std::time::{Duration, SystemTime};

use gatepost::reconcile::status::{State, Status, Unavailable};

use crate::output::{Style, Tone, age, count, printable, span};

/// How many held peers are named.
const FIRST_HELD: usize = 5;

/// In place of what only the kernel says.
const UNREAD: &str = "the kernel was not read yet";

/// The status for an operator.
#[must_use]
pub fn describe(status: &Status, now: SystemTime, style: Style) -> String {
    let tone = match status.state {
        State::Ready => Tone::Good,
        State::Starting | State::Degraded { .. } => Tone::Warning,
        State::NotReady { .. } => Tone::Bad,
    };
    let state = match status.state.why() {
        None => style.paint(tone, status.state.word()) + &progress(status),
        Some(why) => format!("{}: {}", style.paint(tone, status.state.word()), printable(why)),
    };
    let mut lines = vec![
        ("gateway", gateway(status)),
        ("state", state),
        ("interface", interface(status)),
        ("firewall", firewall(status)),
        ("last sync", last_sync(status, now)),
        ("mode", mode(status)),
        ("database", database(status, now)),
        ("peers", peers(status)),
        ("drift", drift(status)),
        ("agent", agent(status, now)),
    ];
    if let Some(held) = status.held_back {
        let held = format!(
            "removing {} of {} waits for `gatepost confirm`",
            held.removals,
            count(held.of, "peer")
        );
        lines.push(("held back", style.paint(Tone::Warning, &held)));
    }
    if !status.blocked.is_empty() {
        let blocked = format!("{}, see `gatepost blocked`", status.blocked.len());
        lines.push(("blocked", style.paint(Tone::Warning, &blocked)));
    }
    let mut text = String::new();
    for (label, value) in lines {
        text.push_str(&format!("{label:<11}{value}\n"));
    }
    text + &attention(status, style)
}

/// How far a first pass has come.
fn progress(status: &Status) -> String {
    let peers = &status.peers;
    match status.state {
        State::Starting if peers.desired > peers.in_kernel && peers.in_kernel > 0 => {
            format!(": {} of {} in the kernel", peers.in_kernel, count(peers.desired, "peer"))
        }
        _ => String::new(),
    }
}

fn gateway(status: &Status) -> String {
    let id = status.gateway.id.map(|id| format!("  ({id})")).unwrap_or_default();
    format!("{}{id}", printable(&status.gateway.name))
}

fn interface(status: &Status) -> String {
    let interface = &status.interface;
    let mut text = interface.name.clone();
    if let Some(backend) = interface.backend {
        text += &format!(", {backend} WireGuard");
    }
    if let Some(port) = interface.listen_port {
        text += &format!(", UDP port {port}");
    }
    if let Some(key) = interface.public_key {
        text += &format!(", key {key}");
    }
    text
}

/// Whether the kernel was read. An agent of the last version says so only where it found the interface.
#[must_use]
pub fn is_kernel_read(status: &Status) -> bool {
    status.peers.read_at.is_some() || status.interface.listen_port.is_some()
}

fn firewall(status: &Status) -> String {
    if !is_kernel_read(status) {
        return UNREAD.to_owned();
    }
    let found = &status.firewall;
    let owned = if found.table_owned { "owned by the agent" } else { "open to other programs" };
    let gate = if found.gate { "fails closed" } else { "fails open" };
    match &found.gate_why {
        Some(why) => format!("{owned}, {gate}: {}", printable(why)),
        None => format!("{owned}, {gate}"),
    }
}

fn last_sync(status: &Status, now: SystemTime) -> String {
    let Some(at) = status.sync.last_sync_at else { return "never".to_owned() };
    let lag = status.sync.lag_ms.map(|ms| format!(", lag {}", span(Duration::from_millis(ms))));
    format!("{} ({at}){}", age(at.age(now)), lag.unwrap_or_default())
}

fn mode(status: &Status) -> String {
    let mode = match status.sync.mode {
        Some(mode) => mode.to_string(),
        None => return "none: the database is not connected".to_owned(),
    };
    let why = match status.sync.mode_why.as_str() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    let missed = match status.sync.notify_missed {
        0 => String::new(),
        missed => format!("; {} missed", count(missed, "notification")),
    };
    let every = status.sync.poll_interval_ms.map(Duration::from_millis);
    let every = every.map(|every| format!(" every {}", span(every))).unwrap_or_default();
    format!("{mode}{every}{why}{missed}")
}

fn database(status: &Status, now: SystemTime) -> String {
    let database = &status.database;
    let word = match database.unavailable {
        _ if database.connected => "connected",
        Some(Unavailable::Unreachable) => "unreachable",
        Some(Unavailable::Refuses) => "login refused",
        Some(Unavailable::NotReady) => "not ready",
        None => "not connected yet",
    };
    let since = database.since.map(|at| format!(" for {}", span(at.age(now))));
    let schema = database.schema_version.map(|version| format!(", schema {version}"));
    let error = database.last_error.as_deref().filter(|_| !database.connected);
    let error = error.map(|error| format!(": {}", printable(error)));
    [Some(word.to_owned()), since, schema, error].into_iter().flatten().collect()
}

fn peers(status: &Status) -> String {
    let peers = &status.peers;
    let held = if peers.held > 0 { format!(" ({} held)", peers.held) } else { String::new() };
    let in_kernel = match is_kernel_read(status) {
        true => format!("{} in the kernel{held}, {} connected", peers.in_kernel, peers.connected),
        false => UNREAD.to_owned(),
    };
    // Every usable gateway has an id.
    let desired = match status.gateway.id {
        Some(_) => format!(
            "{} desired; {} ineligible, {} quarantined",
            peers.desired, peers.ineligible, peers.quarantined
        ),
        None => "no rows were read yet".to_owned(),
    };
    format!("{in_kernel}, {desired}")
}

fn drift(status: &Status) -> String {
    match status.sync.drift_repaired {
        0 if status.sync.last_sync_at.is_none() => "not compared yet".to_owned(),
        0 => "none".to_owned(),
        times => format!("repaired {}", count(times, "time")),
    }
}

fn agent(status: &Status, now: SystemTime) -> String {
    let agent = &status.agent;
    let up = agent.started_at.map(|at| format!(", up {}", span(at.age(now))));
    let pass = status.sync.last_pass.as_ref().map(|pass| {
        let took = span(Duration::from_millis(pass.duration_ms));
        format!(", last pass {} ({} in {took})", age(pass.at.age(now)), count(pass.steps, "step"))
    });
    format!("{}{}{}", agent.version, up.unwrap_or_default(), pass.unwrap_or_default())
}

fn attention(status: &Status, style: Style) -> String {
    let mut text = String::new();
    if !status.held.is_empty() {
        text.push_str("\nheld until `gatepost confirm`\n");
        for peer in status.held.iter().take(FIRST_HELD) {
            let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
            let line = format!("{} ({}): {}", peer.name(), addresses.join(" "), peer.reason);
            text.push_str(&format!("  {}\n", printable(&line)));
        }
        let named = status.held.len().min(FIRST_HELD) as u64;
        let more = status.peers.held.saturating_sub(named);
        if more > 0 {
            text.push_str(&format!("  and {more} more, see `gatepost peers`\n"));
        }
    }
    if !status.quarantined.is_empty() {
        text.push_str("\nquarantined\n");
        for peer in &status.quarantined {
            let line = format!("{}: {}", peer.name(), peer.reason);
            text.push_str(&format!("  {}\n", printable(&line)));
        }
        let more = status.peers.quarantined.saturating_sub(status.quarantined.len() as u64);
        if more > 0 {
            text.push_str(&format!("  and {more} more, see `gatepost peers`\n"));
        }
    }
    if !status.quarantined_policies.is_empty() {
        text.push_str("\nquarantined policies\n");
        for policy in &status.quarantined_policies {
            let peers = count(policy.peers, "peer");
            let line = format!("{}, for {peers}: {}", policy.policy, policy.reason);
            text.push_str(&format!("  {}\n", printable(&line)));
        }
    }
    if !status.warnings.is_empty() {
        text.push_str(&format!("\n{}\n", style.paint(Tone::Warning, "warnings")));
        for warning in &status.warnings {
            text.push_str(&format!("  {}\n", printable(warning)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use gatepost::model::{GatewayId, PeerId, PolicyId, PublicKey};
    use uuid::Uuid;

    use super::*;
    use gatepost::reconcile::status::{
        BackendInUse, BlockStatus, FirewallStatus, HeldBack, HeldPeer, Mode, PassStatus,
        PeerCounts, QuarantinedPeer, QuarantinedPolicy, Timestamp,
    };

    fn at(secs: u64) -> Timestamp {
        Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + secs))
    }

    fn held(user: &str, device: &str) -> HeldPeer {
        HeldPeer {
            peer_id: None,
            user: user.into(),
            user_id: None,
            device: device.into(),
            device_id: None,
            public_key: PublicKey::from_bytes([1; 32]).unwrap(),
            addresses: vec!["10.8.0.7/32".parse().unwrap()],
            reason: "user not active".into(),
            since: SystemTime::UNIX_EPOCH,
        }
    }

    fn ready() -> Status {
        let mut status = Status { state: State::Ready, ..Status::default() };
        status.gateway.name = "fra-1".into();
        status.gateway.id = Some(GatewayId(Uuid::from_u128(0x1f)));
        status.interface.name = "gatepost0".into();
        status.interface.backend = Some(BackendInUse::Kernel);
        status.interface.listen_port = Some(51820);
        status.firewall = FirewallStatus { table_owned: true, gate: true, gate_why: None };
        status.sync.mode = Some(Mode::Listen);
        status.sync.mode_why = "notifications arrive".into();
        status.sync.last_sync_at = Some(at(0));
        status.sync.lag_ms = Some(4);
        status.sync.last_pass =
            Some(PassStatus { at: at(0), duration_ms: 3, steps: 1, refused: 0 });
        status.database.connected = true;
        status.database.since = Some(at(0));
        status.database.schema_version = Some(8);
        status.peers = PeerCounts {
            desired: 2,
            in_kernel: 2,
            connected: 1,
            held: 0,
            ineligible: 1,
            quarantined: 0,
            read_at: Some(at(0)),
        };
        status.agent.version = "0.1.0".into();
        status.agent.started_at = Some(at(0));
        status
    }

    #[test]
    fn ready_gateway_fits_on_ten_lines() {
        let text = describe(&ready(), at(12).0, Style::Plain);
        assert_eq!(
            text,
            "\
gateway    fra-1  (00000000-0000-0000-0000-00000000001f)
state      ready
interface  gatepost0, kernel WireGuard, UDP port 51820
firewall   owned by the agent, fails closed
last sync  12 s ago (2023-11-14T22:13:20.000Z), lag 4 ms
mode       listen: notifications arrive
database   connected for 12 s, schema 8
peers      2 in the kernel, 1 connected, 2 desired; 1 ineligible, 0 quarantined
drift      none
agent      0.1.0, up 12 s, last pass 12 s ago (1 step in 3 ms)
"
        );
    }

    #[test]
    fn warnings_and_quarantined_peers_follow_the_table() {
        let mut status = ready();
        status.state = State::Degraded { why: "the database is unreachable".into() };
        status.database.connected = false;
        status.database.unavailable = Some(Unavailable::Unreachable);
        status.sync.mode = None;
        status.database.last_error = Some("connection refused".into());
        status.peers.quarantined = 3;
        status.quarantined = vec![QuarantinedPeer {
            peer_id: PeerId(Uuid::nil()),
            user: "anna".into(),
            device: "lap\ntop".into(),
            reason: "its public key is not base64".into(),
        }];
        status.quarantined_policies = vec![QuarantinedPolicy {
            policy_id: PolicyId(Uuid::nil()),
            policy: "branch offices".into(),
            peers: 2,
            reason: "the kernel has no memory for it".into(),
            remedy: String::new(),
        }];
        status.warnings = vec!["setting policy.alow_dns is unknown".into()];
        status.held_back = Some(HeldBack { removals: 60, of: 100 });
        let text = || "10.8.0.7".to_owned();
        let block = BlockStatus { kind: text(), id: text(), name: text(), since: at(0) };
        status.blocked = vec![block];
        status.peers.held = 60;
        status.held = vec![held("ben", "phone"), held("", "")];
        let text = describe(&status, at(300).0, Style::Plain);
        let tail = text.split_once("held back").unwrap().1;
        assert!(text.contains("state      degraded: the database is unreachable\n"), "{text}");
        assert!(
            text.contains("database   unreachable for 5 min, schema 8: connection refused\n"),
            "{text}"
        );
        assert!(text.contains("mode       none: the database is not connected\n"), "{text}");
        assert_eq!(
            tail,
            "  removing 60 of 100 peers waits for `gatepost confirm`
blocked    1, see `gatepost blocked`

held until `gatepost confirm`
  ben/phone (10.8.0.7/32): user not active
  a device without a row (AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=) (10.8.0.7/32): user not active
  and 58 more, see `gatepost peers`

quarantined
  anna/\"lap\\ntop\": its public key is not base64
  and 2 more, see `gatepost peers`

quarantined policies
  branch offices, for 2 peers: the kernel has no memory for it

warnings
  setting policy.alow_dns is unknown
"
        );
    }

    #[test]
    fn fresh_agent_claims_nothing() {
        let text = describe(&Status::default(), at(0).0, Style::Plain);
        assert!(text.contains("state      starting\n"), "{text}");
        assert!(text.contains("last sync  never\n"), "{text}");
        assert!(text.contains("firewall   the kernel was not read yet\n"), "{text}");
        let unread = "peers      the kernel was not read yet, no rows were read yet\n";
        assert!(text.contains(unread) && text.contains("drift      not compared yet\n"), "{text}");
        assert!(text.contains("database   not connected yet\n"), "{text}");
        let peers = PeerCounts { desired: 100_000, in_kernel: 12_000, ..PeerCounts::default() };
        let text = describe(&Status { peers, ..Status::default() }, at(0).0, Style::Plain);
        assert!(text.contains("starting: 12000 of 100000 peers in the kernel\n"), "{text}");
    }
}
