//! What an agent that polls asks, and what its database does for it.

use std::time::Duration;

use gatepost::reconcile::{Mode, Present, SyncMode, choose};
use gatepost::store::{ConnectOptions, CreateRole, Cursor, Polled, Read, Store, grant};

use crate::world::{IS_IN_THIS_DATABASE, World, connect, insert_gateway, options};

/// Polls until the database has an answer that is not older than this call.
async fn settled(store: &Store, world: &World, mut cursor: Cursor) -> Polled {
    let now = world.admin.query_one("select now()", &[]).await.unwrap();
    let asked: std::time::SystemTime = now.get(0);
    loop {
        match store.poll(&cursor).await.unwrap() {
            Polled::Quiet(next, quiet_until) if quiet_until < asked => cursor = next,
            answer => return answer,
        }
    }
}

/// The agent of a second gateway.
async fn neighbour(world: &World) -> Store {
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g2", &role, &create).await.unwrap();
    Store::connect(&ConnectOptions::new(world.url.replace(&world.role, &role))).unwrap()
}

/// The marks of devices and users name no gateway: without a bell, each agent reads which concern it.
#[tokio::test]
async fn a_change_is_read_by_the_gateway_it_concerns_and_by_no_other() {
    let world = World::new().await;
    let theirs = neighbour(&world).await;
    let ann = world.peer(world.gateway, "ann").await;
    let user = ann.user;
    let policy = format!(
        "insert into groups (id, name) values ('{user}', 'staff');
         insert into policies (id, name) values ('{user}', 'intranet');
         insert into policy_targets (policy_id, target_type, target_id) values ('{user}', 'group', '{user}')"
    );
    world.run(&policy).await;
    let mut mine = world.cursor().await;
    assert!(matches!(settled(&world.store, &world, mine.clone()).await, Polled::Quiet(..)));
    let mut other = theirs.snapshot().await.unwrap().1;
    for sql in [
        "update devices set status = 'blocked'".to_owned(),
        "update users set username = 'anna'".into(),
        format!("insert into group_memberships (group_id, user_id) values ('{user}', '{user}')"),
    ] {
        world.run(&sql).await;
        assert_eq!(settled(&world.store, &world, mine.clone()).await, Polled::News, "{sql}");
        let Read::Changed(_, next) = world.read(&mine).await else { panic!("{sql}") };
        mine = next;
        assert_eq!(settled(&theirs, &world, other.clone()).await, Polled::News, "{sql}");
        let Read::Nothing(next, _) = theirs.changes(&other).await.unwrap() else {
            panic!("read by a gateway that is not concerned: {sql}")
        };
        other = next;
        let answer = settled(&theirs, &world, other.clone()).await;
        assert!(matches!(answer, Polled::Quiet(..)), "read once: {sql}");
    }
    // The neighbour does hear what is for all.
    world.run("update policies set priority = 3").await;
    assert_eq!(settled(&theirs, &world, other).await, Polled::News);
}

/// Marks that no agent addressed, as after a day in which none polled: each reader looks through them
/// itself, once.
#[tokio::test]
async fn readers_scan_marks_that_waited_too_long() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    let Polled::Quiet(cursor, _) = settled(&world.store, &world, cursor).await else {
        panic!("news of nothing")
    };
    world.run("update devices set status = 'blocked'").await;
    world
        .run(
            "insert into gatepost.change (gateway_id, kind, ids)
             select gatepost.nobody(), 'target', array[gen_random_uuid()]
             from generate_series(1, 10001)",
        )
        .await;
    let marks = world.count("select count(*) from gatepost.change").await;
    assert_eq!(settled(&world.store, &world, cursor.clone()).await, Polled::News);
    assert_eq!(world.count("select count(*) from gatepost.change").await, marks, "addressed");
    let Read::Everything(_) = world.read(&cursor).await else { panic!("looked through all marks") };
    let cursor = world.cursor().await;
    assert!(matches!(settled(&world.store, &world, cursor).await, Polled::Quiet(..)));
}

#[tokio::test]
async fn a_cursor_that_cannot_be_followed_is_news() {
    let world = World::new().await;
    let cursor = world.cursor().await;
    assert!(matches!(settled(&world.store, &world, cursor.clone()).await, Polled::Quiet(..)));
    world.run("update gatepost.state set database_epoch = gen_random_uuid()").await;
    assert_eq!(world.store.poll(&cursor).await.unwrap(), Polled::News);
}

/// A clock that was set back by an hour: what was addressed last lies ahead.
#[tokio::test]
async fn a_clock_that_was_set_back_delays_nothing() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    assert!(matches!(settled(&world.store, &world, cursor.clone()).await, Polled::Quiet(..)));
    world
        .run("update gatepost.addressed set at = now() + '1 hour', told_at = now() + '1 hour'")
        .await;
    world.run("update devices set status = 'blocked'").await;
    assert_eq!(world.store.poll(&cursor).await.unwrap(), Polled::News);
}

/// Another gateway's session has its turn and does not end it.
#[tokio::test]
async fn a_turn_that_never_ends_hides_no_change_from_others() {
    let world = World::new().await;
    let theirs = neighbour(&world).await;
    world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    // The first to poll begins.
    poll(&last_release(&world, &world.role).await, &cursor).await;
    let other = theirs.snapshot().await.unwrap().1;
    world.run("update devices set status = 'blocked'").await;
    let url = world.url.replace(&world.role, &format!("{}_g2", world.database));
    let (holder, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    // Marks were addressed just now; the next turn is due at once.
    world.run("update gatepost.addressed set at = at - interval '1 second'").await;
    holder.batch_execute("begin").await.unwrap();
    let held = "select from gatepost.poll($1, $2)";
    holder.query(held, &[&other.snapshot, &other.epoch]).await.unwrap();
    let locks = format!(
        "select count(*) from pg_locks where relation = 'gatepost.addressed'::regclass
             and mode = 'RowExclusiveLock' and {IS_IN_THIS_DATABASE}"
    );
    assert_eq!(world.count(&locks).await, 1, "no agent has a turn");
    let found = async {
        while world.store.poll(&cursor).await.unwrap() != Polled::News {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("it is found all the same");
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(rows.peers.len(), 1);
}

#[tokio::test]
async fn a_role_with_a_forged_history_affects_only_itself() {
    let world = World::new().await;
    let cursor = world.cursor().await;
    poll(&last_release(&world, &world.role).await, &cursor).await;
    let history = async || {
        let query = "select history from gatepost.addressed";
        world.admin.query_one(query, &[]).await.unwrap().get::<_, String>(0)
    };
    let before = history().await;
    let (forger, connection) =
        tokio_postgres::connect(&world.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    forger.batch_execute("set gatepost.server = 'forged'").await.unwrap();
    // What an epoch is made of: the server, the database, the gateway.
    let (rest, gateway) = cursor.epoch.rsplit_once('/').unwrap();
    let (rest, state) = rest.rsplit_once('/').unwrap();
    let (_, database) = rest.rsplit_once('/').unwrap();
    let forged = format!("forged/{database}/{state}/{gateway}");
    poll(&forger, &Cursor { epoch: forged, ..cursor }).await;
    assert_eq!(history().await, before);
}

#[tokio::test]
async fn writers_do_not_notify_if_no_agent_listens() {
    let world = World::new().await;
    let (client, mut heard) = hear(&world, "listen probe").await;
    world.store.attach(false).await.unwrap();
    world.peer(world.gateway, "ann").await;
    world.run("insert into policies (name) values ('a')").await;
    client.batch_execute("notify probe").await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "probe");

    assert_eq!(world.store.attach(true).await.unwrap().gateways, 1);
    world.run("update policies set priority = 3").await;
    assert_eq!(heard.recv().await.unwrap(), "gatepost_all");
    // An agent that was killed is forgotten.
    world.run("update gatepost.attached set at = at - interval '6 minutes'").await;
    world.run("update policies set priority = 4").await;
    client.batch_execute("notify probe").await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "probe");
}

#[tokio::test]
async fn attached_agents_are_counted() {
    let world = World::new().await;
    let theirs = neighbour(&world).await;
    assert_eq!(world.store.attach(true).await.unwrap().gateways, 1);
    assert_eq!(theirs.attach(false).await.unwrap().gateways, 2);
    assert_eq!(world.store.attach(false).await.unwrap().gateways, 2, "counted twice");
    let gateway = world.gateway;
    world
        .run(&format!(
            "update gatepost.attached set at = at - interval '6 minutes' where gateway_id = '{gateway}'"
        ))
        .await;
    assert_eq!(theirs.attach(false).await.unwrap().gateways, 1);
}

/// Agents of so many other gateways.
async fn attach_others(world: &World, gateways: u32) {
    world
        .run(&format!(
            "insert into gatepost.attached (gateway_id, listens, at)
             select gen_random_uuid(), false, now() from generate_series(1, {gateways})"
        ))
        .await;
}

#[tokio::test]
async fn auto_listens_among_few_and_polls_among_many() {
    let world = World::new().await;
    let hello = world.store.hello().await.unwrap();
    let auto = async |mode, hears_bell| {
        let present = Present { mode, hears_bell };
        choose(&world.store, SyncMode::Auto, &hello, present).await.unwrap()
    };
    let alone = auto(None, false).await;
    assert_eq!(alone.mode, Mode::Listen);
    assert_eq!(world.count("select count(*) from gatepost.listener").await, 1);
    attach_others(&world, 50).await;
    let among_many = auto(Some(Mode::Listen), false).await;
    assert_eq!((among_many.mode, among_many.gateways), (Mode::Poll, 51));
    assert!(among_many.why.starts_with("51 gateways share this database"), "{}", among_many.why);
    assert_eq!(world.count("select count(*) from gatepost.listener").await, 0);
}

/// As agents of the last release do: writers do not notify, and the first to poll wakes those
/// concerned.
#[tokio::test]
async fn agents_of_the_last_release_wake_each_other() {
    let world = World::new().await;
    let theirs = neighbour(&world).await;
    let other = theirs.snapshot().await.unwrap().1;
    let theirs = last_release(&world, &format!("{}_g2", world.database)).await;
    let mine = last_release(&world, &world.role).await;
    let ann = world.peer(world.gateway, "ann").await;
    let (client, mut heard) = hear(&world, "listen probe").await;
    world.store.attach(false).await.unwrap();
    poll(&theirs, &other).await;
    let (device, gateway) = (ann.device, world.gateway);
    for sql in [
        format!("update devices set status = 'blocked' where id = '{device}'"),
        format!("update wireguard_peers set public_key = 'k2' where gateway_id = '{gateway}'"),
        "insert into policies (name) values ('a')".into(),
    ] {
        client.batch_execute("notify probe").await.unwrap();
        while heard.recv().await.unwrap() != "probe" {}
        let cursor = world.cursor().await;
        world.run(&sql).await;
        client.batch_execute("notify probe").await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), "probe", "a writer notified: {sql}");
        while heard.is_empty() {
            poll(&theirs, &other).await;
        }
        assert!(poll(&mine, &cursor).await, "{sql}");
    }
}

/// A session of an agent of the last release.
async fn last_release(world: &World, role: &str) -> tokio_postgres::Client {
    connect(&world.url.replace(&world.role, role)).await
}

/// As agents of the last release ask; whether there is news.
async fn poll(agent: &tokio_postgres::Client, since: &Cursor) -> bool {
    let query = "select news from gatepost.poll($1, $2)";
    agent.query_one(query, &[&since.snapshot, &since.epoch]).await.unwrap().get(0)
}

/// A session that listens for this gateway and never attaches: the channels on which it hears
/// something.
async fn hear(
    world: &World,
    further: &str,
) -> (tokio_postgres::Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) =
        tokio_postgres::connect(&world.url, tokio_postgres::NoTls).await.unwrap();
    let (send, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let tokio_postgres::AsyncMessage::Notification(it) = message {
                let _ = send.send(it.channel().to_owned());
            }
        }
    });
    let channels = format!("listen gatepost_all; listen \"gatepost_{}\"; {further}", world.gateway);
    client.batch_execute(&channels).await.unwrap();
    (client, heard)
}
