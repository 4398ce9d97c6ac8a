use gatepost::store::{
    CreateRole, Enrollment, KeyChange, Read, Store, StoreError, allow_enrollment, grant,
};

use crate::world::{World, client, insert_gateway, options};

const KEY: &str = "4V5ShwAxMwr1PyLW4mZs0CjWBpSMLMDJiyDdLCT3XnE=";

#[tokio::test]
async fn a_gateway_role_can_read_and_write_no_table() {
    let world = World::new().await;
    let stolen = client(&world.role, &world.database).await;
    let tables: Vec<String> = world
        .admin
        .query(
            "select format('%I.%I', n.nspname, c.relname) from pg_class c \
             join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname in ('public', 'gatepost') and c.relkind in ('r', 'v')",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(tables.len() > 18, "{tables:?}");
    for table in tables {
        let error = stolen.execute(&format!("select from {table}"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "select from {table}");
        // A view that joins cannot be written by anybody, which is said first.
        let error = stolen.execute(&format!("delete from {table}"), &[]).await.unwrap_err();
        assert!(["42501", "55000"].contains(&error.code().unwrap().code()), "delete from {table}");
    }
}

#[tokio::test]
async fn only_the_listed_functions_may_be_called() {
    let world = World::new().await;
    let allowed: Vec<String> = world
        .admin
        .query(
            "select distinct p.proname::text from pg_proc p where p.pronamespace = 'gatepost'::regnamespace \
             and has_function_privilege($1::text, p.oid, 'execute') order by 1",
            &[&world.role],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        allowed,
        [
            "attach",
            "audit",
            "changes",
            "changes_among",
            "devices_by_id",
            "enroll",
            "follow",
            "forget_host",
            "heartbeat",
            "hello",
            "hosts",
            "lost_marks",
            "marks",
            "memberships_by_user",
            "merge",
            "misfits",
            "news",
            "peers_by_device",
            "policies_by_device",
            "policies_by_id",
            "poll",
            "prove",
            "proven",
            "prune",
            "read_changes",
            "report",
            "rewritten",
            "snapshot_gateway",
            "snapshot_memberships",
            "snapshot_peers",
            "snapshot_policies",
            "snapshot_settings",
            "synced",
            "try_reports",
            "unwatched",
            "words",
        ]
    );
    let reference = include_str!("../../docs/reference.md");
    for name in allowed {
        assert!(reference.contains(&format!("`{name}(")), "{name} is not in the reference");
    }
}

#[tokio::test]
async fn the_owner_role_cannot_read_passwords() {
    let world = World::new().await;
    for (table, column) in [
        ("users", "password_hash"),
        ("users", "email"),
        ("refresh_tokens", "token_hash"),
        ("sessions", "user_agent"),
        ("audit_logs", "message"),
    ] {
        let may = format!(
            "select has_column_privilege('gatepost_owner', '{table}', '{column}', 'select')"
        );
        let row = world.admin.query_one(&may, &[]).await.unwrap();
        assert!(!row.get::<_, bool>(0), "{table}.{column}");
    }
}

#[tokio::test]
async fn a_role_sees_and_reports_only_its_own_gateway() {
    let world = World::new().await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let mine = world.peer(world.gateway, "ann").await;
    let theirs = world.peer(other, "bob").await;
    for user in [mine.user, theirs.user] {
        world.run(&format!("insert into groups (name) values ('{user}')")).await;
        world.run(&format!(
            "insert into group_memberships (group_id, user_id) select id, '{user}' from groups where name = '{user}'"
        )).await;
    }
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert_eq!(rows.gateway.name, "g1");
    let devices: Vec<_> = rows.peers.iter().map(|peer| peer.device_id.0).collect();
    assert_eq!(devices, [mine.device]);
    let users: Vec<_> = rows.memberships.iter().map(|row| row.user_id.0).collect();
    assert_eq!(users, [mine.user]);

    let stolen = client(&world.role, &world.database).await;
    let asked = vec![theirs.device];
    let rows = stolen.query("select * from gatepost.peers_by_device($1)", &[&asked]).await.unwrap();
    assert!(rows.is_empty());
    stolen
        .query("select gatepost.report($1, array[now()], array[now()])", &[&asked])
        .await
        .unwrap();
    assert_eq!(world.count("select count(*) from devices where last_seen_at is not null").await, 0);
}

#[tokio::test]
async fn the_error_of_an_unbound_role_names_the_command() {
    let world = World::new().await;
    let superuser = Store::connect(&options("postgres", &world.database)).unwrap();
    let error = superuser.snapshot().await.unwrap_err();
    assert!(matches!(error, StoreError::Unbound { .. }), "{error}");
    assert!(error.to_string().contains("`gatepost grant <gateway> postgres`"), "{error}");

    let stranger = format!("{}_stranger", world.database);
    world.run(&format!("create role {stranger} login")).await;
    let stranger = Store::connect(&options(&stranger, &world.database)).unwrap();
    let error = stranger.hello().await.unwrap_err();
    assert!(matches!(error, StoreError::NoRights { .. }), "{error}");
    assert!(error.to_string().contains("`gatepost grant <gateway>"), "{error}");
}

#[tokio::test]
async fn grant_creates_a_role_only_on_request_and_reports_a_rebinding() {
    let world = World::new().await;
    let admin = options("postgres", &world.database);
    let fresh = format!("{}_Fresh \"role\"", world.database);
    let error = grant(&admin, "g1", &fresh, &CreateRole::No).await.unwrap_err();
    assert!(matches!(error, StoreError::RoleUnknown { .. }), "{error}");
    let made = grant(&admin, "g1", &fresh, &CreateRole::IfAbsent(None)).await.unwrap();
    assert!(made.role_created && made.gateway_exists && made.formerly.is_none(), "{made:?}");
    let moved = grant(&admin, "g9", &fresh, &CreateRole::IfAbsent(None)).await.unwrap();
    assert!(!moved.role_created && !moved.gateway_exists, "{moved:?}");
    assert_eq!(moved.formerly.as_deref(), Some("g1"));
}

fn enrollment(name: &str) -> Enrollment {
    Enrollment {
        name: name.into(),
        public_key: KEY.parse().unwrap(),
        endpoint: None,
        listen_port: None,
        vpn_cidr: None,
        dns_servers: None,
        key_change: KeyChange::Refused,
    }
}

#[tokio::test]
async fn a_granted_role_enrolls_its_own_gateway_and_no_other() {
    let world = World::new().await;
    let error = world.store.enroll(&enrollment("g1")).await.unwrap_err();
    assert!(matches!(error, StoreError::EnrollmentRefused { .. }), "the row was there: {error}");
    allow_enrollment(&options("postgres", &world.database), &world.role).await.unwrap();
    let gateway = world.store.enroll(&enrollment("g1")).await.unwrap();
    assert_eq!(gateway.0, world.gateway);
    let key = "select count(*) from gateways where name = 'g1' and public_key like '4V5S%' \
               and endpoint = 'vpn.example.net:51820'";
    assert_eq!(world.count(key).await, 1);
    let error = world.store.enroll(&enrollment("g2")).await.unwrap_err().to_string();
    assert!(error.contains("is bound to gateway g1, not to g2"), "{error}");
}

#[tokio::test]
async fn a_role_granted_before_its_gateway_exists_makes_the_row() {
    let world = World::new().await;
    let role = format!("{}_g7", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g7", &role, &create).await.unwrap();
    let store = Store::connect(&options(&role, &world.database)).unwrap();
    let error = store.hello().await.unwrap_err();
    assert!(error.to_string().contains("no gateway named g7: run `gatepost enroll`"), "{error}");
    let error = store.enroll(&enrollment("g7")).await.unwrap_err().to_string();
    assert!(error.contains("endpoint, listen port and vpn_cidr"), "{error}");
    let whole = Enrollment {
        endpoint: Some("vpn:51820".into()),
        listen_port: Some(51820),
        vpn_cidr: Some("10.7.0.1/16".parse().unwrap()),
        ..enrollment("g7")
    };
    let id = store.enroll(&whole).await.unwrap();
    assert_eq!(store.hello().await.unwrap().gateway_id, id);
    let (rows, _) = store.snapshot().await.unwrap();
    assert_eq!(rows.gateway.vpn_cidr.to_string(), "10.7.0.0/16");
}

/// As where many gateways log in as one role, which enrols none of them.
#[tokio::test]
async fn an_owner_enrolls_any_number_of_gateways() {
    let world = World::new().await;
    let owner = Store::connect(&options("postgres", &world.database)).unwrap();
    let whole = |name: &str| Enrollment {
        endpoint: Some("vpn:51820".into()),
        listen_port: Some(51820),
        vpn_cidr: Some("10.7.0.0/16".parse().unwrap()),
        ..enrollment(name)
    };
    let seventh = owner.enroll(&whole("g7")).await.unwrap();
    let eighth = owner.enroll(&whole("g8")).await.unwrap();
    assert_ne!(seventh, eighth);
    let moved = Enrollment { endpoint: Some("other:51820".into()), ..enrollment("g7") };
    assert_eq!(owner.enroll(&moved).await.unwrap(), seventh);
    let bound = format!(
        "select count(*) from gatepost.gateway_role
         where role_name = 'postgres' and gateway_name = 'g7' and gateway_id = '{}'",
        seventh.0
    );
    assert_eq!(world.count(&bound).await, 1, "it stays bound to the first");
    let moved = "select count(*) from gateways where endpoint = 'other:51820'";
    assert_eq!(world.count(moved).await, 1);
}

/// What the thief of a gateway's credential may try.
#[tokio::test]
async fn a_role_enrolls_once_and_again_only_after_a_grant() {
    const OTHER_KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let world = World::new().await;
    let admin = options("postgres", &world.database);
    let role = format!("{}_g7", world.database);
    grant(&admin, "g7", &role, &CreateRole::IfAbsent(None)).await.unwrap();
    let store = Store::connect(&options(&role, &world.database)).unwrap();
    let first = Enrollment {
        endpoint: Some("vpn:51820".into()),
        listen_port: Some(51820),
        vpn_cidr: Some("10.7.0.0/16".parse().unwrap()),
        ..enrollment("g7")
    };
    let id = store.enroll(&first).await.unwrap();
    let row = async || -> String {
        let query = "select g::text from gateways g where name = 'g7'";
        world.admin.query_one(query, &[]).await.unwrap().get(0)
    };
    let enrolled = row().await;

    let with = |change: fn(&mut Enrollment)| {
        let mut changed = enrollment("g7");
        change(&mut changed);
        changed
    };
    let theft = with(|it| {
        it.public_key = OTHER_KEY.parse().unwrap();
        it.key_change = KeyChange::Allowed;
    });
    let changes = [
        theft.clone(),
        with(|it| it.endpoint = Some("thief:51820".into())),
        with(|it| it.listen_port = Some(51821)),
        with(|it| it.vpn_cidr = Some("10.66.0.0/16".parse().unwrap())),
        with(|it| it.dns_servers = Some(vec!["192.0.2.53".into()])),
    ];
    for change in &changes {
        let error = store.enroll(change).await.unwrap_err();
        assert!(matches!(error, StoreError::EnrollmentRefused { .. }), "{change:?}: {error}");
        let way_out = format!("`gatepost grant --enroll g7 {role}`");
        assert!(error.to_string().contains(&way_out), "{error}");
        // It may not simply be granted again either.
        grant(&admin, "g7", &role, &CreateRole::No).await.unwrap();
        assert_eq!(row().await, enrolled, "{change:?}");
    }

    // What changes nothing succeeds, and holds up no writer while its transaction is open.
    assert_eq!(store.enroll(&first).await.unwrap(), id);
    let stolen = client(&role, &world.database).await;
    let same = format!("begin; select gatepost.enroll('g7', '{KEY}')");
    stolen.batch_execute(&same).await.unwrap();
    world
        .run("set lock_timeout = '1s'; update gateways set is_active = true where name = 'g7'")
        .await;
    stolen.batch_execute("rollback").await.unwrap();

    allow_enrollment(&admin, &role).await.unwrap();
    let lost_key = with(|it| it.public_key = OTHER_KEY.parse().unwrap());
    let error = store.enroll(&lost_key).await.unwrap_err().to_string();
    for part in ["lock out every client", "`gatepost enroll --new-key`, restart the agent"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(row().await, enrolled);
    store.enroll(&theft).await.unwrap();
    assert!(row().await.contains(OTHER_KEY));
    let again = with(|it| it.key_change = KeyChange::Allowed);
    let error = store.enroll(&again).await.unwrap_err();
    assert!(matches!(error, StoreError::EnrollmentRefused { .. }), "one more, not two: {error}");
    let written = "select count(*) from audit_logs where event_type = 'gateway.enrolled'";
    assert_eq!(world.count(written).await, 2);
}

#[tokio::test]
async fn a_permission_to_enroll_holds_for_one_change_of_one_gateway() {
    const OTHER_KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let world = World::new().await;
    let admin = options("postgres", &world.database);
    world
        .run(&format!(
            "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
             values ('g7', 'vpn:51820', '{KEY}', 51820, '10.7.0.0/16')"
        ))
        .await;
    let role = format!("{}_g7", world.database);
    grant(&admin, "g7", &role, &CreateRole::IfAbsent(None)).await.unwrap();
    let store = Store::connect(&options(&role, &world.database)).unwrap();
    let at = |endpoint: &str| Enrollment { endpoint: Some(endpoint.into()), ..enrollment("g7") };

    // What changes nothing uses up nothing.
    allow_enrollment(&admin, &role).await.unwrap();
    store.enroll(&enrollment("g7")).await.unwrap();
    store.enroll(&at("first:51820")).await.unwrap();
    store.enroll(&at("second:51820")).await.unwrap_err();

    // A grant for another gateway takes the permission back.
    allow_enrollment(&admin, &role).await.unwrap();
    grant(&admin, "g1", &role, &CreateRole::No).await.unwrap();
    grant(&admin, "g7", &role, &CreateRole::No).await.unwrap();
    store.enroll(&at("second:51820")).await.unwrap_err();

    // The control plane replaces the key meanwhile: its key stays.
    allow_enrollment(&admin, &role).await.unwrap();
    let replacing =
        format!("begin; update gateways set public_key = '{OTHER_KEY}' where name = 'g7'");
    let plane = client("postgres", &world.database).await;
    plane.batch_execute(&replacing).await.unwrap();
    let enrolling = tokio::spawn(async move { (store.enroll(&at("second:51820")).await, store) });
    let waiting = format!(
        "select count(*) from pg_stat_activity where usename = '{role}' and wait_event_type = 'Lock'"
    );
    while world.count(&waiting).await == 0 {
        assert!(!enrolling.is_finished(), "it did not wait");
        tokio::task::yield_now().await;
    }
    plane.batch_execute("commit").await.unwrap();
    let (enrolled, store) = enrolling.await.unwrap();
    let error = enrolled.unwrap_err().to_string();
    assert!(
        error.contains("another transaction has just changed the row of gateway g7"),
        "{error}"
    );
    let kept = format!("select count(*) from gateways where public_key = '{OTHER_KEY}'");
    assert_eq!(world.count(&kept).await, 1);

    // Equal values under another id are another gateway.
    world.run("update gateways set id = gen_random_uuid() where name = 'g7'").await;
    let same = Enrollment { public_key: OTHER_KEY.parse().unwrap(), ..enrollment("g7") };
    let error = store.enroll(&same).await.unwrap_err().to_string();
    assert!(error.contains("bound to a former gateway g7"), "{error}");
    assert!(error.contains(&format!("`gatepost grant g7 {role}`")), "{error}");
    grant(&admin, "g7", &role, &CreateRole::No).await.unwrap();
    store.enroll(&same).await.unwrap();
}

#[tokio::test]
async fn a_role_may_not_bind_itself() {
    let world = World::new().await;
    let role = format!("{}_thief", world.database);
    world.run(&format!("create role {role} login; grant gatepost_gateway to {role}")).await;
    let store = Store::connect(&options(&role, &world.database)).unwrap();
    let error = store.enroll(&enrollment("g1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unbound { .. }), "{error}");
}

#[tokio::test]
async fn the_control_plane_needs_no_rights_on_gatepost_to_write() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    let app = format!("{}_app", world.database);
    world.run(&format!("create role {app} login; grant select, update on devices to {app}")).await;
    let app = client(&app, &world.database).await;
    app.execute("update devices set status = 'lost' where id = $1", &[&ann.device]).await.unwrap();
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("missed a revocation") };
    assert!(rows.peers.contains_key(&ann.device.into()));
}
