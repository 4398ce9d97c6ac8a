//! How long adding many peers takes, compared with `wg setconf`.

use std::fmt::Write as _;
use std::time::Instant;

use gatepost::dataplane::{Backend, Dataplane};
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, add, interface, key, private_key};

/// Adds `count` peers to an empty device, first by `wg setconf`, then by the data plane, three
/// times each in turn, and prints the times and their ratio.
pub fn measure(backend: Backend, count: u32) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        let address = |n: u32| format!("10.{}.{}.{}/32", 8 + (n >> 16), (n >> 8) & 255, n & 255);
        let mut text = format!("[Interface]\nPrivateKey={}\n", private_key(1).expose_text());
        for n in 0..count {
            let _ = writeln!(text, "[Peer]\nPublicKey={}\nAllowedIPs={}", key(n), address(n));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let remove: Vec<Step> = (0..count).map(|n| Step::RemovePeer { key: key(n) }).collect();
        for round in 1..=3 {
            let start = Instant::now();
            netns.exec(&format!("wg setconf {} {}", gateway.name, file.path().display()));
            let setconf = start.elapsed();
            gateway.apply(remove.clone());
            let steps = (0..count).map(|n| add(n, &[&address(n)])).collect();
            let start = Instant::now();
            let outcome = gateway.apply(steps);
            let ours = start.elapsed();
            let start = Instant::now();
            let reading = gateway.host.observe().unwrap();
            let read = start.elapsed();
            let start = Instant::now();
            netns.exec(&format!("wg show {} dump", gateway.name));
            let dump = start.elapsed();
            assert_eq!(
                (outcome.applied, reading.state.peers.len()),
                (count as usize, count as usize)
            );
            gateway.apply(remove.clone());
            println!(
                "round {round}, {count} peers: wg setconf {setconf:.2?}, gatepost {ours:.2?} \
                 (x {:.2}); wg show dump {dump:.2?}, gatepost {read:.2?} (x {:.2})",
                ours.as_secs_f64() / setconf.as_secs_f64(),
                read.as_secs_f64() / dump.as_secs_f64(),
            );
        }
    });
}
