//! Why a device may reach an address, or may not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::resolve::{Policy, Target, Verdict};
use super::special::special_block;
use super::{Plain, PolicyBook, Quoted};
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
    /// Policies that allow the address to others, where it is denied to this device.
    pub for_others: Vec<ForOthers>,
    /// It is a DNS server listed for the peer: on port 53 it may be reached whatever the verdict.
    pub is_dns_server: bool,
    /// Names of users, devices and groups, as far as they are known.
    #[serde(skip)]
    pub names: BTreeMap<Target, String>,
}

/// A policy that allows the address, and does not name the device, its user or a group of the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForOthers {
    pub policy_id: PolicyId,
    pub policy_name: Box<str>,
    pub priority: i32,
    /// The targets that it names.
    pub applies_to: Vec<Target>,
    pub contains_it: Containing,
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

/// The part of a policy that contains an address.
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
        let verdict = winner.map_or(self.default_effect(), |policy| policy.verdict);
        let strangers = self.policies().filter(|it| !policies.iter().any(|own| own.id == it.id));
        let strangers = strangers.filter(|_| verdict == Verdict::Deny);
        Explanation {
            user_id,
            device_id,
            destination,
            verdict,
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
            for_others: strangers.filter_map(|policy| ForOthers::of(policy, destination)).collect(),
            is_dns_server: self.dns_allowance(dns_servers).contains(&destination),
            names: BTreeMap::new(),
        }
    }
}

impl ForOthers {
    fn of(policy: &Policy, address: IpAddr) -> Option<Self> {
        let contains_it = containing(policy, address)?;
        (policy.verdict == Verdict::Allow).then(|| Self {
            policy_id: policy.id,
            policy_name: policy.name.clone(),
            priority: policy.priority,
            applies_to: policy.targets.iter().copied().collect(),
            contains_it,
        })
    }
}

impl Explanation {
    /// The users, devices and groups that it names.
    pub fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        let own = self.decided_by.iter().map(|it| &it.policy);
        let own = own.chain(self.others.iter().map(|it| &it.policy));
        let own = own.flat_map(|policy| &policy.applies_to);
        own.chain(self.for_others.iter().flat_map(|it| &it.applies_to)).copied()
    }

    /// The name of a target: "group staff".
    fn name_of(&self, target: Target) -> String {
        let (kind, id) = match target {
            Target::User(id) => ("user", id.to_string()),
            Target::Device(id) => ("device", id.to_string()),
            Target::Group(id) => ("group", id.to_string()),
        };
        let name = self.names.get(&target).map(|name| Plain(name).to_string());
        format!("{kind} {}", name.unwrap_or(id))
    }

    fn write_policy(&self, f: &mut fmt::Formatter<'_>, policy: &ApplicablePolicy) -> fmt::Result {
        let ApplicablePolicy { policy_name, priority, effect, applies_to, .. } = policy;
        let targets = applies_to.iter().map(|target| match target {
            Target::User(_) => "the user".to_owned(),
            Target::Device(_) => "the device".to_owned(),
            Target::Group(_) => self.name_of(*target),
        });
        let targets = targets.collect::<Vec<_>>().join(", ");
        write!(f, "policy {} (priority {priority}, {effect}, for {targets})", Quoted(policy_name))
    }

    fn write_for_others(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        for ForOthers { policy_name, applies_to, contains_it, .. } in
            self.for_others.iter().take(SHOWN)
        {
            let named = applies_to.iter().take(SHOWN).map(|target| self.name_of(*target));
            let mut named = named.collect::<Vec<_>>().join(", ");
            match applies_to.len().saturating_sub(SHOWN) {
                0 => {}
                more => named.push_str(&format!(" and {more} more")),
            }
            let named = if named.is_empty() { "no user, device or group" } else { &named };
            writeln!(
                f,
                "  policy {} allows it ({contains_it}), but to {named}: it names neither the device, nor \
                 its user, nor a group of the user",
                Quoted(policy_name)
            )?;
        }
        match self.for_others.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more that allow it to others"),
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
                f.write_str("  decided by ")?;
                self.write_policy(f, policy)?;
                writeln!(f, ": {contains_it}")?;
            }
            None => writeln!(
                f,
                "  decided by setting policy.default_effect ({}): no policy that applies contains the \
                 address",
                self.verdict
            )?,
        }
        for OtherPolicy { policy, why } in &self.others {
            f.write_str("  not ")?;
            self.write_policy(f, policy)?;
            writeln!(f, ": {why}")?;
        }
        self.write_for_others(f)?;
        if self.is_dns_server {
            writeln!(f, "  port 53 is open in any case: it is a DNS server listed for the peer")?;
        }
        Ok(())
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
