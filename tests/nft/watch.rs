//! Changes of other programs are reported with the process that made them; our own are not.

use std::time::Duration;

use gatepost::dataplane::nft::{ForeignChange, Nft, NftEvent, NftMonitor};
use gatepost::model::FirewallChange;

use super::full;
use super::netns::Netns;
use super::table::{base, load};

async fn next(monitor: &mut NftMonitor) -> NftEvent {
    let heard = tokio::time::timeout(Duration::from_secs(10), monitor.next());
    heard.await.expect("an event within ten seconds").unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn a_foreign_change_names_its_process_and_whether_it_touched_our_table() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    let mut monitor = nft.monitor().unwrap();
    let ours = |event: NftEvent| match event {
        NftEvent::Foreign(ForeignChange { process, pid, touched_ours, generation }) => {
            assert_eq!(process, "nft");
            assert_ne!(pid, 0);
            (touched_ours, generation)
        }
        NftEvent::Lost => panic!("nothing was lost"),
    };
    nft.apply(&load(&base(), &Default::default()), None).unwrap();
    netns.run("nft add table ip gatepost");
    assert!(!ours(next(&mut monitor).await).0, "another family's table is not ours");
    netns.run("nft add rule inet gatepost forward accept");
    let (touched, generation) = ours(next(&mut monitor).await);
    assert!(touched);
    assert_eq!(generation, nft.generation().unwrap());
    netns.run("nft add chain ip gatepost x");
    assert!(!ours(next(&mut monitor).await).0);
    netns.run("nft flush ruleset");
    assert!(ours(next(&mut monitor).await).0);
}

/// While a monitor listens, the kernel makes a message of some KiB for each element.
#[tokio::test(flavor = "current_thread")]
async fn a_large_change_of_ours_is_muted_and_later_changes_are_heard() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    // Reports the changes from every port.
    let mut monitor = NftMonitor::open(0).unwrap();
    nft.mute(monitor.membership());
    assert_eq!(nft.observe().unwrap(), None);
    nft.apply(&load(&base(), &full::world(20_000, 10)), None).unwrap();
    assert!(nft.is_current().unwrap());
    netns.run("nft add table ip other");
    let NftEvent::Foreign(first) = next(&mut monitor).await else { panic!("events were lost") };
    assert_eq!((first.process.as_str(), first.touched_ours), ("nft", false));
    assert!(nft.is_current().unwrap(), "what others do elsewhere is heard again");
    let prefix = full::host(0);
    let small = FirewallChange { unassign: [prefix].into(), ..FirewallChange::default() };
    let held = nft.observe().unwrap();
    nft.apply(&small, held.as_ref()).unwrap();
    let NftEvent::Foreign(ours) = next(&mut monitor).await else { panic!("events were lost") };
    assert!(ours.touched_ours);
}

#[tokio::test(flavor = "current_thread")]
async fn an_overrun_of_the_monitor_is_reported() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    let mut monitor = nft.monitor().unwrap();
    let element = |index: u32| std::net::Ipv4Addr::from(index).to_string();
    let elements = |from: u32| (from..from + 60_000).map(element).collect::<Vec<_>>().join(",");
    netns.run("nft add table ip t; nft add set ip t s '{ type ipv4_addr; }'");
    // The kernel announces each element on its own: more than the queue holds.
    for part in 0..6 {
        netns.load(&format!("add element ip t s {{ {} }}", elements(part * 60_000)));
    }
    loop {
        if next(&mut monitor).await == NftEvent::Lost {
            break;
        }
    }
}
