//! `gatepost peers`: every peer of this gateway.

use std::time::{Duration, SystemTime};

use crate::cli::PeersArgs;
use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Style, Table, Tone, age, bytes, printable, truncated};
use gatepost::reconcile::status::{PeerState, PeerStatus};
use gatepost::reconcile::{SESSION_SECS, near_names};

/// Of a terminal that the table fits.
const COLUMNS: usize = 80;

/// Figures that are not older are those of now.
const FRESH: Duration = Duration::from_secs(2);

/// A session without a handshake for longer is over, as `peers.connected` of the status counts.
const SESSION: Duration = Duration::from_secs(SESSION_SECS);

/// Prints the peers that were asked for.
///
/// # Errors
/// No agent, or a wrong answer; no peer is of the user that was asked for.
pub fn peers(config: &Config, args: &PeersArgs) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    let mut all = Vec::new();
    client.peers(args.user.as_deref(), |peer| all.push(peer))?;
    if let Some(user) = args.user.as_deref().filter(|user| !has_peer(&all, user)) {
        let mut others = Vec::new();
        client.peers(None, |peer| others.push(peer))?;
        return Err(unknown_user(user, &others));
    }
    let peers = chosen(all, args, SystemTime::now());
    if args.json {
        output::print_json(&peers)?;
    } else {
        let text = describe(&peers, args.wide, SystemTime::now(), Style::of_stdout());
        if args.wide { output::print(&text)? } else { output::print_fitted(&text)? }
    }
    Ok(Exit::Success)
}

/// Whether one of them is of this user.
fn has_peer(peers: &[PeerStatus], user: &str) -> bool {
    peers.iter().any(|peer| is_of(peer, user))
}

fn is_of(peer: &PeerStatus, user: &str) -> bool {
    peer.user.to_lowercase() == user.to_lowercase()
}

/// The error for a user who has none of all these peers.
fn unknown_user(user: &str, all: &[PeerStatus]) -> CommandError {
    let meant = user.split('/').next().unwrap_or_default();
    // What names a user or a device elsewhere names its user here.
    let known = all.iter().filter(|peer| {
        let names = [peer.device.clone(), format!("{}/{}", peer.user, peer.device)];
        names.iter().any(|name| name.to_lowercase() == user.to_lowercase())
    });
    let mut candidates = Vec::from_iter(known.map(|peer| printable(&peer.user)));
    candidates.sort();
    candidates.dedup();
    if candidates.is_empty() {
        candidates = near_names(meant, all.iter().map(|peer| (&*peer.user, &*peer.user)));
    }
    CommandError::UserUnknown { user: user.to_owned(), candidates }
}

/// The peers that were asked for, by user and device; those without a row last.
fn chosen(mut peers: Vec<PeerStatus>, args: &PeersArgs, now: SystemTime) -> Vec<PeerStatus> {
    peers.retain(|peer| {
        let is_live = || peer.last_handshake_at.is_some_and(|at| at.age(now) <= SESSION);
        args.user.as_ref().is_none_or(|user| is_of(peer, user))
            && (!args.connected || is_live())
            && (!args.quarantined || matches!(peer.state, PeerState::Quarantined { .. }))
    });
    peers.sort_by_cached_key(|peer| {
        let names = [&peer.user, &peer.device].map(|name| name.to_lowercase());
        (peer.user.is_empty(), names, peer.public_key.clone())
    });
    peers
}

/// The peers as a table, and their number.
#[must_use]
pub fn describe(peers: &[PeerStatus], wide: bool, now: SystemTime, style: Style) -> String {
    let is_in_kernel =
        |peer: &&PeerStatus| matches!(peer.state, PeerState::InKernel | PeerState::Held { .. });
    let in_kernel = peers.iter().filter(is_in_kernel).count();
    let total = output::count(peers.len() as u64, "peer");
    let age = peers.iter().filter_map(|peer| peer.read_at).map(|at| at.age(now)).min();
    let is_old = |age: &Duration| *age > FRESH;
    let as_of =
        age.filter(is_old).map(|age| format!("; endpoints and figures as of {}", output::age(age)));
    let summary = format!("{total}, {in_kernel} in the kernel{}\n", as_of.unwrap_or_default());
    if peers.is_empty() {
        return summary;
    }
    let table = if wide { wide_table(peers, now, style) } else { narrow_table(peers, now, style) };
    format!("{table}\n{summary}")
}

fn wide_table(peers: &[PeerStatus], now: SystemTime, style: Style) -> String {
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
        table.row([
            truncated(&peer.user),
            truncated(&peer.device),
            addresses(peer).collect::<Vec<_>>().join(" "),
            peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            handshake(peer, now),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            peer.policies.iter().map(|name| truncated(name)).collect::<Vec<_>>().join(", "),
            peer.state.text(),
        ]);
    }
    let lines = table.render();
    let mut lines = lines.lines();
    let mut text = lines.next().unwrap_or_default().to_owned() + "\n";
    for (line, peer) in lines.zip(peers) {
        text.extend([&painted(line, &printable(&peer.state.text()), peer, style), "\n"]);
    }
    text
}

/// A line whose last cell is the state, that in its colour.
fn painted(line: &str, state: &str, peer: &PeerStatus, style: Style) -> String {
    let tone = match peer.state {
        PeerState::InKernel => Tone::Good,
        PeerState::Held { .. }
        | PeerState::KeptOut { .. }
        | PeerState::Blocked { .. }
        | PeerState::Quarantined { .. } => Tone::Warning,
        PeerState::Pending | PeerState::Ineligible { .. } => return line.to_owned(),
    };
    match line.strip_suffix(state) {
        Some(before) => format!("{before}{}", style.paint(tone, state)),
        None => line.to_owned(),
    }
}

/// Fits 80 columns: a name or an address that is too long for its column ends its line. Reasons are lines of
/// their own.
fn narrow_table(peers: &[PeerStatus], now: SystemTime, style: Style) -> String {
    let mut table = Table::new(["PEER", "ADDRESS", ">HANDSHAKE", ">RECEIVED", ">SENT", "STATE"]);
    for peer in peers {
        let mut addresses = addresses(peer);
        let first = addresses.next().unwrap_or_default();
        let address = match addresses.count() {
            0 => first,
            more => format!("{first} +{more}"),
        };
        let handshake = peer.last_handshake_at.map(|at| output::span(at.age(now)));
        let handshake = handshake.unwrap_or_else(|| "never".to_owned());
        let (received, sent) = (bytes(peer.rx_bytes), bytes(peer.tx_bytes));
        table.row([name(peer), address, handshake, received, sent, peer.state.word().to_owned()]);
    }
    let mut rows = table.render_rows(most_chars(&table)).into_iter();
    let mut text = rows.next().unwrap_or_default() + "\n";
    for (row, peer) in rows.zip(peers) {
        text.extend([&painted(&row, peer.state.word(), peer, style), "\n"]);
        if let Some(reason) = peer.state.reason() {
            text.extend(["  ", &printable(reason), "\n"]);
        }
    }
    text
}

/// The widths of the columns: what the figures leave of the line is for names and addresses.
fn most_chars(table: &Table<6>) -> [usize; 6] {
    const LEAST_NAME_CHARS: usize = 15;
    // Behind it the longest address, its length and how many there are still fit the line.
    const MOST_NAME_CHARS: usize = 28;
    const GAPS_CHARS: usize = 10;
    let figures: usize = (2..6).map(|column| table.width(column, usize::MAX)).sum();
    let left = COLUMNS.saturating_sub(figures + GAPS_CHARS);
    let address = left.saturating_sub(LEAST_NAME_CHARS);
    let name = left.saturating_sub(table.width(1, address)).min(MOST_NAME_CHARS);
    let any = usize::MAX;
    [name, address, any, any, any, any]
}

/// The peer's name, user and device cut if it is longer than a line.
fn name(peer: &PeerStatus) -> String {
    const PART_CHARS: usize = 38;
    let name = format!("{}/{}", peer.user, peer.device);
    match (peer.user.as_str(), peer.device.as_str()) {
        ("", "") => String::new(),
        _ if name.chars().count() <= COLUMNS => name,
        (user, device) => {
            let part = |text| output::shortened(text, PART_CHARS);
            format!("{}/{}", part(user), part(device))
        }
    }
}

fn addresses(peer: &PeerStatus) -> impl Iterator<Item = String> {
    peer.addresses.iter().map(|prefix| {
        if prefix.prefix_len() == prefix.max_prefix_len() {
            prefix.addr().to_string()
        } else {
            prefix.to_string()
        }
    })
}

fn handshake(peer: &PeerStatus, now: SystemTime) -> String {
    peer.last_handshake_at.map_or_else(|| "never".to_owned(), |at| age(at.age(now)))
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
        let peers = chosen(vec![gone, ben, anna], &PeersArgs::default(), now);
        assert_eq!(
            describe(&peers, true, now, Style::Plain),
            "\
USER  DEVICE  ADDRESS                  ENDPOINT           HANDSHAKE  RECEIVED   SENT  POLICIES         STATE
anna  laptop  10.8.0.7 192.168.7.0/24  203.0.113.9:40001   12 s ago   3.4 MiB  812 B  staff, printers  ok
ben   phone   10.8.0.7                 -                      never       0 B    0 B  -                quarantined: its public key is not base64
-     -       10.8.0.7                 -                      never       0 B    7 B  -                held: its row is gone

3 peers, 2 in the kernel
"
        );
        assert_eq!(
            describe(&peers, false, now, Style::Plain),
            "\
PEER         ADDRESS      HANDSHAKE  RECEIVED   SENT  STATE
anna/laptop  10.8.0.7 +1       12 s   3.4 MiB  812 B  ok
ben/phone    10.8.0.7         never       0 B    0 B  quarantined
  its public key is not base64
-            10.8.0.7         never       0 B    7 B  held
  its row is gone

3 peers, 2 in the kernel
"
        );
    }

    #[test]
    fn every_line_of_a_peer_fits_eighty_columns() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let site = "1111:2222:3333:4444:5555:6666:7777:8888/127".parse().unwrap();
        let others = std::iter::repeat_n(site, 99);
        let address = "1111:2222:3333:4444:5555:6666:7777:8888/128".parse().unwrap();
        let addresses = [
            vec!["10.8.0.7/32".parse().unwrap()],
            vec!["198.151.100.200/32".parse().unwrap()],
            vec![address],
            std::iter::once(address).chain(others.clone()).collect(),
            others.collect(),
        ];
        let (user, device) = ("u".repeat(60), "d".repeat(60));
        let names = [("anna", "laptop"), (&user[..], "x"), (&user[..], &device[..])];
        let mut peers = Vec::new();
        for (user, device) in names {
            for addresses in &addresses {
                for bytes in [0, 1_073_000_000] {
                    let quarantined = PeerState::Quarantined { reason: "why".into() };
                    let mut peer = peer(user, device, quarantined);
                    peer.addresses.clone_from(addresses);
                    (peer.rx_bytes, peer.tx_bytes) = (bytes, bytes);
                    peer.last_handshake_at = Some(Timestamp(now - Duration::from_mins(119)));
                    peers.push(peer);
                }
            }
        }
        let alone = peers.iter().map(std::slice::from_ref);
        for shown in alone.chain([&peers[..]]) {
            let text = describe(shown, false, now, Style::Plain);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= COLUMNS, "{longest}: {text}");
        }
    }

    #[test]
    fn long_names_and_addresses_are_shown_whole() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut anna = peer("anna", "laptop", PeerState::InKernel);
        anna.addresses = vec!["fd00:1111:2222:3333:4444:5555:6666:7777/128".parse().unwrap()];
        let ben = peer("benedict.of.nursia@monastery.example.org", "phone", PeerState::InKernel);
        assert_eq!(
            describe(&[anna, ben], false, now, Style::Plain),
            "\
PEER         ADDRESS   HANDSHAKE  RECEIVED  SENT  STATE
anna/laptop  fd00:1111:2222:3333:4444:5555:6666:7777
                           never       0 B   0 B  ok
benedict.of.nursia@monastery.example.org/phone
             10.8.0.7      never       0 B   0 B  ok

2 peers, 2 in the kernel
"
        );
    }

    #[test]
    fn peers_are_chosen_by_user_session_and_state() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut live = peer("Anna", "laptop", PeerState::InKernel);
        live.last_handshake_at = Some(Timestamp(now - Duration::from_secs(180)));
        let mut idle = peer("anna", "phone", PeerState::InKernel);
        idle.last_handshake_at = Some(Timestamp(now - Duration::from_secs(181)));
        let odd = peer("ben", "phone", PeerState::Quarantined { reason: "why".into() });
        let devices = |args: PeersArgs| {
            let peers = chosen(vec![odd.clone(), idle.clone(), live.clone()], &args, now);
            peers.into_iter().map(|peer| peer.device).collect::<Vec<_>>()
        };
        let user = |name: &str| PeersArgs { user: Some(name.into()), ..PeersArgs::default() };
        assert_eq!(devices(PeersArgs::default()), ["laptop", "phone", "phone"]);
        assert_eq!(devices(user("anna")), ["laptop", "phone"]);
        assert_eq!(devices(PeersArgs { connected: true, ..PeersArgs::default() }), ["laptop"]);
        assert_eq!(devices(PeersArgs { quarantined: true, ..user("ben") }), ["phone"]);
        assert!(devices(PeersArgs { quarantined: true, ..user("anna") }).is_empty());
    }

    #[test]
    fn user_without_a_peer_is_answered_with_the_users_that_may_be_meant() {
        let of = |user, device| peer(user, device, PeerState::InKernel);
        let all = [of("Anna", "desk"), of("anne", "phone"), of("ben", "annas"), of("", "")];
        let told = |user| unknown_user(user, &all).to_string();
        assert!(has_peer(&all, "anna") && !has_peer(&all, "annas"));
        assert!(told("anan").contains("\"anan\" (did you mean Anna?): "), "{}", told("anan"));
        for device in ["Annas", "ben/annas", "bem/phone"] {
            assert!(told(device).contains("(did you mean ben?)"), "{}", told(device));
        }
        assert!(told("zoë").contains("\"zoë\": "), "{}", told("zoë"));
    }

    #[test]
    fn old_figures_say_as_of_when_they_are() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_030);
        let anna = peer("anna", "laptop", PeerState::InKernel);
        let text = describe(&[anna], false, now, Style::Plain);
        assert!(
            text.ends_with("1 in the kernel; endpoints and figures as of 30 s ago\n"),
            "{text}"
        );
    }

    #[test]
    fn no_peers_print_a_zero_count() {
        let none = describe(&[], false, SystemTime::UNIX_EPOCH, Style::Plain);
        assert_eq!(none, "0 peers, 0 in the kernel\n");
    }

    #[test]
    fn states_have_colours_and_nothing_else_moves() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let quarantined = PeerState::Quarantined { reason: "its key is ok".into() };
        let peers = [peer("anna", "ok", PeerState::InKernel), peer("ben", "phone", quarantined)];
        for wide in [false, true] {
            let coloured = describe(&peers, wide, now, Style::Coloured);
            assert_eq!(coloured.matches("\u{1b}[32mok\u{1b}[0m\n").count(), 1, "{coloured:?}");
            assert_eq!(coloured.matches("\u{1b}[33mquarantined").count(), 1, "{coloured:?}");
            let bare = coloured.replace("\u{1b}[32m", "").replace("\u{1b}[33m", "");
            let bare = bare.replace("\u{1b}[0m", "");
            assert_eq!(bare, describe(&peers, wide, now, Style::Plain));
        }
    }
}
