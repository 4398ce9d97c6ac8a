//! A WireGuard interface that runs, in the kernel or in userspace, read through `wireguard-control`.

use std::collections::BTreeMap;
use std::io;

use gatepost::count::count;
use gatepost::dataplane::link_facts;
use gatepost::model::{InterfaceName, PresharedKey, PublicKey};
use ipnet::IpNet;
use wireguard_control::{AllowedIp, Backend, Device, InterfaceName as DeviceName, PeerInfo};

use super::error::ImportError;
use super::file::Remark;
use super::found::{Found, FoundPeer};

/// Two readings that agree show the whole: the crate does not tell when peers change meanwhile.
const MOST_READINGS: usize = 5;

/// To read more peers takes so long that each reading is told.
const MANY_PEERS: usize = 10_000;

/// The values that must be equal in two readings.
type Seen = Vec<(PublicKey, Vec<IpNet>)>;

/// Reads an interface of this network namespace. `tells` is told how far that is, if it takes long.
///
/// # Errors
/// There is none of this name; it is Gatepost's; it has no key.
pub fn read(name: &InterfaceName, tells: impl Fn(&str)) -> Result<Found, ImportError> {
    let facts = link_facts(name)
        .map_err(|why| ImportError::Addresses { name: name.to_string(), why: why.to_string() })?;
    if facts.as_ref().is_some_and(|facts| facts.is_ours) {
        return Err(ImportError::Ours { name: name.to_string() });
    }
    let read = || {
        let device = either(name)?;
        let seen = peers(&device.peers).into_iter().map(|it| (it.public_key, it.allowed_ips));
        let seen = seen.collect();
        Ok((device, seen))
    };
    let device = settled(name, read, tells)?;
    let facts = facts.unwrap_or_default();
    let unusable = |text: &str| ImportError::Unusable {
        source_name: name.to_string(),
        remarks: vec![Remark { line: None, text: text.to_owned() }],
    };
    let key = device.public_key.as_ref().and_then(|key| PublicKey::from_bytes(key.0).ok());
    Ok(Found {
        public_key: key.ok_or_else(|| unusable("it has no private key: start it first"))?,
        listen_port: device
            .listen_port
            .filter(|port| *port != 0)
            .ok_or_else(|| unusable("it listens on no port: bring it up first"))?,
        fwmark: device.fwmark.unwrap_or_default(),
        mtu_bytes: Some(facts.mtu_bytes),
        addresses: facts.addresses,
        peers: peers(&device.peers),
    })
}

fn settled<T>(
    name: &InterfaceName,
    read: impl Fn() -> Result<(T, Seen), ImportError>,
    tells: impl Fn(&str),
) -> Result<T, ImportError> {
    let mut last = None;
    for reading in 1..=MOST_READINGS {
        let (device, seen) = read()?;
        if last.as_ref() == Some(&seen) {
            return Ok(device);
        }
        if seen.len() >= MANY_PEERS && reading < MOST_READINGS {
            let peers = count(seen.len(), "peer");
            tells(&format!("read {peers} of {name}; reading again until two readings are alike"));
        }
        last = Some(seen);
    }
    Err(ImportError::Restless { name: name.to_string() })
}

fn either(name: &InterfaceName) -> Result<Device, ImportError> {
    let get = |backend| -> io::Result<Device> {
        let name: DeviceName = name.as_str().parse().map_err(io::Error::from)?;
        Device::get(&name, backend)
    };
    let no_link =
        |kernel, userspace| ImportError::NoLink { name: name.to_string(), kernel, userspace };
    get(Backend::Kernel)
        .or_else(|kernel| get(Backend::Userspace).map_err(|userspace| no_link(kernel, userspace)))
}

/// One entry for each key: the kernel tells a peer with many prefixes in several parts.
fn peers(infos: &[PeerInfo]) -> Vec<FoundPeer> {
    let mut peers: BTreeMap<PublicKey, FoundPeer> = BTreeMap::new();
    for PeerInfo { config, .. } in infos {
        let Ok(public_key) = PublicKey::from_bytes(config.public_key.0) else { continue };
        let preshared = config.preshared_key.as_ref();
        let preshared = preshared.and_then(|key| PresharedKey::copied_from(&key.0).ok());
        let peer = peers.entry(public_key).or_insert_with(|| FoundPeer {
            line: None,
            name: None,
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
        });
        peer.preshared_key = peer.preshared_key.take().or(preshared);
        peer.allowed_ips.extend(config.allowed_ips.iter().filter_map(prefix));
        peer.allowed_ips.sort_unstable();
        peer.allowed_ips.dedup();
    }
    peers.into_values().collect()
}

fn prefix(allowed: &AllowedIp) -> Option<IpNet> {
    IpNet::new(allowed.address, allowed.cidr).ok().map(|prefix| prefix.trunc())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn readings_of_many_peers_are_told_until_two_are_alike() {
        let told = |sizes: &[usize]| {
            let (number, told) = (Cell::new(0), RefCell::new(Vec::new()));
            let read = || {
                let size = sizes[number.replace(number.get() + 1).min(sizes.len() - 1)];
                Ok(((), vec![(PublicKey::from_bytes([1; 32]).unwrap(), Vec::new()); size]))
            };
            let tells = |text: &str| told.borrow_mut().push(text.to_owned());
            let settled = settled(&"wg0".parse().unwrap(), read, tells).is_ok();
            (settled, told.into_inner())
        };
        let again = |peers: &usize| {
            format!("read {peers} peers of wg0; reading again until two readings are alike")
        };
        assert_eq!(told(&[9_999, 10_000, 10_000]), (true, vec![again(&10_000)]));
        let restless = [10_001, 10_002, 10_003, 10_004, 10_005];
        assert_eq!(told(&restless), (false, restless[..4].iter().map(again).collect()));
    }
}
