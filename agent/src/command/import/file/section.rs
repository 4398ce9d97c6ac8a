//! The settings of a file of `wg-quick(8)`, one by one.

use std::net::IpAddr;

use gatepost::model::KeyError;
use ipnet::IpNet;

/// A setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Private,
    ListenPort,
    FwMark,
    Address,
    Mtu,
    Dns,
    Table,
    SaveConfig,
    PreUp,
    PostUp,
    PreDown,
    PostDown,
    Public,
    Preshared,
    AllowedIps,
    Endpoint,
    PersistentKeepalive,
}

const KEYS: [(&str, Key); 17] = [
    ("PrivateKey", Key::Private),
    ("ListenPort", Key::ListenPort),
    ("FwMark", Key::FwMark),
    ("Address", Key::Address),
    ("MTU", Key::Mtu),
    ("DNS", Key::Dns),
    ("Table", Key::Table),
    ("SaveConfig", Key::SaveConfig),
    ("PreUp", Key::PreUp),
    ("PostUp", Key::PostUp),
    ("PreDown", Key::PreDown),
    ("PostDown", Key::PostDown),
    ("PublicKey", Key::Public),
    ("PresharedKey", Key::Preshared),
    ("AllowedIPs", Key::AllowedIps),
    ("Endpoint", Key::Endpoint),
    ("PersistentKeepalive", Key::PersistentKeepalive),
];

/// The setting of this name, in any letter case.
pub fn parse_key(name: &str) -> Option<Key> {
    KEYS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, key)| *key)
}

impl Key {
    /// Whether it belongs into `[Peer]`.
    pub const fn is_of_peer(self) -> bool {
        matches!(
            self,
            Self::Public
                | Self::Preshared
                | Self::AllowedIps
                | Self::Endpoint
                | Self::PersistentKeepalive
        )
    }

    /// Whether its value is a command.
    pub const fn is_command(self) -> bool {
        matches!(self, Self::PreUp | Self::PostUp | Self::PreDown | Self::PostDown)
    }

    /// Why the database has no column for it, and what to do; `None`: nothing is lost.
    pub const fn has_no_effect(self) -> Option<&'static str> {
        Some(match self {
            Self::Dns => {
                "DNS is what this host resolves names by, and wg-quick sets it: if the host needs it \
                 after the next boot, set it in its own configuration"
            }
            Self::Table => "Table has no effect: the agent routes each peer's networks itself",
            Self::PreUp | Self::PostUp => {
                "this command runs no more at the next boot, and what it did stays until then: the \
                 agent forwards, routes and masquerades by itself; put what else it does into a \
                 systemd unit"
            }
            Self::PreDown | Self::PostDown => {
                "this command runs no more: wg-quick does not stop the interface"
            }
            Self::Endpoint => {
                "the agent does not dial peers: after the next boot this peer must dial the gateway \
                 (Endpoint and PersistentKeepalive there)"
            }
            Self::PersistentKeepalive => {
                "the agent sends no keepalives: set PersistentKeepalive at the peer, if it is behind NAT"
            }
            _ => return None,
        })
    }
}

/// Whether a command of the file translates addresses.
pub fn masquerades(command: &str) -> bool {
    let command = command.to_ascii_lowercase();
    ["masquerade", "snat"].iter().any(|word| command.contains(word))
}

/// Describes the flaw of a key.
pub fn key_flaw(why: KeyError) -> String {
    format!("{why}: copy it from the output of `wg showconf`")
}

/// A UDP port.
pub fn port(value: &str) -> Result<u16, String> {
    let port = value.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{value:?} is no port: write 1 to 65535"))
}

/// A mark, decimal or hexadecimal.
pub fn fwmark(value: &str) -> Result<u32, String> {
    let hex = value.strip_prefix("0x").map(|hex| u32::from_str_radix(hex, 16).ok());
    let mark = match value {
        "off" => Some(0),
        _ => hex.unwrap_or_else(|| value.parse().ok()),
    };
    mark.ok_or_else(|| format!("{value:?} is no mark: write a number, or off"))
}

/// A plain number.
pub fn number(value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{value:?} is no number"))
}

/// Addresses with their prefix lengths, as they are.
pub fn prefixes(value: &str) -> Result<Vec<IpNet>, String> {
    let texts = value.split(',').map(str::trim).filter(|text| !text.is_empty());
    texts.map(|text| prefix(text).ok_or_else(|| not_a_prefix(text))).collect()
}

/// Networks: the bits of their hosts are cleared, as WireGuard does.
pub fn networks(value: &str) -> Result<Vec<IpNet>, String> {
    Ok(prefixes(value)?.into_iter().map(|prefix| prefix.trunc()).collect())
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn not_a_prefix(text: &str) -> String {
    format!("{text:?} is no address or network: write one like 10.8.0.2/32")
}
