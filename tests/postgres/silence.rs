//! A database that silently stops answering: packets are dropped, or the server is stopped.

use std::time::{Duration, Instant};

use gatepost::store::{ConnectOptions, Read, Store, StoreError, Tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::fault::row;
use crate::netns::Netns;
use crate::postgres::Cluster;
use crate::world::World;

/// Within which silence must be noticed.
const NOTICED: Duration = Duration::from_secs(15);

fn on_this_thread(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

/// Also by a connection that only waits for notifications, and has nothing to send.
#[test]
fn dropped_packets_are_noticed_within_fifteen_seconds() {
    let netns = Netns::new("gps");
    netns.enter(|| on_this_thread(dropped_packets_are_noticed(&netns)));
}

async fn dropped_packets_are_noticed(netns: &Netns) {
    let world = World::alone().await;
    let cluster = world.cluster();
    let url = cluster.tcp_url(&world.role, &world.database).replace("localhost", "127.0.0.1");
    let require_auth = Some("none".parse().unwrap());
    let options = ConnectOptions { tls: Tls::Disable, require_auth, ..ConnectOptions::new(url) };
    let store = Store::connect(&options).unwrap();
    let hello = store.hello().await.unwrap();
    let mut listener = store.listen(&hello).await.unwrap();
    let cursor = store.snapshot().await.unwrap().1;
    netns.exec("nft add table inet silence");
    netns.exec("nft add chain inet silence drops { type filter hook input priority 0 ; }");
    netns.exec("nft add rule inet silence drops meta l4proto tcp counter drop");
    let start = Instant::now();
    let listens = async {
        let error =
            timeout(NOTICED, listener.next()).await.expect("the listener waits").unwrap_err();
        (error, start.elapsed())
    };
    let asks = async |after| {
        tokio::time::sleep(after).await;
        let left = NOTICED.saturating_sub(start.elapsed());
        let answer = timeout(left, store.changes(&cursor)).await.expect("the read waits");
        (answer.unwrap_err(), start.elapsed())
    };
    // The second when the first probes of an idle connection are out.
    let (listened, asked, later) =
        tokio::join!(listens, asks(Duration::ZERO), asks(Duration::from_secs(6)));
    for (error, took) in [listened, asked, later] {
        println!("noticed after {took:?}: {error}");
        row("packets to the database dropped silently", "noticed within 15 s", Some(took));
        assert!(error.is_transient(), "{error}");
    }
    let dropped = netns.exec("nft list table inet silence");
    assert!(dropped.contains("counter packets") && !dropped.contains("packets 0 "), "{dropped}");
    netns.exec("nft delete table inet silence");
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));
}

/// The server and every process of it.
fn signal_all(cluster: &Cluster, signal: Signal) -> usize {
    let file = std::fs::read_to_string(cluster.dir.join("data/postmaster.pid")).unwrap();
    let postmaster = file.lines().next().unwrap();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let all = std::iter::once(postmaster).chain(children.split_whitespace());
    all.map(|pid| kill(Pid::from_raw(pid.parse().unwrap()), signal).unwrap()).count()
}

#[tokio::test]
async fn a_stopped_server_is_noticed_soon_after_the_statement_timeout() {
    let world = World::alone().await;
    let limit = Duration::from_secs(1);
    let options = ConnectOptions { statement_timeout: limit, ..ConnectOptions::new(&world.url) };
    let store = Store::connect(&options).unwrap();
    let cursor = store.snapshot().await.unwrap().1;
    assert!(signal_all(world.cluster(), Signal::SIGSTOP) > 5, "nothing to stop");
    let start = Instant::now();
    // The server accepts connections still: the kernel does that.
    let (old, new) = tokio::join!(store.changes(&cursor), store.hello());
    let took = start.elapsed();
    signal_all(world.cluster(), Signal::SIGCONT);
    for error in [old.unwrap_err(), new.unwrap_err()] {
        assert!(matches!(error, StoreError::Stalled { .. }), "{error}");
    }
    let margin = Duration::from_secs(11);
    println!("noticed after {took:?}");
    row(
        "database server stopped (SIGSTOP)",
        "noticed 11 s after the statement's time limit at the latest",
        Some(took),
    );
    assert!(took < limit + margin, "{took:?}");
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));
}
