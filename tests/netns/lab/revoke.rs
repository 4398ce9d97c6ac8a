//! A revocation under a live download, and how long it took.

use std::time::{Duration, Instant};

use super::{Client, Download, Lab, eventually};

/// How many datagrams, and with them segments that TCP sends again, must stay out after the cut.
const TRIED_IN_VAIN: u64 = 200;

/// Revokes a peer that downloads from the LAN, and gives the time from the commit's return to the
/// last packet that came. Nothing comes after it, whatever the LAN still sends.
pub fn revoke_to_last_packet(lab: &Lab, client: &Client) -> Duration {
    let download = Download::start(client, &lab.lan);
    download.await_more(50);
    lab.database.exec(&client.revocation());
    let committed = Instant::now();
    eventually("the peer is gone", || !lab.kernel_peers().contains(&client.key));
    // What had left the gateway by then may still be on its way.
    download.await_sent(20);
    let (last, packets) = (download.came().last.unwrap(), client.received_packets());
    download.await_sent(TRIED_IN_VAIN);
    assert_eq!(client.received_packets(), packets, "packets came after the peer was gone");
    assert_eq!(download.came().last, Some(last), "data came after the peer was gone");
    drop(download);
    lab.database.exec(&format!(
        "update devices set status = 'active', revoked_at = null where device_fingerprint = '{}'",
        client.name
    ));
    client.connect();
    // Zero: the last packet came before the commit returned.
    last.saturating_duration_since(committed)
}
