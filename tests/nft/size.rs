//! Full size: everything in one transaction, which is read back as intended.

use gatepost::dataplane::nft::{Nft, NftError};
use gatepost::model::ProfileId;

use super::full::world;
use super::netns::Netns;
use super::table::{base, load, observed};

const PEERS: u32 = 100_000;

#[test]
fn a_full_gateway_loads_in_one_transaction() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    let world = world(PEERS, 1_000);
    let generation = nft.generation().unwrap();
    nft.apply(&load(&base(), &world), None).unwrap();
    assert_eq!(nft.generation().unwrap(), generation + 1, "one transaction");
    let read = nft.observe().unwrap().unwrap();
    assert_eq!(nft.difference(), None);
    assert!(read == observed(&base(), world), "what was loaded is read back");
}

#[test]
fn a_full_size_change_refused_at_its_very_end_changes_nothing() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    nft.apply(&load(&base(), &world(10, 2)), None).unwrap();
    let before = nft.observe().unwrap().unwrap();
    let generation = nft.generation().unwrap();
    // Everything is new but the last profile, whose chain is there already.
    let mut change = load(&base(), &world(PEERS, 1_000));
    change.load_base = None;
    change.put_profiles.retain(|id, _| *id > ProfileId(2));
    change.assign.retain(|_, id| *id > ProfileId(2));
    let (_, profile) = world(1, 1).0.pop_first().unwrap();
    change.put_profiles.insert(ProfileId(1_001), (true, profile));
    netns.run("nft add chain inet gatepost p_1001");
    let refused = nft.apply(&change, Some(&before)).unwrap_err();
    assert!(matches!(refused, NftError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("p_1001"), "{refused}");
    assert_eq!(nft.generation().unwrap(), generation + 1, "only nft's change was made");
    let after = nft.observe().unwrap().unwrap();
    assert_eq!(after.assignments(), before.assignments());
}
