//! Faults of the way to the database, under an agent that runs.

use std::path::Path;
use std::time::Duration;

use gatepost::model::PrivateKey;
use gatepost::reconcile::status::{State, Status};
use gatepost::store::{ConnectOptions, Store, Tls};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::time::Instant;

use crate::agent::{Memory, agent, good_peer, options_with, private_key};
use crate::fault::row;
use crate::login::{Site, openssl};
use crate::postgres::Cluster;
use crate::running::Running;
use crate::world::World;

const REVOKE: &str = "update devices set status = 'revoked', revoked_at = now()";

fn is_ready_with(status: &Status, peers: u64) -> bool {
    status.state.is_ready() && status.database.connected && status.peers.in_kernel == peers
}

/// Not connected, for a reason with these words.
fn is_away(status: &Status, words: &str) -> bool {
    !status.database.connected
        && matches!(&status.state, State::Degraded { why } if why.contains(words))
}

#[test]
fn a_host_name_that_stops_resolving_changes_nothing_until_it_resolves() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let in_a_mount_namespace = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (none, flags) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, flags, none).unwrap();
        let resolver = folder.path().join("resolv.conf");
        std::fs::write(&hosts, KNOWN).unwrap();
        std::fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
        for (file, place) in [(&hosts, "/etc/hosts"), (&resolver, "/etc/resolv.conf")] {
            mount(Some(file), place, none, MsFlags::MS_BIND, none).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(the_name_is_lost_and_found(&hosts));
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name);
        thread.spawn_scoped(scope, in_a_mount_namespace).unwrap().join().unwrap();
    });
}

/// /etc/hosts
const KNOWN: &str = "127.0.0.1 database.test\n";

async fn the_name_is_lost_and_found(hosts: &Path) {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let host = Memory::default();
    drop(agent(&world, host.clone()).await);
    let url = Cluster::shared().tcp_url(&world.role, &world.database);
    let require_auth = Some("none".parse().unwrap());
    let url = url.replace("localhost", "database.test");
    let options = ConnectOptions { tls: Tls::Disable, require_auth, ..ConnectOptions::new(url) };
    let mut runs = Running::start(options_with(Store::connect(&options).unwrap(), host.clone()));
    runs.waits_for("ready", |status| is_ready_with(status, 1)).await;

    std::fs::write(hosts, "").unwrap();
    let role = &world.role;
    let end =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'");
    world.run(&end).await;
    runs.waits_for("told", |status| is_away(status, "failed to lookup address")).await;
    world.run(REVOKE).await;
    assert_eq!(host.state().peers.len(), 1);
    std::fs::write(hosts, KNOWN).unwrap();
    let found_at = Instant::now();
    runs.waits_for("followed", |status| is_ready_with(status, 0)).await;
    runs.stop().await;
    row(
        "host name of the database stops resolving",
        "nothing changes, and the status says so; followed once it resolves",
        Some(found_at.elapsed()),
    );
}

#[tokio::test]
async fn a_schema_newer_than_the_agent_is_followed() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let host = Memory::default();
    let options = agent(&world, host.clone()).await;
    world.run("insert into gatepost.schema_history (version, name) values (99, 'newer')").await;
    let mut runs = Running::start(options);
    runs.waits_for("ready", |status| is_ready_with(status, 1)).await;
    assert_eq!(runs.status.borrow().database.schema_version, Some(99));
    assert_eq!(runs.status.borrow().state, State::Ready);
    let revoked_at = Instant::now();
    world.run(REVOKE).await;
    runs.waits_for("followed", |status| is_ready_with(status, 0)).await;
    runs.stop().await;
    row("schema newer than the agent", "followed as before", Some(revoked_at.elapsed()));
}

/// How long the server's certificate is valid: enough to log in.
const VALID: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_servers_certificate_that_expires_ends_no_session_and_is_named() {
    let site = Site::new().await;
    let dir = site.folder.display();
    openssl(&format!(
        "cd {dir}
         printf '[c]\\ndatabase=index\\nnew_certs_dir=.\\nserial=number\\ndefault_md=sha256\\npolicy=p\\n[p]\\ncommonName=supplied\\n' >conf
         touch index; echo 01 >number; cp server.key short.key
         openssl ca -batch -config conf -name c -cert ca.pem -keyfile ca.key -in server.csr -out short.pem \\
             -startdate 20200101000000Z -enddate $(date -u -d '+{} seconds' +%Y%m%d%H%M%SZ) -extfile san",
        VALID.as_secs()
    ));
    let ends_at = Instant::now() + VALID;
    let accepted = "hostssl all all 127.0.0.1/32 scram-sha-256";
    site.serve("short", accepted);
    let sql = |sql: &str| site.cluster.psql(&site.database, sql);
    let (key, peer) = (private_key().public_key(), PrivateKey::from_random([101; 32]).public_key());
    sql(&format!(
        "update gateways set public_key = '{key}';
         insert into roles (name) values ('staff');
         insert into users (role_id, username, display_name, password_hash)
             select id, 'ann', 'Ann', 'secret' from roles;
         insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select id, 'laptop', 'linux', 'f', 'k' from users;
         insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip)
             select g.id, d.id, '{peer}', '10.8.0.9' from gateways g, devices d"
    ));
    let host = Memory::default();
    let store = Store::connect(&site.options()).unwrap();
    let mut runs = Running::start(options_with(store, host.clone()));
    runs.waits_for("ready", |status| is_ready_with(status, 1)).await;

    tokio::time::sleep_until(ends_at + Duration::from_secs(1)).await;
    sql(REVOKE);
    runs.waits_for("revoked over the old session", |status| is_ready_with(status, 0)).await;
    sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'agent'");
    runs.waits_for("told", |status| is_away(status, "server's certificate expired at 20")).await;
    sql("update devices set status = 'active', revoked_at = null");
    assert!(host.state().peers.is_empty());
    site.serve("server", accepted);
    let renewed_at = Instant::now();
    runs.waits_for("followed", |status| is_ready_with(status, 1)).await;
    runs.stop().await;
    row(
        "certificate of the database's server expires while the agent runs",
        "its session goes on; a new login is refused with that reason until there is another",
        Some(renewed_at.elapsed()),
    );
}
