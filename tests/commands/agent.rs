//! The commands that ask a running agent, without an agent and against a socket that answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use crate::gatepost::Gatepost;

/// Answers the next requests, one reply each, and returns the requests when joined.
fn answer(gatepost: &Gatepost, replies: Vec<String>) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(gatepost.path("control.sock")).unwrap();
    std::thread::spawn(move || {
        let serve = |reply: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            request
        };
        replies.into_iter().map(serve).collect()
    })
}

fn status(state: &str) -> String {
    let rest = r#""gateway":{"name":"fra-1","id":null},"interface":{"name":"gatepost0","backend":null,"public_key":null,"listen_port":null},"sync":{"mode":null,"mode_why":"","last_sync_at":null,"lag_ms":null,"last_pass":null,"passes":0,"drift_repaired":0,"notify_missed":0},"database":{"connected":false,"since":null,"last_error":null,"schema_version":null},"peers":{"desired":0,"in_kernel":0,"ineligible":0,"quarantined":0},"quarantined":[],"warnings":[],"held_back":null,"agent":{"version":"0.1.0","started_at":null}"#;
    format!("{{\"done\":{{{state},{rest}}}}}\n")
}

#[test]
fn exit_code_is_4_without_an_agent_and_the_error_names_the_socket() {
    let gatepost = Gatepost::with("");
    for command in [&["status"][..], &["peers"], &["resync"], &["confirm"], &["status", "--json"]] {
        let done = gatepost.run(command).must_exit(4);
        assert_eq!(done.stdout, "");
        let error = done.error(&gatepost);
        assert!(error.starts_with("gatepost: no agent answers on control.sock: "), "{error}");
    }
}

#[test]
fn stale_socket_is_no_agent() {
    let gatepost = Gatepost::with("");
    drop(UnixListener::bind(gatepost.path("control.sock")).unwrap());
    gatepost.run(&["status"]).must_exit(4);
}

#[test]
fn exit_code_of_status_follows_the_state() {
    let gatepost = Gatepost::with("");
    let replies = [
        r#""state":"ready""#,
        r#""state":"not_ready","why":"the private key is another gateway's""#,
        r#""state":"starting""#,
        r#""state":"ready""#,
    ];
    let agent = answer(&gatepost, replies.map(status).into());
    assert!(gatepost.run(&["status"]).must_exit(0).stdout.contains("state      ready\n"));
    let not_ready = gatepost.run(&["status"]).must_exit(3);
    let line = "state      not ready: the private key is another gateway's\n";
    assert!(not_ready.stdout.contains(line), "{}", not_ready.stdout);
    gatepost.run(&["status"]).must_exit(3);
    let json = gatepost.run(&["status", "--json"]).must_exit(0);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["state"], "ready");
    assert_eq!(agent.join().unwrap(), vec!["{\"op\":\"status\"}\n"; 4]);
}

#[test]
fn exit_code_of_explain_is_the_verdict() {
    let gatepost = Gatepost::with("");
    let reply = |allowed: bool| {
        let details = r#"{"verdict":"x"}"#;
        format!("{{\"done\":{{\"allowed\":{allowed},\"text\":\"why\",\"details\":{details}}}}}\n")
    };
    let refusal = "{\"error\":\"nobody is called \\\"carl\\\"\"}\n".to_owned();
    let agent = answer(&gatepost, vec![reply(true), reply(false), refusal]);
    let explain = |who, code| gatepost.run(&["explain", who, "10.0.0.1"]).must_exit(code);
    assert_eq!(explain("anna", 0).stdout, "why\n");
    assert_eq!(explain("ben", 2).stdout, "why\n");
    assert!(explain("carl", 1).stderr.ends_with("says: nobody is called \"carl\"\n"));
    let request = "{\"op\":\"explain\",\"who\":\"anna\",\"destination\":\"10.0.0.1\"}\n";
    assert_eq!(agent.join().unwrap()[0], request);
}

fn peer(state: &str, since: &str) -> String {
    let rest = r#""peer_id":null,"user":"anna","user_id":null,"device":"laptop","device_id":null,"public_key":"k","addresses":[],"endpoint":null,"last_handshake_at":null,"rx_bytes":0,"tx_bytes":0,"policies":[]"#;
    format!(r#"{{"item":{{"state":"{state}","reason":"why","since":"{since}",{rest}}}}}"#) + "\n"
}

#[test]
fn resync_and_confirm_say_what_was_done() {
    let gatepost = Gatepost::with("");
    let done = "{\"done\":null}\n".to_owned();
    let (early, late) = ("2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.000002Z");
    let held = peer("held", early) + &peer("held", late) + &done;
    let kept_out = peer("kept_out", early) + &done;
    let ready = status(r#""state":"ready""#);
    let mut put_right = status(r#""state":"ready""#).replace(r#""passes":0"#, r#""passes":1"#);
    let pass = r#"{"at":"2026-01-01T00:00:00Z","duration_ms":12,"steps":3,"refused":0}"#;
    put_right = put_right.replace(r#""last_pass":null"#, &format!(r#""last_pass":{pass}"#));
    let replies =
        [ready, done.clone(), put_right, held, done.clone(), kept_out, done.clone(), done];
    let agent = answer(&gatepost, replies.into());
    let resync = gatepost.run(&["resync"]).must_exit(0);
    let found = "what differed is put right (3 steps in 12 ms)";
    assert_eq!(
        resync.stdout,
        format!("compared everything again: {found}; the gateway is ready\n")
    );
    let removed = gatepost.run(&["confirm", "--yes"]).must_exit(0).stdout;
    assert!(removed.ends_with("confirmed: 2 peers are removed now\n"), "{removed}");
    let let_in = gatepost.run(&["confirm", "--yes"]).must_exit(0).stdout;
    assert!(let_in.ends_with("confirmed: 1 peer is let in now\n"), "{let_in}");
    gatepost.run(&["confirm"]).must_exit(1);
    let confirmed = format!(r#"{{"op":"confirm","until":"{late}"}}"#);
    let [begin, key] = [r#"{"op":"confirm","until":"1970-01-01T00:00:00.000000Z""#, "let_in_until"];
    let let_in = format!(r#"{begin},"{key}":"{early}"}}"#);
    let [resync, status, peers] =
        ["resync", "status", "peers"].map(|op| format!(r#"{{"op":"{op}"}}"#));
    let (held, kept_out) = (peers.clone(), peers.clone());
    let requests = [status.clone(), resync, status, held, confirmed, kept_out, let_in, peers];
    assert_eq!(agent.join().unwrap(), requests.map(|request| request + "\n"));
}

#[test]
fn answer_of_another_version_is_an_error() {
    let gatepost = Gatepost::with("");
    let agent = answer(&gatepost, vec!["{\"done\":{\"state\":\"ready\"}}\n".into(), String::new()]);
    let done = gatepost.run(&["status"]).must_exit(1);
    assert!(done.stderr.contains("their versions may differ"), "{}", done.stderr);
    let silent = gatepost.run(&["status"]).must_exit(1);
    assert!(silent.stderr.contains("closed early"), "{}", silent.stderr);
    agent.join().unwrap();
}

#[test]
fn down_asks_first_and_refuses_beside_a_running_agent() {
    let gatepost = Gatepost::with("");
    let unasked = gatepost.run(&["down"]).must_exit(1);
    assert!(unasked.stderr.contains("pass --yes"), "{}", unasked.stderr);
    let agent = answer(&gatepost, vec![status(r#""state":"ready""#)]);
    let running = gatepost.run(&["down", "--yes"]).must_exit(1);
    assert!(running.stderr.contains("stop it first"), "{}", running.stderr);
    agent.join().unwrap();
    std::fs::remove_file(gatepost.path("control.sock")).unwrap();
    let agent = answer(&gatepost, vec!["an agent of another version\n".to_owned()]);
    let other = gatepost.run(&["down", "--yes"]).must_exit(1);
    assert!(other.stderr.contains("does not understand"), "{}", other.stderr);
    agent.join().unwrap();
}

/// A command that runs until it is killed.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watch_survives_a_restart_of_the_agent() {
    let gatepost = Gatepost::with("");
    let agent = answer(&gatepost, vec![status(r#""state":"ready""#)]);
    let mut command = gatepost.command(&["status", "--watch", "--json"]);
    let mut watching = Watching(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    agent.join().unwrap();
    assert!(lines.any(|line| line.contains(r#""state": "ready""#)));
    std::fs::remove_file(gatepost.path("control.sock")).unwrap();
    answer(&gatepost, vec![status(r#""state":"starting""#)]);
    assert!(lines.any(|line| line.contains(r#""state": "starting""#)), "it ended with the agent");
}

#[test]
fn watch_shows_the_time_what_changed_and_the_newest_entries_without_colours() {
    let gatepost = Gatepost::with("");
    let entry =
        r#"{"item":{"at":"2026-01-01T10:20:30Z","level":"WARN","message":"the disk is full"}}"#;
    let journal = || format!("{entry}\n{{\"done\":null}}\n");
    let ready = status(r#""state":"ready""#);
    let degraded = status(r#""state":"degraded","why":"no database""#);
    let agent = answer(&gatepost, vec![ready, journal(), degraded, journal()]);
    let mut command = gatepost.command(&["status", "--watch"]);
    command.env("NO_COLOR", "1").stdout(Stdio::piped());
    let mut watching = Watching(command.spawn().unwrap());
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut shows = |part: &str| assert!(lines.any(|line| line.contains(part)), "no {part}");
    shows(" UTC");
    shows("state      ready");
    shows("  10:20:30  WARN  the disk is full");
    shows("state      degraded: no database");
    shows("  state: ready -> degraded: no database");
    shows("  10:20:30  WARN  the disk is full");
    agent.join().unwrap();
}
