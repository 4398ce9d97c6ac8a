//! A change of the firewall of which the kernel refuses a part: when the agent is about to send it, another
//! program puts sets with room for a few elements into the table, under the names of the next profiles, and
//! rules that look them up, without which the agent would replace them.

use std::time::Instant;

use super::{Agent, Lab, Trace};

/// The numbers that profiles may get.
const NUMBERS: u32 = 100;

/// Makes `change`, of which the kernel refuses each new profile of more than 32 ranges. Returns when the agent
/// goes on to send it. The table must be one that other programs may change (`own_table = false`).
pub fn refuse_large_profiles(lab: &Lab, agent: &Agent, change: impl FnOnce()) -> Instant {
    let chains = lab.gateway.run("nft", &["list", "chains", "inet"]);
    let free = (1..=NUMBERS).filter(|number| !chains.contains(&format!("chain p_{number} {{")));
    let sets = free.map(|number| {
        format!(
            "add set inet gatepost p_{number}_4 {{ type ipv4_addr; flags interval; size 9; }};
             add rule inet gatepost other ip daddr @p_{number}_4 counter;"
        )
    });
    let sets: String = sets.collect();
    Trace::stop_before_transaction(lab, agent, change, || {
        lab.gateway.run("nft", &[&format!("add chain inet gatepost other; {sets}")]);
    })
}

/// Whether such sets are still in the table.
pub fn has_small_sets(lab: &Lab) -> bool {
    lab.gateway.run("nft", &["list", "sets", "inet"]).contains("size 9")
}
