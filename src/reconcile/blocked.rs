//! Prefixes to which somebody else's route leads. It is left alone, and costs only these prefixes.

use ipnet::IpNet;

use super::Machine;
use super::event::{Action, Note, Now};
use super::lately::Trouble;
use crate::dataplane::Outcome;
use crate::plan::{Plan, Step};

impl Machine {
    /// Gives up the routes that others stand in the way of, until everything is compared anew.
    pub(super) fn block_routes(
        &mut self,
        outcome: &mut Outcome,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Outcome { refused, foreign_routes, .. } = outcome;
        let (foreign, others): (Vec<_>, Vec<_>) =
            std::mem::take(refused).into_iter().partition(|(step, _)| {
                matches!(step, Step::AddRoute { prefix } if foreign_routes.contains(prefix))
            });
        *refused = others;
        for (step, error) in foreign {
            let Step::AddRoute { prefix } = step else { continue };
            self.blocked_routes.insert(prefix, error.clone());
            let step = step.to_string();
            if let Some(pass) = &mut self.pass {
                pass.gives_up(&step);
            }
            self.complain(Trouble::Route, Note::StepRefused { step, error }, now, actions);
        }
    }

    pub(super) fn less_blocked(&self, planned: Plan) -> Plan {
        let blocked = |prefix: &IpNet| self.blocked_routes.contains_key(prefix);
        planned.without(|step| matches!(step, Step::AddRoute { prefix } if blocked(prefix)))
    }
}
