//! A thief of one gateway's login calls every function that it may call.

use gatepost::store::{CreateRole, Read, Store, Token, grant, grant_token};
use uuid::Uuid;

use crate::seed::seed;
use crate::world::{Peer, World, client, insert_gateway, options};

/// Gateway g2 with bob's device, and a policy that is for bob alone.
struct Foreign {
    gateway: Uuid,
    bob: Peer,
    policy: Uuid,
}

async fn foreign(world: &World) -> Foreign {
    let gateway = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let bob = world.peer(gateway, "bob").await;
    let policy = Uuid::from_u128(0x0b0b);
    world
        .run(&format!(
            "insert into policies (id, name) values ('{policy}', 'for bob');
             insert into policy_targets (policy_id, target_type, target_id) values
                 ('{policy}', 'device', '{}'), ('{policy}', 'user', gen_random_uuid()),
                 ('{policy}', 'team', gen_random_uuid());
             insert into policy_destinations (policy_id, destination)
                 values ('{policy}', '10.20.0.0/16')",
            bob.device
        ))
        .await;
    Foreign { gateway, bob, policy }
}

impl Foreign {
    fn ids(&self) -> [Uuid; 5] {
        [self.gateway, self.bob.user, self.bob.device, self.bob.peer, self.policy]
    }
}

/// Values for an argument of this type, as SQL.
fn values(of_type: &str, world: &World, foreign: &Foreign) -> Vec<String> {
    let Foreign { bob, policy, .. } = foreign;
    let position = |column: &str| format!("(select s.{column} from gatepost.snapshot_gateway() s)");
    let entry = |what: &str| format!("jsonb_build_array(jsonb_build_object({what}))");
    let known = |event: &str, kind: &str, id: Uuid| {
        entry(&format!(
            "'event_type', '{event}', 'entity_type', '{kind}', 'entity_id', '{id}', \
             'device_id', '{}', 'message', 'forged', 'metadata', '{{\"gateway_id\": \"{}\"}}'::jsonb",
            bob.device, foreign.gateway
        ))
    };
    let all = match of_type {
        "boolean" => vec!["true".into(), "false".into()],
        "integer" => vec!["0".into(), "-1".into(), "2147483647".into()],
        "cidr" => vec!["'0.0.0.0/0'".into(), "'::/0'".into()],
        "interval" => vec![
            "'-12 mons 360 days 1 hour'".into(),
            "'-178000000 years'".into(),
            "'178000000 years'".into(),
            "'0'".into(),
            "'2 hours -1 day'".into(),
            "'1 hour'".into(),
        ],
        "timestamp with time zone" => {
            ["infinity", "-infinity", "294276-01-01", "4713-01-01 BC", "epoch", "now"]
                .map(|time| format!("'{time}'"))
                .into()
        }
        "timestamp with time zone[]" => vec![
            "array['infinity', '-infinity', null]::timestamptz[]".into(),
            "array_fill(now(), array[2, 2])".into(),
            "array_fill('infinity'::timestamptz, array[20001])".into(),
            "'{}'".into(),
        ],
        "uuid[]" => vec![
            format!("array['{}', '{}', '{}']::uuid[]", bob.device, bob.user, policy),
            "array_fill(gen_random_uuid(), array[200001])".into(),
            "array[null, null]::uuid[]".into(),
            format!("array_fill('{}'::uuid, array[2, 2])", bob.device),
            "'{}'".into(),
        ],
        "text[]" => vec![
            "array_fill('1'::text, array[200001])".into(),
            "array['all', '18446744073709551615', '-1', null]".into(),
            "'{}'".into(),
        ],
        "text" => vec![
            position("cursor"),
            position("epoch"),
            "'1:1:'".into(),
            "'1:18446744073709551614:1,2'".into(),
            "'g1'".into(),
            "'g2'".into(),
            "repeat('x', 1000000)".into(),
            "''".into(),
        ],
        "jsonb" => vec![
            "'null'".into(),
            "'[1, null, {}]'".into(),
            known("peer.revoked", "peer", bob.peer),
            known("peer.revoked", "device", bob.device),
            known("gateway.started", "gateway", foreign.gateway),
            known("gateway.enrolled", "gateway", foreign.gateway),
            known("user.login", "user", bob.user),
            entry("'event_type', 'peer.revoked', 'entity_type', repeat('x', 1000000)"),
            entry(
                "'event_type', 'peer.revoked', 'entity_type', 'peer', 'message', \
                 repeat('x', 1000000), 'metadata', jsonb_build_object('x', repeat('x', 1000000))",
            ),
            "(select jsonb_agg('{\"event_type\": \"peer.revoked\"}'::jsonb) \
              from generate_series(1, 1001))"
                .into(),
        ],
        other => panic!("no hostile values of type {other} for {}", world.role),
    };
    all.into_iter().chain(["null".into()]).collect()
}

/// What no call may change, as one text.
async fn rest(world: &World) -> String {
    let query = "
        select md5(string_agg(t, '' order by t)) from (
            select u::text from users u
            union all select p::text from wireguard_peers p
            union all select g::text from groups g
            union all select m::text from group_memberships m
            union all select p::text from policies p
            union all select t::text from policy_targets t
            union all select d::text from policy_destinations d
            union all select a::text from ip_allocations a
            union all select s::text from settings s
            union all select g::text from gateways g where g.name <> 'g1'
            union all select d::text from devices d where d.device_fingerprint <> 'ann'
            union all select d.status || d.name from devices d
            union all select r.role_name || r.gateway_name from gatepost.gateway_role r
            union all select s.database_epoch::text from gatepost.state s
            union all select c::text from gatepost.change c where c.xid = any (
                array(select o.xid from gatepost.change o order by o.xid limit 5)
            )
        ) s (t)";
    world.admin.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn hostile_arguments_change_and_show_nothing_of_others() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let foreign = foreign(&world).await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g2", &role, &create).await.unwrap();
    let mut random = fastrand::Rng::with_seed(seed());
    let functions = "
        select p.proname::text, array(
            select format_type(a.type, null)
            from unnest(p.proargtypes) with ordinality a (type, number) order by number
        ), p.proargnames[1] is not distinct from 'token'
        from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace
            and has_function_privilege('gatepost_gateway', p.oid, 'execute')
        order by 1";
    let before = rest(&world).await;
    let stolen = client(&world.role, &world.database).await;
    stolen.batch_execute("set statement_timeout = '60s'").await.unwrap();
    let token = Token::from_random(&[8; 32]);
    grant_token(&options("postgres", &world.database), "g1", &token, None, &CreateRole::No)
        .await
        .unwrap();
    let (mut answered, mut refused, mut by_token) = (0, 0, 0);
    for function in world.admin.query(functions, &[]).await.unwrap() {
        let (name, types): (String, Vec<String>) = (function.get(0), function.get(1));
        let mut all: Vec<Vec<String>> =
            types.iter().map(|it| values(it, &world, &foreign)).collect();
        if function.get(2) {
            // The thief has the gateway's token, too, so that the call gets beyond it.
            all[0] = vec![format!("'{}'", token.expose())];
            by_token += 1;
        }
        // Each value at least once, with others by chance.
        for round in 0..all.iter().map(Vec::len).max().unwrap_or(1) {
            let arguments: Vec<&str> = all
                .iter()
                .map(|values| &*values[(round + random.usize(..2)) % values.len()])
                .collect();
            let call = format!("select t::text from gatepost.{name}({}) t", arguments.join(", "));
            match stolen.query(&call, &[]).await {
                Ok(rows) => {
                    answered += 1;
                    let told: String =
                        rows.iter().filter_map(|row| row.get::<_, Option<String>>(0)).collect();
                    for id in foreign.ids() {
                        // An agent may name the policies that it knows.
                        let asks = matches!(&*name, "changes_among" | "read_changes");
                        let named = asks && call.contains(&id.to_string());
                        let shown = told.contains(&id.to_string()) && !named;
                        assert!(!shown, "{call} tells {id}: {told}");
                    }
                }
                Err(error) => {
                    let code = error.code().unwrap_or_else(|| panic!("{call}: {error:?}")).code();
                    assert!(!code.starts_with("XX") && code != "57014", "{call}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(answered > 100 && refused > 20, "{answered} calls answered, {refused} refused");
    assert!(by_token > 20, "{by_token} functions with a token");
    stolen.query("select gatepost.merge()", &[]).await.unwrap();
    assert_eq!(rest(&world).await, before);
    // What it wrote to the audit log says who it was, and names nothing of others.
    let forged = format!(
        "select count(*) from audit_logs where metadata ->> 'gateway_id' is distinct from '{0}'
            and event_type <> 'gateway.enrolled' or entity_id in ('{1}', '{2}', '{3}', '{4}')
            or actor_device_id = '{2}' or length(a.message || a.entity_type) > 3000",
        world.gateway, foreign.gateway, foreign.bob.device, foreign.bob.peer, foreign.bob.user
    );
    assert_eq!(world.count(&forged.replace("from audit_logs", "from audit_logs a")).await, 0);
    assert!(world.count("select count(*) from audit_logs").await > 0);
    // The other gateway is served as before.
    let store = Store::connect(&options(&role, &world.database)).unwrap();
    assert_eq!(store.snapshot().await.unwrap().0.peers.len(), 1);
}

/// A thief of a bell's login. Its functions name gateways, for that is what it rings; nothing else of anybody.
#[tokio::test]
async fn hostile_arguments_of_a_bell_change_and_show_nothing() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let foreign = foreign(&world).await;
    let role = format!("{}_bell", world.database);
    world.run(&format!("create role {role} login in role gatepost_bell")).await;
    let stolen = client(&role, &world.database).await;
    let functions = "
        select p.proname::text, array(
            select format_type(a.type, null)
            from unnest(p.proargtypes) with ordinality a (type, number) order by number
        )
        from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace
            and has_function_privilege('gatepost_bell', p.oid, 'execute')
        order by 1";
    let gateways = "select string_agg(g::text, '' order by g.id) from gateways g";
    let state = async || {
        let own: String = world.admin.query_one(gateways, &[]).await.unwrap().get(0);
        own + &rest(&world).await
    };
    let before = state().await;
    let secrets =
        [ann.device, ann.user, ann.peer, foreign.bob.device, foreign.bob.user, foreign.policy];
    let (mut answered, mut refused) = (0, 0);
    for function in world.admin.query(functions, &[]).await.unwrap() {
        let (name, types): (String, Vec<String>) = (function.get(0), function.get(1));
        let all = types.iter().map(|it| match &**it {
            "uuid" => {
                let ids = [world.gateway, foreign.gateway, ann.device, foreign.bob.user];
                ids.map(|id| format!("'{id}'")).into_iter().chain(["null".into()]).collect()
            }
            other => values(other, &world, &foreign),
        });
        // What only a gateway may ask is no argument of a bell.
        let all = all.map(|values: Vec<String>| {
            Vec::from_iter(values.into_iter().filter(|it| !it.contains("snapshot_gateway")))
        });
        let all = Vec::from_iter(all);
        for round in 0..all.iter().map(Vec::len).max().unwrap_or(1) {
            let arguments = Vec::from_iter(all.iter().map(|values| &*values[round % values.len()]));
            let call = format!("select t::text from gatepost.{name}({}) t", arguments.join(", "));
            match stolen.query(&call, &[]).await {
                Ok(rows) => {
                    answered += 1;
                    let told = rows.iter().filter_map(|row| row.get::<_, Option<String>>(0));
                    let told = told.collect::<String>();
                    for id in secrets {
                        let shown =
                            told.contains(&id.to_string()) && !call.contains(&id.to_string());
                        assert!(!shown, "{call} tells {id}: {told}");
                    }
                }
                Err(error) => {
                    let code = error.code().unwrap_or_else(|| panic!("{call}: {error:?}")).code();
                    assert!(!code.starts_with("XX") && code != "57014", "{call}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(answered > 20, "{answered} calls answered, {refused} refused");
    assert_eq!(state().await, before);

    let of_gateways =
        ["snapshot_peers()", "changes('', '')", "report('{}', '{}', '{}')", "hello()"];
    for call in of_gateways.map(|call| format!("select gatepost.{call}")) {
        let error = stolen.execute(&call, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{call}: {error}");
    }
    for statement in [
        "create table gatepost.mine ()",
        "create function gatepost.mine() returns int language sql as 'select 1'",
        "set role gatepost_owner",
        "set role gatepost_gateway",
        "grant gatepost_bell to gatepost_gateway",
        "alter function gatepost.ring(text) security invoker",
        "drop trigger gatepost_update on devices",
        "truncate gatepost.change",
        "insert into gatepost.gateway_role values ('x', 'g1')",
        "copy users to stdout",
    ] {
        let error = stolen.batch_execute(statement).await.unwrap_err();
        let code = error.code().unwrap_or_else(|| panic!("{statement}: {error:?}")).code();
        assert!(["42501", "0LP01"].contains(&code), "{statement}: {error:?}");
    }
}

#[tokio::test]
async fn fresh_marks_stay_whatever_interval_is_given() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world.run("update gatepost.change set at = at - interval '59 minutes'").await;
    let marks = world.count("select count(*) from gatepost.change").await;
    let stolen = client(&world.role, &world.database).await;
    for keep in ["-12 mons 360 days 1 hour", "-1 hour", "59 minutes"] {
        let error = stolen.batch_execute(&format!("select gatepost.prune('{keep}')")).await;
        assert_eq!(error.unwrap_err().code().unwrap().code(), "22023", "{keep}");
    }
    stolen.batch_execute("select gatepost.prune('1 hour')").await.unwrap();
    assert_eq!(world.count("select count(*) from gatepost.change").await, marks);
}

#[tokio::test]
async fn changes_name_nothing_of_another_gateway() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let foreign = foreign(&world).await;
    let cursor = world.cursor().await;
    let bob = foreign.bob;
    world
        .run(&format!(
            "update devices set name = name || '2', user_id = '{}' where id = '{}';
             update devices set name = name || '2' where id = '{}';
             update users set username = username || '2';
             update policies set priority = 7;
             insert into policies (id, name) values ('{1}', 'for ann');
             insert into policy_targets (policy_id, target_type, target_id)
                 values ('{1}', 'device', '{1}')",
            bob.user, ann.device, bob.device
        ))
        .await;
    let Read::Changed(rows, next) = world.read(&cursor).await else { panic!("no change") };
    let own = gatepost::model::PolicyId(ann.device);
    assert_eq!(rows.peers.keys().map(|id| id.0).collect::<Vec<_>>(), [ann.device]);
    assert_eq!(rows.policies.keys().copied().collect::<Vec<_>>(), [own]);
    assert!(rows.memberships.keys().all(|id| id.0 == bob.user), "who owns the device now");
    for mark in &rows.marks {
        assert!(!mark.ids.iter().flatten().any(|id| *id == bob.device), "{mark:?}");
    }
    // A policy that it had before is told of when it leaves.
    world.run(&format!("delete from policy_targets where policy_id = '{}'", own.0)).await;
    let Read::Changed(rows, _) = world.read(&next).await else { panic!("no change") };
    assert_eq!(rows.policies.into_iter().collect::<Vec<_>>(), [(own, None)]);
}

#[tokio::test]
async fn grant_limits_the_connections_of_the_role_that_it_creates() {
    let world = World::new().await;
    let mut sessions = Vec::new();
    let url = &world.url;
    let error = loop {
        match tokio_postgres::connect(url, tokio_postgres::NoTls).await {
            Ok((session, connection)) => {
                tokio::spawn(connection);
                sessions.push(session);
                assert!(sessions.len() <= 10, "no limit");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.code().unwrap().code(), "53300");
    assert!(sessions.len() >= 8, "an agent and its commands need {}", sessions.len());
    let store = Store::connect(&options(&world.role, &world.database)).unwrap();
    let refused = store.hello().await.unwrap_err();
    assert!(refused.to_string().contains("too many connections for role"), "{refused}");
}

/// A lock that any login can take does not keep `gatepost migrate` from its work.
#[tokio::test]
async fn migrate_waits_for_no_lock_that_a_gateway_can_hold() {
    let world = World::new().await;
    let stolen = client(&world.role, &world.database).await;
    let hold = "select pg_advisory_lock(hashtext('gatepost.migrate'))";
    stolen.batch_execute(hold).await.unwrap();
    let admin = options("postgres", &world.database);
    let migrated = gatepost::store::migrate(&admin);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), migrated).await;
    ended.expect("it waits for the gateway's session").unwrap();
}
