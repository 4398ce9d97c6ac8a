//! Explains that the agent takes over a link that another program has run. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::count::count;
use crate::model::policy::in_words as reach_in_words;
use crate::model::{DesiredState, LinkOwner, ObservedInterface, ObservedState, Profile, Standing};
use crate::reconcile::name::peer_name;

/// How many names stand in one line.
const MOST_NAMES: usize = 4;
/// Of those who reach nothing, so many more: that is what an operator looks for.
const MOST_NAMES_OF_NOTHING: usize = 50;

/// Describes the changes by the take-over; `None`: no link is taken over, or one without peers.
///
/// Until now no table of ours has judged the packets of the link, so what a policy grants is no gain, and
/// whom no policy names loses everything.
pub fn in_words(desired: &DesiredState, observed: &ObservedState) -> Option<Vec<String>> {
    let link = observed.interface.as_ref().filter(|link| link.owner == LinkOwner::Unmarked)?;
    if observed.peers.is_empty() || observed.firewall.is_some() {
        return None;
    }
    let stay = observed.peers.keys().filter(|key| desired.peers().contains_key(*key)).count();
    let mut words = vec![format!(
        "gatepost takes over {} with {} of its {}, whose sessions go on; from then on a packet passes \
         only if a policy allows it",
        link.name,
        stay,
        count(observed.peers.len(), "peer")
    )];
    words.extend(link_changes(desired, link));
    words.extend(reach(desired));
    if !desired.settings().allow_inbound {
        words.push(
            "hosts outside the tunnel can no longer open connections to peers: setting \
             policy.allow_inbound lets them"
                .to_owned(),
        );
    }
    Some(words)
}

fn link_changes(desired: &DesiredState, link: &ObservedInterface) -> Vec<String> {
    let wanted = desired.interface();
    let mut words = Vec::new();
    if link.listen_port != wanted.listen_port {
        words.push(format!(
            "the UDP port changes from {} to {}: clients need it in their profiles",
            link.listen_port, wanted.listen_port
        ));
    }
    if link.mtu_bytes != wanted.mtu_bytes {
        let (old, new) = (link.mtu_bytes, wanted.mtu_bytes);
        words.push(format!("the MTU changes from {old} to {new}: see interface.mtu_bytes"));
    }
    if link.fwmark != wanted.fwmark {
        let (old, new) = (link.fwmark, wanted.fwmark);
        words.push(format!(
            "the mark of encrypted packets changes from {old:#x} to {new:#x}: see interface.fwmark"
        ));
    }
    words
}

/// Describes the destinations of each peer, first the peers without any.
fn reach(desired: &DesiredState) -> Vec<String> {
    let mut who: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Peers share profiles, and a large one takes long.
    let mut known: HashMap<*const Profile, String> = HashMap::new();
    let admitted = desired.rows().filter(|(_, it)| matches!(it, Standing::Admitted(_)));
    for (row, _) in admitted {
        let prefix = row.address();
        let profile = desired.firewall().assignments.get(&prefix);
        let what = profile.map(|profile| {
            known.entry(Arc::as_ptr(profile)).or_insert_with(|| reach_in_words(profile)).clone()
        });
        let what = what.unwrap_or_default();
        who.entry(what).or_default().push(peer_name(row));
    }
    who.values_mut().for_each(|names| names.sort());
    let line = |(what, names): (String, Vec<String>)| match what.as_str() {
        "" => {
            let names = listed(&names, MOST_NAMES_OF_NOTHING);
            format!("{names} will reach nothing: no policy allows them anything")
        }
        what => format!("{} will reach {what}", listed(&names, MOST_NAMES)),
    };
    who.into_iter().map(line).collect()
}

fn listed(names: &[String], most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let listed = names[..names.len() - more].join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}
