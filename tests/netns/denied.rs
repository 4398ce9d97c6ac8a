//! `gatepost denied`, the journal and the metric tell of packets that the firewall denied.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::lab::{Agent, Client, LAN_SERVER, Lab, eventually, policy_rows};

/// Kills a child with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lab with a peer that may reach nothing of the LAN.
fn lab() -> (Lab, Client) {
    let lab = Lab::open();
    lab.write_config("[metrics]\nlisten = \"127.0.0.1:9999\"\n");
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    (lab, alice)
}

fn denied_metric(lab: &Lab) -> u64 {
    let mut text = String::new();
    lab.gateway.within(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9999").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        stream.read_to_string(&mut text).unwrap();
    });
    let value = text.lines().find_map(|line| line.strip_prefix("gatepost_denied_packets_total "));
    value.unwrap().parse().unwrap()
}

#[test]
fn denied_packets_are_named_with_peer_and_reason() {
    let (lab, alice) = lab();
    let _agent = lab.start();
    alice.connect();
    let mut follow = lab.command(&["denied", "alice", "--follow"]);
    let mut follower = Killed(lab.gateway.spawn(follow.stdout(Stdio::piped())));
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    assert!(alice.tcp(LAN_SERVER, 443).is_err(), "no policy allows it");
    let line = "alice/alice-laptop -> 10.20.0.10 tcp/443: no policy";
    let followed = lines.next().unwrap().unwrap();
    assert!(followed.ends_with(line), "{followed}");
    eventually("the journal says it", || lab.log().contains(&format!("denied: {line}\n")));
    assert!(denied_metric(&lab) > 0);

    let deny = "update policies set effect = 'deny', name = 'no servers' where name = 'alice'";
    lab.database.exec(&policy_rows("alice", "alice", "10.20.0.0/24"));
    lab.database.exec(deny);
    let named = "alice/alice-laptop -> 10.20.0.10 udp/53: policy \"no servers\" denies it";
    eventually("the policy is named", || {
        alice.send_udp(LAN_SERVER, [53].into_iter());
        lab.gatepost(&["denied"]).1.contains(named)
    });
    let (code, json, _) = lab.gatepost(&["denied", "alice-laptop", "--json"]);
    let last: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!((code, &last["policy"]), (0, &"no servers".into()), "{last}");
    let (code, none, _) = lab.gatepost(&["denied", "10.20.0.77"]);
    assert!(code == 0 && none.contains("no denied packet of"), "{none}");
    for slip in [&["denied", "alcie"][..], &["denied", "alcie", "--follow"]] {
        let (code, _, error) = lab.gatepost(slip);
        assert!(code == 1 && error.contains("(did you mean alice?)"), "{error}");
    }
}

#[test]
fn flood_of_denied_packets_neither_takes_the_processor_nor_holds_up_a_change() {
    const PACKETS: u16 = 50_000;
    let (lab, alice) = lab();
    let agent = lab.start();
    alice.connect();
    let memory = agent.memory_kib();
    let before = processor_ticks(&agent);
    alice.send_udp(LAN_SERVER, 1_000..1_000 + PACKETS);
    lab.database.exec(&policy_rows("alice", "alice", "10.20.0.0/24"));
    eventually("a change acts", || alice.reaches(LAN_SERVER));
    let denied = denied_metric(&lab);
    assert!(denied > u64::from(PACKETS) / 20, "the flood did not arrive: {denied} denied");
    let ticks = processor_ticks(&agent) - before;
    assert!(ticks < 200, "the agent took {ticks} hundredths of a second");
    let grown = agent.memory_kib().saturating_sub(memory);
    assert!(grown < 16 * 1024, "the agent grew by {grown} KiB");
    let said = || lab.log().lines().filter(|line| line.contains("denied: ")).count();
    eventually("denied packets are said", || said() > 0);
    let lines = said();
    assert!(lines <= 40, "{lines} lines");
    println!("{denied} packets denied, {ticks} hundredths of a second, {grown} KiB, {lines} lines");
}

/// What a process has used, in hundredths of a second.
fn processor_ticks(agent: &Agent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].map(|field| fields[field].parse::<u64>().unwrap()).iter().sum()
}

#[test]
fn group_that_another_program_reads_is_said_with_what_to_do() {
    let (lab, alice) = lab();
    let mut capture = Command::new("tcpdump");
    capture.args(["-n", "-i", "nflog:71", "-w", "/dev/null"]).stderr(Stdio::piped());
    let mut other = Killed(lab.gateway.spawn(&mut capture));
    let mut said = BufReader::new(other.0.stderr.take().unwrap());
    let mut listening = String::new();
    while !listening.contains("listening on") {
        assert_ne!(said.read_line(&mut listening).unwrap(), 0, "{listening}");
    }
    let agent = lab.start();
    alice.connect();
    let why = "denied packets are not shown: another program reads nflog group 71, such as ulogd2 or \
               another gatepost: write a free group into firewall.deny_log_group, or stop that program";
    eventually("status says why", || {
        lab.status()["warnings"].as_array().unwrap().contains(&why.into())
    });
    let (code, _, error) = lab.gatepost(&["denied"]);
    assert!(code == 1 && error.contains(why), "{code} {error}");
    assert!(lab.log().contains(why));
    assert!(alice.tcp(LAN_SERVER, 443).is_err(), "it is denied all the same");
    drop(other);
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("the agent reads it again", || {
        lab.log().contains("denied packets are read again from nflog group 71")
    });
    assert_eq!(lab.status()["warnings"], serde_json::json!([]));
}
