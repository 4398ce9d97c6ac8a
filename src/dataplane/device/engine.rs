//! The engine of a userspace device: GotaTun, and what it does not keep itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use gotatun::device::configure::{DeviceRead, DeviceWrite, PeerStats};
use gotatun::device::{Device, DeviceBuilder, Error};
use gotatun::x25519::{PublicKey as Point, StaticSecret};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use zeroize::Zeroizing;

use super::allowed::Allowed;
use super::edit::{Edit, Modification, networks};
use super::in_flight::{InFlight, Moment};
use super::request::{PeerChange, Set};
use super::transport::{Ports, Transports, Tun};
use crate::dataplane::wireguard::hex;
use crate::model::{AllowedIps, PublicKey};

/// How long the first message of a handshake may take to leave; the answer is not awaited.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);
/// A session ends after this time at the latest (REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// The engine's timers tick each 250 ms.
const TICK: Duration = Duration::from_millis(400);
/// How long a change waits for the packets from before it. The agent waits longer for an answer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Two readings of one handshake's age differ by less.
const AGE_TOLERANCE: Duration = Duration::from_secs(1);

/// A WireGuard device without its control socket.
pub(super) struct Engine {
    device: Device<Transports>,
    has_key: bool,
    /// The port that was asked for; 0: any.
    port: u16,
    allowed: Allowed,
    in_flight: InFlight,
    /// When a prefix was last taken away, until all that had come by then is with the kernel or dropped.
    unsettled: Option<Moment>,
    handshakes: BTreeMap<PublicKey, Handshake>,
}

/// The engine forgets a handshake when its session has expired, and the protocol does not.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    since_boot: Duration,
    at: SystemTime,
}

impl Engine {
    /// An engine without a key, which opens no port yet.
    ///
    /// # Errors
    /// None is known as long as there are no peers.
    pub async fn start(tun: Tun) -> Result<Self, Error> {
        let in_flight = InFlight::default();
        let ports = Ports::new(in_flight.clone());
        let device = DeviceBuilder::new().with_udp(ports).with_ip(tun).build().await?;
        let (allowed, handshakes) = (Allowed::default(), BTreeMap::new());
        let unsettled = None;
        Ok(Self { device, has_key: false, port: 0, allowed, in_flight, unsettled, handshakes })
    }

    /// The answer to `get=1`, without its last lines.
    ///
    /// # Errors
    /// `ETIMEDOUT`: packets from before a change are still on their way, so that the peers as they are do
    /// not say what passes.
    pub async fn get(&mut self) -> Result<Zeroizing<String>, Errno> {
        self.settle(Duration::ZERO).await?;
        let port = self.port;
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let peers = self.device.read(async |device| describe(device, port, &mut text).await).await;
        self.note_handshakes(&peers);
        for peer in &peers {
            self.describe_peer(peer, &mut text);
        }
        Ok(text)
    }

    /// Notes the handshakes since it was last called, which must be within the life of a session.
    pub async fn look(&mut self) {
        let peers = self.device.peers().await;
        self.note_handshakes(&peers);
    }

    /// Carries out a `set=1`. All its peers change at one moment between two packets, after key and port,
    /// and not at all if one of those cannot be set. If it takes a prefix away, it returns when every
    /// packet that came before is with the kernel or dropped.
    ///
    /// # Errors
    /// `ENOKEY`: a peer before the private key; `EOPNOTSUPP`: a private key of zeros; what the kernel
    /// says about the port; `ETIMEDOUT`: a packet from before a prefix was taken away is still on its way.
    /// What takes away has been set then, and nothing that gives.
    pub async fn set(&mut self, set: Set) -> Result<(), Errno> {
        let adds = |peer: &PeerChange| !peer.remove && !peer.update_only;
        if !self.has_key && set.private_key.is_none() && set.peers.iter().any(adds) {
            return Err(Errno::ENOKEY);
        }
        if set.private_key.as_deref().is_some_and(|key| *key == [0; 32]) {
            return Err(Errno::EOPNOTSUPP);
        }
        if set.peers.iter().any(|change| self.gives(change)) {
            self.settle(Duration::ZERO).await?;
        }
        if let Some(port) = set.listen_port
            && port != self.port
        {
            check_port(port)?;
        }
        let mut opened: BTreeSet<PublicKey> =
            set.peers.iter().filter(|peer| peer.open_session).map(|peer| peer.key).collect();
        let former_port = self.port;
        if let Some(key) = set.private_key
            && self.set_key(&key, set.listen_port).await?
        {
            opened.extend(self.allowed.peers());
        } else if let Some(port) = set.listen_port {
            self.set_port(port).await?;
        }
        let (edits, takes) = self.plan(set.replace_peers, &set.peers);
        let fwmark = set.fwmark;
        let apply = async |device: &mut DeviceWrite<'_, Transports>| {
            for edit in edits {
                edit.apply(device).await;
            }
            fwmark.map_or(Ok(()), |fwmark| device.set_fwmark(fwmark))
        };
        let applied = self.device.write(apply).await.and_then(|marked| marked).map_err(errno);
        self.handshakes.retain(|key, _| self.allowed.of(key).is_some());
        let settled = if takes { self.take_effect().await } else { Ok(()) };
        applied?;
        self.open_sessions(&opened).await;
        if self.port != former_port && self.has_key {
            self.speak_to_all().await;
        }
        settled
    }

    /// Waits until no packet is on its way that came before now. Where a former change has waited in
    /// vain, this one only looks, so that many in a row do not hold each other up.
    async fn take_effect(&mut self) -> Result<(), Errno> {
        let patience = if self.unsettled.is_some() { Duration::ZERO } else { SETTLE_TIMEOUT };
        self.unsettled = Some(self.in_flight.now());
        self.settle(patience).await
    }

    async fn settle(&mut self, patience: Duration) -> Result<(), Errno> {
        if let Some(moment) = self.unsettled {
            let passed = self.in_flight.passed(moment, patience).await;
            passed.map_err(|_| Errno::ETIMEDOUT)?;
            self.unsettled = None;
        }
        Ok(())
    }

    /// Whether a change gives its peer a prefix that it does not have.
    fn gives(&self, change: &PeerChange) -> bool {
        let had = self.allowed.of(&change.key);
        let has = |prefix| had.is_some_and(|had| had.contains(prefix));
        !change.remove && change.added_ips.iter().any(|prefix| !has(prefix))
    }

    /// Sends a keepalive to all peers with a session: they send to the former port until they hear from
    /// the new one, and would notice only 15 s later.
    async fn speak_to_all(&self) {
        let peers = self.device.peers().await;
        let live = |peer: &&PeerStats| peer.stats.last_handshake.is_some_and(|age| age < SESSION);
        let keepalives: Vec<(Point, Option<u16>)> = peers
            .iter()
            .filter(live)
            .map(|PeerStats { peer, .. }| (peer.public_key, peer.keepalive))
            .collect();
        if keepalives.is_empty() {
            return;
        }
        // The engine sends one at its next tick after keepalives were switched on.
        let set = async |keepalive: fn(Option<u16>) -> Option<u16>| {
            let all = async |device: &mut DeviceWrite<'_, Transports>| {
                for (key, usual) in &keepalives {
                    device.modify_peer(key, |peer| peer.set_keepalive(keepalive(*usual))).await;
                }
            };
            self.device.write(all).await
        };
        let _ = set(|_| None).await.and(set(|usual| usual.or(Some(1))).await);
        tokio::time::sleep(TICK).await;
        let _ = set(|usual| usual).await;
    }

    /// Returns whether the key is another one now, which ends all sessions.
    async fn set_key(&mut self, key: &[u8; 32], port: Option<u16>) -> Result<bool, Errno> {
        let secret = StaticSecret::from(*key);
        let public_key = Point::from(&secret);
        let same = |device: &DeviceRead<'_, Transports>| {
            device.private_key().is_some_and(|old| Point::from(old) == public_key)
        };
        let old = self.port;
        let port = port.unwrap_or(old);
        if self.device.read(async |device| same(device)).await {
            self.set_port(port).await?;
            return Ok(false);
        }
        let set = async |device: &mut DeviceWrite<'_, Transports>| {
            device.set_private_key(secret).await;
            device.set_listen_port(port);
        };
        let set = self.device.write(set).await;
        self.has_key = true;
        self.port = port;
        match set {
            Ok(()) => Ok(true),
            Err(error) => {
                self.open_port(old).await;
                Err(errno(error))
            }
        }
    }

    /// Before there is a key, the engine opens no port.
    async fn set_port(&mut self, port: u16) -> Result<(), Errno> {
        let old = std::mem::replace(&mut self.port, port);
        if old == port || !self.has_key {
            return Ok(());
        }
        let moved = self.device.write(async |device| device.set_listen_port(port)).await;
        if let Err(error) = moved {
            self.open_port(old).await;
            return Err(errno(error));
        }
        Ok(())
    }

    /// Goes back to the port that it had, after the engine closed that and did not get another.
    async fn open_port(&mut self, port: u16) {
        self.port = port;
        let other = u16::from(port == 0);
        let open = async |device: &mut DeviceWrite<'_, Transports>| {
            // It opens sockets anew only where the port changes.
            device.set_listen_port(other);
            device.set_listen_port(port);
        };
        if let Err(error) = self.device.write(open).await {
            tracing::error!(port, %error, "UDP port {port} cannot be opened again: {error}");
        }
    }

    /// Begins handshakes with those whose endpoint is known. Who does not answer is asked again by the
    /// engine's timers.
    async fn open_sessions(&self, keys: &BTreeSet<PublicKey>) {
        let points: Vec<Point> = keys.iter().map(|key| Point::from(*key.as_bytes())).collect();
        let handshakes = join_all(points.iter().map(|key| self.device.force_handshake(key)));
        let _ = tokio::time::timeout(SEND_TIMEOUT, handshakes).await;
    }

    /// What the engine must do so that peers become what was asked for, and whether that takes a prefix
    /// away from one. A peer that is there is never removed and added: that would end its session.
    fn plan(&mut self, replace_peers: bool, changes: &[PeerChange]) -> (Vec<Edit>, bool) {
        let mut edits = Vec::new();
        let mut takes = false;
        if replace_peers {
            let kept = |key: &PublicKey| changes.iter().any(|it| it.key == *key && !it.remove);
            let gone: Vec<PublicKey> =
                self.allowed.peers().filter(|key| !kept(key)).copied().collect();
            edits.extend(gone.into_iter().filter_map(|key| self.removal(key)));
        }
        for change in changes {
            if change.remove {
                edits.extend(self.removal(change.key));
                continue;
            }
            let had = self.allowed.of(&change.key).cloned();
            if had.is_none() && change.update_only {
                continue;
            }
            let is_there = had.is_some();
            let former = had.clone().unwrap_or_default();
            let kept = if change.replace_allowed_ips || replace_peers { None } else { had };
            let kept = kept.unwrap_or_default();
            let kept = kept.iter().filter(|prefix| !change.removed_ips.contains(prefix));
            let prefixes: AllowedIps = kept.chain(change.added_ips.iter().copied()).collect();
            let losers = self.allowed.set(change.key, prefixes.clone());
            let losers = losers.into_iter().filter_map(|key| {
                let prefixes = self.allowed.of(&key)?;
                Some(Edit::Modify(Modification::of(key, networks(prefixes))))
            });
            let edits_before = edits.len();
            edits.extend(losers);
            takes |= edits.len() > edits_before || former.iter().any(|it| !prefixes.contains(&it));
            edits.push(Edit::of(change, networks(&prefixes), is_there, replace_peers));
        }
        takes |= edits.iter().any(|edit| matches!(edit, Edit::Remove(_)));
        (edits, takes)
    }

    fn removal(&mut self, key: PublicKey) -> Option<Edit> {
        self.allowed.remove(&key).then_some(Edit::Remove(key))
    }

    fn note_handshakes(&mut self, peers: &[PeerStats]) {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        let (Ok(since_boot), now) = (since_boot, SystemTime::now()) else { return };
        for peer in peers {
            let Ok(key) = PublicKey::from_bytes(peer.peer.public_key.to_bytes()) else { continue };
            let Some(age) = peer.stats.last_handshake else { continue };
            let seen = Handshake {
                since_boot: since_boot.saturating_sub(age),
                at: now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            };
            let known = self.handshakes.entry(key).or_insert(seen);
            // One handshake keeps the time at which it was first seen, whatever becomes of the clock.
            if seen.since_boot > known.since_boot + AGE_TOLERANCE {
                *known = seen;
            }
        }
    }

    fn describe_peer(&self, PeerStats { peer, stats, .. }: &PeerStats, text: &mut String) {
        hex(text, "public_key", peer.public_key.as_bytes());
        if let Some(preshared_key) = &peer.preshared_key {
            hex(text, "preshared_key", preshared_key);
        }
        let _ = writeln!(text, "protocol_version=1");
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        let key = PublicKey::from_bytes(peer.public_key.to_bytes()).ok();
        let at = key.and_then(|key| self.handshakes.get(&key));
        let at = at.and_then(|it| it.at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let at = at.unwrap_or_default();
        let _ = writeln!(text, "last_handshake_time_sec={}", at.as_secs());
        let _ = writeln!(text, "last_handshake_time_nsec={}", at.subsec_nanos());
        let _ = writeln!(text, "tx_bytes={}\nrx_bytes={}", stats.tx_bytes, stats.rx_bytes);
        let keepalive_secs = peer.keepalive.unwrap_or(0);
        let _ = writeln!(text, "persistent_keepalive_interval={keepalive_secs}");
        for prefix in &peer.allowed_ips {
            let _ = writeln!(text, "allowed_ip={prefix}");
        }
    }
}

async fn describe(
    device: &DeviceRead<'_, Transports>,
    port: u16,
    text: &mut String,
) -> Vec<PeerStats> {
    if let Some(key) = device.private_key() {
        hex(text, "private_key", key.as_bytes());
    }
    // Until there is a key, the engine does not know of the port.
    let port = if port == 0 { device.listen_port() } else { port };
    let _ = writeln!(text, "listen_port={port}");
    if let Some(fwmark) = device.fwmark().filter(|fwmark| *fwmark != 0) {
        let _ = writeln!(text, "fwmark={fwmark}");
    }
    device.peers().await
}

/// The engine closes its socket before it opens another, so the port is tried here first.
fn check_port(port: u16) -> Result<(), Errno> {
    let addresses = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    for address in addresses {
        match UdpSocket::bind((address, port)).map_err(|error| error.raw_os_error()) {
            Err(Some(errno)) if errno == Errno::EADDRINUSE as i32 => return Err(Errno::EADDRINUSE),
            // Whatever else hinders this attempt (no IPv6, say) need not hinder the engine.
            _ => {}
        }
    }
    Ok(())
}

fn errno(error: Error) -> Errno {
    match error {
        Error::IoError(error) | Error::Bind(error, _) => {
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
        }
        _ => Errno::EIO,
    }
}
