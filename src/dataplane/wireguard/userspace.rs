//! WireGuard in a process of its own, driven over its unix socket.
//!
//! What takes away goes in requests of many peers: the device waits once in each for the packets from
//! before. Where it refuses one, and for all that gives, every peer has a request of its own, so that one
//! bad peer costs only itself. Small scale: a host with thousands of peers wants the kernel's module.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::DeviceReading;
use super::endpoints::Endpoints;
use super::error::{MAX_MTU_BYTES, UserspaceError};
use super::socket::{Connection, Generation, converse, open};
use super::taking::{all_taking, note_taken};
use super::uapi::{self, UapiError};
use crate::model::{InterfaceName, Peer, PrivateKey};
use crate::plan::Step;

/// So many peers are taken away together. Packets wait while the device changes them.
const TOGETHER: usize = 100;

/// The userspace device of one name in this network namespace, whichever process that is.
pub(crate) struct Userspace {
    name: InterfaceName,
    endpoints: Endpoints,
}

/// What a device said about all steps of one request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Done,
    Unsettled,
    Silent(io::ErrorKind),
}

impl Userspace {
    pub fn new(name: InterfaceName) -> Self {
        Self { name, endpoints: Endpoints::default() }
    }

    /// From now on it is the device of this name.
    pub fn follow(&mut self, name: InterfaceName) {
        self.name = name;
    }

    /// Reads the device with all its peers.
    pub fn read(&mut self) -> Result<DeviceReading, UserspaceError> {
        let reading = self.get(uapi::GET)?;
        self.endpoints.note(&reading.traffic, SystemTime::now(), Instant::now());
        Ok(reading)
    }

    /// Reads the device, without its peers if it can leave them out.
    pub fn read_but_peers(&self) -> Result<DeviceReading, UserspaceError> {
        self.get(uapi::GET_BUT_PEERS)
    }

    /// Sets the private key.
    pub fn set_private_key(&self, key: &PrivateKey) -> Result<(), UserspaceError> {
        self.set(&uapi::private_key(key))
    }

    /// Sets the UDP port.
    pub fn set_listen_port(&self, port: u16) -> Result<(), UserspaceError> {
        let connection = open(&self.name)?;
        if connection.generation == Generation::Former {
            try_port(port)?;
        }
        let taken = Errno::EADDRINUSE as i32;
        match self.set_through(connection, &format!("listen_port={port}\n")) {
            Err(UserspaceError::Refused { source: UapiError::Refused(errno), .. })
                if errno.abs() == taken =>
            {
                Err(UserspaceError::Port { port, source: io::Error::from_raw_os_error(taken) })
            }
            set => set,
        }
    }

    /// Sets the mark on encrypted packets.
    pub fn set_fwmark(&self, fwmark: u32) -> Result<(), UserspaceError> {
        self.set(&format!("fwmark={fwmark}\n"))
    }

    /// Refuses an MTU with which packets would be lost.
    pub const fn check_mtu(bytes: u32) -> Result<(), UserspaceError> {
        if bytes > MAX_MTU_BYTES { Err(UserspaceError::Mtu { bytes }) } else { Ok(()) }
    }

    /// Applies peer steps, and returns what became of each. A device that did not answer is not asked
    /// again, or each step would wait as long.
    pub fn write_peers(&self, steps: &[Step]) -> Vec<Result<(), UserspaceError>> {
        let mut known = None;
        let mut silent = None;
        let mut verdicts = Vec::with_capacity(steps.len());
        let runs = steps.chunk_by(|a, b| takes(a) && takes(b));
        for together in runs.flat_map(|run| run.chunks(TOGETHER)) {
            let answer = silent.or_else(|| self.take_together(together, &mut known));
            let removed = self.confirm_removals(together, answer);
            for step in together {
                let removed = removed.filter(|_| matches!(step, Step::RemovePeer { .. }));
                let verdict = match removed.or(answer).or(silent) {
                    Some(answer) => self.verdict(answer),
                    None => self.write_peer(step, &mut known),
                };
                if let Err(UserspaceError::Silent { source, .. }) = &verdict {
                    silent = Some(Answer::Silent(source.kind()));
                }
                verdicts.push(verdict);
            }
        }
        verdicts
    }

    /// Applies steps that only take away in one request. `None`: each must be asked for alone, because it
    /// is the only one, because it is another step, or because the device cannot or refuses.
    fn take_together(&self, steps: &[Step], known: &mut Option<DeviceReading>) -> Option<Answer> {
        let [_, _, ..] = steps else { return None };
        let lines = all_taking(steps.iter())?;
        let connection = open(&self.name).ok().filter(|it| it.generation == Generation::Current)?;
        steps.iter().for_each(|step| note_taken(step, known));
        match self.set_through(connection, &lines) {
            Ok(()) => Some(Answer::Done),
            Err(UserspaceError::Unsettled { .. }) => Some(Answer::Unsettled),
            Err(UserspaceError::Silent { source, .. }) => Some(Answer::Silent(source.kind())),
            Err(_) => None,
        }
    }

    /// Where a narrowing also gives, because the device lacks something that the peer is to keep, the
    /// device answers that the request is unsettled. It has taken away all the same, so the removals are
    /// asked for once more without the narrowings. `None`: the answer to all is the answer to them.
    fn confirm_removals(&self, steps: &[Step], answer: Option<Answer>) -> Option<Answer> {
        let Some(Answer::Unsettled) = answer else { return None };
        let is_removal = |step: &&Step| matches!(step, Step::RemovePeer { .. });
        let removals = steps.iter().filter(is_removal).count();
        if removals == 0 || removals == steps.len() {
            return None;
        }
        match self.set(&all_taking(steps.iter().filter(is_removal))?) {
            Ok(()) => Some(Answer::Done),
            Err(UserspaceError::Silent { source, .. }) => Some(Answer::Silent(source.kind())),
            Err(_) => None,
        }
    }

    fn verdict(&self, answer: Answer) -> Result<(), UserspaceError> {
        let name = self.name.clone();
        match answer {
            Answer::Done => Ok(()),
            Answer::Unsettled => Err(UserspaceError::Unsettled { name }),
            Answer::Silent(kind) => Err(UserspaceError::Silent { name, source: kind.into() }),
        }
    }

    fn write_peer(
        &self,
        step: &Step,
        known: &mut Option<DeviceReading>,
    ) -> Result<(), UserspaceError> {
        if let Step::RemovePeer { key } = step {
            note_taken(step, known);
            return self.set(&uapi::removal(key));
        }
        let connection = open(&self.name)?;
        if connection.generation == Generation::Former {
            // It answers one connection at a time.
            drop(connection);
            return self.write_peer_whole(step, known);
        }
        // Without a reading, which grows with the peers, and which a device refuses while packets from
        // before a change are on their way.
        let lines = match step {
            Step::AddPeer { key, peer } => uapi::addition(key, peer, self.endpoints.of(key), true),
            Step::NarrowPeer { key, allowed_ips } => {
                note_taken(step, known);
                uapi::narrowing(key, allowed_ips)
            }
            Step::WidenPeer { key, allowed_ips } => uapi::widening(key, allowed_ips),
            Step::SetPresharedKey { key, preshared_key } => {
                uapi::preshared_key(key, preshared_key.as_ref())
            }
            Step::SetKeepalive { key, keepalive_secs } => uapi::keepalive(key, *keepalive_secs),
            _ => return Err(UserspaceError::NoPeerStep(step.to_string())),
        };
        self.set_through(connection, &lines)
    }

    /// Changes a peer of a device of the last version, which panics if a part of a peer that is there is
    /// changed: so it is made anew.
    fn write_peer_whole(
        &self,
        step: &Step,
        known: &mut Option<DeviceReading>,
    ) -> Result<(), UserspaceError> {
        let known = match known {
            Some(known) => known,
            None => known.insert(self.get(uapi::GET)?),
        };
        let has = |key| known.peers.get(key).cloned();
        let (key, peer) = match step {
            Step::AddPeer { key, peer } => (key, Some(peer.clone())),
            Step::NarrowPeer { key, allowed_ips } => {
                (key, has(key).map(|peer| Peer { allowed_ips: allowed_ips.clone(), ..peer }))
            }
            Step::WidenPeer { key, allowed_ips: more } => {
                let all = |peer: &Peer| peer.allowed_ips.iter().chain(more.iter()).collect();
                (key, has(key).map(|peer| Peer { allowed_ips: all(&peer), ..peer }))
            }
            Step::SetPresharedKey { key, preshared_key } => {
                (key, has(key).map(|peer| Peer { preshared_key: preshared_key.clone(), ..peer }))
            }
            Step::SetKeepalive { key, keepalive_secs } => {
                (key, has(key).map(|peer| Peer { keepalive_secs: *keepalive_secs, ..peer }))
            }
            _ => return Err(UserspaceError::NoPeerStep(step.to_string())),
        };
        // An unknown peer stays unknown, as with the kernel's UPDATE_ONLY.
        let Some(peer) = peer else { return Ok(()) };
        if known.public_key.is_none() {
            return Err(UserspaceError::NoPrivateKey { name: self.name.clone() });
        }
        let endpoint = known.traffic.get(key).and_then(|traffic| traffic.endpoint);
        if known.peers.contains_key(key) {
            self.set(&uapi::removal(key))?;
        }
        self.set(&uapi::addition(key, &peer, endpoint, false))?;
        known.peers.insert(*key, peer);
        Ok(())
    }

    fn get(&self, request: &str) -> Result<DeviceReading, UserspaceError> {
        let answer = self.exchange(open(&self.name)?, request)?;
        self.parse(&answer, SystemTime::now())
    }

    fn set(&self, lines: &str) -> Result<(), UserspaceError> {
        self.set_through(open(&self.name)?, lines)
    }

    /// One connection carries one request: a device of the last version closes it after that.
    fn set_through(&self, connection: Connection, lines: &str) -> Result<(), UserspaceError> {
        // In one piece: a text that grows leaves its former copies behind.
        let request = Zeroizing::new(["set=1\n", lines, "\n"].concat());
        let answer = self.exchange(connection, &request)?;
        self.parse(&answer, SystemTime::UNIX_EPOCH).map(drop)
    }

    fn parse(&self, answer: &str, now: SystemTime) -> Result<DeviceReading, UserspaceError> {
        const UNSETTLED: UapiError = UapiError::Refused(-(Errno::ETIMEDOUT as i32));
        const NO_KEY: UapiError = UapiError::Refused(-(Errno::ENOKEY as i32));
        uapi::parse(answer, now).map_err(|source| match source {
            UNSETTLED => UserspaceError::Unsettled { name: self.name.clone() },
            NO_KEY => UserspaceError::NoPrivateKey { name: self.name.clone() },
            source => UserspaceError::Refused { name: self.name.clone(), source },
        })
    }

    fn exchange(
        &self,
        connection: Connection,
        request: &str,
    ) -> Result<Zeroizing<String>, UserspaceError> {
        converse(connection.stream, request)
            .map_err(|source| UserspaceError::Silent { name: self.name.clone(), source })
    }
}

const fn takes(step: &Step) -> bool {
    matches!(step, Step::RemovePeer { .. } | Step::NarrowPeer { .. })
}

/// A device of the last version closes its sockets before it tries the new ones, and shares a port with
/// any other that allows it: so the port is tried here first.
fn try_port(port: u16) -> Result<(), UserspaceError> {
    for address in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let address: std::net::IpAddr = address;
        match UdpSocket::bind((address, port)) {
            Err(source) if source.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
                return Err(UserspaceError::Port { port, source });
            }
            // Whatever else hinders this attempt (no IPv6, say) need not hinder the device.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::thread::JoinHandle;

    use super::super::taking::taking;
    use super::*;
    use crate::model::PublicKey;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    /// A device that answers so many requests, and then tells what they were.
    fn device(
        name: &str,
        requests: usize,
        answer: impl Fn(&str) -> &'static str + Send + 'static,
    ) -> (Userspace, JoinHandle<Vec<String>>) {
        let name = format!("{name}{}", std::process::id());
        let address = SocketAddr::from_abstract_name(format!("gatepost/{name}")).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let serve = move |_| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"\n\n") {
                let len = stream.read(&mut chunk).unwrap();
                request.extend_from_slice(&chunk[..len]);
            }
            let request = String::from_utf8(request).unwrap();
            stream.write_all(answer(&request).as_bytes()).unwrap();
            request
        };
        let served = std::thread::spawn(move || (0..requests).map(serve).collect());
        (Userspace::new(name.parse().unwrap()), served)
    }

    fn withdrawals() -> [Step; 3] {
        let allowed_ips = ["10.0.0.2/32".parse().unwrap()].into_iter().collect();
        [
            Step::RemovePeer { key: key(1) },
            Step::NarrowPeer { key: key(2), allowed_ips },
            Step::RemovePeer { key: key(3) },
        ]
    }

    #[test]
    fn all_that_takes_away_is_one_request() {
        let (userspace, served) = device("one", 1, |_| "errno=0\n\n");
        assert!(userspace.write_peers(&withdrawals()).iter().all(Result::is_ok));
        let lines: Vec<_> = withdrawals().iter().filter_map(taking).collect();
        let [one, two, three] = &lines[..] else { panic!("{}", lines.len()) };
        let request = ["set=1\n", one, two, three, "\n"].concat();
        assert_eq!(served.join().unwrap(), [request]);
    }

    #[test]
    fn a_peer_that_is_refused_costs_only_itself() {
        let bad = "02".repeat(32);
        let answer = move |request: &str| match request.contains(&bad) {
            true => "errno=-22\n\n",
            false => "errno=0\n\n",
        };
        let (userspace, served) = device("bad", 4, answer);
        let verdicts = userspace.write_peers(&withdrawals());
        let refused: Vec<_> = verdicts.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, true, false]);
        served.join().unwrap();
    }

    #[test]
    fn a_device_that_is_silent_or_waits_for_packets_is_asked_once() {
        let (userspace, served) = device("mute", 1, |_| "");
        let verdicts = userspace.write_peers(&withdrawals());
        let hung_up = |it: &Result<(), _>| match it {
            Err(UserspaceError::Silent { source, .. }) => {
                source.kind() == io::ErrorKind::UnexpectedEof
            }
            _ => false,
        };
        assert!(verdicts.len() == 3 && verdicts.iter().all(hung_up), "{verdicts:?}");
        served.join().unwrap();
        let (userspace, served) = device("wait", 1, |_| "errno=-110\n\n");
        let removals = withdrawals().into_iter().filter(|it| matches!(it, Step::RemovePeer { .. }));
        let verdicts = userspace.write_peers(&removals.collect::<Vec<_>>());
        assert!(verdicts.len() == 2 && verdicts.iter().all(waits), "{verdicts:?}");
        served.join().unwrap();
    }

    fn waits(verdict: &Result<(), UserspaceError>) -> bool {
        matches!(verdict, Err(UserspaceError::Unsettled { .. }))
    }

    #[test]
    fn a_narrowing_that_waits_keeps_no_removal_back() {
        let narrowed = "02".repeat(32);
        let answer = move |request: &str| match request.contains(&narrowed) {
            true => "errno=-110\n\n",
            false => "errno=0\n\n",
        };
        let (userspace, served) = device("gives", 2, answer);
        let verdicts = userspace.write_peers(&withdrawals());
        assert_eq!(verdicts.iter().map(waits).collect::<Vec<_>>(), [false, true, false]);
        let requests = served.join().unwrap();
        let removals: Vec<_> = [0, 2].iter().filter_map(|at| taking(&withdrawals()[*at])).collect();
        let [one, three] = &removals[..] else { panic!("{}", removals.len()) };
        assert_eq!(requests[1], ["set=1\n", one, three, "\n"].concat());
    }
}
