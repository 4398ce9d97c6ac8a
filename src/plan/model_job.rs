//! A plan that the model kernel applies step by step, so that other things may happen in between.

use super::model_kernel::{Fate, Fault, ModelKernel, Refusal};
use super::{Blame, Interlock, Plan, Step, load_in_parts};
use crate::model::{ObservedState, Unloadable};

/// A plan that is being applied, through the [`Interlock`].
#[derive(Debug, Default)]
pub struct ModelJob {
    interlock: Interlock,
    unloadable: Vec<Unloadable>,
}

impl ModelJob {
    /// Applies the next step of the plan to the kernel, unless `fault` fails it.
    ///
    /// `observed` follows the acknowledged steps. `watch` sees the kernel after the step, and after
    /// every part of one that is applied in parts.
    pub fn apply(
        &mut self,
        kernel: &mut ModelKernel,
        step: &Step,
        observed: &mut ObservedState,
        fault: Option<Fault>,
        watch: &mut impl FnMut(&mut ModelKernel, &Step, Fate),
    ) {
        let permitted = self.interlock.permits(step, observed);
        let part = self.interlock.part_of(step, observed).filter(|_| !permitted);
        let mut is_parted = false;
        let fate = match part.as_ref().or(permitted.then_some(step)) {
            None => Fate::Withheld,
            Some(step) => match (fault, kernel.check(step)) {
                (Some(fault), _) => {
                    kernel.fail(step, fault);
                    Fate::Refused
                }
                (None, Err(refusal @ (Refusal::Unloadable | Refusal::NoMemory))) => {
                    is_parted = true;
                    self.load_in_parts(kernel, step, refusal, observed, watch)
                }
                (None, _) => match kernel.apply_step(step) {
                    Ok(()) => {
                        observed.apply(step);
                        Fate::Applied
                    }
                    Err(_) => Fate::Refused,
                },
            },
        };
        if let Some(part) = &part {
            watch(kernel, part, fate);
        }
        let fate = if permitted { fate } else { Fate::Withheld };
        if fate == Fate::Withheld || fate == Fate::Refused && !is_parted {
            self.interlock.not_applied(step, observed);
        }
        watch(kernel, step, fate);
    }

    /// The profiles that the kernel refused.
    #[must_use]
    pub fn end(self) -> Vec<Unloadable> {
        self.unloadable
    }

    fn load_in_parts(
        &mut self,
        kernel: &mut ModelKernel,
        step: &Step,
        refusal: Refusal,
        observed: &mut ObservedState,
        watch: &mut impl FnMut(&mut ModelKernel, &Step, Fate),
    ) -> Fate {
        let Step::Firewall { phase, change } = step else { return Fate::Refused };
        let blame = |refusal: &Refusal| match refusal {
            Refusal::Unloadable => Blame::Content,
            Refusal::NoMemory => Blame::Host,
            _ => Blame::Table,
        };
        let table = observed.firewall.clone();
        let parted = load_in_parts(change, table.as_ref(), refusal, blame, |change| {
            let part = Step::Firewall { phase: *phase, change: change.clone() };
            kernel.apply_step(&part)?;
            observed.apply(&part);
            watch(kernel, &part, Fate::Applied);
            Ok(())
        });
        self.interlock.parted(*phase, &parted, observed);
        let why = |refusal: Refusal| refusal.to_string().into();
        let unloadable = parted.unloadable.into_iter();
        let unloadable = unloadable.map(|(_, profile, refusal)| {
            let (why, remedy) = (why(refusal), "");
            Unloadable { profile, why, remedy }
        });
        self.unloadable.extend(unloadable);
        if parted.left.is_some() { Fate::Refused } else { Fate::AppliedInPart }
    }
}

impl ModelKernel {
    /// Applies a plan as the data plane does, through the [`Interlock`].
    ///
    /// `observed` follows the acknowledged steps. `fault` says whether a step fails, and `watch`
    /// sees the kernel after every step, and after every part of one that is applied in parts. Returns
    /// the profiles that the kernel refused.
    pub fn apply_plan(
        &mut self,
        plan: &Plan,
        observed: &mut ObservedState,
        mut fault: impl FnMut(&Step) -> Option<Fault>,
        mut watch: impl FnMut(&mut Self, &Step, Fate),
    ) -> Vec<Unloadable> {
        let mut job = ModelJob::default();
        for step in plan.steps() {
            job.apply(self, step, observed, fault(step), &mut watch);
        }
        job.end()
    }
}
