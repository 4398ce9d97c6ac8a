use std::time::{Duration, SystemTime};

use gatepost::model::{
    Allocation, BarredBy, DeviceId, Effect, KeyText, SnapshotRows, TargetType, every_address,
};
use gatepost::store::Read;
use ipnet::IpNet;

use crate::world::{World, insert_gateway};

#[tokio::test]
async fn odd_rows_are_decoded_and_do_not_hide_others() {
    let world = World::new().await;
    for name in ["plain", "odd", "forever", "far"] {
        world.peer(world.gateway, name).await;
    }
    world
        .run(
            "update wireguard_peers set assigned_ip = '10.8.0.5/24', dns_servers = '{{a,b},{c,null}}',
                 allowed_ips = array[null, '10.1.0.0/16', '::/0']::cidr[], created_at = 'infinity'
                 where public_key = 'odd';
             update devices set revoked_at = 'infinity' where name = 'forever';
             update devices set revoked_at = '-infinity' where name = 'odd';
             update devices set revoked_at = '250000-01-01' where name = 'far';
             update wireguard_peers set created_at = '-infinity' where public_key = 'far';
             update gateways set dns_servers = array['10.8.0.1', null]",
        )
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert_eq!(rows.peers.len(), 4);
    assert_eq!(rows.gateway.dns_servers, ["10.8.0.1"]);
    let peer = |name: &str| rows.peers.iter().find(|peer| &*peer.device_name == name).unwrap();
    let odd = peer("odd");
    assert_eq!(odd.assigned_ip.to_string(), "10.8.0.5/24");
    let nets: Vec<_> = odd.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.1.0.0/16", "::/0"]);
    assert_eq!(odd.dns_servers.join(","), "a,b,c");
    assert!(odd.revoked_at.unwrap() < SystemTime::UNIX_EPOCH);
    assert!(matches!(odd.public_key, KeyText::Bad { .. }));
    assert_eq!(peer("forever").revoked_at, None);
    assert_eq!(peer("far").revoked_at, None);
    assert!(odd.created_at > SystemTime::now() && peer("far").created_at < SystemTime::UNIX_EPOCH);
    let kept = serde_json::to_string(&rows).unwrap();
    assert_eq!(
        serde_json::from_str::<SnapshotRows>(&kept).unwrap(),
        rows,
        "for a boot without them"
    );
}

#[tokio::test]
async fn bars_name_why_a_peer_is_not_eligible() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let bars = async |sql: &str| {
        world.run(sql).await;
        let (rows, _) = world.store.snapshot().await.unwrap();
        let peer = rows.peers.into_iter().find(|peer| peer.device_id.0 == ann.device).unwrap();
        (peer.bars, peer.revoked_at)
    };
    assert_eq!(bars("select").await.0, BarredBy::default());
    for (set, reset, bar) in [
        (
            "update devices set deleted_at = now()",
            "update devices set deleted_at = null",
            BarredBy::DEVICE_DELETED,
        ),
        (
            "update devices set status = 'lost'",
            "update devices set status = 'active'",
            BarredBy::DEVICE_STATUS,
        ),
        (
            "update users set is_active = false",
            "update users set is_active = true",
            BarredBy::USER_INACTIVE,
        ),
        (
            "update users set deleted_at = now()",
            "update users set deleted_at = null",
            BarredBy::USER_DELETED,
        ),
        (
            "update devices set approved_at = null",
            "update devices set approved_at = now()",
            BarredBy::NOT_APPROVED,
        ),
    ] {
        assert_eq!(bars(set).await.0, bar, "{set}");
        assert_eq!(bars(reset).await.0, BarredBy::default(), "{reset}");
    }
    let (_, revoked_at) = bars("update devices set revoked_at = '2030-01-01 00:00+00'").await;
    assert_eq!(revoked_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000)));
}

#[tokio::test]
async fn allocations_name_the_holder_of_an_address() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let bob = world.peer(world.gateway, "bob").await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    world.run("update wireguard_peers set assigned_ip = '10.8.0.5/24'").await;
    let held = async |sql: &str| {
        world.run(sql).await;
        let (rows, _) = world.store.snapshot().await.unwrap();
        let of =
            |device| rows.peers.iter().find(|peer| peer.device_id.0 == device).unwrap().allocation;
        (of(ann.device), of(bob.device), rows.gateway.allocated_address.map(|ip| ip.to_string()))
    };
    let (gateway, device) = (world.gateway, ann.device);
    let insert = "insert into ip_allocations (gateway_id, device_id, address) values";
    let missing = (Allocation::Missing, Allocation::Missing, None);
    assert_eq!(held("select").await, missing);
    assert_eq!(held(&format!("{insert} ('{other}', '{device}', '10.8.0.5')")).await, missing);
    world.run("delete from ip_allocations").await;
    let ann_holds = (Allocation::Held, Allocation::Other(DeviceId(device)), None);
    assert_eq!(held(&format!("{insert} ('{gateway}', '{device}', '10.8.0.5')")).await, ann_holds);
    assert_eq!(held("update ip_allocations set status = 'released'").await, missing);
    let own =
        "update ip_allocations set status = 'gateway', device_id = null, address = '10.8.0.9'";
    assert_eq!(held(own).await.2.as_deref(), Some("10.8.0.9"));
}

#[tokio::test]
async fn policies_come_with_the_targets_that_concern_this_gateway() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let bob = world.peer(other, "bob").await;
    world
        .run(&format!(
            "insert into groups (id, name) values ('{a}', 'here'), ('{b}', 'there');
             insert into group_memberships (group_id, user_id) values ('{a}', '{a_user}'), ('{b}', '{b_user}');
             insert into policies (id, name, effect) values ('{a}', 'mine', 'allow'), ('{b}', 'theirs', 'shrug');
             insert into policies (name, is_active) values ('off', false);
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, t.* from policies p, (values
                     ('group', '{a}'::uuid), ('group', '{b}'), ('user', '{b_user}'), ('device', '{b_device}')) t
                 where p.name in ('mine', 'off') or t.column2 <> '{a}';
             insert into policy_destinations (policy_id, destination)
                 select p.id, d from policies p, unnest(array['10.0.0.0/8', '::/0', '::/0']::cidr[]) d",
            a = ann.peer,
            b = bob.peer,
            a_user = ann.user,
            b_user = bob.user,
            b_device = bob.device
        ))
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert_eq!(rows.policies.len(), 1, "{:?}", rows.policies);
    let mine = &rows.policies[0];
    assert_eq!((mine.name.as_str(), &mine.effect), ("mine", &Effect::Allow));
    assert_eq!(mine.destinations.len(), 2);
    assert_eq!(mine.targets.len(), 1);
    assert_eq!(
        (&mine.targets[0].target_type, mine.targets[0].target_id),
        (&TargetType::Group, ann.peer)
    );

    // What aims at nothing is shown, so that a gateway can warn, unless the policy is for others.
    let dangling = |policy| {
        format!(
            "insert into policy_targets (policy_id, target_type, target_id) values
                 ('{policy}', 'user', gen_random_uuid()), ('{policy}', 'team', '{policy}')"
        )
    };
    world.run(&dangling(bob.peer)).await;
    world
        .run(&format!(
            "insert into policies (id, name, effect) values ('{a}', 'for none', 'shrug');
             insert into policy_destinations (policy_id, destination) values ('{a}', '10.0.0.0/8')",
            a = ann.device
        ))
        .await;
    world.run(&dangling(ann.device)).await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    let names: Vec<_> = rows.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert!(!names.contains(&"theirs") && names.len() == 2, "{names:?}");
    let none = rows.policies.iter().find(|policy| policy.name == "for none").unwrap();
    assert_eq!(none.effect, Effect::Unknown("shrug".into()));
    assert_eq!((none.targets.len(), none.destinations.len()), (2, 0));
    let dangling: Vec<_> = none.targets.iter().map(|target| target.dangling).collect();
    assert_eq!(dangling, [true, false]);
    assert_eq!(none.targets[1].target_type, TargetType::Unknown("team".into()));
}

#[tokio::test]
async fn settings_are_those_for_all_and_for_this_gateway() {
    let world = World::new().await;
    world
        .run(
            "insert into settings (category, key, value) values ('gateway', 'a', '{\"x\": 1}'),
             ('gateway:g1', 'b', 'true'), ('gateway:g2', 'b', 'false'), ('policy', 'c', '2'), ('x', 'd', '3')",
        )
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    let seen: Vec<_> = rows
        .settings
        .iter()
        .map(|row| (row.category.as_str(), row.key.as_str(), row.value.as_str()))
        .collect();
    assert_eq!(
        seen,
        [("gateway", "a", "{\"x\": 1}"), ("gateway:g1", "b", "true"), ("policy", "c", "2")]
    );
}

#[tokio::test]
async fn text_that_is_not_utf8_costs_nothing_but_its_letters() {
    let cluster = crate::postgres::Cluster::shared();
    let database = "not_utf8";
    cluster.psql(
        "postgres",
        &format!(
            "create database {database} template template0 encoding 'SQL_ASCII' \
             lc_collate 'C' lc_ctype 'C'"
        ),
    );
    gatepost::store::migrate(&crate::world::options("postgres", database)).await.unwrap();
    let world = World::on(cluster, database.to_owned()).await;
    let ann = world.peer(world.gateway, "ann").await;
    world.peer(world.gateway, "bob").await;
    let cursor = world.cursor().await;
    world
        .run(&format!(
            r"update users set username = convert_from('\x616ee9', 'SQL_ASCII')::citext
                  where id = '{}';
              insert into policies (name) values (convert_from('\xff', 'SQL_ASCII'));
              insert into policy_targets (policy_id, target_type, target_id)
                  select id, 'user', '{0}' from policies",
            ann.user
        ))
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    let names: Vec<&str> = rows.peers.iter().map(|peer| &*peer.username).collect();
    assert!(names.contains(&"an\u{fffd}") && names.contains(&"bob"), "{names:?}");
    assert_eq!(rows.policies[0].name, "\u{fffd}");
    let Read::Changed(changed, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(&*changed.peers[&ann.device.into()][0].username, "an\u{fffd}");
}

/// As after a migration of the control plane that drops constraints.
#[tokio::test]
async fn values_that_are_missing_make_policies_grant_less_and_deny_more_and_hold_up_no_row() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run(&format!(
            "alter table policies alter priority drop not null, alter effect drop not null,
                 alter full_tunnel drop not null;
             alter table policy_destinations alter destination drop not null;
             alter table settings alter value drop not null;
             insert into policies (name, effect, priority, full_tunnel) values
                 ('allows', 'allow', null, null), ('denies', 'deny', null, false),
                 ('unclear', null, 5, false);
             insert into policy_targets (policy_id, target_type, target_id)
                 select id, 'user', '{}' from policies;
             insert into policy_destinations (policy_id, destination)
                 select id, d::cidr from policies, unnest(array['10.0.0.0/8', null]) d;
             insert into settings (category, key, value) values ('policy', 'default_allow', null)",
            ann.user
        ))
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert_eq!((rows.peers.len(), rows.settings.len()), (1, 1));
    assert_eq!(rows.settings[0].value, "null");
    let policy = |name: &str| rows.policies.iter().find(|policy| &*policy.name == name).unwrap();
    let prefix: IpNet = "10.0.0.0/8".parse().unwrap();
    let allows = policy("allows");
    assert_eq!((allows.priority, allows.full_tunnel), (i32::MAX, false));
    assert_eq!(allows.destinations, [prefix]);
    for (name, priority) in [("denies", i32::MIN), ("unclear", 5)] {
        assert_eq!(policy(name).priority, priority);
        assert_eq!(policy(name).destinations, every_address(), "{name}");
    }
    assert_eq!(policy("unclear").effect, Effect::Unknown("null".into()));
}

#[tokio::test]
async fn row_that_cannot_be_decoded_costs_its_peer_alone() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let bob = world.peer(world.gateway, "bob").await;
    let cursor = world.cursor().await;
    world
        .run(&format!(
            "alter table wireguard_peers alter assigned_ip drop not null;
             update wireguard_peers set assigned_ip = null where id = '{}';
             update devices set name = 'renamed'",
            ann.peer
        ))
        .await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert_eq!(rows.peers.iter().map(|peer| peer.id.0).collect::<Vec<_>>(), [bob.peer]);
    let Read::Changed(changed, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(changed.peers[&ann.device.into()], []);
    assert_eq!(changed.peers[&bob.device.into()].len(), 1);
}
