//! One transaction as bytes: the kernel applies all of it, or nothing.

use super::attr::{Attr, encode_all};
use super::element::Element;
use super::expr::Expr;
use super::message::{ObjectMessage, message_type, put_object};
use super::name::TABLE;
use super::set::Set;
use super::sys::{
    LIST_ELEM, NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET, NFPROTO_UNSPEC, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
    OBJECT_TABLE, chain, elem, msg, rule, set,
};
use crate::dataplane::netlink::{Message, NetlinkError, messages, put, put_nested};

/// An attribute's length has 16 bits: 600 of the longest elements stay far below that.
const ELEMENTS_PER_MESSAGE: usize = 600;

/// Requests between a batch's begin and its end.
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the last message starts.
    last_at: usize,
    /// The sequence number of the batch's begin. Each request has the next one.
    first: u32,
    count: u32,
    set_ids: u32,
}

impl Batch {
    /// `first` is the sequence number to begin with. `expected` is the generation the ruleset must
    /// still have: else the kernel refuses with `ERESTART` and changes nothing.
    pub fn new(first: u32, expected: Option<u32>) -> Self {
        let mut batch = Self { bytes: Vec::new(), last_at: 0, first, count: 0, set_ids: 0 };
        batch.put_bound(NFNL_MSG_BATCH_BEGIN, |out| {
            if let Some(generation) = expected {
                put(out, NFNL_BATCH_GENID, &generation.to_be_bytes());
            }
        });
        batch
    }

    /// Whether it has no request.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds an object, which may be there already.
    pub fn add(&mut self, kind: u8, attrs: &[Attr]) {
        self.request(kind, NLM_F_CREATE, attrs);
    }

    /// Adds an object that must not be there.
    pub fn create(&mut self, kind: u8, attrs: &[Attr]) {
        self.request(kind, NLM_F_CREATE | NLM_F_EXCL, attrs);
    }

    pub fn delete(&mut self, kind: u8, attrs: &[Attr]) {
        self.request(kind, 0, attrs);
    }

    /// Adds a set, which may be there already.
    pub fn add_set(&mut self, set: &Set) {
        self.set_ids += 1;
        self.add(msg::NEWSET, &set.declaration(self.set_ids));
    }

    /// Adds a set that must not be there.
    pub fn create_set(&mut self, set: &Set) {
        self.set_ids += 1;
        self.create(msg::NEWSET, &set.declaration(self.set_ids));
    }

    pub fn delete_set(&mut self, set: &Set) {
        self.delete(msg::DELSET, &named_set(set));
    }

    /// Adds a rule at the end of a chain, or before the rule that has the handle `before`.
    pub fn add_rule(&mut self, chain: &str, before: Option<u64>, exprs: &[Expr]) {
        self.add_rule_in(TABLE, chain, before, exprs);
    }

    /// As [`Self::add_rule`], to a chain of this table.
    pub fn add_rule_in(&mut self, table: &str, chain: &str, before: Option<u64>, exprs: &[Expr]) {
        let place = if before.is_some() { 0 } else { NLM_F_APPEND };
        self.message(msg::NEWRULE, NLM_F_CREATE | place, |out| {
            Attr::text(rule::TABLE, table).encode(out);
            Attr::text(rule::CHAIN, chain).encode(out);
            put_nested(out, rule::EXPRESSIONS, |out| {
                exprs.iter().for_each(|expr| expr.encode(out));
            });
            if let Some(handle) = before {
                put(out, rule::POSITION, &handle.to_be_bytes());
            }
        });
    }

    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        let named = [Attr::text(rule::TABLE, TABLE), Attr::text(rule::CHAIN, chain)];
        self.delete(msg::DELRULE, &[&named[..], &[Attr::be64(rule::HANDLE, handle)]].concat());
    }

    /// Deletes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &str) {
        let named = [Attr::text(rule::TABLE, TABLE), Attr::text(rule::CHAIN, chain)];
        self.delete(msg::DELRULE, &named);
    }

    pub fn delete_chain(&mut self, name: &str) {
        let named = [Attr::text(chain::TABLE, TABLE), Attr::text(chain::NAME, name)];
        self.delete(msg::DELCHAIN, &named);
    }

    pub fn add_elements(&mut self, set: &Set, elements: &[Element]) {
        self.elements(msg::NEWSETELEM, NLM_F_CREATE, set, elements);
    }

    pub fn delete_elements(&mut self, set: &Set, elements: &[Element]) {
        self.elements(msg::DELSETELEM, 0, set, elements);
    }

    /// The bytes to send at once.
    pub fn finish(mut self) -> Finished {
        let flags = self.last_at + 6;
        // Kernels before 6.10 acknowledge no batch end, so the last request must ask.
        let asked = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        self.put_bound(NFNL_MSG_BATCH_END, |_| {});
        Finished { first: self.first, last: self.sequence(), bytes: self.bytes }
    }

    const fn sequence(&self) -> u32 {
        self.first.wrapping_add(self.count)
    }

    /// The begin or the end of the batch.
    fn put_bound(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let message = (kind, NLM_F_REQUEST, self.sequence());
        put_object(&mut self.bytes, message, (NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES), fill);
    }

    fn elements(&mut self, kind: u8, flags: u16, set: &Set, elements: &[Element]) {
        let name = set.to_string();
        for elements in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, |out| {
                Attr::text(elem::LIST_TABLE, TABLE).encode(out);
                Attr::text(elem::LIST_SET, &name).encode(out);
                put_nested(out, elem::LIST_ELEMENTS, |out| {
                    elements.iter().for_each(|element| element.encode(out));
                });
            });
        }
    }

    fn request(&mut self, kind: u8, flags: u16, attrs: &[Attr]) {
        self.message(kind, flags, |out| encode_all(attrs, out));
    }

    fn message(&mut self, kind: u8, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.last_at = self.bytes.len();
        self.count += 1;
        let message = (message_type(kind), NLM_F_REQUEST | flags, self.sequence());
        put_object(&mut self.bytes, message, (NFPROTO_INET, 0), fill);
    }
}

/// A batch that has its end.
#[derive(Debug, Clone)]
pub struct Finished {
    first: u32,
    last: u32,
    bytes: Vec<u8>,
}

impl Finished {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sequence number of its begin.
    pub const fn first(&self) -> u32 {
        self.first
    }

    /// The sequence number of its last request.
    pub const fn last(&self) -> u32 {
        self.last
    }

    /// What the message with this sequence number asks for, in words.
    pub fn describe(&self, sequence: u32) -> String {
        if sequence == self.first {
            return "commit the change".to_owned();
        }
        let mut requests = messages(&self.bytes).flatten();
        let found = requests.find(|message| message.sequence == sequence);
        let described = found.and_then(|message| describe(&message).ok());
        described.unwrap_or_else(|| format!("apply request {sequence}"))
    }
}

fn describe(message: &Message<'_>) -> Result<String, NetlinkError> {
    let ObjectMessage { kind, attributes, .. } = ObjectMessage::read(message)?;
    let name = |kind| attributes.require(kind)?.text();
    let verb = match kind {
        msg::NEWTABLE | msg::NEWCHAIN | msg::NEWRULE | msg::NEWSET | msg::NEWSETELEM => "add",
        _ => "delete",
    };
    let table = name(OBJECT_TABLE)?;
    let object = match kind {
        msg::NEWTABLE | msg::DELTABLE => return Ok(format!("{verb} table inet {table}")),
        msg::NEWCHAIN | msg::DELCHAIN => format!("chain {}", name(chain::NAME)?),
        msg::NEWRULE => format!("a rule to chain {}", name(rule::CHAIN)?),
        msg::DELRULE => format!("rules of chain {}", name(rule::CHAIN)?),
        msg::NEWSET | msg::DELSET => format!("set {}", name(set::NAME)?),
        _ => {
            let list = attributes.require(elem::LIST_ELEMENTS)?.nested().flatten();
            let count = list.filter(|attribute| attribute.kind == LIST_ELEM).count();
            format!("{count} elements of set {}", name(elem::LIST_SET)?)
        }
    };
    Ok(format!("{verb} {object} in table inet {table}"))
}

fn named_set(set: &Set) -> [Attr; 2] {
    [Attr::text(set::TABLE, TABLE), Attr::text(set::NAME, &set.to_string())]
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::name::Family;
    use super::*;
    use crate::model::ProfileId;

    #[test]
    fn long_lists_are_split_and_only_the_last_request_asks_for_an_ack() {
        let set = Set::Peers(Family::V6);
        let address: IpAddr = "fd00::1".parse().unwrap();
        let elements = vec![Element::Profile(address, ProfileId(1)); 2 * ELEMENTS_PER_MESSAGE + 1];
        let mut batch = Batch::new(40, Some(7));
        batch.add_elements(&set, &elements);
        let finished = batch.finish();
        assert_eq!((finished.first(), finished.last()), (40, 43));
        let messages: Vec<_> = messages(finished.bytes()).map(Result::unwrap).collect();
        assert_eq!(messages.len(), 5, "begin, three parts, end");
        let asks = |message: &&Message<'_>| message.flags & NLM_F_ACK != 0;
        let asked: Vec<u32> = messages.iter().filter(asks).map(|found| found.sequence).collect();
        assert_eq!(asked, [43]);
        let begin = ObjectMessage::read(&messages[0]).unwrap().attributes;
        assert_eq!(begin.require(NFNL_BATCH_GENID).unwrap().be32(), Ok(7));
    }

    #[test]
    fn a_request_is_described_by_its_number() {
        let mut batch = Batch::new(40, None);
        batch.delete_chain("p_7");
        batch.delete_elements(&Set::Chains, &[Element::Chain(ProfileId(7))]);
        let finished = batch.finish();
        assert_eq!(finished.describe(40), "commit the change");
        assert_eq!(finished.describe(41), "delete chain p_7 in table inet gatepost");
        assert_eq!(
            finished.describe(42),
            "delete 1 elements of set profile in table inet gatepost"
        );
    }
}
