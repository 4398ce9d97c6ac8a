//! Why a device may reach an address, or may not.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::resolve::{Policy, Target, Verdict};
use super::special::special_block;
use super::{PolicyBook, Quoted};
use crate::model::{DeviceId, PolicyId, UserId};

/// The verdict for packets from one device to one address, and how it came about.
///
/// Prints as a few lines; serialized, the names of the fields are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub destination: IpAddr,
    pub verdict: Verdict,
    /// The policy that decides; `None`: none does, so the setting `policy.default_effect` holds.
    pub decided_by: Option<DecidingPolicy>,
    /// The other policies that apply to the device, in the order in which they would decide.
    pub others: Vec<OtherPolicy>,
    /// It is a DNS server listed for the peer: on port 53 it may be reached whatever the verdict.
    pub is_dns_server: bool,
}

/// A policy that contains the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecidingPolicy {
    #[serde(flatten)]
    pub policy: ApplicablePolicy,
    pub contains_it: Containing,
}

/// A policy that applies to the device and does not decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherPolicy {
    #[serde(flatten)]
    pub policy: ApplicablePolicy,
    #[serde(flatten)]
    pub why: Why,
}

/// A policy, and why it applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApplicablePolicy {
    pub policy_id: PolicyId,
    pub policy_name: Box<str>,
    pub priority: i32,
    pub effect: Verdict,
    /// Which of its targets are the device, its user, or a group of the user.
    pub applies_to: Vec<Target>,
}

/// By what a policy contains an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Containing {
    /// The longest of its destinations that does.
    Destination(IpNet),
    /// Full tunnel: the address is outside every special-purpose block.
    Internet,
}

/// Why a policy that applies does not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// A lower priority number goes first.
    LaterPriority { contains_it: Containing, decided_at: i32 },
    /// The priority is the same; deny goes before allow.
    DenyGoesFirst { contains_it: Containing },
    /// Priority and effect are the same: it would decide alike.
    SaysTheSame { contains_it: Containing },
    /// Full tunnel leads to the internet; this block is not part of it.
    NotTheInternet { block: IpNet, purpose: &'static str },
    /// No destination contains the address.
    OtherDestinations,
}

impl PolicyBook {
    /// Explains the verdict for packets from a device of a user to an address. `dns_servers` are
    /// those listed for the peer.
    #[must_use]
    pub fn explain(
        &self,
        user_id: UserId,
        device_id: DeviceId,
        dns_servers: &[IpAddr],
        destination: IpAddr,
    ) -> Explanation {
        let policies = self.policies_of(user_id, device_id);
        let winner = policies.iter().find(|policy| containing(policy, destination).is_some());
        let named = |policy: &Policy| ApplicablePolicy {
            policy_id: policy.id,
            policy_name: policy.name.clone(),
            priority: policy.priority,
            effect: policy.verdict,
            applies_to: self.aims(policy, user_id, device_id),
        };
        let others = policies.iter().filter(|policy| winner.is_none_or(|won| won.id != policy.id));
        Explanation {
            user_id,
            device_id,
            destination,
            verdict: winner.map_or(self.default_effect(), |policy| policy.verdict),
            decided_by: winner.and_then(|policy| {
                let contains_it = containing(policy, destination)?;
                Some(DecidingPolicy { policy: named(policy), contains_it })
            }),
            others: others
                .map(|policy| OtherPolicy {
                    policy: named(policy),
                    why: why_not(policy, winner.copied(), destination),
                })
                .collect(),
            is_dns_server: self.dns_allowance(dns_servers).contains(&destination),
        }
    }
}

fn containing(policy: &Policy, address: IpAddr) -> Option<Containing> {
    let internet = policy.full_tunnel && special_block(address).is_none();
    let destination = policy.destination_of(address).map(Containing::Destination);
    destination.or(internet.then_some(Containing::Internet))
}

fn why_not(policy: &Policy, winner: Option<&Policy>, address: IpAddr) -> Why {
    match (containing(policy, address), winner) {
        (Some(contains_it), Some(winner)) if winner.priority != policy.priority => {
            Why::LaterPriority { contains_it, decided_at: winner.priority }
        }
        (Some(contains_it), Some(winner)) if winner.verdict != policy.verdict => {
            Why::DenyGoesFirst { contains_it }
        }
        (Some(contains_it), _) => Why::SaysTheSame { contains_it },
        (None, _) => match special_block(address) {
            Some(block) if policy.full_tunnel => {
                Why::NotTheInternet { block: block.prefix, purpose: block.purpose }
            }
            _ => Why::OtherDestinations,
        },
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.verdict, self.destination)?;
        match &self.decided_by {
            Some(DecidingPolicy { policy, contains_it }) => {
                writeln!(f, "  decided by {policy}: {contains_it}")?;
            }
            None => writeln!(
                f,
                "  decided by setting policy.default_effect ({}): no policy contains the address",
                self.verdict
            )?,
        }
        for OtherPolicy { policy, why } in &self.others {
            writeln!(f, "  not {policy}: {why}")?;
        }
        if self.is_dns_server {
            writeln!(f, "  port 53 is open in any case: it is a DNS server listed for the peer")?;
        }
        Ok(())
    }
}

impl fmt::Display for ApplicablePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy_name, priority, effect, applies_to, .. } = self;
        write!(f, "policy {} (priority {priority}, {effect}, for", Quoted(policy_name))?;
        for (index, target) in applies_to.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match target {
                Target::User(_) => write!(f, "{comma} the user")?,
                Target::Device(_) => write!(f, "{comma} the device")?,
                Target::Group(id) => write!(f, "{comma} group {id}")?,
            }
        }
        f.write_str(")")
    }
}

impl fmt::Display for Containing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(prefix) => write!(f, "destination {prefix}"),
            Self::Internet => f.write_str("full tunnel, the internet"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaterPriority { contains_it, decided_at } => {
                write!(f, "{contains_it}, but priority {decided_at} goes first")
            }
            Self::DenyGoesFirst { contains_it } => {
                write!(f, "{contains_it}, but at the same priority deny goes first")
            }
            Self::SaysTheSame { contains_it } => write!(f, "{contains_it}, and says the same"),
            Self::NotTheInternet { block, purpose } => write!(
                f,
                "full tunnel leads to the internet, and {block} is {purpose}: \
                 add it as a destination if it is meant"
            ),
            Self::OtherDestinations => f.write_str("no destination contains the address"),
        }
    }
}
