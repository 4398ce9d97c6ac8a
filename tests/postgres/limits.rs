//! More of something than a gateway reads.

use gatepost::model::{BeyondLimit, PolicyRow, RowLimit, SnapshotRows};
use gatepost::reconcile::status::State;
use gatepost::store::Read;
use uuid::Uuid;

use crate::agent::{Memory, agent, good_peer};
use crate::running::Running;
use crate::world::{World, client, id};

fn beyond(limit: RowLimit, row: Uuid) -> BeyondLimit {
    BeyondLimit { limit, row, found: limit.most() + 1 }
}

/// A policy for this device, with so many destinations.
async fn policy(world: &World, device: Uuid, id: u128, effect: &str, destinations: usize) -> Uuid {
    let id = Uuid::from_u128(id);
    world
        .run(&format!(
            "insert into policies (id, name, effect, full_tunnel) values ('{id}', '{id}', '{effect}', true);
             insert into policy_targets (policy_id, target_type, target_id) values ('{id}', 'device', '{device}');
             insert into policy_destinations (policy_id, destination)
                 select '{id}', ('10.0.0.0'::inet + 2 * n)::cidr from generate_series(1, {destinations}) n",
        ))
        .await;
    id
}

fn destinations(policy: &PolicyRow) -> Vec<String> {
    policy.destinations.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn prefixes_in_a_column_of_another_type_are_read_as_before() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let rows = format!(
        "update wireguard_peers set allowed_ips = '{{10.0.0.0/8, fd00::/8}}', dns_servers = '{{192.0.2.1}}'
         where id = '{}'",
        ann.peer
    );
    world.run(&rows).await;
    let (before, _) = world.store.snapshot().await.unwrap();
    for kind in ["text[]", "inet[]"] {
        let alter = format!(
            "alter table wireguard_peers alter allowed_ips type {kind} using allowed_ips::{kind}"
        );
        world.run(&alter).await;
        let (after, _) = world.store.snapshot().await.unwrap();
        assert_eq!(after.peers, before.peers, "{kind}");
    }
    world
        .run(
            "alter table wireguard_peers alter dns_servers drop default,
                 alter dns_servers type inet[] using dns_servers::inet[]",
        )
        .await;
    let (after, _) = world.store.snapshot().await.unwrap();
    assert_eq!(after.peers[0].allowed_ips, before.peers[0].allowed_ips);
}

#[tokio::test]
async fn row_beyond_a_limit_costs_itself_alone() {
    let world = World::new().await;
    let [plain, at, prefixes, dns] = ["plain", "at", "prefixes", "dns"];
    let mut peers = Vec::new();
    for name in [plain, at, prefixes, dns] {
        peers.push(world.peer(world.gateway, name).await);
    }
    let cursor = world.cursor().await;
    world
        .run(
            "update wireguard_peers set allowed_ips =
                     array(select ('10.0.0.0'::inet + n)::cidr from generate_series(1, 10000) n),
                 dns_servers = array_fill('192.0.2.1'::text, array[100])
                 where public_key = 'at';
             update wireguard_peers set allowed_ips = array_fill('10.0.0.0/8'::cidr, array[10, 100000])
                 where public_key = 'prefixes';
             update wireguard_peers set allowed_ips = '{10.0.0.0/8}',
                 dns_servers = array_fill('192.0.2.1'::text, array[101]) where public_key = 'dns'",
        )
        .await;
    let check = |rows: &[gatepost::model::PeerRow]| {
        let peer = |name: &str| rows.iter().find(|peer| &*peer.device_name == name).unwrap();
        for name in [plain, at] {
            assert_eq!(peer(name).beyond, None);
        }
        assert_eq!((peer(at).allowed_ips.len(), peer(at).dns_servers.len()), (10_000, 100));
        for (name, limit) in [(prefixes, RowLimit::AllowedIps), (dns, RowLimit::PeerDns)] {
            let peer = peer(name);
            assert_eq!(peer.beyond.as_deref(), Some(&beyond(limit, peer.id.0)));
            assert!(peer.allowed_ips.is_empty() && peer.dns_servers.is_empty());
        }
    };
    check(&world.store.snapshot().await.unwrap().0.peers);
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    let mut changed: Vec<_> = rows.peers.into_values().flatten().collect();
    changed.push(
        world
            .store
            .snapshot()
            .await
            .unwrap()
            .0
            .peers
            .into_iter()
            .find(|it| &*it.device_name == plain)
            .unwrap(),
    );
    check(&changed);

    let (allows, denies) = (peers[0].device, peers[1].device);
    let most = RowLimit::Destinations.most();
    let cursor = world.cursor().await;
    let whole = policy(&world, allows, 1, "allow", most).await;
    let none = policy(&world, allows, 2, "allow", most + 1).await;
    let every = policy(&world, denies, 3, "deny", most + 1).await;
    let odd = policy(&world, denies, 4, "shrug", most + 1).await;
    let check = |policies: Vec<PolicyRow>| {
        let policy = |id| policies.iter().find(|policy| policy.id.0 == id).unwrap();
        assert_eq!((policy(whole).destinations.len(), policy(whole).full_tunnel), (most, true));
        assert_eq!(policy(whole).beyond, None);
        for (id, expected) in
            [(none, &[][..]), (every, &["0.0.0.0/0", "::/0"]), (odd, &["0.0.0.0/0", "::/0"])]
        {
            assert_eq!(destinations(policy(id)), expected);
            assert_eq!(policy(id).beyond, Some(beyond(RowLimit::Destinations, id)));
            assert!(!policy(id).full_tunnel);
        }
    };
    let rows = world.store.snapshot().await.unwrap().0;
    let kept = serde_json::to_string(&rows).unwrap();
    assert_eq!(
        serde_json::from_str::<SnapshotRows>(&kept).unwrap(),
        rows,
        "for a boot without them"
    );
    check(rows.policies);
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    check(rows.policies.into_values().flatten().collect());
}

/// Whatever rows hold, no more of them is sent than their limits.
#[tokio::test]
async fn what_is_beyond_a_limit_is_not_sent() {
    const MOST_BYTES: i64 = 6_000_000;
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    policy(&world, ann.device, 1, "deny", RowLimit::Destinations.most() + 100_000).await;
    world
        .run(&format!(
            "drop index if exists gatepost_targets_by_target;
             update devices set name = repeat('x', 10000000);
             update wireguard_peers set preshared_key_ciphertext = repeat('x', 10000000),
                 allowed_ips = array_fill('10.0.0.0/8'::cidr, array[1000000]),
                 dns_servers = array_fill(repeat('x', 100000), array[100]);
             update gateways set dns_servers = array_fill(repeat('x', 1000), array[10000]);
             update policies set effect = repeat('x', 10000000);
             insert into policy_targets (policy_id, target_type, target_id)
                 select '{0}', 'device', gen_random_uuid() from generate_series(1, 100000);
             insert into policy_targets (policy_id, target_type, target_id)
                 select '{0}', 'device', '{1}' from generate_series(1, 100000)",
            Uuid::from_u128(1),
            ann.device
        ))
        .await;
    let role = client(&world.role, &world.database).await;
    let mut sent = 0;
    for function in ["gateway", "peers", "policies"] {
        let query = format!(
            "select sum(octet_length(row_to_json(s)::text)) from gatepost.snapshot_{function}() s"
        );
        sent += role.query_one(&query, &[]).await.unwrap().get::<_, i64>(0);
    }
    assert!(sent < MOST_BYTES, "{sent} bytes");
    let rows = world.store.snapshot().await.unwrap().0;
    // Its device, each once, and some of those that match nothing.
    assert_eq!(rows.policies[0].targets.len(), 11);
    assert_eq!(rows.gateway.dns_servers.len(), RowLimit::GatewayDns.most() + 1);
}

#[tokio::test]
async fn agent_names_the_row_the_number_the_limit_and_the_way_out() {
    let world = World::new().await;
    for number in 1..=2 {
        good_peer(&world, number).await;
    }
    world
        .run(
            "update wireguard_peers set allowed_ips = array_fill('10.0.0.0/8'::cidr, array[10001])
                 where device_id = (select id from devices where name = 'user-2');
             update gateways set dns_servers = array_fill('192.0.2.1'::text, array[101])",
        )
        .await;
    let first = id(&world.admin, "select id from devices where name = 'user-1'", &[]).await;
    let id = policy(&world, first, 7, "deny", RowLimit::Destinations.most() + 1).await;
    let mut agent = Running::start(agent(&world, Memory::default()).await);
    agent.waits_for("served", |status| status.peers.in_kernel == 1).await;
    let status = agent.status.borrow().clone();
    let [quarantined] = &status.quarantined[..] else { panic!("{status:?}") };
    assert_eq!(
        quarantined.reason,
        format!(
            "row {} of wireguard_peers has more than 10000 entries in allowed_ips; the limit is 10000: \
             write fewer and wider prefixes",
            quarantined.peer_id
        )
    );
    let policy = format!(
        "policy \"{id}\": row {id} of policies has more than 200000 rows in policy_destinations; the limit \
         is 200000, so it denies every address: write fewer and wider prefixes, or several policies"
    );
    let dns = format!(
        "row {} of gateways has more than 100 entries in dns_servers; the limit is 100, so none counts: keep \
         those that clients ask",
        world.gateway
    );
    for text in [policy, dns] {
        assert!(status.warnings.contains(&text), "{text}: {:?}", status.warnings);
    }
    agent.stop().await;
}

/// Makes a function of the database with another number in it.
async fn with_limit(world: &World, function: &str, from: &str, to: &str) {
    let query = "select pg_get_functiondef(to_regprocedure($1))";
    let body: String = world.admin.query_one(query, &[&function]).await.unwrap().get(0);
    assert!(body.contains(from), "{body}");
    world.run(&body.replace(from, to)).await;
}

#[tokio::test]
async fn of_too_many_rows_the_oldest_peers_and_the_denying_policies_are_read() {
    let world = World::new().await;
    for (name, year) in [("new", 2003), ("old", 2001), ("middle", 2002)] {
        world.peer(world.gateway, name).await;
        world
            .run(&format!(
                "update wireguard_peers set created_at = '{year}-01-01' where public_key = '{name}'"
            ))
            .await;
    }
    let device = world.peer(world.gateway, "middle-2").await.device;
    for (id, effect) in [(1, "allow"), (2, "deny"), (3, "allow"), (4, "shrug")] {
        policy(&world, device, id, effect, 1).await;
    }
    world.run("update policies set priority = 1 where effect = 'allow'").await;
    let function = "gatepost.snapshot_peers()";
    with_limit(&world, function, "offset 1048576", "offset 1").await;
    with_limit(&world, function, "limit 1048577", "limit 2").await;
    with_limit(&world, "gatepost.policies_of(uuid[])", "limit 100001", "limit 2").await;
    let rows = world.store.snapshot().await.unwrap().0;
    let mut names: Vec<_> = rows.peers.iter().map(|peer| &*peer.device_name).collect();
    names.sort_unstable();
    assert_eq!(names, ["middle", "old"]);
    let ids: Vec<_> = rows.policies.iter().map(|policy| policy.id.0.as_u128()).collect();
    assert_eq!(ids, [2, 4]);
}

#[tokio::test]
async fn more_policies_than_the_limit_grant_nothing_and_hold_up_no_revocation() {
    let world = World::new().await;
    for number in 1..=2 {
        good_peer(&world, number).await;
    }
    let most = RowLimit::Policies.most();
    world
        .run(&format!(
            "insert into policies (name) select n::text from generate_series(1, {most}) n;
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'user', u.id from policies p, users u where u.username = 'user-1'",
        ))
        .await;
    let memory = Memory::default();
    let mut agent = Running::start(agent(&world, memory.clone()).await);
    agent.waits_for("ready", |status| status.state.is_ready() && status.peers.in_kernel == 2).await;

    world
        .run(
            "insert into policies (id, name) values ('00000000-0000-0000-0000-000000000009', 'one more');
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'user', u.id from policies p, users u
                 where u.username = 'user-1' and p.name = 'one more'",
        )
        .await;
    let text =
        format!("row {} of gateways has more than {most} policies that concern it", world.gateway);
    agent
        .waits_for(
            "named",
            |status| matches!(&status.state, State::NotReady { why } if why.contains(&text)),
        )
        .await;
    good_peer(&world, 3).await;
    world.run("update devices set revoked_at = now() where name = 'user-1'").await;
    agent.waits_for("revoked", |status| status.peers.in_kernel == 1).await;
    assert_eq!(memory.state().peers.len(), 1, "the third is not let in, and the second stays");

    world.run("update policies set is_active = false where name = 'one more'").await;
    agent.waits_for("ready", |status| status.state.is_ready() && status.peers.in_kernel == 2).await;
    agent.stop().await;
}
