//! The kernel refuses a policy that is right by all our checks, in the middle of a change: it costs only those to
//! whom it applies, and nothing that is taken away waits for it.

use crate::hindered::{QUIET, TRIED_IN_VAIN, bound};
use crate::lab::{
    Agent, Backend, Client, Download, Ears, Fault, Flood, LAN_OTHER, LAN_SERVER, Lab, Ways,
    eventually, has_small_sets, peer_rows, policy_rows, refuse_large_profiles, way,
    wide_policy_rows,
};

/// One of the hosts that only the refused policy would open.
const LAN_THIRD: &str = "10.20.0.30";
const DESTINATIONS: [&str; 3] = [LAN_SERVER, LAN_OTHER, LAN_THIRD];
/// Peers without a client, whose policies change in the same transaction.
const OTHERS: usize = 30;
/// The refusal is another program's rule that looks the policy's set up.
const REMEDY: &str = "another program's rule looks that set up: remove the rule";
/// Rounds of all packets while the policy is refused.
const ROUNDS: usize = 5;

struct Scene {
    ears: Ears,
    agent: Agent,
    /// Is revoked.
    alice: Client,
    /// Keeps one of three hosts.
    bob: Client,
    /// Is not concerned, and has what Frank has.
    carol: Client,
    /// Is let in.
    dave: Client,
    /// The refused policy allows all that she has, and more.
    erin: Client,
    /// The refused policy lacks a host that he has.
    frank: Client,
    lab: Lab,
}

impl Scene {
    fn open() -> Self {
        let lab = Lab::open();
        // Each full read of the database tries the policy again: the first one comes after all assertions.
        let interval = match lab.backend {
            Backend::Userspace => "60s",
            Backend::Kernel => "100s",
        };
        lab.write_config(&format!(
            "[sync]\nresync_interval = \"{interval}\"\n[firewall]\nown_table = false\n"
        ));
        lab.lan.run("ip", &["address", "add", &format!("{LAN_THIRD}/24"), "dev", "eth0"]);
        let names = ["alice", "bob", "carol", "dave", "erin", "frank"];
        let [alice, bob, carol, dave, erin, frank] = names.map(|name| lab.client(name));
        for (client, destinations) in [
            (&alice, &["10.20.0.0/24"][..]),
            (&bob, &DESTINATIONS),
            (&carol, &[LAN_SERVER, LAN_OTHER]),
            (&dave, &[LAN_SERVER]),
            (&erin, &[LAN_SERVER]),
            (&frank, &[LAN_SERVER, LAN_OTHER]),
        ] {
            let name = &client.name;
            lab.database.exec(&client.rows());
            lab.database.exec(&policy_rows(name, name, destinations[0]));
            for destination in &destinations[1..] {
                lab.database.exec(&format!(
                    "insert into policy_destinations (policy_id, destination)
                         select id, '{destination}' from policies where name = '{name}'"
                ));
            }
        }
        lab.database
            .exec(&format!("delete from wireguard_peers where public_key = '{}'", dave.key));
        for number in 0..OTHERS {
            let (name, address) = (format!("other{number}"), format!("10.99.1.{number}"));
            let key = lab.database.value(&format!("select encode(sha256('{name}'), 'base64')"));
            lab.database.exec(&peer_rows(&name, &key, &address));
            lab.database.exec(&policy_rows(&name, &name, &format!("10.20.1.{number}/32")));
        }
        let agent = lab.start();
        [&alice, &bob, &carol, &erin, &frank].iter().for_each(|client| client.connect());
        let lan = DESTINATIONS.map(|address| (&lab.lan, address));
        let ears = Ears::open(&lan);
        Self { ears, agent, alice, bob, carol, dave, erin, frank, lab }
    }

    /// The change that is refused half-way: a revocation, a narrowed policy, a new peer, other policies, and
    /// the one that is too large.
    fn change(&self) -> String {
        format!(
            "{};
             delete from policy_destinations using policies where policies.id = policy_id
                 and name = 'bob' and destination <> '{LAN_OTHER}';
             insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
                 select d.id, g.id, d.public_key, '{}' from devices d, gateways g
                 where device_fingerprint = 'dave';
             update policy_destinations set destination = ('10.20.2.' || substr(name, 6))::cidr
                 from policies where policies.id = policy_id and name like 'other%';
             update policies set is_active = false where name in ('erin', 'frank');
             {}",
            self.alice.revocation(),
            self.dave.address,
            wide_policy_rows("wide", &["erin", "frank"])
        )
    }

    /// Everybody sends to all hosts of the LAN.
    fn flood(&self, allowed: &Ways) -> Flood {
        let clients = [&self.alice, &self.bob, &self.carol, &self.dave, &self.erin, &self.frank];
        let sources = clients.map(|client| [client.address.as_str()]);
        let clients: Vec<_> =
            clients.into_iter().zip(sources.iter().map(|source| &source[..])).collect();
        self.ears.flood(&clients, &DESTINATIONS, allowed.clone())
    }

    fn ways(&self, allowed: &[(&Client, &[&str])]) -> Ways {
        let ways = allowed.iter().flat_map(|(client, destinations)| {
            destinations.iter().flat_map(|to| way(&client.name, &client.address, to))
        });
        ways.collect()
    }

    /// Whom a plan without the quarantine would give something, by their names.
    fn missing(&self) -> Vec<String> {
        let (code, planned, _) = self.lab.gatepost(&["plan", "--json"]);
        let planned: serde_json::Value = serde_json::from_str(&planned).unwrap();
        let words = planned["words"].as_array().unwrap().iter();
        let names = words.map(|word| word.as_str().unwrap().split('/').next().unwrap().to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!((code, planned["steps"].as_array().unwrap().len()), (2, 1), "{planned}");
        names
    }

    /// The quarantined policies, with the number of peers of each.
    fn quarantined(&self) -> Vec<(String, u64)> {
        let status = self.lab.status();
        let policies = status["quarantined_policies"].as_array().unwrap().iter();
        let named = policies.map(|it| {
            let reason = it["reason"].as_str().unwrap();
            assert!(reason.contains("set p_"), "{reason}");
            assert!(it["remedy"].as_str().unwrap().contains(REMEDY), "{it}");
            (it["policy"].as_str().unwrap().to_owned(), it["peers"].as_u64().unwrap())
        });
        named.collect()
    }

    /// How often the journal has this line, and the audit log this event.
    fn told(&self, line: &str, event: &str) -> (usize, String) {
        let count = format!("select count(*) from audit_logs where event_type = '{event}'");
        let log = self.lab.log();
        (log.matches(line).count(), self.lab.database.value(&count))
    }
}

#[test]
fn policy_that_the_kernel_refuses_costs_only_its_peers_and_holds_up_no_withdrawal() {
    let scene = Scene::open();
    let Scene { alice, bob, carol, dave, erin, frank, lab, .. } = &scene;
    let before = scene.ways(&[
        (alice, &DESTINATIONS),
        (bob, &DESTINATIONS),
        (carol, &[LAN_SERVER, LAN_OTHER]),
        (erin, &[LAN_SERVER]),
        (frank, &[LAN_SERVER, LAN_OTHER]),
    ]);
    let spared =
        [(bob, &[LAN_OTHER][..]), (carol, &[LAN_SERVER, LAN_OTHER]), (dave, &[LAN_SERVER])];
    let refused = scene.ways(&[&spared[..], &[(erin, &[LAN_SERVER])]].concat());
    let wide: &[&str] = &[LAN_SERVER, LAN_THIRD];
    let after = scene.ways(&[&spared[..], &[(erin, wide), (frank, wide)]].concat());

    let live = scene.flood(&(&before | &refused));
    live.await_arrivals(&before, 1);
    let downloads = [alice, bob].map(|client| {
        let download = Download::start(client, &lab.lan);
        download.await_more(20);
        download
    });
    let what =
        "a policy that the kernel refuses, beside a revocation and a narrowed policy in one change";
    let expected = "quarantined and named; everything else is loaded, withdrawals first";
    let fault = Fault::new(lab, what, expected)
        .spares(carol.ping(LAN_SERVER, 20))
        .spares(bob.ping(LAN_OTHER, 20));
    // The next full read comes an interval after this one.
    assert_eq!(lab.gatepost(&["resync"]).0, 0);
    let sent = refuse_large_profiles(lab, &scene.agent, || lab.database.exec(&scene.change()));
    let ends = Download::await_ends(downloads.each_ref(), QUIET);
    downloads[0].await_sent(TRIED_IN_VAIN);
    assert_eq!(downloads.each_ref().map(|it| it.came().last), ends.map(Some));
    let ends = ends.map(|end| end.saturating_duration_since(sent));
    println!("last packets after {ends:?}");
    assert!(ends.iter().all(|end| *end < bound(lab)), "{ends:?}");
    drop((downloads, live));

    eventually("it is quarantined", || scene.quarantined() == [("wide".to_owned(), 2)]);
    dave.connect();
    let flood = scene.flood(&refused);
    flood.await_arrivals(&refused, ROUNDS);
    flood.await_rounds(ROUNDS);
    assert_eq!(flood.arrived(), refused);
    drop(flood);
    assert_eq!(scene.missing(), ["erin", "frank"], "all other policies are loaded");
    eventually("what the other program left is gone", || !has_small_sets(lab));
    assert_eq!(scene.quarantined(), [("wide".to_owned(), 2)], "it was tried again too soon");
    let quarantined =
        ("quarantined policy \"wide\", which applies to 2 peers", "policy.quarantined");
    let said = || scene.told(quarantined.0, quarantined.1) == (1, "1".to_owned());
    eventually("the journal and the audit log name it", said);
    let tail = format!("or `gatepost resync`: {REMEDY}");
    assert!(lab.log().contains(&tail), "{}", lab.log());
    fault.converged(ends[0].max(ends[1]));

    eventually("it is loaded by itself", || scene.quarantined().is_empty());
    let flood = scene.flood(&after);
    flood.await_arrivals(&after, ROUNDS);
    assert_eq!(flood.arrived(), after);
    let all_clear = || scene.told("policy \"wide\" is no longer quarantined", "policy.released");
    eventually("which is told once", || all_clear() == (1, "1".to_owned()));
    assert!(said(), "and nothing twice");
    assert_eq!(scene.ears.leaked(), []);
}
