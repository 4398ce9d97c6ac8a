//! Whole snapshots: builds the desired state, or what can be used of rows that are wrong.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Change, Compared, Origin, Refused, Rows};
use crate::model::{
    BuildError, Departed, DesiredState, GatewayRow, KeyText, PolicyId, PublicKey, SnapshotRows,
    Touched,
};

/// The differences between a desired state and the one that replaced it.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// The peers that had a right to a tunnel in the former state and are no peers of the new one.
    pub departed: BTreeMap<PublicKey, Departed>,
    /// Policies that decide otherwise in the new state, with their names.
    pub policies: BTreeMap<PolicyId, Box<str>>,
}

/// No state could be built from a snapshot.
#[derive(Debug)]
pub(super) struct NotBuilt {
    pub error: BuildError,
    /// The changes by its other rows.
    pub withdrawn: Replaced,
}

impl Rows {
    /// Replaces the rows by a whole snapshot.
    ///
    /// # Errors
    /// When the gateway's own row cannot be right. The former rows stay, and the error has what the
    /// others withdraw.
    pub(super) fn replace(
        &mut self,
        rows: SnapshotRows,
        now: Instant,
    ) -> Result<Replaced, Box<NotBuilt>> {
        let is_first = self.desired.is_none() || self.origin != Origin::Database;
        let usable = self.build_gateway(&rows).and_then(|_| match rows.beyond() {
            None => Ok(()),
            Some(beyond) => Err(BuildError::BeyondLimit(beyond)),
        });
        let replaced = match usable {
            Err(error) => Err(self.refuse(error, Some(rows.within_limits()))),
            Ok(()) => match self.build(rows) {
                Err(error) => Err(self.refuse(error, None)),
                Ok(new) => Ok(self.accept(new)),
            },
        };
        match &replaced {
            Ok(replaced) => {
                self.remember_withdrawn(&replaced.departed);
                self.history.rows_are_read(now);
                // Everything is compared next, whom that touches or not.
                drop(self.keep_out());
            }
            Err(refused) => self.remember_withdrawn(&refused.withdrawn.departed),
        }
        if is_first {
            self.remember_who_is_out();
        }
        replaced
    }

    fn accept(&mut self, mut new: DesiredState) -> Replaced {
        new.keep_out(self.kept_out.clone());
        let replaced = self.desired.as_ref().map(|old| Replaced::of(old, &new));
        self.refused = None;
        self.origin = Origin::Database;
        self.desired = Some(new);
        self.refresh();
        replaced.unwrap_or_default()
    }

    /// Builds a state of the gateway's row and the settings alone.
    fn build_gateway(&self, rows: &SnapshotRows) -> Result<DesiredState, BuildError> {
        let rows = SnapshotRows {
            gateway: rows.gateway.clone(),
            settings: rows.settings.clone(),
            peers: Vec::new(),
            memberships: Vec::new(),
            policies: Vec::new(),
            taken_at: rows.taken_at,
        };
        self.build(rows)
    }

    pub(super) fn build(&self, rows: SnapshotRows) -> Result<DesiredState, BuildError> {
        DesiredState::build_without(self.block_list.clone(), self.local.clone(), rows)
    }

    /// Keeps what can be used of rows whose gateway's row is wrong.
    fn refuse(&mut self, error: BuildError, rows: Option<SnapshotRows>) -> Box<NotBuilt> {
        self.age.doubt();
        let rest = rows.and_then(|rows| {
            let gateway = self.usable_gateway(&rows.gateway);
            let mut rest = self.build(SnapshotRows { gateway, ..rows }).ok()?;
            if self.admitted.is_some() {
                rest.suspend_all_but(self.admitted.clone());
            }
            Some(rest)
        });
        let former = self.refused.take().and_then(|refused| refused.rest);
        let former = former.as_ref().or(self.desired.as_ref());
        let replaced = former.zip(rest.as_ref()).map(|(old, new)| Replaced::of(old, new));
        self.refused = Some(Refused { error: error.clone(), rest });
        Box::new(NotBuilt { error, withdrawn: replaced.unwrap_or_default() })
    }

    /// The gateway's row with the parts of the former one, or of this host, that may be wrong in it.
    fn usable_gateway(&self, row: &GatewayRow) -> GatewayRow {
        let former = self.desired.as_ref().map(DesiredState::gateway);
        GatewayRow {
            public_key: KeyText::Key(self.local.private_key.public_key()),
            listen_port: former.map_or(1, |former| former.listen_port),
            vpn_cidr: former.map_or(row.vpn_cidr, |former| former.vpn_cidr),
            ..row.clone()
        }
    }
}

impl Replaced {
    fn of(old: &DesiredState, new: &DesiredState) -> Self {
        let policies = new.policies().changed_since(old.policies());
        Self { departed: departed(old, new), policies }
    }
}

impl From<Replaced> for Change {
    fn from(replaced: Replaced) -> Self {
        let Replaced { departed, policies } = replaced;
        let touched = Touched { departed, policies, ..Touched::default() };
        Self { touched, compared: Compared::Anew, ..Self::default() }
    }
}

/// The peers that had a right to a tunnel in the former state and are no peers of the new one.
fn departed(old: &DesiredState, new: &DesiredState) -> BTreeMap<PublicKey, Departed> {
    let gone = old.entitled().filter(|(key, _)| !new.peers().contains_key(key));
    gone.map(|(key, row)| (key, Departed::from(row))).collect()
}
