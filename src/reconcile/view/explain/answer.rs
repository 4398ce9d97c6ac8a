//! The answers to a question, in words.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;

use crate::causes::causes;
use crate::dataplane::nft::ProfileCounters;
use crate::dataplane::{Dataplane, DataplaneError, DataplaneHandle};
use crate::model::policy::{Explanation as PolicyExplanation, Target, Verdict};
use crate::model::{DeviceId, GroupId, ObservedState, ProfileId, PublicKey};
use crate::reconcile::view::status::Explanation;
use crate::reconcile::view::words::{is_for_its_status, tell_status, words};
use crate::store::{Store, Words};

/// Ends every answer.
const TRANSLATED: &str = "The verdict is for the final destination. If this host translates the address (Docker port, \
    NodePort), query the translated address.\n";

/// The answer for one peer, before the kernel was asked for its counters.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) allowed: bool,
    /// The peer is in force, whatever it may reach.
    pub(super) admitted: bool,
    /// The peer that the question is about.
    pub(super) peer: String,
    pub(super) grounds: Grounds,
    pub(super) device_id: DeviceId,
    /// Why the peer is not in force.
    pub(super) left_out: Option<String>,
    /// Further remarks, a line each.
    pub(super) remarks: String,
    pub(super) details: serde_json::Value,
    /// The profile that judges the peer's packets in the kernel, and how many prefixes share it.
    pub(super) judged_by: Option<(ProfileId, usize)>,
}

/// What a verdict follows from.
#[derive(Debug)]
pub(super) enum Grounds {
    Policies(PolicyExplanation),
    /// The peer keeps what it has.
    Kept {
        destination: IpAddr,
        allowed: bool,
    },
}

impl Grounds {
    fn targets(&self) -> impl Iterator<Item = Target> {
        let explanation = match self {
            Self::Policies(explanation) => Some(explanation),
            Self::Kept { .. } => None,
        };
        explanation.into_iter().flat_map(PolicyExplanation::targets)
    }
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policies(explanation) => explanation.fmt(f),
            Self::Kept { destination, allowed } => {
                let verdict = if *allowed { Verdict::Allow } else { Verdict::Deny };
                writeln!(f, "{verdict} {destination}")
            }
        }
    }
}

/// The answers for all peers that are meant.
#[derive(Debug)]
pub struct Answers(pub(super) Vec<Answer>);

impl Answers {
    pub(super) const fn new(answers: Vec<Answer>) -> Self {
        Self(answers)
    }

    /// Adds what groups are called and what status devices have, as far as the database says so in time.
    pub async fn in_words(mut self, store: &Store) -> Self {
        let groups = self.0.iter().flat_map(|answer| answer.grounds.targets());
        let groups = groups.filter_map(|target| match target {
            Target::Group(id) => Some(id),
            Target::User(_) | Target::Device(_) => None,
        });
        let groups: BTreeSet<GroupId> = groups.collect();
        let inactive = self.0.iter().filter(|answer| answer.is_for_its_status());
        let inactive: BTreeSet<DeviceId> = inactive.map(|answer| answer.device_id).collect();
        let words = words(store, &groups, &inactive).await;
        self.0.iter_mut().for_each(|answer| answer.tell(&words));
        self
    }

    /// Adds what the kernel counted.
    pub async fn counted<D: Dataplane + 'static>(
        mut self,
        dataplane: &DataplaneHandle<D>,
    ) -> Explanation {
        for answer in &mut self.0 {
            if let Some((id, holders)) = answer.judged_by {
                answer.count(dataplane.counters_of(id).await, holders);
            }
        }
        self.whole()
    }

    /// Of several peers, one that is denied makes the whole denied; one that is left out (an old
    /// laptop of the same user) has no say, unless all are.
    pub(super) fn whole(self) -> Explanation {
        let any_admitted = self.0.iter().any(|answer| answer.admitted);
        let decides = |answer: &&Answer| answer.admitted || !any_admitted;
        Explanation {
            allowed: self.0.iter().filter(decides).all(|answer| answer.allowed),
            text: self.0.iter().map(Answer::text).collect::<String>() + TRANSLATED,
            details: self.0.into_iter().map(|answer| answer.details).collect(),
        }
    }
}

impl Answer {
    /// The kernel counts for each profile, not for each peer or policy.
    pub(super) fn count(
        &mut self,
        counted: Result<Option<ProfileCounters>, DataplaneError>,
        holders: usize,
    ) {
        let line = match counted {
            Ok(None) => return,
            Ok(Some(ProfileCounters { allowed, denied })) => {
                self.details["counters"] = json!({
                    "allowed_packets": allowed.packets,
                    "allowed_bytes": allowed.bytes,
                    "denied_packets": denied.packets,
                    "denied_bytes": denied.bytes,
                    "shared_by": holders,
                });
                let shared = match holders {
                    1 => "no other address shares this profile".to_owned(),
                    holders => format!("shared by {holders} addresses"),
                };
                format!(
                    "the kernel counted {} packets allowed, {} denied; {shared}",
                    allowed.packets, denied.packets
                )
            }
            Err(error) => format!("the kernel's counters could not be read: {}", causes(&error)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.remarks, "  {line}");
    }

    fn is_for_its_status(&self) -> bool {
        self.left_out.as_ref().is_some_and(|why| is_for_its_status(why))
    }

    fn tell(&mut self, words: &Words) {
        let groups = words.groups.iter().map(|(id, name)| (Target::Group(*id), name.clone()));
        if let Grounds::Policies(explanation) = &mut self.grounds {
            explanation.names.extend(groups);
        }
        if let (Some(why), Some(status)) = (&mut self.left_out, words.statuses.get(&self.device_id))
        {
            tell_status(why, status);
        }
    }

    fn text(&self) -> String {
        let left_out = self.left_out.as_ref().map_or_else(String::new, |why| {
            format!("  but the peer is left out, so nothing passes: {why}\n")
        });
        format!("{} -> {}{left_out}{}", self.peer, self.grounds, self.remarks)
    }
}

/// Whether the kernel lets this peer reach an address from a prefix of its own.
pub(super) fn reaches(
    observed: &ObservedState,
    key: &PublicKey,
    prefix: &IpNet,
    destination: IpAddr,
) -> bool {
    let profile = observed.firewall.as_ref().and_then(|table| table.profile_of(prefix));
    observed.peers.contains_key(key) && profile.is_some_and(|profile| profile.allows(destination))
}

/// A line where the kernel does otherwise than what is `wanted`.
pub(super) fn contradiction(wanted: bool, allows: Option<bool>) -> String {
    let line = |allows| {
        let does = if allows { "allows" } else { "denies" };
        format!("  BUT the kernel {does} it at this moment: see `gatepost status`\n")
    };
    allows.filter(|allows| *allows != wanted).map(line).unwrap_or_default()
}
