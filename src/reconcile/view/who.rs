//! Finds the user, device, key or address that an operator means to block or to unblock.

use std::collections::BTreeMap;
use std::iter;
use std::time::SystemTime;

use uuid::Uuid;

use super::View;
use crate::model::policy::Plain;
use crate::model::{
    Absence, Block, BlockList, Departed, DesiredState, KeyText, PeerRow, PublicKey, Standing, Whom,
};
use crate::reconcile::name::{did_you_mean, is_device, is_user, name_of, near_names};

/// How many candidates are named.
const NAMED_AT_MOST: usize = 8;

/// It is not clear whom an operator means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhoError {
    #[error(
        "no user or device of this gateway is {who:?}{}: give a user, a device, user/device, an id, a \
         tunnel address or a public key; `gatepost peers` lists them",
        did_you_mean(.candidates)
    )]
    Unknown { who: String, candidates: Vec<String> },
    #[error("no row was read yet, so {0:?} cannot be found: give a tunnel address or a public key")]
    NoRows(String),
    #[error("{who:?} means {}: give one of these ids", .candidates.join(", "))]
    Several { who: String, candidates: Vec<String> },
    #[error("{who:?} is not blocked; {}", blocked(.candidates))]
    NotBlocked { who: String, candidates: Vec<String> },
}

fn blocked(candidates: &[String]) -> String {
    match candidates {
        [] => "no block is known".to_owned(),
        known => format!("blocked are {}", known.join(", ")),
    }
}

impl View<'_> {
    /// The subject of a block that `who` names, and its name. A key or an address needs no row.
    ///
    /// # Errors
    /// [`WhoError`]
    pub fn whom(&self, who: &str) -> Result<(Whom, Box<str>), WhoError> {
        let departed: Vec<_> = self.held_without_row().map(|(_, who)| who.clone()).collect();
        whom(self.rows.desired, &departed, who)
    }

    /// The block list with whom `who` names, and whom that is.
    ///
    /// # Errors
    /// [`WhoError`]
    pub fn block_list_with(
        &self,
        who: &str,
        since: SystemTime,
    ) -> Result<(Whom, BlockList), WhoError> {
        let (whom, name) = self.whom(who)?;
        let mut list = self.rows.block_list.clone();
        let keys = self.held_by(&whom).map(|(key, _)| Whom::Key(key));
        for whom in iter::once(whom).chain(keys) {
            list.add(whom, Block { name: name.clone(), since });
        }
        Ok((whom, list))
    }

    /// The held peers that a block concerns and no row names: only a block of their keys bars them.
    fn held_by(&self, whom: &Whom) -> impl Iterator<Item = (PublicKey, &Departed)> {
        self.held_without_row().filter(move |(_, who)| match whom {
            Whom::User(id) => who.user_id == *id,
            Whom::Device(id) => who.device_id == *id,
            Whom::Key(_) | Whom::Address(_) => false,
        })
    }

    pub(super) fn held_without_row(&self) -> impl Iterator<Item = (PublicKey, &Departed)> {
        let desired = self.rows.desired;
        let is_gone = move |key: &PublicKey| {
            desired.is_some_and(|it| matches!(it.absence(key), Absence::Gone { .. }))
        };
        let gone = self.hold.staying.peers().keys().filter(move |key| is_gone(key));
        gone.filter_map(|key| Some((*key, self.work.departed.get(key)?)))
    }

    /// The peers that a block concerns, by their rows or held without one, as `user/device`.
    #[must_use]
    pub fn concerned_by(&self, whom: &Whom, block: &Block) -> Vec<String> {
        let peers = self.rows.all.concerned_by(whom, block);
        let held = self.held_by(whom).map(|(_, peer)| peer);
        let names = peers.iter().chain(held);
        names.map(|peer| name_of(&peer.username, &peer.device_name)).collect()
    }

    /// The block list without the block that `who` names, and whom that blocked.
    ///
    /// # Errors
    /// [`WhoError`]
    pub fn block_list_without(&self, who: &str) -> Result<(Whom, BlockList), WhoError> {
        let mut list = self.rows.block_list.clone();
        let whom = blocked_whom(&list, who)?;
        made_with(self.rows.block_list, &whom).for_each(|whom| drop(list.remove(whom)));
        list.remove(&whom);
        Ok((whom, list))
    }
}

fn whom(
    desired: Option<&DesiredState>,
    departed: &[Departed],
    who: &str,
) -> Result<(Whom, Box<str>), WhoError> {
    let key = || who.parse().map(Whom::Key).ok();
    if let Some(whom) = who.parse().map(Whom::Address).ok().or_else(key) {
        let has_it = |(row, _): &(&PeerRow, Standing<'_>)| match whom {
            Whom::Address(address) => row.assigned_ip.addr() == address,
            _ => row.public_key == KeyText::parse(who),
        };
        let row = desired.and_then(|desired| desired.rows().find(has_it));
        let name = row.map(|(row, _)| device_name(&Departed::from(row)));
        return Ok((whom, name.unwrap_or_default()));
    }
    let desired = desired.ok_or_else(|| WhoError::NoRows(who.to_owned()))?;
    let id: Option<Uuid> = who.parse().ok();
    let mut found = BTreeMap::new();
    let rows = desired.rows().map(|(row, _)| Departed::from(row));
    for peer in rows.chain(departed.iter().cloned()) {
        if is_user(&peer.username, who) || id == Some(peer.user_id.0) {
            found.insert(Whom::User(peer.user_id), peer.username.clone());
        }
        let by_id = id.is_some_and(|id| [peer.device_id.0, peer.peer_id.0].contains(&id));
        if by_id || is_device(&peer.username, &peer.device_name, who) {
            found.insert(Whom::Device(peer.device_id), device_name(&peer));
        }
    }
    let who = who.to_owned();
    match (found.len(), found.pop_first()) {
        (1, Some(one)) => Ok(one),
        (_, Some(first)) => {
            found.extend([first]);
            Err(WhoError::Several { who, candidates: described(&found) })
        }
        (_, None) => Err(WhoError::Unknown {
            candidates: near_names_of(desired, departed.iter(), &who),
            who,
        }),
    }
}

/// The keys that were blocked together with a user or a device, because no row named them.
fn made_with<'a>(list: &'a BlockList, whom: &Whom) -> impl Iterator<Item = &'a Whom> {
    let of_rows = matches!(whom, Whom::User(_) | Whom::Device(_));
    let made = list.get(whom).filter(|_| of_rows);
    list.iter()
        .filter(move |(whom, block)| matches!(whom, Whom::Key(_)) && made == Some(*block))
        .map(|(whom, _)| whom)
}

fn blocked_whom(list: &BlockList, who: &str) -> Result<Whom, WhoError> {
    let id = who.parse().map_or_else(|_| who.to_owned(), |id: Uuid| id.to_string());
    let mut named: BTreeMap<Whom, Box<str>> = list
        .iter()
        .filter(|(whom, block)| whom.id() == id || block.name.eq_ignore_ascii_case(who))
        .map(|(whom, block)| (*whom, block.name.clone()))
        .collect();
    // What was blocked together is one block.
    for whom in named.keys().copied().collect::<Vec<_>>() {
        made_with(list, &whom).for_each(|key| drop(named.remove(key)));
    }
    let who = who.to_owned();
    match (named.len(), named.keys().next()) {
        (1, Some(whom)) => Ok(*whom),
        (_, Some(_)) => Err(WhoError::Several { who, candidates: described(&named) }),
        (_, None) => {
            let all = list.iter().map(|(whom, block)| (*whom, block.name.clone())).collect();
            Err(WhoError::NotBlocked { who, candidates: described(&all) })
        }
    }
}

/// `user/device`, by which a device is found again.
fn device_name(peer: &Departed) -> Box<str> {
    format!("{}/{}", peer.username, peer.device_name).into()
}

fn described(found: &BTreeMap<Whom, Box<str>>) -> Vec<String> {
    let mut lines: Vec<_> = found
        .iter()
        .take(NAMED_AT_MOST)
        .map(|(whom, name)| {
            if name.is_empty() {
                whom.to_string()
            } else {
                format!("{} {} ({})", whom.kind(), Plain(name), whom.id())
            }
        })
        .collect();
    if found.len() > NAMED_AT_MOST {
        lines.push(format!("{} more", found.len() - NAMED_AT_MOST));
    }
    lines
}

/// The names that `who` may be a slip of: of the rows' users and devices, and of held peers without a row.
pub(super) fn near_names_of<'a>(
    desired: &'a DesiredState,
    departed: impl Iterator<Item = &'a Departed>,
    who: &str,
) -> Vec<String> {
    let of_rows = desired.rows().map(|(row, _)| (&*row.username, &*row.device_name));
    let held = departed.map(|peer| (&*peer.username, &*peer.device_name));
    near_names(who, of_rows.chain(held))
}
