//! Reads the chains, rules and sets of other programs.

use super::super::attr::Attr;
use super::super::chain::Declaration;
use super::super::error::NftError;
use super::super::expr::{Rule, read_rule};
use super::super::socket::NftSocket;
use super::super::sys::{data, elem, msg, rule};
use super::walk::{Member, Table, verdict_with};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};

pub(super) struct Reader<'a> {
    pub socket: &'a mut NftSocket,
}

impl Reader<'_> {
    pub fn chains(&mut self, family: u8) -> Result<Vec<Declaration>, NftError> {
        self.socket.dump_of(family, msg::GETCHAIN, &[], |chains: &mut Vec<_>, chain| {
            chains.push(Declaration::read(chain)?);
            Ok(())
        })
    }

    pub fn rules(&mut self, family: u8, table: &str, chain: &str) -> Result<Vec<Rule>, NftError> {
        let filter = [Attr::text(rule::TABLE, table), Attr::text(rule::CHAIN, chain)];
        self.socket.dump_of(family, msg::GETRULE, &filter, |rules: &mut Vec<_>, rule| {
            let list = rule.find(rule::EXPRESSIONS)?;
            rules.push(list.map_or(Ok(vec![]), |list| read_rule(list.nested()))?);
            Ok(())
        })
    }
}

/// One table of another program.
pub(super) struct ForeignTable<'a, 'b> {
    pub reader: &'a mut Reader<'b>,
    pub family: u8,
    pub table: &'a str,
}

impl Table for ForeignTable<'_, '_> {
    fn rules(&mut self, chain: &str) -> Result<Vec<Rule>, NftError> {
        self.reader.rules(self.family, self.table, chain)
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Member>, NftError> {
        let filter = [Attr::text(elem::LIST_TABLE, self.table), Attr::text(elem::LIST_SET, set)];
        self.reader.socket.dump_of(
            self.family,
            msg::GETSETELEM,
            &filter,
            |found: &mut Vec<_>, list| {
                for element in list.require(elem::LIST_ELEMENTS)?.nested() {
                    found.extend(member(element?.nested())?);
                }
                Ok(())
            },
        )
    }
}

fn member(element: Attributes<'_>) -> Result<Option<Member>, NetlinkError> {
    let flags = element.find(elem::FLAGS)?.map(|flags| flags.be32()).transpose()?;
    if flags.is_some_and(|flags| flags & elem::FLAG_INTERVAL_END != 0) {
        return Ok(None);
    }
    let Some(key) = element.find_in(&[elem::KEY, data::VALUE])? else { return Ok(None) };
    let code = element.find_in(&[elem::DATA, data::VERDICT, data::VERDICT_CODE])?;
    let code = code.map(|code| code.be32()).transpose()?;
    let chain = element.find_in(&[elem::DATA, data::VERDICT, data::VERDICT_CHAIN])?;
    let chain = chain.as_ref().map(Attribute::text_lossy);
    let decides = code.and_then(|code| verdict_with(code.cast_signed(), chain.as_deref()));
    Ok(Some(Member { key: key.value.to_vec(), verdict: decides }))
}
