//! The file of `wg-quick(8)`. Pure.

mod section;

use std::fmt;

use gatepost::model::{PresharedKey, PrivateKey, PublicKey};
use ipnet::IpNet;

use super::found::{Found, FoundPeer, Labels};
use super::names::name_of;
use section::{Key, parse_key};

/// Something about a line, or about a peer: what it is, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// `None`: it is about an interface that runs.
    pub line: Option<usize>,
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// The contents of a file: the interface, the names, and the lines that no longer have any effect.
pub struct Parsed {
    pub found: Found,
    pub labels: Labels,
    pub notes: Vec<Remark>,
}

/// Reads a file.
///
/// # Errors
/// Every line that cannot be used.
pub fn parse(text: &str) -> Result<Parsed, Vec<Remark>> {
    let mut reader = Reader::default();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        reader.line(number, line);
    }
    reader.finish()
}

/// Returns the names in a file, even if the rest of the file cannot be used.
pub fn labels(text: &str) -> Labels {
    let mut reader = Reader::default();
    for (number, line) in (1..).zip(text.lines()) {
        reader.line(number, line);
    }
    reader.end_of_section();
    reader.labels()
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Section {
    #[default]
    None,
    Interface,
    Peer,
    Unknown,
}

#[derive(Default)]
struct Interface {
    private_key: Option<PrivateKey>,
    listen_port: Option<u16>,
    fwmark: u32,
    mtu_bytes: Option<u32>,
    addresses: Vec<IpNet>,
}

/// A section `[Peer]`.
#[derive(Default)]
struct PeerSection {
    line: usize,
    public_key: Option<PublicKey>,
    /// A wrong key was told already.
    has_key_line: bool,
    preshared_key: Option<PresharedKey>,
    allowed_ips: Vec<IpNet>,
    /// In the order in which they may name it.
    comments: Vec<String>,
    comments_above: Vec<String>,
}

#[derive(Default)]
struct Reader {
    section: Section,
    interface: Option<Interface>,
    peers: Vec<PeerSection>,
    masquerades: bool,
    /// Comments since the last line that was none: of this section, or above the next one.
    pending: Vec<String>,
    wrong: Vec<Remark>,
    notes: Vec<Remark>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let (setting, comment) = match line.split_once('#') {
            Some((setting, comment)) => (setting.trim(), Some(comment)),
            None => (line.trim(), None),
        };
        if setting.is_empty() {
            match comment {
                Some(comment) => self.pending.push(comment.to_owned()),
                None => self.end_of_section(),
            }
            return;
        }
        if let Some(name) = setting.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            self.open_section(number, name.trim(), comment);
            return;
        }
        self.end_of_section();
        match setting.split_once('=') {
            Some((key, value)) => self.setting(number, key.trim(), value.trim()),
            None => self.wrong(number, format!("{setting:?} is no setting: write KEY = VALUE")),
        }
    }

    fn open_section(&mut self, number: usize, name: &str, comment: Option<&str>) {
        let above = std::mem::take(&mut self.pending);
        self.section = if name.eq_ignore_ascii_case("interface") {
            if self.interface.is_some() {
                self.wrong(number, "a second [Interface]: one gateway has one".to_owned());
            }
            self.interface.get_or_insert_default();
            Section::Interface
        } else if name.eq_ignore_ascii_case("peer") {
            let comments = comment.map(str::to_owned).into_iter().collect();
            let peer = PeerSection { line: number, comments, ..PeerSection::default() };
            self.peers.push(PeerSection { comments_above: above, ..peer });
            Section::Peer
        } else {
            self.wrong(number, format!("section [{name}]: write [Interface] or [Peer]"));
            Section::Unknown
        };
    }

    /// The comments so far belong to the section that they are in.
    fn end_of_section(&mut self) {
        let comments = std::mem::take(&mut self.pending);
        if let (Section::Peer, Some(peer)) = (self.section, self.peers.last_mut()) {
            peer.comments.extend(comments);
        }
    }

    fn wrong(&mut self, line: usize, text: String) {
        self.wrong.push(Remark { line: Some(line), text });
    }

    fn note(&mut self, line: usize, text: &str) {
        self.notes.push(Remark { line: Some(line), text: text.to_owned() });
    }

    fn setting(&mut self, number: usize, name: &str, value: &str) {
        let key = match (self.section, parse_key(name)) {
            (Section::Unknown, _) => return,
            (Section::None, _) => {
                return self.wrong(number, format!("{name} stands before [Interface] or [Peer]"));
            }
            (_, None) => {
                let text = format!("{name} is no setting of wg-quick: correct or remove it");
                return self.wrong(number, text);
            }
            (section, Some(key)) if key.is_of_peer() != (section == Section::Peer) => {
                let right = if key.is_of_peer() { "[Peer]" } else { "[Interface]" };
                return self.wrong(number, format!("{name} belongs into {right}"));
            }
            (_, Some(key)) => key,
        };
        let outcome = match self.peers.last_mut().filter(|_| key.is_of_peer()) {
            Some(peer) => peer.set(key, value),
            None => {
                self.masquerades |= key.is_command() && section::masquerades(value);
                self.interface.get_or_insert_default().set(key, value)
            }
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(note)) => self.note(number, note),
            Err(why) => self.wrong(number, format!("{name} {why}")),
        }
    }

    fn labels(&self) -> Labels {
        let names = self.peers.iter().filter_map(|peer| {
            let comments = peer.comments.iter().chain(&peer.comments_above).map(String::as_str);
            Some((peer.public_key?, name_of(comments)?))
        });
        let masquerades = self.interface.as_ref().map(|_| self.masquerades);
        Labels { names: names.collect(), masquerades }
    }

    fn finish(mut self) -> Result<Parsed, Vec<Remark>> {
        self.end_of_section();
        let labels = self.labels();
        let interface = self.interface.take().unwrap_or_default();
        let missing = |text: &str| Remark { line: None, text: text.to_owned() };
        if interface.private_key.is_none() && !self.wrong.iter().any(|it| it.is_about("PrivateKey"))
        {
            self.wrong.push(missing(
                "[Interface] has no PrivateKey, from which the gateway's public key follows: name \
                 the running interface instead of the file",
            ));
        }
        if interface.listen_port.is_none() && !self.wrong.iter().any(|it| it.is_about("ListenPort"))
        {
            self.wrong.push(missing(
                "[Interface] has no ListenPort, so clients cannot find the gateway again: add it, or \
                 name the running interface instead of the file",
            ));
        }
        for peer in self.peers.iter().filter(|peer| !peer.has_key_line) {
            let text = "this [Peer] has no PublicKey: add it, or remove the section".to_owned();
            self.wrong.push(Remark { line: Some(peer.line), text });
        }
        let (Some(private_key), Some(listen_port)) = (interface.private_key, interface.listen_port)
        else {
            return Err(self.wrong);
        };
        if !self.wrong.is_empty() {
            return Err(self.wrong);
        }
        let peers = self.peers.into_iter().filter_map(|peer| {
            let public_key = peer.public_key?;
            Some(FoundPeer {
                line: Some(peer.line),
                name: labels.names.get(&public_key).cloned(),
                public_key,
                preshared_key: peer.preshared_key,
                allowed_ips: peer.allowed_ips,
            })
        });
        let found = Found {
            public_key: private_key.public_key(),
            listen_port,
            fwmark: interface.fwmark,
            mtu_bytes: interface.mtu_bytes,
            addresses: interface.addresses,
            peers: peers.collect(),
        };
        Ok(Parsed { found, labels, notes: self.notes })
    }
}

impl Remark {
    fn is_about(&self, key: &str) -> bool {
        self.text.split(' ').next().is_some_and(|first| first.eq_ignore_ascii_case(key))
    }
}

impl Interface {
    fn set(&mut self, key: Key, value: &str) -> Result<Option<&'static str>, String> {
        match key {
            Key::Private => {
                // The text is a secret, or nearly one: it is not repeated.
                self.private_key = Some(value.parse().map_err(section::key_flaw)?);
            }
            Key::ListenPort => self.listen_port = Some(section::port(value)?),
            Key::FwMark => self.fwmark = section::fwmark(value)?,
            Key::Mtu => self.mtu_bytes = Some(section::number(value)?),
            Key::Address => self.addresses.extend(section::prefixes(value)?),
            key => return Ok(key.has_no_effect()),
        }
        Ok(None)
    }
}

impl PeerSection {
    fn set(&mut self, key: Key, value: &str) -> Result<Option<&'static str>, String> {
        match key {
            Key::Public => {
                self.has_key_line = true;
                let key =
                    value.parse().map_err(|why| format!("{value:?} {}", section::key_flaw(why)))?;
                self.public_key = Some(key);
            }
            Key::Preshared => {
                self.preshared_key = Some(value.parse().map_err(section::key_flaw)?);
            }
            Key::AllowedIps => self.allowed_ips.extend(section::networks(value)?),
            key => return Ok(key.has_no_effect()),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
