//! Tables that lack a rule: what they let pass must be found.

use gatepost::model::{FirewallBase, FixedRules, ObservedFirewall, ObservedState};
use gatepost::plan::Step;

use crate::lab::Lab;

/// What a table lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A peer's ICMP errors are judged only as the flow that they quote.
    Errors,
    /// Other links may bring packets of peers.
    SourceProof,
    /// No rule of policy routing stops packets while the table is gone.
    Gate,
    /// What is sent to a prefix that changes hands passes.
    Closing,
    /// LAN hosts reach addresses without a place.
    Place,
    /// Other links may bring packets of the gateway itself.
    OwnSource,
    /// Every packet of the gateway opens a flow.
    Label,
    /// Flows that other links open are judged by their source alone.
    OpenedOutside,
    /// Packets are led on from the gateway to where no rule judges them.
    Routed,
    /// Refusals go back along a source route.
    Answered,
}

impl Mutation {
    pub const ALL: [Self; 10] = [
        Self::Errors,
        Self::SourceProof,
        Self::Gate,
        Self::Closing,
        Self::Place,
        Self::OwnSource,
        Self::Label,
        Self::OpenedOutside,
        Self::Routed,
        Self::Answered,
    ];

    /// A chain, and a part of the rules that it loses.
    const fn lost(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Errors => Some(("from_peers", "ct state related")),
            Self::SourceProof => Some(("forged", "drop")),
            Self::Closing => Some(("forward", "jump closed")),
            Self::Place => Some(("inbound", "meta priority none")),
            Self::OwnSource => Some(("forward", "fib saddr type local")),
            Self::OpenedOutside => Some(("forward", "ct direction original goto inbound")),
            Self::Routed => Some(("from_peers", "fib daddr type local")),
            Self::Answered => Some(("deny", "hdrlength")),
            Self::Gate | Self::Label => None,
        }
    }
}

/// What is done to each table that an agent loads, behind its back.
pub struct Tampering {
    mutation: Option<Mutation>,
    /// What the table was loaded for.
    loaded: Option<FirewallBase>,
}

impl Tampering {
    pub const fn none() -> Self {
        Self { mutation: None, loaded: None }
    }

    pub const fn with(mutation: Mutation) -> Self {
        Self { mutation: Some(mutation), loaded: None }
    }

    /// Whether the table must be one that other programs can edit.
    pub fn edits(&self) -> bool {
        self.mutation.is_some_and(|mutation| mutation != Mutation::Gate)
    }

    pub fn leaves_gate(&self) -> bool {
        self.mutation != Some(Mutation::Gate)
    }

    /// Takes the rule away after a step that loads the table.
    pub fn tamper(&mut self, lab: &Lab, step: &Step) {
        let Step::Firewall { change, .. } = step else { return };
        let Some(base) = &change.load_base else { return };
        self.loaded = Some(base.clone());
        let Some(mutation) = self.mutation else { return };
        if mutation == Mutation::Label && base.gateway_opens.is_some() {
            lab.gateway.exec("nft insert rule inet gatepost openings ct label set 30");
        }
        let Some((chain, part)) = mutation.lost() else { return };
        let listing = lab.gateway.exec(&format!("nft -a list chain inet gatepost {chain}"));
        for rule in listing.lines().filter(|line| line.contains(part)) {
            let (_, handle) = rule.rsplit_once(' ').unwrap();
            lab.gateway.exec(&format!("nft delete rule inet gatepost {chain} handle {handle}"));
        }
    }

    /// Lets the agent see a whole table where it would see one that was edited.
    pub fn hide(&self, state: &mut ObservedState) {
        let (Some(base), Some(table)) = (&self.loaded, &mut state.firewall) else { return };
        if self.edits() && table.base().is_none() {
            let rules = FixedRules::Ours(base.clone());
            *table =
                ObservedFirewall::new(rules, table.profiles().clone(), table.assignments().clone());
        }
    }
}
