//! Looks for hindrances while the agent runs: at the start, when the kernel announces a change, on a resync,
//! and each minute.

use std::time::Duration;

use gatepost::reconcile::status::Status;
use tokio::sync::watch;

use crate::command::check;
use crate::config::Config;
use crate::hindrances::Hindrances;

/// Between two looks that nothing asked for.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// A host that changes its firewall all the time causes no more looks than this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// Looks for them until it is dropped. Before there is a link, no peer sends packets.
pub async fn for_hindrances(
    config: Config,
    hindrances: Hindrances,
    mut status: watch::Receiver<Status>,
) {
    if status.wait_for(|status| status.interface.listen_port.is_some()).await.is_err() {
        return;
    }
    loop {
        let interface = status.borrow().interface.clone();
        let config = config.clone();
        let look = move || check::hindrances(&config, interface.listen_port, &interface.addresses);
        if let Ok(found) = tokio::task::spawn_blocking(look).await {
            say(hindrances.replace(found));
        }
        tokio::time::sleep(LOOK_AT_MOST_EVERY).await;
        let _ = tokio::time::timeout(LOOK_EVERY, hindrances.until_changed()).await;
    }
}

fn say((news, is_over): (Vec<String>, bool)) {
    for hindrance in news {
        tracing::warn!(
            message_id = "4f5581149463451185c7e9d7cf76e54c",
            hindrance,
            "peers may lose packets on this host: {hindrance}"
        );
    }
    if is_over {
        tracing::info!(
            message_id = "e95bc44355e4ed4525087ff2a93f8e64",
            "over: no firewall of another program drops packets of peers, and forwarding is on"
        );
    }
}
