//! More of something than a gateway reads.

use gatepost::model::{BeyondLimit, PolicyRow, RowLimit, SnapshotRows};
use gatepost::reconcile::status::State;
use gatepost::store::Read;
use uuid::Uuid;

use crate::agent::{Memory, agent, good_peer};
use crate::running::Running;
use crate::token::{Pool, token};
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

/// So many items, as an argument.
fn items(kind: &str, number: usize) -> String {
    let item = match kind {
        "uuid" => "gen_random_uuid()",
        "timestamptz" => "now()",
        _ => "'9'",
    };
    format!("array_fill({item}::{kind}, array[{number}])")
}

/// Each function that limits how many items a call has, and its limit.
fn limited(number: usize) -> Vec<(String, usize)> {
    let of = |kind| items(kind, number);
    let (ids, times, texts) = (of("uuid"), of("timestamptz"), of("text"));
    let entries = format!(
        r#"(select jsonb_agg('{{"event_type": "gateway.started", "entity_type": "gateway",
            "status": "success", "message": "started"}}'::jsonb) from generate_series(1, {number}))"#
    );
    vec![
        (format!("peers_by_device({ids})"), 20_000),
        (format!("memberships_by_user({ids})"), 20_000),
        (format!("policies_by_id({ids})"), 20_000),
        (format!("devices_by_id({ids})"), 100_000),
        (format!("policies_by_device({ids})"), 100_000),
        (
            format!(
                "lost_marks({texts}, array_fill('all'::text, array[{number}]), {ids}, {ids}, {ids}, {times})"
            ),
            100_000,
        ),
        (format!("report({ids}, {times}, {times})"), 10_000),
        (format!("audit({entries})"), 1_000),
    ]
}

#[tokio::test]
async fn call_beyond_each_limit_of_items_is_refused_by_code_gp009() {
    let (pool, _) = Pool::new().await;
    let stolen = client(&pool.world.role, &pool.world.database).await;
    let pooled = pool.stolen().await;
    let own_token = token(1);
    for (index, (_, limit)) in limited(0).into_iter().enumerate() {
        for (number, is_refused) in [(limit, false), (limit + 1, true)] {
            let call = limited(number)[index].0.clone();
            let with_token = call.replacen('(', &format!("('{}', ", own_token.expose()), 1);
            for (session, call) in [(&stolen, call), (&pooled, with_token)] {
                let answer = session.batch_execute(&format!("select gatepost.{call}")).await;
                let code = answer.err().map(|error| error.code().unwrap().code().to_owned());
                let name = call.split('(').next().unwrap();
                assert_eq!(code.as_deref(), is_refused.then_some("GP009"), "{name} of {number}");
            }
        }
    }
    let functions = "select count(*) from pg_proc p where pronamespace = 'gatepost'::regnamespace
        and has_function_privilege('gatepost_gateway', oid, 'execute') and prosrc ~ 'at_most|GP009'";
    let tried = 2 * limited(0).len();
    assert_eq!(pool.world.count(functions).await, i64::try_from(tried).unwrap(), "all are tried");
}

/// Limits of what waits for a gateway, and of the bytes of a call.
#[tokio::test]
async fn reports_beyond_what_may_wait_are_refused_by_code_gp009_and_go_on_when_there_is_room() {
    const REPORT: &str = r#"select gatepost.audit('[{"event_type": "gateway.started",
        "entity_type": "gateway", "status": "success", "message": "started"}]')"#;
    let world = World::new().await;
    let stolen = client(&world.role, &world.database).await;
    let refused = async |call: &str| {
        let answer = stolen.batch_execute(call).await;
        answer.err().map(|error| error.as_db_error().unwrap().clone())
    };
    let code = async |call: &str| refused(call).await.map(|error| error.code().code().to_owned());
    let long = |mib: usize| {
        format!(
            "select gatepost.audit(jsonb_build_array(jsonb_build_object('event_type', 'gateway.started',
                 'entity_type', 'gateway', 'status', 'success', 'message', repeat('x', {mib} << 20))))"
        )
    };
    assert_eq!(code(&long(33)).await.as_deref(), Some("GP009"));
    assert_eq!(code(&long(31)).await, None);
    world.run("truncate gatepost.event").await;

    let waiting = format!(
        "insert into gatepost.event (gateway_id, event_type, entity_type, status, message, metadata)
             select '{}', 'gateway.started', 'gateway', 'success', n::text, '{{}}'
             from generate_series(1, 200000) n",
        world.gateway
    );
    world.run(&waiting).await;
    assert_eq!(code(REPORT).await, None);
    assert_eq!(code(REPORT).await.as_deref(), Some("GP009"));
    world.run("delete from gatepost.event where message = 'started'").await;
    assert_eq!(code(REPORT).await, None);
    world.run("truncate gatepost.event").await;
    let said = format!(
        "insert into gatepost.said (gateway_id, entity_id, event_type, digest)
             select '{}', gen_random_uuid(), 'peer.quarantined', n::text
             from generate_series(1, 200001) n",
        world.gateway
    );
    world.run(&said).await;
    assert_eq!(code(REPORT).await.as_deref(), Some("GP009"));

    let proven =
        |host: usize| format!("select gatepost.proven(now(), null, '{host}', 'boot', 'h')");
    for host in 1..=16 {
        assert_eq!(code(&proven(host)).await, None, "host {host}");
    }
    let error = refused(&proven(17)).await.unwrap();
    assert_eq!(error.code().code(), "GP009");
    assert_eq!(error.hint(), Some("run `gatepost host forget NAME` for each that is gone"));
    assert_eq!(code("select gatepost.synced(now())").await.as_deref(), Some("GP009"));
    assert_eq!(code(&proven(16)).await, None, "those that are known go on");
    stolen.batch_execute("select gatepost.forget_host('3', 'boot')").await.unwrap();
    assert_eq!(code(&proven(17)).await, None);
}
