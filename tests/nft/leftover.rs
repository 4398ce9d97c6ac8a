//! Sets that were left between the two transactions of a change: by an agent that was killed there, and by one
//! that could not remove them when the second transaction was refused.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use gatepost::dataplane::nft::NftError;
use gatepost::model::{FirewallChange, ObservedFirewall, ProfileId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};

use super::network::Network;
use super::packets::{network, nothing, world};
use super::table::{base, many};

const STRANGER: &str = "203.0.113.7";

/// A profile that gets sets of its own.
fn adds(id: u32) -> FirewallChange {
    FirewallChange {
        put_profiles: [(ProfileId(id), (true, many(40, 9)))].into(),
        ..FirewallChange::default()
    }
}

/// Lets the third transaction of this thread fail for lack of memory.
struct Lack(Child);

impl Lack {
    fn of_memory() -> Self {
        // Only a transaction asks for a send buffer of its size.
        let mut command = Command::new("strace");
        command.args(["-e", "trace=setsockopt", "-e", "inject=setsockopt:error=ENOMEM:when=3"]);
        command.args(["-e", "signal=none", "-o", "/dev/null", "-p", &gettid().to_string()]);
        let mut strace = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(strace.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace: {said}");
        Self(strace)
    }
}

impl Drop for Lack {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn has_left_sets(network: &Network) -> bool {
    network.gateway.run("nft list sets inet").contains("p_7_")
}

/// A change is refused while there is no memory to remove its sets. Returns the table as it is.
fn leave_sets(network: &mut Network) -> ObservedFirewall {
    let read = network.nft.observe().unwrap().unwrap();
    // The second transaction makes this chain.
    network.gateway.run("nft add chain inet gatepost p_7");
    let lack = Lack::of_memory();
    let refused = network.nft.apply(&adds(7), Some(&read)).unwrap_err();
    drop(lack);
    assert!(matches!(refused, NftError::SetsLeft(_)), "{refused}");
    network.gateway.run("nft delete chain inet gatepost p_7");
    assert!(has_left_sets(network));
    read
}

#[test]
fn sets_that_could_not_be_removed_go_at_the_next_reading_or_change() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let before = leave_sets(&mut network);
    assert_eq!(network.nft.observe().unwrap().as_ref(), Some(&before), "nothing to load anew");
    assert_eq!(network.nft.difference(), None);
    assert!(!has_left_sets(&network));

    let before = leave_sets(&mut network);
    network.nft.apply(&adds(8), Some(&before)).unwrap();
    assert!(!has_left_sets(&network));
    let read = network.nft.observe().unwrap().unwrap();
    assert_eq!(network.nft.difference(), None);
    assert_eq!(read.profiles()[&ProfileId(8)], many(40, 9));
}

#[test]
fn set_that_was_left_gives_the_next_profile_nothing() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let read = network.nft.observe().unwrap();
    for family in ["4 { type ipv4_addr", "6 { type ipv6_addr"] {
        network.gateway.load(&format!("add set inet gatepost p_7_{family}; flags interval; }}"));
    }
    network.gateway.run(&format!("nft add element inet gatepost p_7_4 '{{ {STRANGER} }}'"));
    network.nft.apply(&adds(7), read.as_ref()).unwrap();
    let read = network.nft.observe().unwrap().unwrap();
    assert_eq!(network.nft.difference(), None);
    let stranger: IpAddr = STRANGER.parse().unwrap();
    assert!(!read.profiles()[&ProfileId(7)].allows(stranger), "the sets were merged");
    assert_eq!(read.profiles()[&ProfileId(7)], many(40, 9));
}

#[test]
fn set_that_a_rule_looks_up_is_not_replaced() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let read = network.nft.observe().unwrap();
    network.gateway.load(
        "add set inet gatepost p_7_4 { type ipv4_addr; flags interval; }
         add chain inet gatepost theirs
         add rule inet gatepost theirs ip saddr @p_7_4 accept",
    );
    let before = network.gateway.run("nft -s list table inet gatepost");
    let refused = network.nft.apply(&adds(7), read.as_ref()).unwrap_err();
    assert!(matches!(refused, NftError::Refused { .. }), "{refused}");
    assert_eq!(network.gateway.run("nft -s list table inet gatepost"), before);
}
