//! The marks of a read, by whom they concern.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::model::{DeviceId, Mark, MarkId, UserId};

/// Marks by whom they concern, the latest few of each.
pub(super) struct Marks {
    listed: BTreeMap<Uuid, BTreeSet<MarkId>>,
    of_everybody: BTreeSet<MarkId>,
}

impl Marks {
    /// The marks that concern these devices and users. One pass, however many there are of both.
    pub fn about(who: impl Iterator<Item = (DeviceId, UserId)>, marks: &[Mark]) -> Self {
        let ids = who.flat_map(|(device, user)| [device.0, user.0]);
        let mut about = Self {
            listed: ids.map(|id| (id, BTreeSet::new())).collect(),
            of_everybody: BTreeSet::new(),
        };
        for mark in marks {
            let Some(ids) = mark.listed() else {
                keep(&mut about.of_everybody, mark.of(None));
                continue;
            };
            for id in ids {
                if let Some(kept) = about.listed.get_mut(id) {
                    keep(kept, mark.of(Some(*id)));
                }
            }
        }
        about
    }

    pub fn those_of(&self, device: DeviceId, user: UserId) -> Vec<MarkId> {
        let listed = |id| self.listed.get(&id).into_iter().flatten();
        let own = listed(device.0).chain(listed(user.0));
        own.chain(&self.of_everybody).cloned().collect()
    }
}

/// The latest few of these marks, each with one of those whom it concerns: its transaction id and kind may
/// be used again.
pub(super) fn latest(marks: &[Mark]) -> Vec<MarkId> {
    let mut latest = BTreeSet::new();
    for mark in marks {
        let id = mark.listed().into_iter().flatten().next().copied();
        keep(&mut latest, mark.of(id));
    }
    latest.into_iter().collect()
}

/// Keeps a mark, and no more than a few of the latest.
fn keep(kept: &mut BTreeSet<MarkId>, mark: MarkId) {
    const LATEST: usize = 8;
    kept.insert(mark);
    if kept.len() > LATEST {
        kept.pop_first();
    }
}
