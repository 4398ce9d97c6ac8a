//! Clients of the agent that ask and do not read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use super::{SPACING_MS, Scene};
use crate::lab::{Fault, LAN_SERVER};

const CONTROL_CLIENTS: usize = 16;
const HTTP_CLIENTS: usize = 64;
const METRICS: &str = "127.0.0.1:7999";

#[test]
fn silent_clients_hold_up_no_answer_and_no_revocation() {
    let metrics = format!("[metrics]\nlisten = \"{METRICS}\"\n");
    let scene = Scene::open_with(|lab| lab.write_config(&metrics));
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let socket = lab.folder.path().join("control.sock");
    let asks_and_never_reads = |_| {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(b"{\"op\":\"peers\"}\n").unwrap();
        client
    };
    let metrics = || TcpStream::connect(METRICS).unwrap();
    let _control: Vec<_> = (0..CONTROL_CLIENTS).map(asks_and_never_reads).collect();
    let _http: Vec<_> = (0..HTTP_CLIENTS).map(|_| lab.gateway.within(metrics)).collect();
    let scrape = || {
        let mut client = lab.gateway.within(metrics);
        client
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text.starts_with("HTTP/1.1 200")
    };
    Fault::new(
        lab,
        "16 control clients that do not read, 64 silent HTTP clients",
        "a revocation, status and /readyz are answered all the same",
    )
    .spares(alice.ping(LAN_SERVER, SPACING_MS))
    .cause(
        || lab.database.exec(&bob.revocation()),
        || scene.has_only(alice) && lab.gatepost(&["status"]).0 == 0 && scrape(),
    );
}
