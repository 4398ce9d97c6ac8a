//! Denied packets: read from the kernel's log, named by the loop, told by the journal and
//! `gatepost denied`.
//!
//! ```text
//! nflog group -- DenyLog --> packets --- loop: who, why ---> journal (few lines), Recent
//! ```
//!
//! A flood costs little: the firewall's rules log few packets, the reader takes a few dozen of them ten
//! times a second and leaves the rest, and the loop names them by look-ups.

mod recent;
mod said;

use std::time::{Duration, Instant};

use gatepost::dataplane::DenyLog;
use gatepost::model::{Denial, NflogGroup};
use gatepost::reconcile::Ask;
use gatepost::reconcile::status::DeniedPacket;
use tokio::sync::{mpsc, oneshot};

use self::said::{Said, Say};
use crate::output::count;

pub use recent::Recent;

/// Between two readings of what was logged.
const READ_EVERY: Duration = Duration::from_millis(100);
/// At most so many packets of a reading are named.
const NAMED_AT_ONCE: usize = 64;
/// A sum is said no later than this after it is due.
const SUM_EVERY: Duration = Duration::from_secs(30);
/// Until a group that cannot be read is tried again, unless a reload asks for it.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Reads the group while the firewall logs denied packets, until it is dropped.
pub async fn follow(group: NflogGroup, recent: Recent, asks: mpsc::Sender<Ask>) {
    let mut said = Said::new(Instant::now());
    loop {
        recent.until_logs(true).await;
        let reading = async {
            let why = read(group, &recent, &asks, &mut said).await;
            report(&recent, why);
            let _ = tokio::time::timeout(RETRY_AFTER, recent.until_reload()).await;
        };
        tokio::select! {
            () = reading => {}
            () = recent.until_logs(false) => recent.set_trouble(None),
        }
    }
}

/// Reads until that fails, and says why.
async fn read(
    group: NflogGroup,
    recent: &Recent,
    asks: &mpsc::Sender<Ask>,
    said: &mut Said,
) -> String {
    let mut log = match DenyLog::open(group) {
        Ok(log) => log,
        Err(error) => return error.to_string(),
    };
    if recent.trouble().is_some() {
        recent.set_trouble(None);
        tracing::info!(group = group.0, "denied packets are read again from nflog group {group}");
    }
    loop {
        // What was logged is summed up although nothing more may come.
        let mut denials = match tokio::time::timeout(SUM_EVERY, log.next()).await {
            Ok(Ok(denials)) => denials,
            Ok(Err(error)) => return format!("nflog group {group} can no longer be read: {error}"),
            Err(_) => Vec::new(),
        };
        denials.truncate(NAMED_AT_ONCE);
        if !denials.is_empty() {
            for packet in named(denials, asks).await {
                say(said, &packet, Instant::now());
                recent.push(packet);
            }
        }
        for (route, more) in said.past(Instant::now()) {
            let packets = count(more, "more packet");
            tracing::info!(
                route,
                more,
                "denied: {route}: {packets} in the hour since the last such line"
            );
        }
        if let Some(untold) = said.untold(Instant::now()) {
            let packets = count(untold, "more packet");
            tracing::info!(untold, "denied: {packets} were logged: see `gatepost denied`");
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

/// Has the loop name them. Nothing is read meanwhile, and what comes beyond the queue is lost.
async fn named(denials: Vec<Denial>, asks: &mpsc::Sender<Ask>) -> Vec<DeniedPacket> {
    let (answer, answered) = oneshot::channel();
    // A loop that has ended answers nothing.
    let _ = asks.send(Ask::Denied { denials, answer }).await;
    answered.await.unwrap_or_default()
}

fn say(said: &mut Said, packet: &DeniedPacket, now: Instant) {
    let route = packet.route();
    let Say::Packet { more } = said.packet(&route, now) else { return };
    let more = match more {
        0 => String::new(),
        more => format!(" ({} since the last such line)", count(more, "more packet")),
    };
    tracing::info!(
        message_id = "eca235e9efbc409882b32ef225c0c64f",
        user = packet.from.user,
        device = packet.from.device,
        source = %packet.from.address,
        destination = %packet.to.address,
        service = packet.service,
        policy = packet.policy,
        "denied: {}{more}",
        packet.line()
    );
}

/// Says once why nothing is read.
fn report(recent: &Recent, why: String) {
    let why = format!("denied packets are not shown: {why}");
    if recent.trouble().as_ref() != Some(&why) {
        tracing::warn!(message_id = "6c8253b65dd74cffa6538a73df3a4160", "{why}");
        recent.set_trouble(Some(why));
    }
}
