//! A database that the gateway reaches only through its own tunnel.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use nix::sys::signal::Signal;

use crate::lab::{BINARY, Client, GATEWAY_TUNNEL, Lab, eventually};

const PORT: u16 = 5432;

/// Passes connections to a port of this peer on to the database.
fn serve_database(site: &Client, database: PathBuf) {
    let listener = site.space.within(|| TcpListener::bind((site.address.as_str(), PORT)).unwrap());
    thread::spawn(move || {
        for client in listener.incoming() {
            let _ = client.and_then(|client| join(client, UnixStream::connect(&database)?));
        }
    });
}

fn join(client: TcpStream, server: UnixStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut from_server, mut to_client) = (server, client);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// From now on the agent's configuration names the database at this peer.
fn reach_database_at(lab: &Lab, site: &Client) {
    lab.write_config("");
    let config = std::fs::read_to_string(lab.config()).unwrap();
    let (role, name) = (lab.database.role(), lab.database.name());
    let former = config.lines().find(|line| line.starts_with("url = ")).unwrap();
    let url = format!(
        "url = \"postgres://{role}@{}:{PORT}/{name}\"\ntls = \"disable\"\nrequire_auth = \"scram-sha-256,none\"",
        site.address
    );
    std::fs::write(lab.config(), config.replace(former, &url)).unwrap();
}

#[test]
fn database_behind_a_peer_is_followed_and_found_again_after_a_restart() {
    let lab = Lab::open();
    let [site, alice, bob] = ["site", "alice", "bob"].map(|name| lab.client(name));
    lab.database.exec(&site.rows());
    lab.database.exec(&alice.rows());
    let agent = lab.start();
    site.connect();
    alice.connect();
    assert!(agent.end(Signal::SIGTERM).success());

    // The peer is in the kernel and in the last good rows, so the next run finds its way.
    serve_database(&site, lab.relay.socket());
    reach_database_at(&lab, &site);
    let agent = lab.start();
    lab.database.exec(&bob.rows());
    bob.connect();
    lab.database.exec(&alice.revocation());
    eventually("alice is gone", || !lab.kernel_peers().contains(&alice.key));

    // A table that is made anew lets the connection go on.
    let ended = lab.relay.ended();
    lab.gateway.output("nft", &["delete", "table", "inet", "gatepost"]);
    eventually("the table is there again", || {
        lab.gateway.output("nft", &["list", "table", "inet", "gatepost"]).status.success()
    });
    lab.database.exec("update devices set status = 'active', revoked_at = null");
    eventually("alice is back", || lab.kernel_peers().contains(&alice.key));
    assert_eq!(lab.relay.ended(), ended, "the sessions with the database live on");

    agent.end(Signal::SIGKILL);
    let _agent = lab.launch(BINARY.as_ref());
    lab.await_ready();
    lab.database.exec(&alice.revocation());
    eventually("the next agent follows, too", || !lab.kernel_peers().contains(&alice.key));
    bob.must_reach(GATEWAY_TUNNEL, "and no other peer is concerned");
}
