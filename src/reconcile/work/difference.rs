//! The possible differences between the kernel and the rows, with their time and the peers that cause them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ipnet::IpNet;

use crate::causes::causes;
use crate::dataplane::{Outcome, RefusedStep};
use crate::model::{Departed, PolicyId, PublicKey, Touched};
use crate::plan::{Plan, Scope, Step};
use crate::reconcile::rows::{Compared, Extent};

#[derive(Debug)]
pub(super) struct Difference {
    /// The part that may differ.
    scope: Scope,
    cause: Cause,
    /// Policies that changed since the last proof, with their names.
    policies: BTreeMap<PolicyId, Box<str>>,
    /// Names of the peers that left the desired state since the last full proof.
    departed: BTreeMap<PublicKey, Departed>,
    /// Prefixes to which a route of another program leads, each with the kernel's reason. The route
    /// is left alone, and costs only its prefix.
    blocked_routes: BTreeMap<IpNet, String>,
}

/// Why the kernel may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// No row changed since the last proof: what differs is drift.
    Kernel,
    /// The agent has proven nothing yet.
    Start,
    /// Rows changed, the oldest of them at this moment.
    Rows(Instant),
}

/// The differences that a proof settled.
#[derive(Debug)]
pub(super) struct Settled {
    pub policies: BTreeMap<PolicyId, Box<str>>,
    /// When the oldest of the changed rows changed, as far as is known here.
    pub changed_since: Option<Instant>,
}

impl Difference {
    /// Everything may differ. `departed`: peers that an earlier run held.
    pub const fn new(departed: BTreeMap<PublicKey, Departed>) -> Self {
        Self {
            scope: Scope::Everything,
            cause: Cause::Start,
            policies: BTreeMap::new(),
            departed,
            blocked_routes: BTreeMap::new(),
        }
    }

    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn is_nothing(&self) -> bool {
        self.scope.is_routes_only()
    }

    pub fn is_everything(&self) -> bool {
        self.scope == Scope::Everything
    }

    /// Whether what differs is drift: no row changed since the last proof.
    pub fn is_drift(&self) -> bool {
        self.cause == Cause::Kernel
    }

    /// The peers that left the desired state since the last full proof.
    pub const fn departed(&self) -> &BTreeMap<PublicKey, Departed> {
        &self.departed
    }

    pub const fn blocked_routes(&self) -> &BTreeMap<IpNet, String> {
        &self.blocked_routes
    }

    /// The kernel was read, or is in doubt: anything may differ.
    pub fn everything(&mut self) {
        self.scope = Scope::Everything;
    }

    /// Rows changed, or an operator confirmed removals, at this moment: what differs is no drift.
    fn rows_changed(&mut self, since: Instant) {
        if !matches!(self.cause, Cause::Rows(_)) {
            self.cause = Cause::Rows(since);
        }
    }

    /// Takes in that this may differ because of a change. Says whether that is anything.
    pub fn changed(&mut self, touched: Touched, compared: Compared, since: Instant) -> bool {
        let touches = !touched.is_empty();
        if touches || compared == Compared::Anew {
            self.departed.extend(touched.departed);
            self.policies.extend(touched.policies);
        }
        self.scope.merge(Scope::Changed { peers: touched.peers, prefixes: touched.prefixes });
        match compared {
            Compared::Touched if !touches => return false,
            Compared::Touched => {}
            Compared::Everything => self.everything(),
            Compared::Anew => {
                self.everything();
                // Other programs' routes may be gone by now.
                self.blocked_routes.clear();
            }
        }
        self.rows_changed(since);
        true
    }

    /// The peers that this plan removes. `names_of` names peers that left before this agent began.
    pub fn take_departed(
        &mut self,
        plan: &Plan,
        names_of: impl FnOnce(&BTreeSet<PublicKey>) -> BTreeMap<PublicKey, Departed>,
    ) -> BTreeMap<PublicKey, Departed> {
        let removed = plan.steps().iter().filter_map(|step| match step {
            Step::RemovePeer { key } => Some(*key),
            _ => None,
        });
        let (mut departed, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        for key in removed {
            match self.departed.remove(&key) {
                Some(who) => drop(departed.insert(key, who)),
                None => drop(unknown.insert(key)),
            }
        }
        if !unknown.is_empty() {
            departed.extend(names_of(&unknown));
        }
        departed
    }

    /// These peers are still in the kernel.
    pub fn stayed(&mut self, peers: BTreeMap<PublicKey, Departed>) {
        self.departed.extend(peers);
    }

    /// Takes the routes out of the refusals where another program's route was in the way, and gives
    /// them up until everything is compared again.
    pub fn block_routes(&mut self, outcome: &mut Outcome) -> Vec<RefusedStep> {
        let is_blocked = |refused: &mut RefusedStep| refused.foreign_route().is_some();
        let blocked: Vec<_> = outcome.refused.extract_if(.., is_blocked).collect();
        let reasons = blocked
            .iter()
            .filter_map(|refused| Some((refused.foreign_route()?, causes(refused.error.as_ref()))));
        self.blocked_routes.extend(reasons);
        blocked
    }

    /// The plan without the routes that were given up.
    pub fn without_blocked(&self, plan: Plan) -> Plan {
        let blocked = |prefix: &IpNet| self.blocked_routes.contains_key(prefix);
        plan.without(|step| matches!(step, Step::AddRoute { prefix } if blocked(prefix)))
    }

    /// Nothing of this extent differs in the scope. `whole`: nothing at all does, except for the peers that are
    /// `held`.
    pub fn settle(
        &mut self,
        whole: bool,
        extent: Extent,
        held: impl Fn(&PublicKey) -> bool,
    ) -> Settled {
        self.scope = Scope::routes_only();
        if whole {
            self.departed.retain(|key, _| held(key));
        }
        let changed_since = match std::mem::replace(&mut self.cause, Cause::Kernel) {
            Cause::Rows(since) => Some(since),
            Cause::Kernel | Cause::Start => None,
        };
        let policies = match extent {
            Extent::Whole => std::mem::take(&mut self.policies),
            // No policy is known to be in force as it stands now.
            Extent::Withdrawals => BTreeMap::new(),
        };
        Settled { policies, changed_since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(number: u8) -> Touched {
        let key = PublicKey::from_bytes([number; 32]).unwrap();
        Touched { peers: [key].into(), ..Touched::default() }
    }

    fn touch(difference: &mut Difference, touched: Touched, at: Instant) -> bool {
        difference.changed(touched, Compared::Touched, at)
    }

    fn settle(difference: &mut Difference) -> Settled {
        difference.settle(true, Extent::Whole, |_| false)
    }

    #[test]
    fn what_differs_without_a_changed_row_is_drift() {
        let (mut difference, start) = (Difference::new(BTreeMap::new()), Instant::now());
        assert!(!difference.is_drift(), "at the start the rows are new");
        settle(&mut difference);
        difference.everything();
        assert!(difference.is_drift());
        assert!(!touch(&mut difference, Touched::default(), start) && difference.is_drift());
        assert!(touch(&mut difference, touched(1), start) && !difference.is_drift());
    }

    #[test]
    fn changes_count_from_the_oldest() {
        let (mut difference, start) = (Difference::new(BTreeMap::new()), Instant::now());
        touch(&mut difference, touched(1), start);
        touch(&mut difference, touched(2), start + std::time::Duration::from_secs(1));
        assert_eq!(settle(&mut difference).changed_since, Some(start));
        assert!(difference.is_nothing());
    }

    #[test]
    fn what_is_compared_is_what_the_change_says() {
        let (mut difference, start) = (Difference::new(BTreeMap::new()), Instant::now());
        for (compared, everything, routes) in [
            (Compared::Touched, false, false),
            (Compared::Everything, true, false),
            (Compared::Anew, true, true),
        ] {
            settle(&mut difference);
            let blocked = ("10.0.0.0/24".parse().unwrap(), "it is there".to_owned());
            difference.blocked_routes.extend([blocked]);
            assert!(difference.changed(touched(1), compared, start));
            let found = (difference.is_everything(), difference.blocked_routes.is_empty());
            assert_eq!(found, (everything, routes), "{compared:?}");
        }
        settle(&mut difference);
        assert!(difference.changed(Touched::default(), Compared::Everything, start));
    }

    #[test]
    fn policies_wait_until_more_than_withdrawals_is_proven() {
        let (mut difference, start) = (Difference::new(BTreeMap::new()), Instant::now());
        let policies = BTreeMap::from([(PolicyId(uuid::Uuid::nil()), Box::from("intranet"))]);
        let change = Touched { policies: policies.clone(), ..touched(1) };
        touch(&mut difference, change, start);
        let settled = difference.settle(false, Extent::Withdrawals, |_| false);
        assert!(settled.policies.is_empty() && settled.changed_since == Some(start));
        assert_eq!(settle(&mut difference).policies, policies);
    }
}
