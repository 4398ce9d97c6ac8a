//! `gatepost import`: the SQL that takes over a WireGuard gateway without Gatepost.

mod arrange;
pub mod error;
mod file;
mod found;
mod live;
mod names;
mod sql;

use std::path::{Path, PathBuf};
use std::{fs, io};

use gatepost::count::count;
use gatepost::model::psk::PskKeys;
use gatepost::model::{GatewayId, InterfaceName, Masquerade};
use uuid::Uuid;

use crate::cli::ImportArgs;
use crate::config::{
    Config, private_key_file, read_private_key, read_psk_keys, read_psk_keys_file,
};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{print, printable};
use arrange::{ArrangedPeer, arrange};
use error::ImportError;
use file::{Parsed, Remark};
use found::{Found, Labels};
use sql::{Ids, Script};

/// Where `wg-quick` looks for a name's file.
const WG_QUICK: &str = "/etc/wireguard";

/// Reads the interface or the file, and prints SQL. Changes nothing.
///
/// # Errors
/// [`ImportError`]; the gateway has no name; the sealing keys cannot be read.
pub fn import(config: &Config, args: &ImportArgs) -> Result<Exit, CommandError> {
    let gateway = match &args.gateway {
        Some(name) => name.as_str(),
        None => config.gateway_name()?,
    };
    let Source { interface, found, labels, notes } = read(args)?;
    let unusable = |remarks| ImportError::Unusable { source_name: args.source.clone(), remarks };
    let arranged = arrange(&found, interface.as_str()).map_err(unusable)?;
    let psk_keys = match &args.keys {
        Some(path) => Some(read_psk_keys_file(path)?),
        None => read_psk_keys(config)?,
    };
    let script = Script {
        source: &args.source,
        gateway,
        endpoint: args.endpoint.as_deref().unwrap_or_default(),
        interface: &interface,
        masquerade: labels.masquerades.map(|does| match does {
            true => Masquerade::All,
            false => Masquerade::None,
        }),
        ids: ids(&arranged.peers, psk_keys.as_ref())?,
        found: &found,
        arranged: &arranged,
    };
    print(&script.text())?;
    for note in notes.iter().chain(&arranged.notes) {
        tracing::warn!("{note}");
    }
    if args.endpoint.is_none() {
        tracing::warn!(
            "gateways.endpoint is empty, which only new profiles need: name it with --endpoint"
        );
    }
    warn_of_key(config, &interface, &found);
    Ok(Exit::Success)
}

/// The source of an import.
struct Source {
    interface: InterfaceName,
    found: Found,
    labels: Labels,
    notes: Vec<Remark>,
}

/// A file is what has a slash or ends like one; everything else is an interface.
fn read(args: &ImportArgs) -> Result<Source, CommandError> {
    let name = &args.source;
    let is_file = name.contains('/') || name.ends_with(".conf");
    let interface = || -> Result<InterfaceName, CommandError> {
        let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        Ok(if is_file { stem } else { name }.parse()?)
    };
    if is_file {
        let text = read_file(Path::new(name))?;
        let parsed = file::parse(&text);
        let unusable = |remarks| ImportError::Unusable { source_name: name.clone(), remarks };
        let Parsed { found, labels, notes } = parsed.map_err(unusable)?;
        return Ok(Source { interface: interface()?, found, labels, notes });
    }
    let interface = interface()?;
    // Beside the SQL, which goes to a file.
    let mut found = live::read(&interface, |told| eprintln!("{}", printable(told)))?;
    let labels = labels_of(&interface, args.names.as_ref())?;
    for peer in &mut found.peers {
        peer.name = labels.names.get(&peer.public_key).cloned();
    }
    Ok(Source { interface, found, labels, notes: Vec::new() })
}

/// The names of the peers are in no interface: they are in its file, if it has one.
fn labels_of(interface: &InterfaceName, named: Option<&PathBuf>) -> Result<Labels, ImportError> {
    let path = match named {
        Some(path) => path.clone(),
        None => Path::new(WG_QUICK).join(format!("{interface}.conf")),
    };
    match read_file(&path) {
        Err(ImportError::File { source, .. })
            if named.is_none() && source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(Labels::default())
        }
        text => Ok(file::labels(&text?)),
    }
}

fn read_file(path: &Path) -> Result<zeroize::Zeroizing<String>, ImportError> {
    let text = fs::read_to_string(path);
    text.map(zeroize::Zeroizing::new)
        .map_err(|source| ImportError::File { path: path.to_owned(), source })
}

/// New identifiers, and the preshared keys sealed for them. Without its preshared key a peer would be
/// cut off at its next handshake.
fn ids(peers: &[ArrangedPeer], psk_keys: Option<&PskKeys>) -> Result<Ids, ImportError> {
    let gateway = random_uuid()?;
    let sealed = peers.iter().filter(|peer| peer.preshared_key.is_some()).count();
    let keys = psk_keys.filter(|keys| !keys.is_empty());
    let none = || {
        let have = if sealed == 1 { "has" } else { "have" };
        ImportError::NoSealingKeys { peers: format!("{} {have}", count(sealed, "peer")) }
    };
    let envelope = |peer: &ArrangedPeer| -> Result<Option<String>, ImportError> {
        let Some(preshared) = &peer.preshared_key else { return Ok(None) };
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).map_err(ImportError::Random)?;
        let keys = keys.ok_or_else(none)?;
        let sealed = keys.seal(nonce, preshared, GatewayId(gateway), peer.public_key);
        sealed.map(Some).map_err(|_| none())
    };
    Ok(Ids {
        gateway,
        policy: random_uuid()?,
        devices: peers.iter().map(|_| random_uuid()).collect::<Result<_, _>>()?,
        envelopes: peers.iter().map(envelope).collect::<Result<_, _>>()?,
    })
}

fn random_uuid() -> Result<Uuid, ImportError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(ImportError::Random)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// The agent takes over only an interface whose private key it has.
fn warn_of_key(config: &Config, interface: &InterfaceName, found: &Found) {
    let file = private_key_file(config).path;
    if read_private_key(config).ok().map(|key| key.public_key()) != Some(found.public_key) {
        tracing::warn!(
            "the agent takes {interface} over only with its private key, which {} does not hold: \
             (umask 077; wg show {interface} private-key >{0})",
            file.display()
        );
    }
}
