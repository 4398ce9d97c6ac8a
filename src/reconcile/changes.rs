//! Describes the changes of a pass for people. Pure.

use std::fmt;

use super::name::PeerName;
use crate::count::count;
use crate::model::policy::Quoted;

/// How many are named; the others are counted.
const NAMED: usize = 8;

/// The peers that a pass cut off and let in, and the policies that it followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    pub revoked: NameList<PeerName>,
    /// Devices that have another key now.
    pub replaced: NameList<PeerName>,
    /// Tracked flows that were cut, also those of other peers.
    pub flows_cut: u64,
    pub added: NameList<PeerName>,
    pub policies: NameList<Box<str>>,
}

/// A list of names that is cut off after the first few: how many there are, and these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameList<T> {
    pub count: usize,
    pub first: Vec<T>,
}

impl<T> Default for NameList<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> NameList<T> {
    /// The list of all these names.
    pub fn of(all: impl ExactSizeIterator<Item = T>) -> Self {
        Self { count: all.len(), first: all.take(NAMED).collect() }
    }

    /// The only one; `None`: there are none or several.
    pub fn only(&self) -> Option<&T> {
        self.first.first().filter(|_| self.count == 1)
    }

    /// "revoked: alice/laptop", or "revoked: 12 peers: alice/laptop, ben/phone and 10 more".
    fn described(&self, verb: &str, noun: &str, name: impl Fn(&T) -> String) -> Option<String> {
        let names = || self.first.iter().map(&name).collect::<Vec<_>>().join(", ");
        match (self.count, self.count - self.first.len()) {
            (0, _) => None,
            (_, 0) => Some(format!("{verb}: {}", names())),
            (_, more) => {
                let all = count(self.count, noun);
                Some(format!("{verb}: {all}: {} and {more} more", names()))
            }
        }
    }
}

impl Changes {
    /// None of what people have names for.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.revoked.count == 0
            && self.replaced.count == 0
            && self.added.count == 0
            && self.policies.count == 0
    }

    /// The peer that alone was cut off, or else has another key, or else was let in.
    #[must_use]
    pub fn only_peer(&self) -> Option<&PeerName> {
        let lists = [&self.revoked, &self.replaced, &self.added];
        lists.into_iter().find(|list| list.count > 0).and_then(NameList::only)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = |name: &PeerName| name.to_string();
        let mut cut = match self.flows_cut {
            0 => String::new(),
            flows => format!(" ({} cut)", count(flows, "flow")),
        };
        // Behind the first that cuts any.
        let mut with_cut = |text: String| text + &std::mem::take(&mut cut);
        let revoked = self.revoked.described("revoked", "peer", peer).map(&mut with_cut);
        let replaced = self.replaced.described("key replaced", "peer", peer).map(with_cut);
        let added = self.added.described("added", "peer", peer);
        let policies =
            self.policies.described("policies changed", "policy", |it| Quoted(it).to_string());
        let parts: Vec<_> = [revoked, replaced, added, policies].into_iter().flatten().collect();
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(number: usize) -> NameList<PeerName> {
        let name =
            |number| PeerName { user: "alice".into(), device: format!("pc-{number}").into() };
        NameList::of((0..number).map(name))
    }

    #[test]
    fn few_are_named_and_many_summed() {
        let one = Changes { revoked: peers(1), flows_cut: 1, ..Changes::default() };
        assert_eq!(one.to_string(), "revoked: alice/pc-0 (1 flow cut)");
        assert_eq!(one.only_peer().unwrap().to_string(), "alice/pc-0");
        let policies = NameList::of(["servers".into()].into_iter());
        let all = Changes { added: peers(3204), policies, ..Changes::default() };
        assert_eq!(
            all.to_string(),
            "added: 3204 peers: alice/pc-0, alice/pc-1, alice/pc-2, alice/pc-3, alice/pc-4, \
             alice/pc-5, alice/pc-6, alice/pc-7 and 3196 more; policies changed: \"servers\""
        );
        assert_eq!(all.only_peer(), None);
        let rotated = Changes { replaced: peers(1), flows_cut: 2, ..Changes::default() };
        assert_eq!(rotated.to_string(), "key replaced: alice/pc-0 (2 flows cut)");
        assert_eq!(rotated.only_peer().unwrap().to_string(), "alice/pc-0");
        let both = Changes { revoked: peers(1), ..rotated };
        let told = "revoked: alice/pc-0 (2 flows cut); key replaced: alice/pc-0";
        assert_eq!(both.to_string(), told);
        assert!(Changes { flows_cut: 7, ..Changes::default() }.is_nothing());
    }
}
