//! The engine of a userspace device: GotaTun, and what it does not keep itself.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use gotatun::device::configure::{DeviceRead, DeviceWrite, PeerStats};
use gotatun::device::{Device, DeviceBuilder, Error};
use gotatun::x25519::{PublicKey as Point, StaticSecret};
use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::allowed::Allowed;
use super::edit::{Edit, Modification, networks};
use super::in_flight::{InFlight, Moment};
use super::outgoing::Outgoing;
use super::port::check_port;
use super::reading::{Handshakes, describe, describe_peer};
use super::request::{PeerChange, Set};
use super::takings::takings;
use super::transport::{Ports, Transports, Tun, errno};
use crate::model::{AllowedIps, PublicKey};

/// How long the first message of a handshake may take to leave; the answer is not awaited.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);
/// A session ends after this time at the latest (REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// The engine's timers tick each 250 ms.
const TICK: Duration = Duration::from_millis(400);
/// How long a change waits for the packets from before it. The agent waits longer for an answer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long what gives a prefix waits for the packets from before another peer lost it. The agent, which
/// asks again, can ask for something else meanwhile.
const PASSAGE_TIMEOUT: Duration = Duration::from_millis(500);

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
    outgoing: Outgoing,
    /// The last request that gave a prefix waited in vain for packets to go out.
    is_held_up: bool,
    handshakes: Handshakes,
}

/// What the engine must do so that peers become what was asked for.
#[derive(Default)]
struct Changes {
    edits: Vec<Edit>,
    /// What peers had before.
    lost: BTreeSet<IpNet>,
    /// A packet of before may have a source that is another peer's now.
    takes: bool,
}

impl Engine {
    /// An engine without a key, which opens no port yet.
    ///
    /// # Errors
    /// None is known as long as there are no peers.
    pub async fn start(tun: Tun) -> Result<Self, Error> {
        let (in_flight, outgoing) = (InFlight::default(), tun.outgoing());
        let ports = Ports::new(in_flight.clone());
        let device = DeviceBuilder::new().with_udp(ports).with_ip(tun).build().await?;
        Ok(Self {
            device,
            has_key: false,
            port: 0,
            allowed: Allowed::default(),
            in_flight,
            unsettled: None,
            outgoing,
            is_held_up: false,
            handshakes: Handshakes::default(),
        })
    }

    /// The answer to `get=1`, without its last lines.
    ///
    /// # Errors
    /// `ETIMEDOUT`: packets from before a change are still on their way, so that the peers as they are do
    /// not say what passes.
    pub async fn get(&mut self) -> Result<Zeroizing<String>, Errno> {
        self.settle(Duration::ZERO).await?;
        if self.allowed.has_reserved() {
            self.let_out().await?;
        }
        let mut text = self.describe().await;
        let peers = self.device.peers().await;
        self.handshakes.note(&peers);
        for peer in &peers {
            describe_peer(peer, &self.handshakes, &mut text);
        }
        Ok(text)
    }

    /// The answer to `get=1` that leaves the peers out, without its last lines.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_but_peers(&mut self) -> Result<Zeroizing<String>, Errno> {
        self.settle(Duration::ZERO).await?;
        Ok(self.describe().await)
    }

    async fn describe(&self) -> Zeroizing<String> {
        let port = self.port;
        let mut text = Zeroizing::new(String::with_capacity(4096));
        self.device.read(async |device| describe(device, port, &mut text)).await;
        text
    }

    /// Notes the handshakes since it was last called, which must be within the life of a session.
    pub async fn look(&mut self) {
        let peers = self.device.peers().await;
        self.handshakes.note(&peers);
    }

    /// Gives peers back what was kept from them for the sake of packets, if those have passed.
    pub async fn release(&mut self) {
        if self.allowed.has_reserved() && self.outgoing.passed(Duration::ZERO).await.is_ok() {
            let _ = self.let_out().await;
        }
    }

    /// Carries out a `set=1`. All its peers change at one moment between two packets, after key and port,
    /// and not at all if one of those cannot be set. If it takes a prefix away, it returns when every
    /// packet that came before is with the kernel or dropped. If it gives one, it first waits for the
    /// packets that were to go out to the one who had it.
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
        if let Err(late) = self.await_former(&set.peers).await {
            let taken = takings(&set, &self.allowed);
            self.change_peers(false, &taken, None).await??;
            return Err(late);
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
        let settled = self.change_peers(set.replace_peers, &set.peers, set.fwmark).await?;
        self.open_sessions(&opened).await;
        if self.port != former_port && self.has_key {
            self.speak_to_all().await;
        }
        settled
    }

    /// Changes peers at one moment between two packets. The inner result says whether what takes away has
    /// taken effect.
    async fn change_peers(
        &mut self,
        replace: bool,
        peers: &[PeerChange],
        fwmark: Option<u32>,
    ) -> Result<Result<(), Errno>, Errno> {
        let Changes { edits, lost, takes } = self.plan(replace, peers);
        let applied = self.apply(edits, fwmark).await;
        self.handshakes.retain(|key| self.allowed.of(key).is_some());
        if !lost.is_empty() {
            self.ask_outgoing();
        }
        let settled = if takes {
            self.take_effect().await
        } else if peers.iter().any(|peer| peer.remove || peer.replace_allowed_ips) {
            // A client that repeats an earlier removal must not be told that it has taken effect.
            self.settle(Duration::ZERO).await
        } else {
            Ok(())
        };
        applied.map(|()| settled)
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

    /// Before a prefix is given, waits until no packet that was judged for another peer can reach the new holder. An
    /// agent takes it from that peer first; what others move in one request is not waited for.
    async fn await_former(&mut self, changes: &[PeerChange]) -> Result<(), Errno> {
        let given: Vec<(IpNet, PublicKey)> = changes.iter().flat_map(|it| self.given(it)).collect();
        if given.is_empty() {
            return Ok(());
        }
        self.settle(Duration::ZERO).await?;
        if given.iter().any(|(prefix, key)| self.allowed.is_within_anothers(*prefix, key)) {
            // Until now, what is sent there goes to the other one.
            self.ask_outgoing();
        }
        self.let_out().await
    }

    fn ask_outgoing(&mut self) {
        self.outgoing.ask();
        self.is_held_up = false;
    }

    /// Waits until packets have gone out, and gives peers back what was kept from them for that. Where a
    /// former change has waited in vain, this one only looks.
    async fn let_out(&mut self) -> Result<(), Errno> {
        let patience = if self.is_held_up { Duration::ZERO } else { PASSAGE_TIMEOUT };
        let passed = self.outgoing.passed(patience).await;
        self.is_held_up = passed.is_err();
        passed.map_err(|_| Errno::ETIMEDOUT)?;
        let edits: Vec<Edit> =
            self.allowed.release().iter().map(|key| self.prefixes_of(key)).collect();
        if !edits.is_empty() {
            self.apply(edits, None).await?;
        }
        Ok(())
    }

    async fn apply(&self, edits: Vec<Edit>, fwmark: Option<u32>) -> Result<(), Errno> {
        let apply = async |device: &mut DeviceWrite<'_, Transports>| {
            for edit in edits {
                edit.apply(device).await;
            }
            fwmark.map_or(Ok(()), |fwmark| device.set_fwmark(fwmark))
        };
        self.device.write(apply).await.and_then(|marked| marked).map_err(errno)
    }

    /// What a change gives its peer that it does not have.
    fn given(&self, change: &PeerChange) -> impl Iterator<Item = (IpNet, PublicKey)> {
        let had = self.allowed.of(&change.key);
        let has = move |prefix: &IpNet| had.is_some_and(|had| had.contains(prefix));
        let added = change.added_ips.iter().filter(|_| !change.remove);
        added.copied().filter(move |prefix| !has(prefix)).map(|prefix| (prefix, change.key))
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

    /// A peer that is there is never removed and added: that would end its session.
    fn plan(&mut self, replace_peers: bool, requested: &[PeerChange]) -> Changes {
        let mut changes = Changes::default();
        if replace_peers {
            let kept = |key: &PublicKey| requested.iter().any(|it| it.key == *key && !it.remove);
            let gone: Vec<PublicKey> =
                self.allowed.peers().filter(|key| !kept(key)).copied().collect();
            for key in gone {
                self.remove(key, &mut changes);
            }
        }
        for change in requested {
            if change.remove {
                self.remove(change.key, &mut changes);
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
            let is_anothers = |(it, key)| self.allowed.is_within_anothers(it, &key);
            changes.takes |= self.given(change).any(is_anothers);
            let losers = self.allowed.set(change.key, prefixes.clone());
            changes.takes |= !losers.is_empty();
            changes.edits.extend(losers.iter().map(|key| self.prefixes_of(key)));
            changes.lost.extend(former.iter().filter(|prefix| !prefixes.contains(prefix)));
            let prefixes = networks(self.allowed.in_force(&change.key));
            changes.edits.push(Edit::of(change, prefixes, is_there, replace_peers));
        }
        let around = self.allowed.reserve(&changes.lost);
        changes.edits.extend(around.iter().map(|key| self.prefixes_of(key)));
        changes.takes |= !changes.lost.is_empty();
        changes
    }

    fn remove(&mut self, key: PublicKey, changes: &mut Changes) {
        if let Some(lost) = self.allowed.remove(&key) {
            changes.lost.extend(lost.iter());
            changes.takes = true;
            changes.edits.push(Edit::Remove(key));
        }
    }

    fn prefixes_of(&self, key: &PublicKey) -> Edit {
        Edit::Modify(Modification::of(*key, networks(self.allowed.in_force(key))))
    }
}
