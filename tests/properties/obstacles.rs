//! Whatever stands in the way of the whole plan, alone or beside anything else: withdrawals act, and
//! nothing passes that neither passed before nor is granted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use gatepost::model::{
    BarredBy, Block, BlockList, FixedRules, GatewayId, KeyText, LinkOwner, Mark, ObservedFirewall,
    PeerId, PolicyId, PresharedKey, Traffic, UserId, Whom,
};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::{Event, Machine, MachineOptions, Obstacle, StaleOptions, StalePolicy};
use ipnet::IpNet;

use super::probes::{Filter, Probes};
use super::rows::{Tables, allowing, id, local_without_psk_keys};
use super::trouble::{MINUTE, SECOND, key};
use super::world::{Trouble, Watch, World, away, options, quiet_tables};

const PEERS: u8 = 28;
/// From the beginning until the scheduled revocation.
const AHEAD: u32 = 10;

/// What keeps the whole plan from being made or carried out, in the order in which it can befall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hindrance {
    NoSealingKey,
    LostHistory,
    HeldRemovals,
    GatewayRow,
    WrongKey,
    SmallPool,
    PoolThatNoTunnelMayHave,
    PoolOfAnotherLink,
    AliasOfAnotherGateway,
    LinkOfAnotherGateway,
    TableThatGuardsAnotherName,
    RowMadeAnew,
    BlocksUnknown,
    FlowsThatStay,
    ProfileThatIsRefused,
    NoMemoryForAProfile,
    UnreadableKernel,
    StaleRows,
    ReadThatHangs,
    /// A step was refused, perhaps after it was carried out, and the kernel cannot be read.
    UnsettledDevice,
    /// The last two befall at the moment of the withdrawals.
    LostTable,
    TableOfAFormerVersion,
}

use Hindrance::*;

const ALL: [Hindrance; 22] = [
    NoSealingKey,
    LostHistory,
    HeldRemovals,
    GatewayRow,
    WrongKey,
    SmallPool,
    PoolThatNoTunnelMayHave,
    PoolOfAnotherLink,
    AliasOfAnotherGateway,
    LinkOfAnotherGateway,
    TableThatGuardsAnotherName,
    RowMadeAnew,
    BlocksUnknown,
    FlowsThatStay,
    ProfileThatIsRefused,
    NoMemoryForAProfile,
    UnreadableKernel,
    StaleRows,
    ReadThatHangs,
    UnsettledDevice,
    LostTable,
    TableOfAFormerVersion,
];

/// The peers of each withdrawal.
const REVOKED: u8 = 1;
const SCHEDULED: u8 = 3;
const BLOCKED: u8 = 4;
/// By a failover that the database made.
const LOST: u8 = 5;
/// Loses the policy of the laboratory.
const NARROWED: u8 = 6;
/// Is blocked before, and the device does not say that it is gone.
const UNSETTLED: u8 = 7;
/// Gets a policy at the same time.
const WIDENED: u8 = 8;
/// The devices with preshared keys.
const SEALED: [u8; 2] = [9, 10];
/// The user of each further peer may be not active.
const FIRST_HELD: u8 = 14;

/// What is asked for after the withdrawals, beside a new peer and a new grant.
fn afterwards(tables: &Tables) -> Tables {
    let mut tables = tables.clone();
    tables.peers.get_mut(&PeerId(id(2, REVOKED))).unwrap().bars = BarredBy::DEVICE_STATUS;
    tables.policies.remove(&PolicyId(id(6, 2)));
    let granted = allowing(3, "172.16.2.0/24", [WIDENED]);
    tables.policies.insert(granted.id, granted);
    let mut new = tables.peers[&PeerId(id(2, PEERS))].clone();
    (new.id, new.public_key) = (PeerId(id(2, 29)), KeyText::Key(key(29)));
    (new.user_id, new.bars) = (UserId(id(4, 29)), BarredBy::default());
    new.assigned_ip = "10.64.0.30/32".parse().unwrap();
    tables.peers.insert(new.id, new);
    tables
}

/// A gateway with everything that can be withdrawn, on which these things have befallen.
struct Case {
    world: World,
    hindrances: BTreeSet<Hindrance>,
}

impl Case {
    fn new(hindrances: &[Hindrance]) -> Self {
        let hindrances: BTreeSet<_> = hindrances.iter().copied().collect();
        let mut tables = quiet_tables(PEERS);
        for policy in
            [allowing(1, "172.16.0.0/24", 1..=PEERS), allowing(2, "172.16.1.0/24", [NARROWED])]
        {
            tables.policies.insert(policy.id, policy);
        }
        let stale = StaleOptions { policy: StalePolicy::DenyNew, after: MINUTE };
        let options = MachineOptions { stale, ..options() };
        let mut world = World::with(options, tables, ModelKernel::default());
        let revoked_at = world.database_now() + AHEAD * MINUTE;
        world.tables.peers.get_mut(&PeerId(id(2, SCHEDULED))).unwrap().revoked_at =
            Some(revoked_at);
        world.tell(Event::Tick);
        world.pass_time(SECOND);
        assert!(world.kernel_equals_database());
        let mut case = Self { world, hindrances };
        for hindrance in case.hindrances.clone() {
            case.befall(hindrance);
        }
        case
    }

    fn befall(&mut self, hindrance: Hindrance) {
        let world = &mut self.world;
        let looked = world.observations;
        let trouble = match hindrance {
            GatewayRow => Some(Trouble::GatewayRow),
            WrongKey => Some(Trouble::WrongKey),
            SmallPool => Some(Trouble::SmallPool),
            RowMadeAnew => Some(Trouble::NewRow),
            FlowsThatStay => Some(Trouble::Flows),
            ReadThatHangs => Some(Trouble::HangingReads),
            UnreadableKernel => Some(Trouble::Observations),
            _ => None,
        };
        world.troubles.extend(trouble);
        match hindrance {
            NoSealingKey => self.lose_the_sealing_keys(),
            LostHistory => self.lose_history(),
            HeldRemovals => {
                world.deactivate(FIRST_HELD..=PEERS);
                world.tell(Event::Notified);
            }
            GatewayRow | WrongKey | SmallPool | RowMadeAnew => world.tell(Event::Resync),
            PoolThatNoTunnelMayHave => {
                world.pool = Some("169.254.0.0/16".parse().unwrap());
                world.tell(Event::Resync);
            }
            PoolOfAnotherLink => {
                let network = "10.64.0.0/16".parse().unwrap();
                world.kernel.state.networks.insert(network, "eth1".into());
                world.tell(Event::KernelChanged { why: "an address came".into() });
            }
            AliasOfAnotherGateway | LinkOfAnotherGateway => {
                let link = world.kernel.state.interface.as_mut().unwrap();
                link.owner = LinkOwner::Ours(GatewayId(id(9, 9)));
                if hindrance == LinkOfAnotherGateway {
                    link.name = "old0".into();
                }
                world.tell(Event::KernelChanged { why: "its alias was changed".into() });
            }
            TableThatGuardsAnotherName => {
                let link = world.kernel.state.interface.as_mut().unwrap();
                link.name = "old0".into();
                self.replace_rules(|table| {
                    let mut base = table.base().unwrap().clone();
                    base.interface = "old0".parse().unwrap();
                    FixedRules::Ours(base)
                });
            }
            BlocksUnknown => {
                world.block_list = Arc::new(BlockList::unreadable("a torn file".into()));
                world.tell(Event::Blocks(world.block_list.clone()));
            }
            ProfileThatIsRefused | NoMemoryForAProfile => {
                let wanted = afterwards(&world.tables).build();
                let address: IpNet = format!("10.64.0.{}/32", WIDENED + 1).parse().unwrap();
                let profile = wanted.firewall().assignments[&address].clone();
                let kernel = &mut world.kernel;
                match hindrance {
                    NoMemoryForAProfile => kernel.too_large.insert(profile),
                    _ => kernel.unloadable.insert(profile),
                };
            }
            UnreadableKernel => world.tell(Event::KernelChanged { why: "somebody".into() }),
            StaleRows => {
                let shaken = Traffic {
                    last_handshake: Some(world.now().wall + 2 * MINUTE),
                    ..Traffic::default()
                };
                world.traffic = (1..=PEERS).map(|number| (key(number), shaken)).collect();
                world.database_up = false;
                world.tell(Event::Disconnected { error: away() });
                world.pass_time(2 * MINUTE);
            }
            ReadThatHangs => world.tell(Event::Notified),
            UnsettledDevice => {
                world.troubles.insert(Trouble::Unsettled(key(UNSETTLED)));
                self.block(UNSETTLED);
            }
            FlowsThatStay | LostTable | TableOfAFormerVersion => {}
        }
        self.world.pass_time(2 * SECOND);
        if hindrance == UnsettledDevice {
            assert!(self.world.troubles.contains(&Trouble::Observations), "no step was refused");
        }
        if hindrance == UnreadableKernel {
            assert!(self.world.observations > looked, "no reading failed");
        }
    }

    fn block(&mut self, number: u8) {
        let mut blocks = BlockList::clone(&self.world.block_list);
        let name = format!("user-{number}").into();
        blocks
            .add(Whom::User(UserId(id(4, number))), Block { name, since: SystemTime::UNIX_EPOCH });
        self.world.block_list = Arc::new(blocks);
        self.world.tell(Event::Blocks(self.world.block_list.clone()));
    }

    fn lose_the_sealing_keys(&mut self) {
        let world = &mut self.world;
        for number in SEALED {
            let row = world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
            row.preshared_key = Some("gp1.k1.AAAA".into());
            let peer = world.kernel.state.peers.get_mut(&key(number)).unwrap();
            peer.preshared_key = PresharedKey::from_bytes([9; 32]).ok();
        }
        let local = local_without_psk_keys();
        world.local = local.clone();
        let stale = StaleOptions { policy: StalePolicy::DenyNew, after: MINUTE };
        world.machine = Machine::new(MachineOptions { local, stale, ..options() }, world.now());
        (world.read, world.announced) = (None, false);
        world.tell(Event::Tick);
    }

    /// A revocation is carried out, and the database forgets it.
    fn lose_history(&mut self) {
        let world = &mut self.world;
        let former = world.tables.clone();
        world.revoke([LOST]);
        let ids = Some(vec![id(3, LOST)]);
        let mark = Mark { xid: 1, kind: "device".into(), ids };
        world.marks.push((mark, world.database_now()));
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        (world.tables, world.epoch) = (former, 1);
        world.marks.clear();
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        assert!(!world.kernel.state.peers.contains_key(&key(LOST)));
    }

    fn replace_rules(&mut self, rules: impl FnOnce(&ObservedFirewall) -> FixedRules) {
        let Some(table) = &self.world.kernel.state.firewall else { return };
        let (profiles, places) = (table.profiles().clone(), table.assignments().clone());
        let replaced = ObservedFirewall::new(rules(table), profiles, places);
        self.world.kernel.state.firewall = Some(replaced);
        self.world.tell(Event::KernelChanged { why: "the table was replaced".into() });
    }

    fn has(&self, hindrance: Hindrance) -> bool {
        self.hindrances.contains(&hindrance)
    }

    /// Whether the agent can learn what the rows say now.
    fn sees_rows(&self) -> bool {
        !self.has(StaleRows) && !self.has(ReadThatHangs)
    }

    /// Whether packets of this peer pass, of which the destination is such.
    fn passes(&self, number: u8, to: impl Fn(IpAddr) -> bool) -> bool {
        let (state, watch) = (&self.world.kernel.state, self.world.watch.as_ref().unwrap());
        let passing = watch.probes.passing(state, &Filter::of_link(state));
        passing.iter().any(|packet| packet.sender == key(number) && to(packet.destination))
    }

    /// Carries out what is asked for, and lets time go by, until this is so. Returns how many plans
    /// were applied until then; `None`: it does not become so within a few seconds.
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Option<usize> {
        let (start, plans) = (self.world.elapsed, self.world.plans);
        while !done(self) {
            if self.world.elapsed > start + 5 * SECOND {
                return None;
            }
            match self.world.queue.pop_front() {
                Some(action) => self.world.carry_out(action),
                None => {
                    self.world.elapsed += SECOND / 100;
                    self.world.tell(Event::Tick);
                }
            }
        }
        Some(self.world.plans - plans)
    }

    /// What goes wrong when something is withdrawn now.
    fn faults(mut self) -> Vec<String> {
        let wanted = afterwards(&self.world.tables);
        let mut after = wanted.build();
        if self.has(LostHistory) {
            after.keep_out([key(LOST)].into());
        }
        let before = self.world.tables.build();
        let probes = Probes::of([&before, &after]);
        let state = &self.world.kernel.state;
        let mut allowed = probes.passing(state, &Filter::of_link(state));
        let obstacle = self.world.machine.view().obstacle();
        let only_withdraws = match obstacle {
            // With the table goes what the plan of the whole minded, or what the former rows denied on a
            // link that the table is loaded for anew.
            Some(Obstacle::Plan(_)) if self.has(LostTable) => {
                !self.has(TableThatGuardsAnotherName) && !self.has(LinkOfAnotherGateway)
            }
            Some(Obstacle::Plan(_)) => true,
            Some(Obstacle::Build(_) | Obstacle::Blocks(_)) => true,
            _ => false,
        };
        if !only_withdraws {
            allowed.extend(probes.allowed_by(&after));
        }
        self.world.watch = Some(Watch { probes, allowed, is_judged: false, leaks: Vec::new() });
        if self.has(TableOfAFormerVersion) {
            let name = self.world.kernel.state.interface.as_ref().unwrap().name.parse().unwrap();
            self.replace_rules(|_| FixedRules::Other(name));
        }
        if self.has(LostTable) {
            self.world.kernel.state.firewall = None;
            self.world.tell(Event::KernelChanged { why: "the table was deleted".into() });
        }
        let is_judged = matches!(Filter::of_link(&self.world.kernel.state), Filter::Table(_));
        self.world.watch.as_mut().unwrap().is_judged = is_judged;
        let mut faults = Vec::new();
        let mut expect =
            |case: &mut Self, what: &str, done: &dyn Fn(&Self) -> bool| match case.until(done) {
                None => faults.push(format!("{what} waits")),
                Some(plans) if plans > 3 => faults.push(format!("{what} takes {plans} plans")),
                Some(_) => {}
            };
        if self.sees_rows() {
            self.world.tables = wanted;
            self.world.tell(Event::Notified);
            expect(&mut self, "the revocation", &|case| !case.passes(REVOKED, |_| true));
            let laboratory: IpNet = "172.16.1.0/24".parse().unwrap();
            let is_narrow = move |case: &Self| {
                !case.passes(NARROWED, |destination| laboratory.contains(&destination))
            };
            expect(&mut self, "the narrowed policy", &is_narrow);
        }
        self.block(BLOCKED);
        expect(&mut self, "the block", &|case| !case.passes(BLOCKED, |_| true));
        let until_then = AHEAD * MINUTE - (self.world.elapsed - SECOND);
        self.world.pass_time(until_then.saturating_sub(SECOND));
        assert!(self.world.elapsed < AHEAD * MINUTE + SECOND, "its time has not come");
        expect(&mut self, "the scheduled revocation", &|case| {
            let has_come = case.world.elapsed >= AHEAD * MINUTE;
            has_come && !case.passes(SCHEDULED, |_| true)
        });
        self.world.pass_time(MINUTE);
        let unsettled = self.has(UnsettledDevice).then_some(UNSETTLED);
        let gone = [SCHEDULED, BLOCKED].into_iter().chain(unsettled);
        let back = gone.filter(|number| self.passes(*number, |_| true));
        faults.extend(back.map(|number| format!("{number} is back")));
        let watch = self.world.watch.take().unwrap();
        faults.extend(watch.leaks.into_iter().take(1));
        faults
    }
}

fn assert_sound(cases: impl IntoIterator<Item = Vec<Hindrance>>) {
    let wrong = cases.into_iter().filter_map(|hindrances| {
        let faults = Case::new(&hindrances).faults();
        (!faults.is_empty()).then(|| format!("{hindrances:?}: {}", faults.join("; ")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn nothing_holds_up_a_withdrawal_or_adds_what_is_not_granted() {
    assert_sound(ALL.map(|hindrance| vec![hindrance]));
}

#[test]
fn no_two_things_together_hold_up_a_withdrawal_or_add_what_is_not_granted() {
    let pairs = ALL.into_iter().flat_map(|one| {
        let others = ALL.into_iter().filter(move |other| one < *other);
        others.map(move |other| vec![one, other])
    });
    // No read hangs on a connection that is gone, a table is either lost or of a former version, and
    // what befalls a table shows only where the kernel can be read.
    let apart = [
        vec![StaleRows, ReadThatHangs],
        vec![LostTable, TableOfAFormerVersion],
        vec![UnreadableKernel, LostTable],
        vec![UnreadableKernel, TableOfAFormerVersion],
        vec![UnsettledDevice, LostTable],
        vec![UnsettledDevice, TableOfAFormerVersion],
    ];
    assert_sound(pairs.filter(|pair| !apart.contains(pair)));
}
