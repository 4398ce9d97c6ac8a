//! How a chain is declared: written, and read back.

use std::borrow::Cow;

use super::attr::Attr;
use super::name::TABLE;
use super::sys::chain;
use crate::dataplane::netlink::{Attributes, NetlinkError};

/// Where packets enter a base chain, and what becomes of those that no rule decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: Cow<'static, str>,
    /// `enum nf_inet_hooks`.
    pub number: u32,
    pub priority: i32,
    /// A verdict's code.
    pub policy: Option<u32>,
}

/// A chain's declaration as the kernel dumps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    pub table: String,
    pub name: String,
    /// Of base chains.
    pub hook: Option<Hook>,
    flags: u32,
}

impl Declaration {
    pub fn read(chain: Attributes<'_>) -> Result<Self, NetlinkError> {
        let hook = match chain.find(chain::HOOK)? {
            Some(hook) => Some(Hook {
                kind: chain.require(chain::TYPE)?.text()?.to_owned().into(),
                number: hook.nested().require(chain::HOOK_HOOKNUM)?.be32()?,
                priority: hook.nested().require(chain::HOOK_PRIORITY)?.be32()?.cast_signed(),
                policy: chain.find(chain::POLICY)?.map(|policy| policy.be32()).transpose()?,
            }),
            None => None,
        };
        Ok(Self {
            table: chain.require(chain::TABLE)?.text()?.to_owned(),
            name: chain.require(chain::NAME)?.text()?.to_owned(),
            hook,
            flags: chain.find(chain::FLAGS)?.map_or(Ok(0), |flags| flags.be32())?,
        })
    }

    /// Whether it has this hook, and nothing that we do not declare.
    pub fn has_hook(&self, hook: Option<&Hook>) -> bool {
        let flags = if hook.is_some() { chain::FLAG_BASE } else { 0 };
        self.flags == flags && self.hook.as_ref() == hook
    }
}

/// What is sent to declare a chain of our table, or to name one without a hook.
pub fn declare(name: &str, hook: Option<&Hook>) -> Vec<Attr> {
    declare_in(TABLE, name, hook)
}

/// As [`declare`], of a chain of this table.
pub fn declare_in(table: &str, name: &str, hook: Option<&Hook>) -> Vec<Attr> {
    let mut attrs = vec![Attr::text(chain::TABLE, table), Attr::text(chain::NAME, name)];
    if let Some(Hook { kind, number, priority, policy }) = hook {
        attrs.push(Attr::text(chain::TYPE, kind));
        attrs.extend(policy.map(|policy| Attr::be32(chain::POLICY, policy)));
        let hook = vec![
            Attr::be32(chain::HOOK_HOOKNUM, *number),
            Attr::be32(chain::HOOK_PRIORITY, priority.cast_unsigned()),
        ];
        attrs.push(Attr::nest(chain::HOOK, hook));
    }
    attrs
}

#[cfg(test)]
mod tests {
    use super::super::attr::encode_all;
    use super::*;
    use crate::dataplane::netlink::Place;

    #[test]
    fn declarations_are_read_as_they_are_written() {
        let hook = Hook { kind: "filter".into(), number: 2, priority: -10, policy: Some(1) };
        let read = |attrs: &[Attr]| {
            let mut bytes = Vec::new();
            encode_all(attrs, &mut bytes);
            Declaration::read(Attributes::new(&bytes, Place::of("NFT_MSG_NEWCHAIN")))
        };
        let flags = Attr::be32(chain::FLAGS, chain::FLAG_BASE);
        let base = read(&[declare("forward", Some(&hook)), vec![flags]].concat()).unwrap();
        assert_eq!((base.table.as_str(), base.name.as_str()), ("gatepost", "forward"));
        assert!(base.has_hook(Some(&hook)) && !base.has_hook(None));
        assert!(!base.has_hook(Some(&Hook { priority: 0, ..hook })));
        let plain = read(&declare("deny", None)).unwrap();
        assert!(plain.has_hook(None));
        let error = read(&[Attr::text(chain::TABLE, TABLE)]).unwrap_err().to_string();
        assert_eq!(error, "the kernel sent a malformed NFT_MSG_NEWCHAIN: it lacks attribute 3");
    }
}
