//! How long cutting the flows of some addresses takes among many flows.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use gatepost::dataplane::Backend;
use gatepost::plan::Step;
use ipnet::IpNet;

use crate::netns::Netns;
use crate::rig::{Gateway, interface};
use crate::tracked::{Max, others, track, tracked};

/// Cuts the flows of some addresses among `count` flows, and prints how long that takes, beside
/// `conntrack -D -s ADDRESS`.
pub fn measure(backend: Backend, count: u32) {
    let _max = Max::at_least(count + 10_000);
    let netns = Netns::new("Bg");
    netns.enter(|| {
        track(others(count));
        println!("{} flows are tracked", tracked());
        let mut gateway = Gateway::open(interface(), backend);
        let mut next = 0u32;
        let mut addresses = |count| {
            let host = |number: u32| Ipv4Addr::from(0x0a80_0000 + number);
            next += count;
            (next - count..next).map(host).collect::<Vec<_>>()
        };
        for addresses_at_once in [1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 1_000] {
            let cut = addresses(addresses_at_once);
            let prefixes = cut.iter().map(|host| IpNet::from(IpAddr::from(*host))).collect();
            let (outcome, took) = timed(|| gateway.apply(vec![Step::CutFlows { prefixes }]));
            let (cut, listed) = (outcome.flows_cut, outcome.flows_listed);
            println!("{addresses_at_once:5} addresses: {took:8.2?}, {cut} of {listed} flows cut");
        }
        for host in addresses(3) {
            let (_, took) = timed(|| netns.exec(&format!("conntrack -D -s {host}")));
            println!("conntrack -D -s: {took:8.2?}");
        }
    });
}

fn timed<T>(job: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (job(), start.elapsed())
}
