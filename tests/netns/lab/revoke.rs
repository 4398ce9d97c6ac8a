//! A revocation under a live download, and how long it took.

use std::time::{Duration, Instant};

use super::{Client, Download, Lab, eventually};

/// How many datagrams, and with them segments that TCP sends again, must stay out after the cut.
const TRIED_IN_VAIN: u64 = 200;
/// So many that do not come are the end: on a busy machine a device may rest for a second, and pass on
/// later what waits in its queues.
const QUIET: u64 = 500;
/// Between two looks for the moment at which the peer is gone.
const LOOK: Duration = Duration::from_micros(200);

/// Two times from the commit's return.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// To the last packet that came. Zero: it came before the commit returned.
    pub last_packet: Duration,
    /// Until the kernel had acknowledged the removal: another peer may get the address now.
    pub free: Duration,
}

/// Revokes a peer that downloads from the LAN, lets it in again, and says how long the cut took. Nothing
/// that the LAN sends after it comes.
pub fn revoke_under_download(lab: &Lab, client: &Client) -> Cut {
    let download = Download::start(client, &lab.lan);
    download.await_more(50);
    let before = in_kernel(lab);
    lab.database.exec(&client.revocation());
    let committed = Instant::now();
    while in_kernel(lab) == before {
        assert!(committed.elapsed() < super::PATIENCE, "the peer is not revoked");
        std::thread::sleep(LOOK);
    }
    let free = committed.elapsed();
    let sent = download.datagrams_sent();
    assert!(!lab.kernel_peers().contains(&client.key), "the device has the peer");
    // What had been judged by then may wait in the queues of both devices, if the processors are busy.
    let last = download.await_end(QUIET);
    let packets = client.received_packets();
    download.await_sent(TRIED_IN_VAIN);
    assert_eq!(client.received_packets(), packets, "packets came after the end");
    let came = download.came();
    assert_eq!(came.last, Some(last), "data came after the end");
    assert!(came.highest() < sent, "datagram {} was sent when the peer was gone", came.highest());
    drop(download);
    let_in_again(lab, client, before);
    Cut { last_packet: last.saturating_duration_since(committed), free }
}

/// The time to the last packet, as [`revoke_under_download`]. Nothing asks the agent meanwhile, which would
/// take the same processors.
pub fn time_to_last_packet(lab: &Lab, client: &Client) -> Duration {
    let download = Download::start(client, &lab.lan);
    download.await_more(50);
    let before = in_kernel(lab);
    lab.database.exec(&client.revocation());
    let committed = Instant::now();
    let last = download.await_end(QUIET);
    assert!(in_kernel(lab) < before, "the peer is not revoked");
    drop(download);
    let_in_again(lab, client, before);
    last.saturating_duration_since(committed)
}

fn in_kernel(lab: &Lab) -> u64 {
    lab.status()["peers"]["in_kernel"].as_u64().unwrap()
}

fn let_in_again(lab: &Lab, client: &Client, peers: u64) {
    lab.database.exec(&format!(
        "update devices set status = 'active', revoked_at = null where device_fingerprint = '{}'",
        client.name
    ));
    eventually("the peer is back", || in_kernel(lab) == peers);
    client.connect();
}
