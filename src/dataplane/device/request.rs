//! The requests to a userspace device (<https://www.wireguard.com/xplatform/>). Pure.

use std::net::SocketAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::dataplane::wireguard::{NO_PEERS, OPEN_SESSION, unhex};
use crate::model::{PresharedKey, PublicKey};

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Get,
    /// The device without its peers.
    GetButPeers,
    Set(Set),
}

/// A change of the device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub private_key: Option<Zeroizing<[u8; 32]>>,
    pub listen_port: Option<u16>,
    pub fwmark: Option<u32>,
    /// Peers that it does not name are removed.
    pub replace_peers: bool,
    pub peers: Vec<PeerChange>,
}

/// A change of one peer. What is `None` stays as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerChange {
    pub key: PublicKey,
    pub remove: bool,
    /// An unknown peer stays unknown.
    pub update_only: bool,
    /// `Some(None)`: it has none any more.
    pub preshared_key: Option<Option<PresharedKey>>,
    pub endpoint: Option<SocketAddr>,
    /// 0: it sends none.
    pub keepalive_secs: Option<u16>,
    pub replace_allowed_ips: bool,
    pub added_ips: Vec<IpNet>,
    pub removed_ips: Vec<IpNet>,
    /// The device begins a handshake without waiting for a packet. Not in the protocol: agents of
    /// ours ask for it.
    pub open_session: bool,
}

impl PeerChange {
    /// A change that leaves the peer as it is.
    pub(super) const fn of(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive_secs: None,
            replace_allowed_ips: false,
            added_ips: Vec::new(),
            removed_ips: Vec::new(),
            open_session: false,
        }
    }

    fn read(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "remove" => self.remove = flag(value)?,
            "update_only" => self.update_only = flag(value)?,
            "preshared_key" => {
                // All zero is how the protocol says "none".
                self.preshared_key = Some(PresharedKey::from_bytes(*unhex(value)?).ok());
            }
            "endpoint" => self.endpoint = Some(value.parse().ok()?),
            "persistent_keepalive_interval" => self.keepalive_secs = Some(value.parse().ok()?),
            "replace_allowed_ips" => self.replace_allowed_ips = flag(value)?,
            "allowed_ip" => match value.strip_prefix('-') {
                Some(gone) => self.removed_ips.push(prefix(gone)?),
                None => self.added_ips.push(prefix(value)?),
            },
            "protocol_version" => (value == "1").then_some(())?,
            OPEN_SESSION => self.open_session = flag(value)?,
            _ => return None,
        }
        Some(())
    }
}

impl Request {
    /// Reads the lines of one request, without the empty one that ends it.
    ///
    /// # Errors
    /// `EINVAL`: nothing that the device understands; `EPROTO`: neither `get=1` nor `set=1`.
    pub fn parse(text: &str) -> Result<Self, Errno> {
        let mut lines = text.lines();
        match lines.next() {
            Some("get=1") => match lines.next() {
                None => Ok(Self::Get),
                Some(NO_PEERS) => Ok(Self::GetButPeers),
                Some(_) => Err(Errno::EINVAL),
            },
            Some("set=1") => Set::parse(lines).map(Self::Set).ok_or(Errno::EINVAL),
            _ => Err(Errno::EPROTO),
        }
    }
}

impl Set {
    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut set = Self::default();
        for line in lines {
            let (key, value) = line.split_once('=')?;
            match (key, set.peers.last_mut()) {
                ("public_key", _) => {
                    let key = PublicKey::from_bytes(*unhex(value)?).ok()?;
                    set.peers.push(PeerChange::of(key));
                }
                (_, Some(peer)) => peer.read(key, value)?,
                ("private_key", None) => set.private_key = Some(unhex(value)?),
                ("listen_port", None) => set.listen_port = Some(value.parse().ok()?),
                ("fwmark", None) => set.fwmark = Some(value.parse().ok()?),
                ("replace_peers", None) => set.replace_peers = flag(value)?,
                _ => return None,
            }
        }
        Some(set)
    }
}

fn flag(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

fn prefix(value: &str) -> Option<IpNet> {
    value.parse().ok().map(|prefix: IpNet| prefix.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &str) -> Result<Set, Errno> {
        match Request::parse(&format!("set=1\n{lines}"))? {
            Request::Set(set) => Ok(set),
            Request::Get | Request::GetButPeers => panic!("a set is no get"),
        }
    }

    #[test]
    fn fields_belong_to_the_peer_before_them() {
        let (one, two, psk) = ("01".repeat(32), "02".repeat(32), "03".repeat(32));
        let set = set(&format!(
            "listen_port=7\nreplace_peers=true\npublic_key={one}\npreshared_key={psk}\n\
             allowed_ip=10.0.0.9/24\nallowed_ip=-10.0.1.0/24\npublic_key={two}\nupdate_only=true\n\
             endpoint=[::1]:9\npersistent_keepalive_interval=0\n"
        ))
        .unwrap();
        assert_eq!((set.listen_port, set.replace_peers), (Some(7), true));
        let [first, second] = &set.peers[..] else { panic!("{:?}", set.peers) };
        assert!(first.preshared_key.as_ref().unwrap().is_some() && !first.update_only);
        assert_eq!(first.added_ips, ["10.0.0.0/24".parse().unwrap()]);
        assert_eq!(first.removed_ips, ["10.0.1.0/24".parse().unwrap()]);
        assert!(second.preshared_key.is_none() && second.update_only);
        assert_eq!(second.endpoint, "[::1]:9".parse().ok());
        assert_eq!(second.keepalive_secs, Some(0));
    }

    #[test]
    fn a_preshared_key_of_zeros_is_none() {
        let (one, zero) = ("01".repeat(32), "00".repeat(32));
        let set = set(&format!("public_key={one}\npreshared_key={zero}\n")).unwrap();
        assert_eq!(set.peers[0].preshared_key, Some(None));
    }

    #[test]
    fn what_is_not_understood_is_refused_as_a_whole() {
        assert_eq!(Request::parse("get=2\n"), Err(Errno::EPROTO));
        assert_eq!(Request::parse(""), Err(Errno::EPROTO));
        assert_eq!(Request::parse("get=1\n"), Ok(Request::Get));
        assert_eq!(Request::parse("get=1\npeers=none\n"), Ok(Request::GetButPeers));
        assert_eq!(Request::parse("get=1\npeers=one\n"), Err(Errno::EINVAL));
        let one = "01".repeat(32);
        for lines in [
            "listen_port=70000",
            "remove=true",
            "unknown=1",
            "private_key=00",
            &format!("public_key={one}\nremove=yes"),
            &format!("public_key={one}\nallowed_ip=10.0.0.0/33"),
            &format!("public_key={one}\nlisten_port=7"),
            &format!("public_key={}", "00".repeat(32)),
        ] {
            assert_eq!(set(lines), Err(Errno::EINVAL), "{lines}");
        }
    }
}
