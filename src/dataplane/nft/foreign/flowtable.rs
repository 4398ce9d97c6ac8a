//! Flowtables of other programs, which take packets of our flows past every rule.

use std::collections::BTreeSet;
use std::fmt;

use super::super::dump::at_one_generation;
use super::super::error::NftError;
use super::super::name::TABLE;
use super::super::socket::NftSocket;
use super::super::sys::{flowtable, msg};
use super::hook::Hook;
use super::reader::{ForeignTable, Reader};
use super::walk::Walk;
use super::way::Way;
use super::{FAMILIES, filters_at, ways};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};
use crate::model::InterfaceName;

/// A flowtable that packets of our flows go by, or may.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flowtable {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// Our interface is among its devices.
    pub has_ours: bool,
    /// A rule adds flows to it that come by our interface or go to it. What other devices of the flowtable
    /// bring of them passes no rule any more.
    pub takes_ours: bool,
}

impl fmt::Display for Flowtable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

/// Finds the flowtables that hold our interface, and those that rules add our flows to, whatever
/// devices they hold.
///
/// # Errors
/// As [`foreign_drops`](super::foreign_drops).
pub fn flowtables(interface: &InterfaceName) -> Result<Vec<Flowtable>, NftError> {
    let read = |socket: &mut NftSocket| {
        let mut found = Vec::new();
        for (number, family) in FAMILIES {
            let declared: Vec<Declared> =
                socket.dump_of(number, msg::GETFLOWTABLE, &[], |declared: &mut Vec<_>, it| {
                    declared.push(Declared::read(it, interface)?);
                    Ok(())
                })?;
            // Most hosts have none.
            if declared.is_empty() {
                continue;
            }
            let filled = filled(&mut Reader { socket }, number, interface)?;
            found.extend(declared.into_iter().map(|Declared { table, name, has_ours }| {
                let takes_ours = filled.contains(&(table.clone(), name.clone()));
                Flowtable { family, table, name, has_ours, takes_ours }
            }));
        }
        found.retain(|found| found.has_ours || found.takes_ours);
        found.sort_unstable();
        Ok(found)
    };
    Ok(at_one_generation(&mut NftSocket::open()?, read)?.0)
}

struct Declared {
    table: String,
    name: String,
    has_ours: bool,
}

impl Declared {
    fn read(found: Attributes<'_>, interface: &InterfaceName) -> Result<Self, NetlinkError> {
        let text = |kind| Ok(found.require(kind)?.text_lossy());
        let mut has_ours = false;
        let devices = found.find_in(&[flowtable::HOOK, flowtable::HOOK_DEVICES])?;
        for device in devices.into_iter().flat_map(Attribute::nested) {
            let device = device?;
            has_ours |=
                device.kind == flowtable::DEVICE_NAME && device.text_lossy() == interface.as_str();
        }
        Ok(Self { table: text(flowtable::TABLE)?, name: text(flowtable::NAME)?, has_ours })
    }
}

/// The tables and names of the flowtables to which rules add flows of ours.
fn filled(
    reader: &mut Reader<'_>,
    family: u8,
    interface: &InterfaceName,
) -> Result<BTreeSet<(String, String)>, NftError> {
    let mut filled = BTreeSet::new();
    let chains = reader.chains(family)?;
    let forward = chains
        .iter()
        .filter(|chain| chain.table != TABLE && filters_at(chain) == Some(Hook::Forward));
    for base in forward {
        let mut table = ForeignTable { reader, family, table: &base.table };
        let mut walk = Walk::new(&mut table, interface.as_str());
        for way in ways(Hook::Forward, None).into_iter().chain([Way::BETWEEN_PEERS]) {
            walk.follow(&base.name, way, false)?;
        }
        filled.extend(walk.flowtables.into_iter().map(|name| (base.table.clone(), name)));
    }
    Ok(filled)
}
