//! A plan that the world's kernel applies, as far as its troubles let it.

use gatepost::dataplane::{Outcome, SharedObserved};
use gatepost::plan::{Fate, Fault, Plan, Step};
use nix::errno::Errno;

use super::World;
use super::trouble::{Trouble, is_refused, refused};

impl World {
    pub(super) fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome {
        let refuses = self.suffers(Trouble::Steps);
        let flows_stay = self.suffers(Trouble::Flows);
        let table_stays = self.suffers(Trouble::Firewall);
        let foreign = &self.foreign_routes;
        let leads_elsewhere =
            |step: &Step| matches!(step, Step::AddRoute { prefix } if foreign.contains(prefix));
        let unsettled = self.troubles.iter().find_map(|trouble| match trouble {
            Trouble::Unsettled(key) => Some(Step::RemovePeer { key: *key }),
            _ => None,
        });
        if unsettled.as_ref().is_some_and(|step| plan.steps().contains(step)) {
            self.troubles.insert(Trouble::Observations);
        }
        let fault = |step: &Step| {
            if Some(step) == unsettled.as_ref() {
                return Some(Fault::LoseAnswer);
            }
            let stays = flows_stay && matches!(step, Step::CutFlows { .. })
                || table_stays && matches!(step, Step::Firewall { .. });
            let is_refused = refuses && is_refused(step) || leads_elsewhere(step) || stays;
            is_refused.then_some(Fault::Refuse)
        };
        self.plans += 1;
        let watch = &mut self.watch;
        let mut outcome = Outcome::default();
        let mut reading = observed.read().clone();
        let unloadable = self.kernel.apply_plan(plan, &mut reading, fault, |kernel, step, fate| {
            if let Some(watch) = watch {
                watch.look(&kernel.state, step);
            }
            match fate {
                Fate::Applied => {
                    observed.apply(step);
                    outcome.applied += 1;
                }
                Fate::Refused if leads_elsewhere(step) => {
                    outcome.refused.push(refused(step, Errno::EEXIST));
                }
                Fate::Refused => outcome.refused.push(refused(step, Errno::EIO)),
                Fate::Withheld | Fate::AppliedInPart => {}
            }
        });
        outcome.unloadable = unloadable;
        self.applied_steps += outcome.applied;
        self.firewall_known.clone_from(&self.kernel.state.firewall);
        outcome
    }
}
