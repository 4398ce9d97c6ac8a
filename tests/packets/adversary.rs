//! Hostile peers, a hostile LAN host and chatty services of the gateway, while rows change and the agent
//! is killed, stopped and its table flushed between any two steps: nothing comes anywhere that no policy
//! grants, of the rows before or after. A table that lacks one rule shows that the adversary is not blind.
//!
//! `GATEPOST_TEST_ROUNDS` makes it longer.

mod agent;
mod attack;
mod mutation;
mod permit;
mod scene;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use gatepost::dataplane::Backend;
use gatepost::plan::Plan;

use crate::lab::{self, Lab, PEERS, Place};
use crate::packet::Protocol;
use crate::probe::SERVICE_PORTS;
use crate::runner::Test;
use crate::seed::seed;
use crate::set::{Chance, PolicySet, dns_candidates};
use crate::world;

use agent::Agent;
use attack::View;
use mutation::{Mutation, Tampering};
use permit::{DIVERTED, End, Flow, Rules, is_peer};
use scene::Scene;

pub const TESTS: &[Test] =
    &[("nothing_passes_that_no_policy_grants", nothing_passes_that_no_policy_grants)];
/// They take minutes: only if `GATEPOST_TEST_MUTATIONS` is set.
pub const LONG_TESTS: &[Test] = &[("every_missing_rule_is_found", every_missing_rule_is_found)];

const ROUNDS: usize = 25;
/// Hostile packets at each of a plan's steps.
const AT_A_STEP: usize = 40;
/// Hostile packets once the kernel is what the rows say.
const AT_REST: usize = 160;
/// And before, when flows of the former rows are all that is known, and again when they are forgotten.
const OF_FORMER_FLOWS: usize = 40;
const FLOWS: usize = 24;
const DRAWS: usize = 6;

/// What came where nothing allows it.
struct Leaks(String);
type Tight = Result<(), Leaks>;

fn nothing_passes_that_no_policy_grants(backend: Backend) {
    let seed = seed();
    let rounds = std::env::var("GATEPOST_TEST_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let lab = Lab::new(backend);
    let started = Instant::now();
    lab.gateway.enter(|| {
        let mut siege = Siege::begin(&lab, Chance::new(seed), Tampering::none());
        siege.rounds(rounds).unwrap_or_else(|Leaks(text)| panic!("{text}"));
        println!(
            "{rounds} rounds, {} packets, came where they may: {:?}; {}; {:.1} s",
            siege.scene.count(),
            siege.scene.came,
            siege.disturbances,
            started.elapsed().as_secs_f64()
        );
        for kind in ["request", "packet of a flow", "error", "fragments", "with headers", "honest"]
        {
            assert!(siege.scene.came.contains_key(kind), "no {kind} came anywhere");
        }
    });
}

/// Each in one of two runs.
fn every_missing_rule_is_found(backend: Backend) {
    const RUNS: u64 = 2;
    let seed = seed();
    let finds = |mutation: &Mutation| {
        (0..RUNS).any(|run| {
            let lab = Lab::new(backend);
            let started = Instant::now();
            let found = lab.gateway.enter(|| {
                let chance = Chance::new(seed.wrapping_add(run));
                Siege::begin(&lab, chance, Tampering::with(*mutation)).rounds(ROUNDS).is_err()
            });
            let took = started.elapsed().as_secs_f64();
            println!("{mutation:?}: {} in {took:.1} s", if found { "found" } else { "not found" });
            found
        })
    };
    let missed: Vec<_> = Mutation::ALL.into_iter().filter(|mutation| !finds(mutation)).collect();
    assert!(missed.is_empty(), "no packet came that shows {missed:?}");
}

/// What was done to the agent and its table.
#[derive(Debug, Default)]
struct Disturbances {
    kills: usize,
    flushes: usize,
    tables_lost: usize,
    forgotten: usize,
}

impl std::fmt::Display for Disturbances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kills, flushes, tables_lost, forgotten } = self;
        write!(
            f,
            "{kills} kills, {flushes} flushes ({tables_lost} tables lost), flows forgotten {forgotten} times"
        )
    }
}

struct Siege<'a> {
    lab: &'a Lab,
    chance: Chance,
    agent: Option<Agent>,
    scene: Scene,
    /// The rows before and after.
    sets: [PolicySet; 2],
    /// Since our table was lost, until it is whole again.
    without_table: bool,
    disturbances: Disturbances,
    addresses: Vec<IpAddr>,
    tampering: Tampering,
}

impl<'a> Siege<'a> {
    fn begin(lab: &'a Lab, mut chance: Chance, mut tampering: Tampering) -> Self {
        // What an administrator may have switched on.
        for switch in [
            "net.ipv4.conf.all.accept_source_route=1",
            "net.ipv4.conf.default.accept_source_route=1",
            "net.ipv4.conf.lan0.accept_source_route=1",
            "net.ipv6.conf.all.accept_source_route=1",
            "net.ipv6.conf.default.accept_source_route=1",
            "net.ipv6.conf.all.seg6_enabled=1",
            "net.ipv6.conf.default.seg6_enabled=1",
            "net.ipv4.conf.all.src_valid_mark=1",
        ] {
            if !lab.gateway.succeeds(&format!("sysctl -qw {switch}")) {
                println!("this kernel has no {switch}");
            }
        }
        let rp_filter = if chance.once_in(2) { 0 } else { 2 };
        lab.gateway.exec(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter}"));
        for (prefix, next_hop) in DIVERTED.into_iter().zip(lab::LAN_NEXT_HOPS) {
            lab.gateway.exec(&format!("ip route add {prefix} via {next_hop} dev lan0 onlink"));
        }
        let set = PolicySet::first(&mut chance);
        let mut agent = Agent::start(lab, &mut chance, &tampering);
        agent.settle(lab, &set, &mut tampering);
        Self {
            lab,
            chance,
            agent: Some(agent),
            scene: Scene::open(lab),
            sets: [set.clone(), set],
            without_table: false,
            disturbances: Disturbances::default(),
            addresses: Vec::new(),
            tampering,
        }
    }

    fn rounds(&mut self, rounds: usize) -> Tight {
        (1..=rounds).try_for_each(|round| {
            self.round()?;
            self.tight(&format!("round {round}"))
        })
    }

    /// From the rows that are in force to others.
    fn round(&mut self) -> Tight {
        let mut next = self.sets[1].next(&mut self.chance);
        if self.chance.once_in(2) {
            next = next.with_other_peers(&mut self.chance);
        }
        self.sets = [self.sets[1].clone(), next];
        self.choose_addresses();
        self.open_flows(&self.sets[0].clone())?;
        while let Some(plan) = self.plan() {
            self.follow(&plan)?;
        }
        for peer in (0..PEERS).filter(|at| !self.sets[0].has(*at) && self.sets[1].has(*at)) {
            self.scene.renew(self.lab, peer);
        }
        self.sets[0] = self.sets[1].clone();
        self.without_table = false;
        for forgets in [false, true] {
            if forgets {
                scene::forget_flows();
            }
            self.speak_for_gateway();
            self.volley(OF_FORMER_FLOWS);
            self.tight("with flows of the former rows")?;
        }
        self.open_flows(&self.sets[1].clone())?;
        self.volley(AT_REST);
        Ok(())
    }

    /// Every end of a flow that is the gateway's sends a packet.
    fn speak_for_gateway(&mut self) {
        let rules = self.rules();
        for at in 0..self.scene.flows.len() {
            self.scene.send_from_gateway(at, &rules);
        }
    }

    /// What is left to do; `None`: the kernel is what the rows say.
    fn plan(&mut self) -> Option<Plan> {
        if self.agent.is_none() {
            self.agent = Some(Agent::start(self.lab, &mut self.chance, &self.tampering));
        }
        let agent = self.agent.as_mut()?;
        agent.look(&self.tampering);
        let plan = agent.plan(self.lab, &self.sets[1], &self.tampering);
        Some(plan).filter(|plan| !plan.is_empty())
    }

    /// Takes a plan's steps, with an attack after each, until something happens to the agent.
    fn follow(&mut self, plan: &Plan) -> Tight {
        for step in plan.steps() {
            let Some(agent) = &mut self.agent else { return Ok(()) };
            let refused = agent.apply(step, self.lab, &mut self.tampering);
            assert!(self.without_table || refused.is_empty(), "{refused:?}");
            match self.chance.numbers.u8(..16) {
                0 | 1 => {
                    self.agent = None;
                    self.disturbances.kills += 1;
                    if self.chance.once_in(2) {
                        self.flush();
                    }
                }
                2 => self.flush(),
                3 => {
                    scene::forget_flows();
                    self.disturbances.forgotten += 1;
                }
                _ => {}
            }
            self.volley(AT_A_STEP);
            self.tight(&format!("after {step} of {plan:?}"))?;
            // A flush may come to the agent's notice at once, or after the rest of its plan.
            if self.without_table && self.chance.once_in(2) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.lab.gateway.exec("nft flush ruleset");
        self.disturbances.flushes += 1;
        if !self.lab.gateway.succeeds("nft list table inet gatepost") {
            self.without_table = true;
            self.disturbances.tables_lost += 1;
        }
    }

    /// All places send whatever they can, and what comes of it is judged.
    fn volley(&mut self, count: usize) {
        let rules = self.rules();
        for _ in 0..count {
            let from = match self.chance.numbers.usize(..PEERS + 5) {
                peer @ 0..PEERS => Place::Peer(peer),
                PEERS | 7 | 8 => Place::Lan,
                _ => Place::Gateway,
            };
            if from == Place::Gateway {
                let at = self.chance.numbers.usize(..self.scene.flows.len());
                self.scene.send_from_gateway(at, &rules);
                continue;
            }
            let own = match from {
                Place::Peer(peer) => lab::sources(peer),
                _ => attack::lan_sources(),
            };
            let (addresses, flows) = (&self.addresses, &self.scene.flows);
            let view = View { addresses, flows, own: &own, rules: &rules[rules.len() - 1] };
            let shot = attack::any(from, &view, self.scene.next_number(), &mut self.chance);
            self.scene.send(shot, &rules);
        }
        self.await_judgement(&rules);
    }

    fn await_judgement(&mut self, rules: &[Arc<Rules>]) {
        let is_here = |peer: &usize| self.sets.iter().all(|set| set.has(*peer));
        let peers = (0..PEERS).filter(is_here).map(Place::Peer);
        let senders: Vec<Place> = peers.chain([Place::Lan]).collect();
        self.scene.await_judgement(&senders, rules);
    }

    /// Every rule that may be in force now.
    fn rules(&self) -> Vec<Arc<Rules>> {
        let whole = self.sets.iter().map(Rules::of);
        let lost = self.sets.iter().filter(|_| self.without_table).map(Rules::without_table);
        let moving = self.sets[0].prefixes_that_move(&self.sets[1]);
        whole.chain(lost).map(|rules| Arc::new(rules.while_moving(&moving))).collect()
    }

    fn choose_addresses(&mut self) {
        const OF_RULES: usize = 24;
        let rows = self.sets.iter().flat_map(PolicySet::rows).collect::<Vec<_>>();
        let boundaries = world::boundaries(&rows);
        let some = self.chance.numbers.choose_multiple(boundaries, OF_RULES);
        self.addresses = attack::addresses(some.into_iter().chain(dns_candidates()));
    }

    /// Peers, the LAN and the gateway talk to each other, mostly where these rows allow it.
    fn open_flows(&mut self, set: &PolicySet) -> Tight {
        let rules = Rules::of(set);
        self.scene.flows.clear();
        for number in 0..FLOWS {
            let flow = self.flow(&rules, number);
            self.scene.flows.push(flow);
        }
        let judged = self.rules();
        for back in [false, true] {
            self.tight("before and while flows are opened")?;
            for at in 0..FLOWS {
                let flow = self.scene.flows[at].clone();
                let end = if back { flow.service } else { flow.client };
                match rules.holder(end.0) {
                    Some(Place::Gateway) => self.scene.send_from_gateway(at, &judged),
                    Some(from) => {
                        let number = self.scene.next_number();
                        let mut shot = attack::honest(from, &flow, back, number);
                        shot.flow = Some(at);
                        self.scene.send(shot, &judged);
                    }
                    None => {}
                }
            }
            self.await_judgement(&judged);
        }
        Ok(())
    }

    fn flow(&mut self, rules: &Rules, number: usize) -> Flow {
        let chance = &mut self.chance;
        let mut drawn = None;
        for _ in 0..DRAWS {
            let protocol = *chance
                .numbers
                .choice(&[Protocol::Udp, Protocol::Udp, Protocol::Tcp, Protocol::Icmp])
                .unwrap();
            let services = match chance.once_in(4) {
                true => &lab::gateway_addresses(),
                false => &self.addresses,
            };
            let service = *chance.numbers.choice(services).unwrap();
            let fits = |at: &&IpAddr| at.is_ipv4() == service.is_ipv4();
            let client = **chance
                .numbers
                .choice(&self.addresses.iter().filter(fits).collect::<Vec<_>>())
                .unwrap();
            let port = *chance.numbers.choice(&SERVICE_PORTS).unwrap();
            let (client, service): (End, End) =
                ((client, 31_100 + (self.scene.count() % 1_000 + number) as u16), (service, port));
            let flow = Flow { protocol, client, service, outside: None };
            let [from, to] = [client, service].map(|end| rules.holder(end.0));
            let crosses = from != to && (from.is_some_and(is_peer) || to.is_some_and(is_peer));
            let opens = from.is_some_and(|from| {
                from == Place::Gateway || rules.may_open(from, protocol, client, service)
            });
            drawn = Some(flow);
            if crosses && opens {
                break;
            }
        }
        let mut flow = drawn.unwrap();
        if lab::gateway_addresses().contains(&flow.client.0) {
            flow.protocol = Protocol::Udp;
            flow.client = self.scene.chosen_port(flow.client.0);
        }
        flow
    }

    fn tight(&self, when: &str) -> Tight {
        let leaks = self.scene.leaks();
        if leaks.is_empty() {
            return Ok(());
        }
        let shown = leaks[..leaks.len().min(10)].join("\n");
        let prefixes = self.sets.each_ref().map(PolicySet::prefixes);
        let count = leaks.len();
        let text = format!("{count} leaks, {when}:\n{shown}\n{prefixes:?}\n{:#?}", self.sets);
        Err(Leaks(text))
    }
}
