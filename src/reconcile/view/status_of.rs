//! The status as of now. Every figure comes from the last proof or reading; none is assumed.

use std::time::SystemTime;

use super::View;
use super::status::{
    BlockStatus, DatabaseStatus, FirewallStatus, GatewayStatus, InterfaceStatus, LagsStatus,
    PassStatus, PeerCounts, ReportsStatus, State, Status, SyncStatus, Timestamp, TrafficStatus,
};
use crate::model::Tag;
use crate::plan::{HeldCause, HeldPeer, gate, networks_within};
use crate::reconcile::bell::Silence;
use crate::reconcile::clock::millis;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::note::{
    because, history_lost, led_by, not_announced, polls_for_want_of_a_session, refused,
};
use crate::reconcile::row_status::LISTED_PEERS;

impl View<'_> {
    /// The status. What the machine cannot know (versions, why this mode) is left for the shell.
    #[must_use]
    pub fn status(&self) -> Status {
        let gateway = self.rows.desired.map(|desired| desired.gateway());
        let is_connected = self.source.mode.is_some();
        Status {
            state: self.state(),
            gateway: GatewayStatus {
                name: gateway.map(|gateway| gateway.name.clone()).unwrap_or_default(),
                id: gateway.map(|gateway| gateway.id),
            },
            interface: self.interface_status(),
            firewall: self.firewall_status(),
            sync: self.sync_status(),
            database: DatabaseStatus {
                connected: is_connected,
                unavailable: self
                    .source
                    .error
                    .map(DatabaseError::unavailable)
                    .filter(|_| !is_connected),
                since: Some(Timestamp(self.source.since)),
                last_error: self.source.error.map(ToString::to_string),
                schema_version: None,
            },
            peers: self.peer_counts(),
            traffic: TrafficStatus::from(self.mirror.volume),
            quarantined: self.rows.status.quarantined.clone(),
            quarantined_policies: self.rows.status.quarantined_policies.clone(),
            warnings: self.warnings(),
            held_back: self.hold.held_back,
            held: self.held_peers().take(LISTED_PEERS).collect(),
            blocked: self.rows.block_list.iter().map(BlockStatus::from).collect(),
            reports: ReportsStatus {
                refused_since: self.outbox.refusals.iter().map(|it| it.since).min().map(Timestamp),
                other_hosts: self.outbox.hosts.others.clone(),
                led_by: self.outbox.hosts.leader.clone(),
                refused_by: self.outbox.refusals.iter().map(|it| it.why.clone()).collect(),
            },
            ..Status::default()
        }
    }

    fn state(&self) -> State {
        if self.rows.desired.is_some_and(|desired| !desired.gateway().active) {
            return State::NotReady { why: "the gateway's row is not active".into() };
        }
        if let Some(leader) = &self.outbox.hosts.leader {
            return State::NotReady { why: led_by(leader) };
        }
        if self.rows.is_stale {
            return State::NotReady { why: "no usable rows for longer than stale.after".into() };
        }
        let obstacle = self.obstacle().map(|obstacle| obstacle.to_string());
        if let Some(why) = obstacle.or_else(|| self.waits()) {
            return State::NotReady { why };
        }
        if let Some(misfit) = self.source.misfit {
            return State::NotReady { why: misfit.to_string() };
        }
        if self.rows.all.are_missing() {
            return State::NotReady { why: no_rows(self.source.error) };
        }
        if !self.proof.is_current {
            return State::Starting;
        }
        match (self.source.mode, self.source.error) {
            (Some(_), _) if !self.source.unannounced.is_empty() => {
                State::Degraded { why: not_announced(self.source.unannounced) }
            }
            (_, Some(error)) => State::Degraded { why: format!("{}: {error}", error.state()) },
            (Some(_), None) => match self.outbox.refusals {
                [] => State::Ready,
                [refusal, ..] => State::Degraded { why: refused(refusal) },
            },
            (None, None) => State::Degraded { why: "the database is not connected yet".into() },
        }
    }

    fn interface_status(&self) -> InterfaceStatus {
        let observed = self.mirror.observed.as_ref();
        let interface = observed.and_then(|observed| observed.interface.as_ref());
        InterfaceStatus {
            name: self.rows.local.interface.to_string(),
            backend: self.mirror.backend,
            public_key: interface.and_then(|interface| interface.public_key),
            listen_port: interface.map(|interface| interface.listen_port),
            addresses: interface.map_or_else(Vec::new, |it| it.addresses.keys().copied().collect()),
        }
    }

    fn firewall_status(&self) -> FirewallStatus {
        let mut status =
            FirewallStatus { table_owned: self.mirror.table_owned, ..FirewallStatus::default() };
        let Some(observed) = &self.mirror.observed else { return status };
        let Some(desired) = self.rows.desired else {
            // No rows say what the gate should be: it is as an earlier run left it.
            status.gate = observed.routing.rules.iter().any(|rule| rule.tag == Tag::Ours);
            return status;
        };
        status.gate = gate::is_in_force(desired, observed);
        status.gate_why = match desired.gate() {
            None => Some("firewall.fail_closed is false".to_owned()),
            Some(wanted) => {
                let obstacle = gate::obstacle(&observed.routing, wanted.mark);
                obstacle.map(|obstacle| obstacle.to_string())
            }
        };
        status
    }

    fn sync_status(&self) -> SyncStatus {
        let (last, totals) = (self.work.passes.last, self.totals());
        SyncStatus {
            mode: self.source.mode,
            mode_why: self.why_no_hints().unwrap_or_default(),
            poll_interval_ms: self.source.poll_interval.map(millis),
            last_sync_at: self.proof.last.map(Timestamp),
            lag_ms: last.and_then(|pass| pass.lag).map(millis),
            last_pass: last.map(|pass| PassStatus {
                at: Timestamp(pass.at),
                duration_ms: millis(pass.took),
                steps: pass.steps as u64,
                refused: pass.refused as u64,
            }),
            passes: totals.passes,
            drift_repaired: totals.drift_repairs,
            notify_missed: totals.notify_missed,
            refused_steps: totals.refused_steps,
            flows_cut: totals.flows_cut,
            lags: LagsStatus::from(self.work.passes.totals.lags),
        }
    }

    /// Why this gateway polls although it is to follow a bell.
    fn why_no_hints(&self) -> Option<String> {
        if !self.source.follows_bell {
            return None;
        }
        match (self.source.mute_since, self.source.silence) {
            (Some(since), _) => Some(bell_is_mute(since)),
            (None, Some(silence)) => Some(bell_is_silent(silence)),
            (None, None) if self.source.hears_bell => None,
            (None, None) => Some("no bell has been heard yet".to_owned()),
        }
    }

    fn peer_counts(&self) -> PeerCounts {
        let observed = self.mirror.observed.as_ref();
        let in_kernel = observed.map_or(0, |observed| observed.peers.len()) as u64;
        let connected = self.mirror.connected as u64;
        let held = self.hold.staying.peers().len() as u64;
        let read_at = self.mirror.read_at.map(Timestamp);
        let Some(desired) = self.rows.desired else {
            return PeerCounts { in_kernel, connected, held, read_at, ..PeerCounts::default() };
        };
        let (wanted, quarantined) = (desired.peers().len(), desired.quarantined_count());
        // Rows that cannot be used count as quarantined already.
        let is_named = |held: &&HeldPeer| matches!(held.cause(), HeldCause::Barred(_));
        let held_rows = self.hold.staying.peers().values().filter(is_named).count();
        let admitted = wanted + quarantined + held_rows;
        PeerCounts {
            desired: wanted as u64,
            in_kernel,
            connected,
            held,
            ineligible: desired.row_count().saturating_sub(admitted) as u64,
            quarantined: quarantined as u64,
            read_at,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.rows.status.warnings.clone();
        let blocked = self.work.blocked_routes.iter();
        warnings.extend(blocked.map(|(prefix, why)| format!("no route leads to {prefix}: {why}")));
        if let (Some(desired), Some(observed)) = (self.rows.desired, &self.mirror.observed) {
            let within = networks_within(desired, observed);
            warnings.extend(within.map(|(network, link, pool)| {
                format!("{network} on link {link} overlaps {pool}; peers with addresses in {network} are unreachable")
            }));
        }
        if !self.source.unannounced.is_empty() {
            warnings.push(not_announced(self.source.unannounced));
        }
        warnings.extend(self.source.no_session.map(polls_for_want_of_a_session));
        if let Some(silence) = self.source.silence {
            let silent = bell_is_silent(silence);
            warnings.push(format!("{silent}: start `gatepost bell`, or see why it is not heard"));
        }
        if let Some(since) = self.source.mute_since {
            warnings.push(format!(
                "{}: compare this gateway's id with its user's permissions at the broker",
                bell_is_mute(since)
            ));
        }
        if let Some(until) = self.rows.lost.values().map(|lost| lost.until).max() {
            let names: Vec<String> =
                self.rows.lost.values().map(|lost| lost.name.clone()).collect();
            let until = humantime::format_rfc3339_seconds(until);
            warnings.push(format!(
                "{}. They stay out until {until} at the latest; `gatepost confirm` lets them in",
                history_lost(&names)
            ));
        }
        let dropped = self.outbox.dropped_audit_entries;
        warnings.extend(self.outbox.refusals.iter().map(refused));
        warnings.extend(self.outbox.hosts.others.iter().map(|host| {
            format!(
                "this gateway also has host {host}: gateways.last_sync_at is the oldest proof of all its \
                 hosts. If that host is gone, run `gatepost host forget`"
            )
        }));
        let lost = self.outbox.lost_reports;
        if dropped > 0 {
            warnings.push(format!(
                "audit entries dropped while the database was unreachable: {dropped}"
            ));
        }
        if lost > 0 {
            warnings.push(format!(
                "the database refused {lost} reports, which are lost: the journal says why"
            ));
        }
        warnings
    }
}

fn bell_is_silent(silence: Silence<'_>) -> String {
    let since = humantime::format_rfc3339_seconds(silence.since);
    format!("no bell has been heard since {since}{}", because(silence.trouble))
}

fn bell_is_mute(since: SystemTime) -> String {
    let since = humantime::format_rfc3339_seconds(since);
    format!("a bell is running, but no hints have arrived since {since}")
}

/// Why a host that never read any rows grants nothing new.
fn no_rows(error: Option<&DatabaseError>) -> String {
    let kept = "there are no last good rows, so nothing new is granted";
    match error {
        Some(error) => format!("{}, and {kept}: {error}", error.state()),
        None => format!("the database has not answered yet, and {kept}"),
    }
}
