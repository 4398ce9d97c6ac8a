//! Gateways behind one pool: one role, and a token in each call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio_postgres::Client;
use uuid::Uuid;

use gatepost::model::{DeviceId, GroupId};
use gatepost::reconcile::{Mode, Present, SyncMode, choose};
use gatepost::store::{
    AuditEntry, AuditEvent, AuditStatus, ConnectOptions, CreateRole, Entity, Handshake, Polled,
    Read, Source, Store, StoreError, Token, grant, grant_bell, grant_token, migrate, revoke_tokens,
};

use crate::postgres::Cluster;
use crate::postgres::pooler::Pooler;
use crate::world::{World, client, id, insert_gateway, options};

pub fn token(seed: u8) -> Token {
    Token::from_random(&[seed; 32])
}

/// The role that gateways log in as, and whose token acts for which gateway.
pub struct Pool {
    pub world: World,
    pub role: String,
}

impl Pool {
    /// Gateway g1 has token 1, and g2 token 2.
    pub async fn new() -> (Self, Uuid) {
        let world = World::new().await;
        let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
        let role = format!("{}_pool", world.database);
        let admin = options("postgres", &world.database);
        let create = CreateRole::IfAbsent(None);
        let first = grant_token(&admin, "g1", &token(1), Some(&role), &create).await.unwrap();
        assert!(first.role_created && first.others == 0, "{first:?}");
        grant_token(&admin, "g2", &token(2), Some(&role), &create).await.unwrap();
        (Self { world, role }, other)
    }

    pub fn url(&self) -> String {
        Cluster::shared().socket_url(&self.role, &self.world.database)
    }

    pub fn store(&self, token: Token) -> Store {
        let options = ConnectOptions { token: Some(token), ..ConnectOptions::new(self.url()) };
        Store::connect(&options).unwrap()
    }

    /// PgBouncer in transaction mode with two sessions, and where it is.
    pub fn pooled(&self) -> (Pooler, String) {
        let server = ([127, 0, 0, 1], Cluster::shared().port).into();
        let pooler = Pooler::start(server, &self.role, "");
        let dir = pooler.dir.to_str().unwrap().replace('/', "%2F");
        let url = format!("postgres://{}@{dir}:{}/{}", self.role, pooler.port, self.world.database);
        (pooler, url)
    }

    pub async fn stolen(&self) -> Client {
        client(&self.role, &self.world.database).await
    }
}

#[tokio::test]
async fn a_token_shows_its_own_gateway_and_no_other() {
    let (pool, other) = Pool::new().await;
    let mine = pool.world.peer(pool.world.gateway, "ann").await;
    let theirs = pool.world.peer(other, "bob").await;
    let (first, second) = (pool.store(token(1)), pool.store(token(2)));
    assert!(first.is_pooled() && !pool.world.store.is_pooled());
    assert_eq!(first.hello().await.unwrap().gateway_id.0, pool.world.gateway);
    assert_eq!(second.hello().await.unwrap().gateway_id.0, other);
    for (store, device) in [(&first, mine.device), (&second, theirs.device)] {
        let (rows, _) = store.snapshot().await.unwrap();
        let devices: Vec<_> = rows.peers.iter().map(|peer| peer.device_id.0).collect();
        assert_eq!(devices, [device]);
    }
    // By a token of one, rows of the other.
    let stolen = pool.stolen().await;
    let (text, asked) = (token(1), vec![theirs.device]);
    let query = "select * from gatepost.peers_by_device($1, $2)";
    let rows = stolen.query(query, &[&text.expose(), &asked]).await.unwrap();
    assert!(rows.is_empty());
    let query = "select gatepost.report($1, $2, array[now()], array[now()])";
    stolen.query(query, &[&text.expose(), &asked]).await.unwrap();
    let seen = format!("select count(*) from gatepost.seen where device_id = '{}'", theirs.device);
    assert_eq!(pool.world.count(&seen).await, 0);
}

#[tokio::test]
async fn words_are_told_of_the_gateways_own_groups_and_devices() {
    let (pool, other) = Pool::new().await;
    let mine = pool.world.peer(pool.world.gateway, "ann").await;
    let theirs = pool.world.peer(other, "bob").await;
    let mut groups = Vec::new();
    for (name, user) in [("staff", mine.user), ("guests", theirs.user)] {
        let group = "insert into groups (name) values ($1) returning id";
        let group = id(&pool.world.admin, group, &[&name]).await;
        let join = "insert into group_memberships (group_id, user_id) values ($1, $2) returning id";
        id(&pool.world.admin, join, &[&group, &user]).await;
        groups.push(GroupId(group));
    }
    pool.world.run("update devices set status = 'lost'").await;
    let devices = [mine.device, theirs.device].map(DeviceId);
    for store in [pool.store(token(1)), pool.world.store.clone()] {
        let asked = (&groups.iter().copied().collect(), &devices.into_iter().collect());
        let words = store.words(asked.0, asked.1).await.unwrap();
        assert_eq!(words.groups, [(groups[0], "staff".to_owned())].into());
        assert_eq!(words.statuses, [(devices[0], "lost".to_owned())].into());
    }
}

#[tokio::test]
async fn wrong_and_revoked_tokens_and_none_are_told_apart() {
    let (pool, _) = Pool::new().await;
    let admin = options("postgres", &pool.world.database);
    let refusal = async |store: Store| {
        let error = store.hello().await.unwrap_err();
        assert!(matches!(error, StoreError::TokenRefused { .. }), "{error}");
        assert!(!error.is_transient());
        error.to_string()
    };
    let wrong = refusal(pool.store(token(9))).await;
    assert!(wrong.starts_with("the token is bound to no gateway: run `gatepost grant"), "{wrong}");
    assert!(!wrong.contains(token(9).expose()));

    // A new one is valid beside the former, until that is revoked.
    let granted = grant_token(&admin, "g1", &token(3), None, &CreateRole::No).await.unwrap();
    assert_eq!(granted.others, 1);
    pool.store(token(1)).hello().await.unwrap();
    assert_eq!(revoke_tokens(&admin, "g1", true).await.unwrap(), 1);
    let revoked = refusal(pool.store(token(1))).await;
    assert!(revoked.starts_with("the token of gateway g1 was revoked at "), "{revoked}");
    assert!(revoked.contains("`gatepost grant --token g1`"), "{revoked}");
    pool.store(token(3)).hello().await.unwrap();
    pool.store(token(2)).hello().await.unwrap();
    assert_eq!(revoke_tokens(&admin, "g1", false).await.unwrap(), 1);
    refusal(pool.store(token(3))).await;
    let none = revoke_tokens(&admin, "g1", false).await.unwrap_err().to_string();
    assert!(none.contains("no gateway named g1 has a valid token"), "{none}");
    // By its present name.
    pool.world.run("update gateways set name = 'g3' where name = 'g2'").await;
    assert_eq!(revoke_tokens(&admin, "g3", false).await.unwrap(), 1);
    pool.world.run("update gateways set name = 'g2' where name = 'g3'").await;
    grant_token(&admin, "g2", &token(2), None, &CreateRole::No).await.unwrap_err();
    grant_token(&admin, "g2", &token(5), None, &CreateRole::No).await.unwrap();

    // The role alone acts for no gateway.
    let error =
        Store::connect(&ConnectOptions::new(pool.url())).unwrap().hello().await.unwrap_err();
    assert!(matches!(error, StoreError::Unbound { .. }), "{error}");
    // A role of its own needs no token, and a token is no right to use a role.
    pool.world.store.hello().await.unwrap();
    let nowhere = grant_token(&admin, "g9", &token(4), None, &CreateRole::No).await.unwrap_err();
    assert!(
        nowhere.to_string().contains("no gateway named g9: run `gatepost enroll`"),
        "{nowhere}"
    );
    pool.world.run("delete from gateways where name = 'g2'").await;
    let error = pool.store(token(5)).hello().await.unwrap_err();
    assert!(matches!(error, StoreError::GatewayUnknown { .. }), "{error}");
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_again_once_the_former_is_refused() {
    let (pool, _) = Pool::new().await;
    let admin = options("postgres", &pool.world.database);
    let (store, file) = (pool.store(token(1)), Arc::new(Mutex::new(Some(token(1)))));
    let (read, url) = (Arc::clone(&file), pool.url());
    let source = move || {
        let mut options = ConnectOptions::new(url.clone());
        options.token.clone_from(&read.lock().unwrap());
        Ok(options)
    };
    let source: Source = Arc::new(source);
    store.follow(Arc::clone(&source)).unwrap();
    grant_token(&admin, "g1", &token(3), None, &CreateRole::No).await.unwrap();
    assert_eq!(revoke_tokens(&admin, "g1", true).await.unwrap(), 1);
    let refused = store.hello().await.unwrap_err();
    assert!(matches!(refused, StoreError::TokenRefused { .. }), "{refused}");
    // Between two tokens there may be no file.
    *file.lock().unwrap() = None;
    let refused = store.hello().await.unwrap_err();
    assert!(matches!(refused, StoreError::TokenRefused { .. }), "{refused}");
    let why = store.follow(Arc::clone(&source)).unwrap_err();
    assert_eq!(why, "the file with the gateway's token is gone");
    let begun = Store::connect(&ConnectOptions::new(pool.url())).unwrap();
    begun.follow(source).unwrap();
    let unbound = begun.hello().await.unwrap_err();
    assert!(matches!(unbound, StoreError::Unbound { .. }), "{unbound}");
    *file.lock().unwrap() = Some(token(3));
    for store in [store, begun] {
        store.hello().await.unwrap();
        store.snapshot().await.unwrap();
    }
}

/// The rights of a role of its own, and of the pool's role: the same functions, and no table.
#[tokio::test]
async fn the_role_of_a_pool_can_call_the_same_functions_and_read_no_table() {
    let (pool, _) = Pool::new().await;
    let stolen = pool.stolen().await;
    let callable = |with_token: bool| {
        format!(
            "select array(select p.proname::text from pg_proc p
                where p.pronamespace = 'gatepost'::regnamespace
                    and has_function_privilege(p.oid, 'execute')
                    and (p.proargnames[1] is not distinct from 'token') = {with_token} order by 1)"
        )
    };
    let own: Vec<String> = stolen.query_one(&callable(false), &[]).await.unwrap().get(0);
    let by_token: Vec<String> = stolen.query_one(&callable(true), &[]).await.unwrap().get(0);
    let without =
        ["changes", "enroll", "misfits", "poll", "prune", "rewritten", "synced", "unwatched"];
    let expected: Vec<_> = own.iter().filter(|it| !without.contains(&&***it)).collect();
    assert_eq!(by_token.iter().collect::<Vec<_>>(), expected);

    let tables = "select array(select format('%s.%I', c.relnamespace::regnamespace, c.relname) from pg_class c
        where c.relnamespace in ('public'::regnamespace, 'gatepost'::regnamespace)
            and c.relkind in ('r', 'v'))";
    let tables: Vec<String> = pool.world.admin.query_one(tables, &[]).await.unwrap().get(0);
    assert!(tables.contains(&"gatepost.gateway_token".to_owned()), "{tables:?}");
    for table in tables {
        for statement in [format!("select from {table}"), format!("delete from {table}")] {
            let error = stolen.execute(&statement, &[]).await.unwrap_err();
            let code = error.code().unwrap().code().to_owned();
            assert!(["42501", "55000"].contains(&&*code), "{statement}: {error}");
        }
    }
}

/// None of the functions with a token asks whom the session's role acts for, in no call below it.
#[tokio::test]
async fn no_function_with_a_token_acts_for_the_role_of_the_session() {
    let (pool, _) = Pool::new().await;
    // For each function whether it is with a token, and the functions that its body calls.
    let query = "select p.proname::text, p.proargnames[1] is not distinct from 'token',
            body ~ 'gatepost\\.me\\(\\)' or body like '%session_user%',
            array(select distinct m[1] || case when m[2] is not null then '+' else '' end
                from regexp_matches(body, 'gatepost\\.([a-z_]+)\\((\\$1)?', 'g') m)
        from pg_proc p
        cross join lateral regexp_replace(p.prosrc, '--[^\\n]*', '', 'g') body
        where p.pronamespace = 'gatepost'::regnamespace";
    let mut functions = std::collections::BTreeMap::new();
    for row in pool.world.admin.query(query, &[]).await.unwrap() {
        let (name, with_token): (String, bool) = (row.get(0), row.get(1));
        let name = name + if with_token { "+" } else { "" };
        functions.insert(name, (row.get::<_, bool>(2), row.get::<_, Vec<String>>(3)));
    }
    let mut waiting: Vec<_> =
        functions.keys().filter(|name| name.ends_with('+')).cloned().collect();
    assert!(waiting.len() > 20, "{waiting:?}");
    let mut seen = std::collections::BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let Some((asks_session, calls)) = functions.get(&name) else { continue };
        // It only decides what a session may remember; the owner tries reports by its role.
        let is_known = ["history", "try_reports+"].contains(&&*name);
        assert!(is_known || !asks_session, "{name} acts for the session's role");
        waiting.extend(calls.iter().cloned());
    }
}

/// A control plane's own column of that name is not taken for the token.
#[tokio::test]
async fn a_column_named_token_hides_no_token() {
    let (pool, _) = Pool::new().await;
    pool.world
        .run(
            "alter table gateways add column token text default 'x';
             alter table settings add column token text default 'x';
             alter table wireguard_peers add column token text default 'x'",
        )
        .await;
    let store = pool.store(token(1));
    store.hello().await.unwrap();
    let (rows, cursor) = store.snapshot().await.unwrap();
    assert_eq!(rows.gateway.name, "g1");
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));
    // Nor is a statement that acts for no gateway.
    assert_eq!(store.wrong_rights().await.unwrap(), Vec::<String>::new());
    assert!(!store.attach(true).await.unwrap().unwatched.contains(&"x".to_owned()));
    assert_eq!(pool.world.count("select count(*) from gatepost.listener").await, 0, "none listens");
}

/// A session of one gateway or bell may remember what those who share one must not believe.
#[tokio::test]
async fn a_role_is_for_one_gateway_or_for_a_pool_or_for_a_bell() {
    let (pool, _) = Pool::new().await;
    let admin = options("postgres", &pool.world.database);
    let bell = format!("{}_bell", pool.world.database);
    let create = CreateRole::IfAbsent(None);
    grant_bell(&admin, &bell, &create).await.unwrap();
    let refused =
        |error: StoreError| assert!(error.to_string().contains("already in use"), "{error}");
    for role in [&pool.world.role, &bell] {
        refused(grant_token(&admin, "g1", &token(7), Some(role), &create).await.unwrap_err());
    }
    for role in [&pool.role, &bell] {
        refused(grant(&admin, "g1", role, &create).await.unwrap_err());
    }
    for role in [&pool.role, &pool.world.role] {
        refused(grant_bell(&admin, role, &create).await.unwrap_err());
    }
    // A restore that lost the roles' memberships.
    pool.world.run(&format!("revoke gatepost_gateway from {}", pool.role)).await;
    pool.world.run(&format!("revoke gatepost_bell from {bell}")).await;
    migrate(&admin).await.unwrap();
    pool.store(token(1)).hello().await.unwrap();
    let member = format!("select pg_has_role('{bell}', 'gatepost_bell', 'member')::int::bigint");
    assert_eq!(pool.world.count(&member).await, 1);
}

/// Through PgBouncer in transaction mode with two sessions, all that an agent does.
#[tokio::test]
async fn an_agent_does_all_its_work_by_token_through_a_pool() {
    let (pool, other) = Pool::new().await;
    let (_pooler, url) = pool.pooled();
    let store = |seed| {
        let options = ConnectOptions { token: Some(token(seed)), ..ConnectOptions::new(&url) };
        Store::connect(&options).unwrap()
    };
    let (first, second) = (store(1), store(2));
    first.hello().await.unwrap();
    let (_, cursor) = first.snapshot().await.unwrap();
    let (_, others) = second.snapshot().await.unwrap();
    first.attach(false).await.unwrap();
    second.attach(false).await.unwrap();
    let ann = pool.world.peer(pool.world.gateway, "ann").await;
    assert_eq!(first.poll(&cursor).await.unwrap(), Polled::News);
    let (mine, theirs) = tokio::join!(first.changes(&cursor), second.changes(&others));
    let Read::Changed(rows, _) = mine.unwrap() else { panic!("missed the peer") };
    assert_eq!(rows.peers[&ann.device.into()].len(), 1);
    assert!(matches!(theirs.unwrap(), Read::Nothing(..)), "a peer of another gateway");

    let now = SystemTime::now() - Duration::from_secs(1);
    let device_id: DeviceId = ann.device.into();
    let handshake = Handshake { device_id, first_at: now, seen_at: now, connected_at: None };
    first.report(&[handshake]).await.unwrap();
    let gateway = first.hello().await.unwrap().gateway_id;
    let entry = AuditEntry {
        event: AuditEvent::GatewayStarted,
        entity: Entity::Gateway(gateway),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: "started".into(),
        metadata: serde_json::json!({}),
    };
    assert_eq!(first.audit(&[entry]).await.settled, 1);
    assert!(first.synced(now).await.unwrap());
    first.merge().await.unwrap();
    assert_eq!(first.try_reports().await.unwrap(), Vec::<String>::new());
    assert_eq!(first.hosts().await.unwrap().len(), 1);
    assert_eq!(second.hosts().await.unwrap().len(), 0);
    first.leave().await.unwrap();
    assert!(first.unwatched().await.unwrap().is_empty());
    first.prune(Duration::from_secs(86_400)).await.unwrap();
    let reported = format!(
        "select count(*) from devices d, gateways g, audit_logs a
         where d.last_seen_at is not null and g.last_sync_at is not null
             and g.id = '{}' and a.entity_id = g.id and a.message = 'started'",
        pool.world.gateway
    );
    assert_eq!(pool.world.count(&reported).await, 1);
    let hello = first.hello().await.unwrap();
    let chosen = choose(&first, SyncMode::Auto, &hello, Present::default()).await.unwrap();
    assert_eq!(chosen.mode, Mode::Poll);
    let untouched =
        format!("select count(*) from gateways where id = '{other}' and last_sync_at is null");
    assert_eq!(pool.world.count(&untouched).await, 1);
}
