//! Answers "why can, or can't, this user reach that?", from the rows and from the kernel.

mod answer;
mod gone;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::json;

use super::View;
use super::who::near_names_of;
use crate::model::policy::{Explanation as PolicyExplanation, Target, Verdict, dns_addresses};
use crate::model::{Departed, DesiredState, KeyText, ObservedState, PeerRow, PublicKey, Standing};
use crate::plan::Held;
use crate::reconcile::name::{did_you_mean, is_named, peer_name};
use answer::{Answer, Grounds, contradiction, reaches};

pub use answer::Answers;

/// More peers than this are not explained at once.
const EXPLAINED_AT_MOST: usize = 10;

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    #[error("{0:?} is not an address: give one such as 172.16.1.20 or fd10::20")]
    NotAnAddress(String),
    #[error(
        "no peer of this gateway is {who:?}{}: give a user, a device, user/device, a tunnel address or a \
         public key; `gatepost peers` lists them",
        did_you_mean(.candidates)
    )]
    UnknownPeer { who: String, candidates: Vec<String> },
    #[error("{who:?} means {count} peers: give user/device or a tunnel address")]
    TooMany { who: String, count: usize },
    #[error("the database was not read yet")]
    NoRows,
}

/// The address that a question is about.
///
/// # Errors
/// [`ExplainError::NotAnAddress`]
pub fn parse_destination(text: &str) -> Result<IpAddr, ExplainError> {
    text.trim().parse().map_err(|_| ExplainError::NotAnAddress(text.to_owned()))
}

impl View<'_> {
    /// The verdict for what `who` (a user, device, tunnel address or key) sends to `destination`.
    ///
    /// # Errors
    /// [`ExplainError`]
    pub(in crate::reconcile) fn explain(
        &self,
        who: &str,
        destination: &str,
    ) -> Result<Answers, ExplainError> {
        let desired = self.rows.desired.ok_or(ExplainError::NoRows)?;
        let gone = self.held_without_row().collect();
        explain(
            (desired, self.hold.staying),
            &gone,
            self.mirror.observed.as_deref(),
            who,
            destination,
        )
    }
}

/// The verdict for what `who` (a user, a device, a tunnel address, a key, an id, or `user/device`)
/// sends to `destination`. `gone`: the held peers that no row names, as they were named.
///
/// # Errors
/// [`ExplainError`]
pub(super) fn explain(
    (desired, held): (&DesiredState, &Held),
    gone: &BTreeMap<PublicKey, &Departed>,
    observed: Option<&ObservedState>,
    who: &str,
    destination: &str,
) -> Result<Answers, ExplainError> {
    let destination = parse_destination(destination)?;
    let matching: Vec<_> = desired.rows().filter(|(row, _)| is_meant(row, who)).collect();
    let held_gone = gone.iter().filter_map(|(key, it)| Some((key, *it, held.peers().get(key)?)));
    let meant_gone: Vec<_> = held_gone.filter(|peer| gone::is_meant(*peer, who)).collect();
    let (who, count) = (who.to_owned(), matching.len() + meant_gone.len());
    match count {
        0 => {
            let candidates = near_names_of(desired, gone.values().copied(), &who);
            return Err(ExplainError::UnknownPeer { who, candidates });
        }
        1..=EXPLAINED_AT_MOST => {}
        _ => return Err(ExplainError::TooMany { who, count }),
    }
    let answer = |(row, standing)| one((desired, held), observed, row, standing, destination);
    let gone = meant_gone.into_iter().map(|peer| gone::answer(peer, observed, destination));
    Ok(Answers::new(matching.into_iter().map(answer).chain(gone).collect()))
}

fn is_meant(row: &PeerRow, who: &str) -> bool {
    let by_address = who.parse::<IpAddr>().is_ok_and(|address| row.assigned_ip.addr() == address);
    let by_key = matches!(&row.public_key, KeyText::Key(key) if key.to_string() == who);
    by_address || by_key || is_named(&Departed::from(row), who)
}

fn one(
    (desired, held): (&DesiredState, &Held),
    observed: Option<&ObservedState>,
    row: &PeerRow,
    standing: Standing<'_>,
    destination: IpAddr,
) -> Answer {
    let dns_servers: Vec<IpAddr> =
        [desired.gateway_dns(), &dns_addresses(&row.dns_servers)].concat();
    let mut explanation =
        desired.policies().explain(row.user_id, row.device_id, &dns_servers, destination);
    let stays = match &row.public_key {
        KeyText::Key(key) => held.peers().get(key),
        KeyText::Bad { .. } => None,
    };
    let admitted = stays.is_some() || matches!(standing, Standing::Admitted(_));
    let wanted = match stays {
        Some(stays) => stays.allows(&row.address(), destination),
        None => admitted && explanation.verdict == Verdict::Allow,
    };
    let allows = observed.map(|observed| kernel_allows(observed, row, destination));
    let mut text = String::new();
    let left_out = match standing {
        _ if stays.is_some() => None,
        Standing::Admitted(_) => None,
        Standing::Ineligible(why) => Some(why.to_string()),
        Standing::Quarantined(reason) => Some(reason.to_string()),
    };
    if left_out.is_none()
        && desired.interface().addresses.iter().any(|own| own.addr() == destination)
    {
        let _ =
            writeln!(text, "  it is the gateway itself: a ping is answered whatever the verdict");
    }
    if let Some(stays) = stays {
        let passes = if wanted { "passes" } else { "does not pass" };
        let why = stays.cause();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  the removal waits for `gatepost confirm`: {why}; the peer keeps only what it has, so this \
             {passes}"
        );
    }
    text += &contradiction(wanted, allows);
    let details = json!({
        "peer_id": row.id,
        "user": row.username,
        "device": row.device_name,
        "allowed": wanted,
        "left_out": left_out,
        "held": stays.map(|stays| stays.cause().to_string()),
        "kernel_allows": allows,
        "counters": null,
        "explanation": explanation,
    });
    explanation.names = names(desired, &explanation);
    // The address of a peer that is left out may be another's.
    let judged_by = observed.filter(|_| admitted).and_then(|observed| {
        let firewall = observed.firewall.as_ref()?;
        let (_, id) = firewall.judged_by(row.assigned_ip.addr())?;
        Some((id, firewall.holders(id)))
    });
    Answer {
        allowed: wanted && allows != Some(false),
        admitted,
        peer: format!("{} ({})", peer_name(row), row.assigned_ip.addr()),
        grounds: Grounds::Policies(explanation),
        device_id: row.device_id,
        left_out,
        remarks: text,
        details,
        judged_by,
    }
}

/// The users and devices that an explanation names. What groups are called, only the database knows.
fn names(desired: &DesiredState, explanation: &PolicyExplanation) -> BTreeMap<Target, String> {
    let named: BTreeSet<Target> = explanation.targets().collect();
    let rows = desired.rows().flat_map(|(row, _)| {
        let user = (Target::User(row.user_id), row.username.to_string());
        [user, (Target::Device(row.device_id), format!("{}/{}", row.username, row.device_name))]
    });
    rows.filter(|(target, _)| named.contains(target)).collect()
}

fn kernel_allows(observed: &ObservedState, row: &PeerRow, destination: IpAddr) -> bool {
    match &row.public_key {
        KeyText::Key(key) => reaches(observed, key, &row.address(), destination),
        KeyText::Bad { .. } => false,
    }
}

#[cfg(test)]
mod surface;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::status::Explanation;
    use super::*;
    use crate::model::{BarredBy, PolicyRow, SnapshotRows, TargetType, UserId};
    use crate::plan::{Scope, Step, plan};
    use crate::test_rows::{id, local, peer_row, policy_row, snapshot, target};

    const SERVER: &str = "172.16.1.20";

    /// A laptop of alice's.
    fn laptop(number: u8, bars: BarredBy) -> PeerRow {
        PeerRow {
            user_id: UserId(id(1u8)),
            device_name: format!("laptop-{number}").into(),
            username: "alice".into(),
            bars,
            ..peer_row(number)
        }
    }

    /// Alice may reach the server.
    fn desired(peers: Vec<PeerRow>) -> DesiredState {
        let policy = PolicyRow {
            destinations: vec!["172.16.1.0/24".parse().unwrap()],
            targets: vec![target(TargetType::User, id(1u8))],
            ..policy_row(1)
        };
        let rows = SnapshotRows { policies: vec![policy], ..snapshot(peers) };
        DesiredState::build(Arc::new(local()), rows).unwrap()
    }

    /// A kernel after all steps except those that `skips` names.
    fn kernel(desired: &DesiredState, skips: impl Fn(&Step) -> bool) -> ObservedState {
        let mut observed = ObservedState::default();
        let whole = plan(desired, &observed, &Scope::Everything).unwrap();
        whole.steps().iter().filter(|step| !skips(step)).for_each(|step| observed.apply(step));
        observed
    }

    fn explained(desired: &DesiredState, observed: &ObservedState, who: &str) -> Explanation {
        explained_with(desired, &Held::default(), observed, who)
    }

    fn explained_with(
        desired: &DesiredState,
        held: &Held,
        observed: &ObservedState,
        who: &str,
    ) -> Explanation {
        let gone = BTreeMap::new();
        explain((desired, held), &gone, Some(observed), who, SERVER).unwrap().whole()
    }

    #[test]
    fn a_held_peer_passes_as_far_as_it_had_and_its_row_still_allows() {
        let before = desired(vec![laptop(3, BarredBy::default())]);
        let now = desired(vec![laptop(3, BarredBy::USER_INACTIVE)]);
        let observed = kernel(&before, |_| false);
        let held = Held::of(before.peers().keys().copied(), &now, &observed, &Held::default());
        let explained = explained_with(&now, &held, &observed, "alice");
        assert!(explained.allowed, "{}", explained.text);
        assert!(
            explained.text.contains("the removal waits for `gatepost confirm`: user not active")
        );
        assert!(!explained.text.contains("left out") && !explained.text.contains("BUT"));
        assert_eq!(explained.details[0]["held"], "user not active");
        let nothing = kernel(&before, |step| matches!(step, Step::Firewall { .. }));
        let held = Held::of(before.peers().keys().copied(), &now, &nothing, &Held::default());
        let denied = explained_with(&now, &held, &nothing, "alice");
        assert!(
            !denied.allowed && denied.text.contains("so this does not pass"),
            "{}",
            denied.text
        );
    }

    #[test]
    fn a_held_peer_without_a_row_is_found_by_its_names_and_passes_as_far_as_it_had() {
        let row = laptop(3, BarredBy::default());
        let (before, now) = (desired(vec![row.clone()]), desired(Vec::new()));
        let observed = kernel(&before, |_| false);
        let held = Held::of(before.peers().keys().copied(), &now, &observed, &Held::default());
        let departed = Departed::from(&row);
        let key = *before.peers().keys().next().unwrap();
        let gone = BTreeMap::from([(key, &departed)]);
        let ask = |who: &str, destination| {
            explain((&now, &held), &gone, Some(&observed), who, destination)
        };
        let address = row.address().addr().to_string();
        for who in ["alice", "laptop-3", "alice/laptop-3", &address, &key.to_string()] {
            let explained = ask(who, SERVER).unwrap().whole();
            assert!(explained.allowed, "{}", explained.text);
            assert!(explained.text.contains("waits for `gatepost confirm`: its row is gone"));
            assert_eq!(explained.details[0]["held"], "its row is gone");
            assert!(!explained.text.contains("BUT"), "{}", explained.text);
        }
        let denied = ask("alice", "10.1.1.1").unwrap().whole();
        assert!(!denied.allowed && denied.text.contains("deny 10.1.1.1"), "{}", denied.text);
        assert!(matches!(ask("ben", SERVER), Err(ExplainError::UnknownPeer { .. })));
        let slip = ask("alcie", SERVER).unwrap_err().to_string();
        assert!(slip.contains("is \"alcie\" (did you mean alice?): give a user"), "{slip}");
    }

    #[test]
    fn an_old_device_that_is_revoked_does_not_speak_for_the_new_one() {
        let desired =
            desired(vec![laptop(2, BarredBy::DEVICE_STATUS), laptop(3, BarredBy::default())]);
        let observed = kernel(&desired, |_| false);
        let both = explained(&desired, &observed, "alice");
        assert!(both.allowed, "{}", both.text);
        assert!(both.text.contains("laptop-2") && both.text.contains("the peer is left out"));
        assert!(!explained(&desired, &observed, "laptop-2").allowed);
    }

    #[test]
    fn an_explanation_says_that_the_kernel_lacks_a_grant() {
        let desired = desired(vec![laptop(3, BarredBy::default())]);
        let observed = kernel(&desired, |step| matches!(step, Step::Firewall { .. }));
        let denied = explained(&desired, &observed, "alice");
        assert!(!denied.allowed);
        assert!(denied.text.contains("BUT the kernel denies it at this moment"), "{}", denied.text);
        assert_eq!(denied.details[0]["kernel_allows"], false);
    }

    #[test]
    fn a_kernel_that_grants_more_is_told_of() {
        let before = desired(vec![laptop(3, BarredBy::default())]);
        let now = desired(vec![laptop(3, BarredBy::DEVICE_STATUS)]);
        let granted = explained(&now, &kernel(&before, |_| false), "alice");
        assert!(!granted.allowed);
        assert!(
            granted.text.contains("BUT the kernel allows it at this moment"),
            "{}",
            granted.text
        );
        let nothing = explained(&now, &kernel(&now, |_| false), "alice");
        assert!(!nothing.text.contains("BUT"), "{}", nothing.text);
    }
}
