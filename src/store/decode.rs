//! Decodes columns to values. Every column decodes: rows are validated later, and one odd row must
//! not hide the others.

use std::borrow::Cow;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use ipnet::IpNet;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};
use uuid::Uuid;

use super::error::StoreError;
use crate::model::limit::{DANGLING_TARGETS, NAME_CHARS};
use crate::model::{
    Allocation, BarredBy, DeviceId, Effect, GatewayRow, KeyText, MembershipRow, PeerRow, PolicyRow,
    RowLimit, SettingRow, TargetRow, TargetType, every_address,
};

pub(super) const GATEWAY: &str = "select cursor, epoch, taken_at, id, name, public_key, \
    listen_port, vpn_cidr, dns_servers, active, allocated_address from gatepost.snapshot_gateway()";

/// The columns of `gatepost.peer_row`, in the order [`peer`] reads them.
pub(super) const PEER_COLUMNS: &str = "id, device_id, user_id, device_name, username, public_key, \
    assigned_ip, preshared_key, allowed_ips, dns_servers, bars, revoked_at, holder, created_at";

/// The columns of `gatepost.policy_row`, in the order [`policy`] reads them.
pub(super) const POLICY_COLUMNS: &str = "id, name, priority, effect, full_tunnel, destinations, \
    target_types, target_ids, dangling";

/// `inet` or `cidr`, host bits kept.
pub(super) struct Net(pub IpNet);

impl<'a> FromSql<'a> for Net {
    // src/backend/utils/adt/network.c, network_send: family (2 or 3), bits, is_cidr, length, bytes.
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let (address, bits): (IpAddr, u8) = match raw {
            [2, bits, _, 4, bytes @ ..] => {
                (Ipv4Addr::from(<[u8; 4]>::try_from(bytes)?).into(), *bits)
            }
            [3, bits, _, 16, bytes @ ..] => {
                (Ipv6Addr::from(<[u8; 16]>::try_from(bytes)?).into(), *bits)
            }
            _ => return Err("not the binary format of inet".into()),
        };
        Ok(Self(IpNet::new(address, bits)?))
    }

    accepts!(INET, CIDR);
}

/// Text of any encoding: a database in SQL_ASCII may hold bytes that are not UTF-8.
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'a> FromSql<'a> for Text<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw)))
    }

    accepts!(TEXT, VARCHAR, BPCHAR, NAME);
}

/// The beginning of a name. A row may have one of a megabyte, and names are in status, journal and audit.
fn shortened(name: Cow<'_, str>) -> Cow<'_, str> {
    match name.char_indices().nth(NAME_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name,
    }
}

/// Reads columns by number, with the purpose for errors.
pub(super) struct Columns<'a> {
    row: &'a Row,
    doing: &'static str,
}

impl<'a> Columns<'a> {
    pub(super) fn of(row: &'a Row, doing: &'static str) -> Self {
        Self { row, doing }
    }

    pub(super) fn get<T: FromSql<'a>>(&self, column: usize) -> Result<T, StoreError> {
        let doing = self.doing;
        self.row.try_get(column).map_err(|source| StoreError::Decode { doing, column, source })
    }

    fn text<T: From<Cow<'a, str>>>(&self, column: usize) -> Result<T, StoreError> {
        Ok(self.get::<Text<'a>>(column)?.0.into())
    }

    /// A name, which is for people only.
    pub(super) fn name<T: From<Cow<'a, str>>>(&self, column: usize) -> Result<T, StoreError> {
        Ok(shortened(self.get::<Text<'a>>(column)?.0).into())
    }

    fn key(&self, column: usize) -> Result<KeyText, StoreError> {
        Ok(KeyText::parse(&self.name::<Cow<'a, str>>(column)?))
    }

    /// A list of texts that are as short as names.
    fn names<T: From<Cow<'a, str>>>(&self, column: usize) -> Result<Vec<T>, StoreError> {
        let texts = self.get::<Vec<Text<'a>>>(column)?;
        Ok(texts.into_iter().map(|text| shortened(text.0).into()).collect())
    }

    fn nets(&self, column: usize) -> Result<Vec<IpNet>, StoreError> {
        Ok(self.get::<Vec<Net>>(column)?.into_iter().map(|net| net.0).collect())
    }
}

/// The row that [`GATEWAY`] returns: cursor, epoch, clock, row.
pub(super) fn gateway(
    row: &Row,
    doing: &'static str,
) -> Result<(String, String, SystemTime, GatewayRow), StoreError> {
    let columns = Columns::of(row, doing);
    let gateway = GatewayRow {
        id: columns.get::<Uuid>(3)?.into(),
        name: columns.text(4)?,
        public_key: columns.key(5)?,
        listen_port: columns.get(6)?,
        vpn_cidr: columns.get::<Net>(7)?.0,
        dns_servers: columns.names(8)?,
        active: columns.get(9)?,
        allocated_address: columns.get::<Option<Net>>(10)?.map(|net| net.0.addr()),
    };
    Ok((columns.text(0)?, columns.text(1)?, columns.get(2)?, gateway))
}

pub(super) fn setting(row: &Row, doing: &'static str) -> Result<SettingRow, StoreError> {
    let columns = Columns::of(row, doing);
    let value = columns.get::<Option<Text<'_>>>(2)?.map_or("null".into(), |value| value.0.into());
    Ok(SettingRow { category: columns.text(0)?, key: columns.text(1)?, value })
}

/// A peer's row; `None`, with a warning: it cannot be decoded, which costs this peer alone.
pub(super) fn peer_if_readable(
    row: &Row,
    doing: &'static str,
) -> Result<Option<PeerRow>, StoreError> {
    let error = match peer(row, doing) {
        Ok(peer) => return Ok(Some(peer)),
        Err(error) => error,
    };
    let id: Uuid = Columns::of(row, doing).get(0)?;
    tracing::warn!(peer = %id, %error, "the row of peer {id} is left out: {error}");
    Ok(None)
}

fn peer(row: &Row, doing: &'static str) -> Result<PeerRow, StoreError> {
    let columns = Columns::of(row, doing);
    let (id, device_id): (Uuid, _) = (columns.get(0)?, DeviceId(columns.get(1)?));
    let (mut allowed_ips, mut dns_servers) = (columns.nets(8)?, columns.names(9)?);
    let beyond = RowLimit::AllowedIps.check(id, allowed_ips.len());
    let beyond = beyond.or_else(|| RowLimit::PeerDns.check(id, dns_servers.len()));
    if beyond.is_some() {
        (allowed_ips, dns_servers) = (Vec::new(), Vec::new());
    }
    Ok(PeerRow {
        id: id.into(),
        device_id,
        user_id: columns.get::<Uuid>(2)?.into(),
        device_name: columns.name(3)?,
        username: columns.name(4)?,
        public_key: columns.key(5)?,
        assigned_ip: columns.get::<Net>(6)?.0,
        preshared_key: columns.get::<Option<Text<'_>>>(7)?.map(|text| text.0.into()),
        allowed_ips: allowed_ips.into(),
        dns_servers: dns_servers.into(),
        bars: BarredBy::from_bits(columns.get::<i16>(10)?.cast_unsigned()),
        revoked_at: columns.get(11)?,
        allocation: match columns.get::<Option<Uuid>>(12)?.map(DeviceId) {
            Some(holder) if holder == device_id => Allocation::Held,
            Some(holder) => Allocation::Other(holder),
            None => Allocation::Missing,
        },
        created_at: columns.get(13)?,
        beyond: beyond.map(Box::new),
    })
}

pub(super) fn membership(row: &Row, doing: &'static str) -> Result<MembershipRow, StoreError> {
    let columns = Columns::of(row, doing);
    Ok(MembershipRow {
        user_id: columns.get::<Uuid>(0)?.into(),
        group_ids: columns.get::<Vec<Uuid>>(1)?.into_iter().map(Into::into).collect(),
    })
}

/// A value that is missing, because the table lost its constraint, makes a policy grant less or deny more.
pub(super) fn policy(row: &Row, doing: &'static str) -> Result<PolicyRow, StoreError> {
    let columns = Columns::of(row, doing);
    let id: Uuid = columns.get(0)?;
    let word = columns.get::<Option<Text<'_>>>(3)?.map_or("null".into(), |word| word.0);
    let effect = effect(shortened(word));
    let allows = effect == Effect::Allow;
    let weakest = if allows { i32::MAX } else { i32::MIN };
    let found = columns.get::<Vec<Option<Net>>>(5)?;
    let is_whole = allows || found.iter().all(Option::is_some);
    let mut destinations: Vec<IpNet> = found.into_iter().flatten().map(|net| net.0).collect();
    if !is_whole {
        destinations = every_address().to_vec();
    }
    let beyond = RowLimit::Destinations.check(id, destinations.len());
    destinations.sort_unstable();
    destinations.dedup();
    let policy = PolicyRow {
        id: id.into(),
        name: columns
            .get::<Option<Text<'_>>>(1)?
            .map_or("".into(), |name| shortened(name.0))
            .into(),
        priority: columns.get::<Option<i32>>(2)?.unwrap_or(weakest),
        effect,
        full_tunnel: columns.get::<Option<bool>>(4)?.unwrap_or(!allows),
        destinations,
        targets: targets(&columns)?,
        beyond: None,
    };
    Ok(match beyond {
        Some(beyond) => policy.closed(beyond),
        None => policy,
    })
}

/// Those that match something, and the first that do not.
fn targets(columns: &Columns<'_>) -> Result<Vec<TargetRow>, StoreError> {
    let types = columns.names::<Cow<'_, str>>(6)?;
    let ids = columns.get::<Vec<Uuid>>(7)?;
    let dangling = columns.get::<Vec<bool>>(8)?;
    let mut targets: Vec<TargetRow> = types
        .into_iter()
        .zip(ids)
        .zip(dangling)
        .map(|((target_type, target_id), dangling)| TargetRow {
            target_type: target_kind(target_type),
            target_id,
            dangling,
        })
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let mut without_match = 0..DANGLING_TARGETS;
    targets.retain(|target| {
        let matches = !target.dangling && !matches!(target.target_type, TargetType::Unknown(_));
        matches || without_match.next().is_some()
    });
    Ok(targets)
}

fn effect(word: Cow<'_, str>) -> Effect {
    match &*word {
        "allow" => Effect::Allow,
        "deny" => Effect::Deny,
        _ => Effect::Unknown(word.into()),
    }
}

fn target_kind(word: Cow<'_, str>) -> TargetType {
    match &*word {
        "user" => TargetType::User,
        "device" => TargetType::Device,
        "group" => TargetType::Group,
        _ => TargetType::Unknown(word.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(raw: &[u8]) -> Option<String> {
        Net::from_sql(&Type::INET, raw).ok().map(|net| net.0.to_string())
    }

    #[test]
    fn inet_decodes_with_its_host_bits() {
        assert_eq!(net(&[2, 24, 0, 4, 10, 8, 0, 7]).as_deref(), Some("10.8.0.7/24"));
        let mut v6 = vec![3, 128, 0, 16, 0xfd];
        v6.extend([0; 14]);
        v6.push(7);
        assert_eq!(net(&v6).as_deref(), Some("fd00::7/128"));
    }

    #[test]
    fn other_bytes_than_inet_are_an_error() {
        assert_eq!(net(&[]), None);
        assert_eq!(net(&[2, 33, 0, 4, 10, 8, 0, 7]), None);
        assert_eq!(net(&[2, 24, 0, 4, 10, 8, 0]), None);
        assert_eq!(net(&[3, 24, 0, 4, 10, 8, 0, 7]), None);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = "é".repeat(500_000);
        assert_eq!(shortened(Cow::from(&long)), "é".repeat(256) + "…");
        assert_eq!(shortened("Zoë".into()), "Zoë");
    }

    #[test]
    fn text_that_is_not_utf8_stays_readable() {
        assert_eq!(Text::from_sql(&Type::TEXT, b"caf\xe9").unwrap().0, "caf\u{fffd}");
    }
}
