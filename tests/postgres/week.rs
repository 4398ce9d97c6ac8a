//! A team's week: migrations as an ORM makes them, restores, restarts and failovers, while a portal writes all
//! the time. The same happens to a twin database without Gatepost.
//!
//! Two things are asserted for each step. No statement of the portal or of the team fails unless it fails
//! in the twin as well. Within 70 s the kernel holds what the database says, or the status says why not.

mod deeds;
mod events;
mod servers;
mod writers;

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::model::ObservedState;
use gatepost::plan::guard::MaxRemoved;
use gatepost::reconcile::status::Status;
use gatepost::store::{ConnectOptions, Store};
use tokio::time::{Instant, timeout_at};

use self::events::{Event, Step, Then};
use self::servers::Servers;
use self::writers::Portal;
use crate::agent::{Memory, options_with};
use crate::fault::row;
use crate::running::Running;
use crate::world::connect;

/// Within which the kernel follows, or the status says why not.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(70);

/// `guard.lost_history`
const LOST_HISTORY: Duration = Duration::from_secs(2);

/// Longer at night: `GATEPOST_TEST_WEEKS=5`.
fn weeks() -> usize {
    std::env::var("GATEPOST_TEST_WEEKS").map_or(1, |weeks| weeks.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teams_week_fails_no_writer_and_the_kernel_follows() {
    let servers = Servers::start().await;
    let host = Memory::default();
    let store = Store::connect(&ConnectOptions::new(servers.url("agent", servers::OURS))).unwrap();
    let mut options = options_with(store, host.clone());
    options.machine.timing.heartbeat = Duration::from_secs(1);
    options.machine.lost_history = LOST_HISTORY;
    // A restore may put back more than half of so few peers. An emptied table is held all the same.
    options.machine.max_removed = MaxRemoved::Percent(100);
    let agent = Running::start(options);
    let portal = Portal::start(&servers);
    let mut week = Week { servers, host, agent, portal };
    for _ in 0..weeks() {
        for event in events::OF_THE_WEEK {
            week.lives_through(event).await;
        }
    }
    for event in events::AT_ITS_END {
        week.lives_through(event).await;
    }
    week.portal.stop().await;
    week.agent.stop().await;
    week.servers.had_no_deadlock_with_an_agent();
}

struct Week {
    servers: Servers,
    host: Memory,
    agent: Running,
    portal: Portal,
}

impl Week {
    async fn lives_through(&mut self, event: &Event) {
        self.portal.begin(event.name);
        let mut longest = Duration::ZERO;
        let mut quiet = None;
        for step in event.steps {
            if matches!(step.then, Then::Holds) {
                quiet = Some(self.portal.pause().await);
            }
            self.servers.carry_out(&step.deed).await;
            let done_at = Instant::now();
            if !matches!(step.then, Then::Holds) {
                drop(quiet.take());
                self.portal.goes_on(event.name).await;
            }
            self.follows(event, step, done_at).await;
            longest = longest.max(done_at.elapsed());
        }
        let failed = self.portal.failed_here_alone(event.tolerates);
        assert_eq!(failed, BTreeSet::new(), "{}: fails only with Gatepost", event.name);
        println!("week: {} followed within {longest:.1?}", event.name);
        if let Some(expected) = event.expected {
            row(event.name, expected, Some(longest));
        }
    }

    /// Waits until the agent has followed a step, or says why it does not.
    async fn follows(&mut self, event: &Event, step: &Step, done_at: Instant) {
        let deadline = done_at + FOLLOWED_WITHIN;
        let said = |status: &Status, words: &str| {
            let why = status.state.why().unwrap_or_default();
            why.contains(words) || status.warnings.iter().any(|it| it.contains(words))
        };
        let holds = match step.then {
            Then::Equal => {
                // What is compared must stand still.
                let _quiet = self.portal.pause().await;
                self.is_equal_before(deadline).await
            }
            Then::Says(words) => {
                let waits = self.agent.status.wait_for(|status| said(status, words));
                timeout_at(deadline, waits).await.is_ok()
            }
            Then::Holds => {
                let waits = self.agent.status.wait_for(|status| status.held_back.is_some());
                timeout_at(deadline, waits).await.is_ok()
            }
        };
        let status = self.agent.status.borrow().clone();
        assert!(holds, "{}, {:?}: not {:?} in time: {status:?}", event.name, step.deed, step.then);
    }

    async fn is_equal_before(&mut self, deadline: Instant) -> bool {
        let admitted = self.admitted().await;
        assert!(admitted.len() > 5, "{admitted:?}");
        loop {
            let is_ready = self.agent.status.borrow_and_update().state.is_ready();
            if is_ready && in_kernel(&self.host.state()) == admitted {
                return true;
            }
            if timeout_at(deadline, self.agent.status.changed()).await.is_err() {
                let kernel = in_kernel(&self.host.state());
                println!("only in the kernel: {:?}", &kernel - &admitted);
                println!("only in the rows: {:?}", &admitted - &kernel);
                return false;
            }
        }
    }

    /// Whom the rows admit: key, address, and what policies grant. Asks the tables alone.
    async fn admitted(&self) -> BTreeSet<String> {
        const ADMITTED: &str = "
            select concat_ws(' ', p.public_key, host(p.assigned_ip), (
                select string_agg(distinct x.destination::text, ' ' order by x.destination::text)
                from public.policies o
                join public.policy_targets t on t.policy_id = o.id
                join public.policy_destinations x on x.policy_id = o.id
                where o.is_active and o.deleted_at is null and (
                    t.target_type = 'device' and t.target_id = d.id
                    or t.target_type = 'user' and t.target_id = d.user_id
                    or t.target_type = 'group' and exists (
                        select
                        from public.group_memberships m
                        join public.groups g on g.id = m.group_id and g.deleted_at is null
                        where m.group_id = t.target_id and m.user_id = d.user_id
                    )
                )
            ))
            from public.wireguard_peers p
            join public.devices d on d.id = p.device_id
            join public.users u on u.id = d.user_id
            where p.deleted_at is null and d.deleted_at is null and u.deleted_at is null
                and d.status = 'active' and d.revoked_at is null and u.is_active";
        let admin = connect(&self.servers.url("postgres", servers::OURS)).await;
        let rows = admin.query(ADMITTED, &[]).await.unwrap_or_default();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// What [`Week::admitted`] says, as the kernel has it.
fn in_kernel(state: &ObservedState) -> BTreeSet<String> {
    let firewall = state.firewall.as_ref();
    let line = |(key, peer): (&gatepost::model::PublicKey, &gatepost::model::Peer)| {
        let mut words = vec![key.to_string()];
        for prefix in peer.allowed_ips.iter() {
            words.push(prefix.addr().to_string());
            let profile = firewall.and_then(|firewall| firewall.profile_of(&prefix));
            let mut granted: Vec<String> = profile
                .map(|it| it.allow4.prefixes().map(|prefix| prefix.to_string()).collect())
                .unwrap_or_default();
            granted.sort();
            words.extend(granted);
        }
        words.join(" ")
    };
    state.peers.iter().map(line).collect()
}
