//! Prefixes to which somebody else's route leads. It is left alone, and costs only these prefixes.

use ipnet::IpNet;

use super::Machine;
use super::database::chain;
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
        let refused = std::mem::take(&mut outcome.refused);
        for refused in refused {
            let Some(prefix) = refused.foreign_route() else {
                outcome.refused.push(refused);
                continue;
            };
            let (step, error) = (refused.step.to_string(), chain(refused.error.as_ref()));
            self.blocked_routes.insert(prefix, error.clone());
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
