//! `gatepost profile`: the configuration of a device's WireGuard client.

pub mod error;
mod text;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use gatepost::model::psk::PskKeys;
use gatepost::model::{
    DesiredState, KeyText, Local, Masquerade, PeerRow, PresharedKey, PrivateKey, PublicKey,
    SnapshotRows, Standing, client_routes,
};
use gatepost::reconcile::near_names;
use gatepost::store::{FoundPeer, ProfileDesk, Rekeyed};
use ipnet::IpNet;

use crate::cli::ProfileArgs;
use crate::config::{Config, read_psk_keys, read_psk_keys_file};
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::key_file::{self, KeyFileError};
use crate::output::print;
use crate::runtime;
use error::ProfileError;
use text::{Profile, qr_code};

/// Prints the profile, and writes that it was issued: if it cannot be printed, nothing is written.
///
/// # Errors
/// [`ProfileError`]; what keeps the database from being read or written.
pub fn profile(config: &Config, args: &ProfileArgs) -> Result<Exit, CommandError> {
    let who = &args.who;
    let (user, device) = who.split_once('/').ok_or_else(|| ProfileError::Who(who.clone()))?;
    let psk_keys = match &args.keys {
        Some(path) => Some(read_psk_keys_file(path)?),
        None => read_psk_keys(config)?,
    };
    let options = database::options(config)?;
    let runtime = runtime::on_this_thread()?;
    let (desk, found, rows, others) = runtime.block_on(async {
        let desk = ProfileDesk::open(&options).await?;
        let mut others = desk.find(user, device).await?;
        if others.is_empty() {
            return Err(without_peer(who, &desk.names().await?).into());
        }
        let found = choose(others.clone(), who, args.gateway.as_deref())?;
        others.retain(|other| other.peer_id != found.peer_id);
        let rows = desk.rows(&found.gateway).await?;
        Ok::<_, CommandError>((desk, found, rows, others))
    })?;
    let written = rows.peers.iter().find(|row| row.id == found.peer_id);
    let written = written.map(|row| row.allowed_ips.clone()).unwrap_or_default();
    let desired = evaluate(config, rows)?;
    let Some((row, standing)) = desired.rows().find(|(row, _)| row.id == found.peer_id) else {
        return Err(ProfileError::Unknown(who.clone()).into());
    };
    warn_unless_admitted(who, standing);
    let keys = Keys::of(args, row, &desired, psk_keys.as_ref())?;
    let mut profile = describe(&found, row, &desired, keys.clone(), &written)?;
    profile.revision = runtime.block_on(desk.issue(&found, keys.rekeyed.as_ref()))?;
    // A key that could not be shown or printed must not replace the former.
    print(&rendered(&profile, args)?)?;
    runtime.block_on(desk.commit())?;
    if args.new_key {
        warn_of_former_keys(who, &others);
    }
    Ok(Exit::Success)
}

fn rendered(profile: &Profile, args: &ProfileArgs) -> Result<String, ProfileError> {
    if args.json {
        Ok(format!("{:#}\n", profile.json()))
    } else if args.qr {
        qr_code(&profile.text()).map_err(ProfileError::QrCode)
    } else {
        Ok(profile.text())
    }
}

/// Each peer has a key of its own: another key of one changes nothing on other gateways.
fn warn_of_former_keys(who: &str, others: &[FoundPeer]) {
    for FoundPeer { gateway, .. } in others {
        tracing::warn!(
            "the key that {who} has on gateway {gateway} stays valid: to replace it, too, run this \
             with --gateway {gateway}"
        );
    }
}

/// Why a device has no peer: it is not known, or has none.
fn without_peer(who: &str, known: &[(String, String)]) -> ProfileError {
    let is_meant = |(user, device): &(String, String)| {
        who.split_once('/').is_some_and(|(meant, of_user)| {
            user.to_lowercase() == meant.to_lowercase() && device == of_user
        })
    };
    if known.iter().any(is_meant) {
        return ProfileError::Unknown(who.to_owned());
    }
    let known = known.iter().map(|(user, device)| (user.as_str(), device.as_str()));
    ProfileError::NoDevice { who: who.to_owned(), candidates: near_names(who, known) }
}

/// The peer that is meant.
fn choose(
    mut found: Vec<FoundPeer>,
    who: &str,
    gateway: Option<&str>,
) -> Result<FoundPeer, ProfileError> {
    let names: Vec<String> = found.iter().map(|peer| peer.gateway.clone()).collect();
    let who = who.to_owned();
    if let Some(gateway) = gateway {
        found.retain(|peer| peer.gateway == gateway);
    }
    match (found.pop(), gateway) {
        (Some(peer), _) if found.is_empty() => Ok(peer),
        (Some(_), _) => Err(ProfileError::Several { who, gateways: names }),
        (None, Some(gateway)) if !names.is_empty() => {
            Err(ProfileError::NotThere { who, gateway: gateway.to_owned(), others: names })
        }
        (None, _) => Err(ProfileError::Unknown(who)),
    }
}

/// Evaluates the rows as the gateway does. That its private key is not here changes no peer.
fn evaluate(config: &Config, mut rows: SnapshotRows) -> Result<DesiredState, CommandError> {
    let private_key = random_key()?;
    rows.gateway.public_key = KeyText::Key(private_key.public_key());
    let local = Local {
        interface: config.interface.name.clone(),
        private_key,
        mtu_bytes: config.interface.mtu_bytes,
        addresses: config.interface.addresses.iter().copied().collect(),
        fwmark: 0,
        site_prefixes: config.interface.site_prefixes.iter().copied().collect::<BTreeSet<_>>(),
        masquerade: Masquerade::default(),
        deny_log: None,
        gateway_opens: None,
        flush_conntrack: false,
        flows_per_address: None,
        gate: None,
        psk_keys: PskKeys::default(),
    };
    DesiredState::build(Arc::new(local), rows).map_err(CommandError::Rows)
}

fn random_key() -> Result<PrivateKey, KeyFileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyFileError::Random)?;
    Ok(PrivateKey::from_random(bytes))
}

fn warn_unless_admitted(who: &str, standing: Standing<'_>) {
    match standing {
        Standing::Admitted(_) => {}
        Standing::Ineligible(why) => {
            tracing::warn!("{who} is not admitted by the gateway now: {why}");
        }
        Standing::Quarantined(reason) => {
            tracing::warn!("{who} is not admitted by the gateway now: {reason}");
        }
    }
}

/// The keys of a profile.
#[derive(Clone)]
struct Keys {
    public: PublicKey,
    /// Never made up unless asked for.
    private: Option<PrivateKey>,
    preshared: Option<PresharedKey>,
    /// The new values of the rows.
    rekeyed: Option<Rekeyed>,
}

impl Keys {
    fn of(
        args: &ProfileArgs,
        row: &PeerRow,
        desired: &DesiredState,
        psk_keys: Option<&PskKeys>,
    ) -> Result<Self, CommandError> {
        let (who, gateway_id) = (&args.who, desired.gateway().id);
        let present = match &row.public_key {
            KeyText::Key(key) => Some(*key),
            KeyText::Bad { .. } => None,
        };
        let sealed = || ProfileError::Sealed { who: who.clone() };
        let preshared = match (&row.preshared_key, present) {
            (Some(envelope), Some(present)) => {
                let keys = psk_keys.ok_or_else(sealed)?;
                Some(
                    keys.open(envelope, gateway_id, present)
                        .map_err(|source| ProfileError::Envelope { who: who.clone(), source })?,
                )
            }
            _ => None,
        };
        if args.new_key {
            let private = random_key()?;
            let public = private.public_key();
            let seal = |preshared: &PresharedKey| -> Result<String, CommandError> {
                let mut nonce = [0; 24];
                getrandom::fill(&mut nonce).map_err(KeyFileError::Random)?;
                let keys = psk_keys.ok_or_else(sealed)?;
                let sealed = keys.seal(nonce, preshared, gateway_id, public);
                sealed.map_err(|source| ProfileError::Envelope { who: who.clone(), source }.into())
            };
            let envelope = preshared.as_ref().map(seal).transpose()?;
            let rekeyed = Some(Rekeyed { public_key: public, envelope });
            return Ok(Self { public, private: Some(private), preshared, rekeyed });
        }
        let public = present.ok_or_else(|| ProfileError::BadKey { who: who.clone() })?;
        let private = args.private_key_file.as_deref().map(key_file::read).transpose()?;
        if let Some(found) = private.as_ref().map(PrivateKey::public_key)
            && found != public
        {
            return Err(ProfileError::OtherKey { who: who.clone(), found, wanted: public }.into());
        }
        Ok(Self { public, private, preshared, rekeyed: None })
    }
}

fn describe(
    found: &FoundPeer,
    row: &PeerRow,
    desired: &DesiredState,
    keys: Keys,
    allowed_ips: &[IpNet],
) -> Result<Profile, ProfileError> {
    let one_word = |what, text: &str| {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || ",#".contains(c);
        if text.is_empty() || text.contains(is_odd) {
            return Err(ProfileError::Text { what, text: text.to_owned() });
        }
        Ok(text.to_owned())
    };
    let dns = desired.gateway().dns_servers.iter().map(String::as_str);
    let dns = dns.chain(row.dns_servers.iter().map(AsRef::as_ref)).map(str::trim);
    let endpoint = one_word("gateways.endpoint", &found.endpoint)?;
    let host = endpoint.parse::<SocketAddr>().ok().map(|endpoint| endpoint.ip());
    Ok(Profile {
        user: row.username.to_string(),
        device: row.device_name.to_string(),
        gateway: found.gateway.clone(),
        revision: 0,
        address: row.assigned_ip.addr(),
        dns_servers: dns.map(|text| one_word("dns_servers", text)).collect::<Result<_, _>>()?,
        public_key: keys.public,
        private_key: keys.private,
        gateway_key: one_word("gateways.public_key", &found.gateway_key)?,
        preshared_key: keys.preshared,
        endpoint,
        allowed_ips: client_routes(desired, row, allowed_ips, host),
    })
}
