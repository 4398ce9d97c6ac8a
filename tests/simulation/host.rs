//! A gateway host: a model kernel that refuses, obeys in part, is edited by other programs, and
//! announces that late or not at all.

use std::collections::VecDeque;

use gatepost::dataplane::nft::NftError;
use gatepost::dataplane::{DataplaneError, NetlinkError, RefusedStep};
use gatepost::model::{
    FirewallChange, FixedRules, IpFamily, ObservedFirewall, ObservedState, RoutingRule, RuleAction,
    Tag,
};
use gatepost::plan::{Fault, ModelKernel, Phase, Step};
use nix::errno::Errno;

use super::bytes::Bytes;

/// Which steps the kernel refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuses {
    Grants,
    Withdrawals,
    Policies,
    Closing,
    Flows,
    Link,
    Routes,
    EveryThird,
}

impl Refuses {
    const ALL: [Self; 8] = [
        Self::Grants,
        Self::Link,
        Self::Routes,
        Self::Flows,
        Self::Policies,
        Self::Withdrawals,
        Self::Closing,
        Self::EveryThird,
    ];

    fn refuses(self, step: &Step) -> bool {
        match self {
            Self::Grants => matches!(step, Step::AddPeer { .. } | Step::WidenPeer { .. }),
            Self::Withdrawals => {
                matches!(step, Step::RemovePeer { .. } | Step::NarrowPeer { .. })
            }
            Self::Policies => {
                matches!(step, Step::Firewall { phase: Phase::Policy | Phase::Open, .. })
            }
            Self::Closing => matches!(step, Step::Firewall { phase: Phase::Revoke, .. }),
            Self::Flows => matches!(step, Step::CutFlows { .. }),
            Self::Link => matches!(
                step,
                Step::CreateLink { .. }
                    | Step::SetUp
                    | Step::AddAddress { .. }
                    | Step::SetListenPort { .. }
                    | Step::SetMtu { .. }
            ),
            Self::Routes => matches!(step, Step::AddRoute { .. } | Step::RemoveRoute { .. }),
            Self::EveryThird => step.to_string().bytes().map(u32::from).sum::<u32>() % 3 == 0,
        }
    }

    /// Whether packets may go on that the rows forbid, because of these refusals. Which peer has a prefix
    /// is not known after a grant whose answer was lost.
    const fn hinders_withdrawals(self, fault: Fault) -> bool {
        match self {
            Self::Routes | Self::Flows => false,
            Self::Grants => !matches!(fault, Fault::Refuse),
            _ => true,
        }
    }
}

#[derive(Debug)]
pub struct Host {
    pub kernel: ModelKernel,
    /// The kernel as it would be without the edits that the agent has not looked at.
    pub known: ModelKernel,
    /// Another program changed something since the last complete look.
    pub unseen: bool,
    refuses: Option<(Refuses, Fault)>,
    pub is_readable: bool,
    /// What the kernel announced, and the agent has not heard.
    pub events: VecDeque<&'static str>,
    /// The firewall as it was last read or written.
    pub firewall_known: Option<ObservedFirewall>,
}

impl Host {
    pub fn new() -> Self {
        Self {
            kernel: ModelKernel::default(),
            known: ModelKernel::default(),
            unseen: false,
            refuses: None,
            is_readable: true,
            events: VecDeque::new(),
            firewall_known: None,
        }
    }

    pub fn fault(&self, step: &Step) -> Option<Fault> {
        self.refuses.filter(|(class, _)| class.refuses(step)).map(|(_, fault)| fault)
    }

    pub fn hinders_withdrawals(&self) -> bool {
        self.refuses.is_some_and(|(class, fault)| class.hinders_withdrawals(fault))
    }

    pub fn refuse(&mut self, bytes: &mut Bytes<'_>) {
        let class = bytes.pick(&Refuses::ALL);
        let fault = match bytes.below(4) {
            0..2 => Fault::Refuse,
            2 => Fault::LoseAnswer,
            _ => Fault::Partly { prefixes: u64::from(bytes.next()) },
        };
        self.refuses = Some((class, fault));
    }

    pub fn obey(&mut self) {
        self.refuses = None;
    }

    /// Another program changes the kernel.
    pub fn edit(&mut self, bytes: &mut Bytes<'_>) -> &'static str {
        let state = &mut self.kernel.state;
        let chosen = state.peers.keys().nth(bytes.below(state.peers.len().max(1))).copied();
        let (what, announced) = match bytes.below(8) {
            0 => (remove_peer(state, chosen), false),
            1 => {
                state.firewall = None;
                ("table removed", true)
            }
            2 => {
                self.kernel.lose_link();
                ("link removed", true)
            }
            3 => {
                let table = state.firewall.as_ref();
                let places = table.map(|table| table.assignments().clone());
                let open = FixedRules::Open;
                state.firewall =
                    places.map(|places| ObservedFirewall::new(open, Default::default(), places));
                ("rules flushed", true)
            }
            4 => {
                state.routes.clear();
                ("routes removed", true)
            }
            5 => {
                if let Some(link) = &mut state.interface {
                    link.up = false;
                    state.routes.clear();
                }
                ("link down", true)
            }
            6 => {
                let table = state.firewall.iter();
                let unassign = table.flat_map(|it| it.assignments().keys().take(1)).copied();
                let change = FirewallChange { unassign: unassign.collect(), ..Default::default() };
                if state.firewall.is_some() {
                    ObservedFirewall::apply(&mut state.firewall, &change);
                }
                ("an element removed", true)
            }
            _ => {
                if let Some(peer) = chosen.and_then(|key| state.peers.get_mut(&key)) {
                    peer.keepalive_secs = 77;
                }
                ("keepalive edited", false)
            }
        };
        self.unseen = true;
        if announced && !bytes.one_in(4) {
            self.events.push_back(what);
        }
        what
    }

    /// Another program adds a rule that concerns no gate, or removes it.
    pub fn change_routing(&mut self) {
        let (family, action, tag) = (IpFamily::V4, RuleAction::Other(1), Tag::Foreign);
        let (priority, iif, to, mark) = (1_000, None, None, None);
        let rule = RoutingRule { family, priority, iif, to, mark, action, tag };
        for kernel in [&mut self.kernel, &mut self.known] {
            let rules = &mut kernel.state.routing.rules;
            if !rules.remove(&rule) {
                rules.insert(rule.clone());
            }
        }
    }

    /// The agent looks at everything: it knows of all edits now.
    pub fn seen(&mut self) -> ObservedState {
        self.known = self.kernel.clone();
        self.unseen = false;
        self.firewall_known.clone_from(&self.kernel.state.firewall);
        self.kernel.state.clone()
    }

    /// The agent looks at everything but the peers.
    pub fn glanced(&mut self) {
        let (known, state) = (&mut self.known.state, &self.kernel.state);
        known.interface.clone_from(&state.interface);
        known.routes.clone_from(&state.routes);
        known.firewall.clone_from(&state.firewall);
    }
}

fn remove_peer(
    state: &mut ObservedState,
    chosen: Option<gatepost::model::PublicKey>,
) -> &'static str {
    if let Some(key) = chosen {
        state.peers.remove(&key);
    }
    "peer removed"
}

/// The kernel does not answer a reading.
pub fn unreadable() -> DataplaneError {
    let source = NetlinkError::Refused { errno: Errno::ENOBUFS, message: String::new() };
    DataplaneError::Refused { source, remedy: None }
}

/// A step that was not acknowledged. That the table is as it was the agent knows from the kernel's answer.
pub fn refused(step: &Step, fault: Option<Fault>) -> RefusedStep {
    if matches!(step, Step::Firewall { .. }) {
        let error = match fault {
            Some(Fault::LoseAnswer) => NftError::NoAnswer,
            _ => NftError::Refused { request: "change the table".into(), errno: Errno::EIO },
        };
        return RefusedStep::new(step.clone(), DataplaneError::from(error));
    }
    let source = NetlinkError::Refused { errno: Errno::EIO, message: String::new() };
    RefusedStep::new(step.clone(), DataplaneError::Refused { source, remedy: None })
}
