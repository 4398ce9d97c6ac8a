//! The decoder of nf_tables' messages, for the fuzzer: a table is made of them and then interpreted.

use super::dump::{Dump, expressions};
use super::element::Element;
use super::expr::read_rule;
use super::message::ObjectMessage;
use super::monitor::ChangeReader;
use super::name::{block_of_chain, profile_of_chain};
use super::observe::Observation;
use super::owner::Ownership;
use super::profile::ProfileRule;
use super::set::Set;
use super::sys::{NFNL_SUBSYS_NFTABLES, elem, msg, rule, table};
use crate::dataplane::netlink::{Attributes, NetlinkError, messages};

/// Reads a datagram as the parts of a dump, and as events.
pub fn decode(datagram: &[u8]) -> Result<(), NetlinkError> {
    let (mut dump, mut changes) = (Dump::default(), ChangeReader::new(0));
    for message in messages(datagram) {
        let message = message?;
        changes.read_message(&message)?;
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES {
            continue;
        }
        let ObjectMessage { kind, attributes, .. } = ObjectMessage::read(&message)?;
        match kind {
            msg::NEWTABLE => {
                let flags = attributes.find(table::FLAGS)?;
                dump.flags = flags.map_or(Ok(0), |flags| flags.be32())?;
            }
            msg::NEWCHAIN => dump.add_chain(attributes)?,
            msg::NEWRULE => add_rule(&mut dump, attributes)?,
            msg::NEWSET => dump.add_set(attributes)?,
            msg::NEWSETELEM => add_elements(&mut dump, attributes)?,
            _ => {}
        }
    }
    Observation::of(&dump, Ownership::Shared);
    Ok(())
}

fn add_rule(dump: &mut Dump, found: Attributes<'_>) -> Result<(), NetlinkError> {
    let chain = found.require(rule::CHAIN)?.text()?;
    let exprs = expressions(found)?.map_or(Ok(vec![]), read_rule)?;
    if let Some(id) = profile_of_chain(chain) {
        let decoded = ProfileRule::decode(id, &exprs, false);
        dump.profiles.entry(id).or_default().push(decoded);
    } else if let Some(block) = block_of_chain(chain) {
        dump.blocks.entry(block).or_default().push(exprs);
    } else {
        dump.rules.entry(chain.to_owned()).or_default().push(exprs);
    }
    Ok(())
}

fn add_elements(dump: &mut Dump, found: Attributes<'_>) -> Result<(), NetlinkError> {
    let Some(set) = Set::named(found.require(elem::LIST_SET)?.text()?) else { return Ok(()) };
    for element in found.require(elem::LIST_ELEMENTS)?.nested() {
        let element = Element::decode(&set, element?.nested())?;
        dump.sets.entry(set).or_default().extend(element);
    }
    Ok(())
}
