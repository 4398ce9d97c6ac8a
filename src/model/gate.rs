//! The gate: rules of policy routing (`ip rule`) that stop forwarded packets of peers while our table
//! is gone.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;

use ipnet::IpNet;

use super::Tag;

/// `firewall.fail_closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailClosed {
    /// The gate is in force where it disturbs nothing.
    #[default]
    Auto,
    Always,
    Never,
}

/// `firewall.fail_closed_mark`: the one bit of packets' marks that shows that our table was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkBit(NonZeroU32);

impl MarkBit {
    /// `None`: not exactly one bit is set.
    #[must_use]
    pub const fn new(bit: u32) -> Option<Self> {
        match NonZeroU32::new(bit) {
            Some(set) if bit.is_power_of_two() => Some(Self(set)),
            _ => None,
        }
    }

    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0.get()
    }
}

impl Default for MarkBit {
    fn default() -> Self {
        const DEFAULT: NonZeroU32 = NonZeroU32::new(0x1000).expect("it is not 0");
        Self(DEFAULT)
    }
}

/// The gate as the configuration asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    pub mark: MarkBit,
    /// Also where it disturbs other programs.
    pub always: bool,
}

impl Gate {
    /// `None`: there is no gate.
    #[must_use]
    pub const fn new(mode: FailClosed, mark: MarkBit) -> Option<Self> {
        match mode {
            FailClosed::Never => None,
            FailClosed::Auto => Some(Self { mark, always: false }),
            FailClosed::Always => Some(Self { mark, always: true }),
        }
    }
}

/// Of which packets a rule speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    #[must_use]
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// The action of a rule on the packets that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    Blackhole,
    /// Goes on at the rule with this priority.
    Goto(u32),
    Nop,
    /// Looks a table up, or anything else that no rule of ours does: its number.
    Other(u8),
}

/// A rule of policy routing, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutingRule {
    pub family: IpFamily,
    pub priority: u32,
    pub iif: Option<Box<str>>,
    pub to: Option<IpNet>,
    /// A mark's value and the bits that are compared.
    pub mark: Option<(u32, u32)>,
    pub action: RuleAction,
    pub tag: Tag,
}

impl fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == IpFamily::V4 { "IPv4" } else { "IPv6" };
        write!(f, "{family} {}:", self.priority)?;
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        match self.mark {
            Some((value, u32::MAX)) => write!(f, " fwmark {value:#x}")?,
            Some((value, mask)) => write!(f, " fwmark {value:#x}/{mask:#x}")?,
            None => {}
        }
        match self.action {
            RuleAction::Blackhole => f.write_str(" blackhole"),
            RuleAction::Goto(priority) => write!(f, " goto {priority}"),
            RuleAction::Nop => f.write_str(" nop"),
            RuleAction::Other(_) => Ok(()),
        }
    }
}

/// The part of the host's routing that concerns the gate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostRouting {
    /// Every rule, ours and those of other programs.
    pub rules: BTreeSet<RoutingRule>,
    /// This kernel has no rules.
    pub has_no_rules: bool,
    /// A link checks sources (`rp_filter`) without their marks (`src_valid_mark` is 0).
    pub checks_sources: bool,
    /// systemd-networkd runs and removes rules that it did not make.
    pub networkd_removes_rules: bool,
}

/// Why the gate would disturb other programs, or not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateObstacle {
    #[error("this kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES)")]
    NoRules,
    #[error(
        "rp_filter is on and net.ipv4.conf.all.src_valid_mark is 0, so the gate would drop everything: \
         sysctl -w net.ipv4.conf.all.src_valid_mark=1"
    )]
    SourceChecks,
    #[error(
        "the routing rule \"{0}\" of another program looks at the gate's mark: choose another bit for \
         firewall.fail_closed_mark, or give that rule a mask"
    )]
    SharedMark(RoutingRule),
    #[error("the routing rule \"{0}\" of another program comes before those of the gate")]
    EarlierRule(RoutingRule),
    #[error(
        "another program (Cilium, or a setup of VRFs) has moved the routing rule for the host's own \
         addresses from priority 0 to a later one, so the gate would drop what other links send to the \
         tunnel's address"
    )]
    LocalRuleMoved,
    #[error(
        "systemd-networkd removes routing rules that it did not make: write [Network] \
         ManageForeignRoutingPolicyRules=no to /etc/systemd/networkd.conf.d/gatepost.conf and restart \
         systemd-networkd"
    )]
    Networkd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_bit() {
        assert_eq!(MarkBit::default().bits(), 0x1000);
        assert_eq!(MarkBit::new(0x1000), Some(MarkBit::default()));
        assert_eq!([0, 3, u32::MAX].map(MarkBit::new), [None; 3]);
    }
}
