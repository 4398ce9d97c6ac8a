//! Texts of a megabyte in the rows of the control plane.

use gatepost::reconcile::status::{State, Status};

use crate::agent::{Memory, agent, good_peer};
use crate::running::Running;
use crate::world::World;

/// Each statement makes one text as long as it can be. Where an index takes no such text, none is there.
const LONG: [&str; 10] = [
    "update users set username = repeat('x', 1000000)",
    "update devices set name = repeat('x', 1000000) where name in ('user-1', 'user-5')",
    "update devices set status = repeat('x', 1000000) where name = 'user-2'",
    "update wireguard_peers set public_key = repeat('x', 1000000) where device_id in
         (select id from devices where name = 'user-3')",
    "update wireguard_peers set preshared_key_ciphertext = repeat('x', 1000000) where device_id in
         (select id from devices where name = 'user-2')",
    "update policies set name = repeat('x', 1000000)",
    "update policies set effect = repeat('x', 1000000)",
    "update policy_targets set target_type = repeat('x', 1000000)",
    "update groups set name = repeat('x', 1000000)",
    "update settings set value = to_jsonb(repeat('x', 1000000))",
];

#[tokio::test]
async fn text_of_a_megabyte_is_cut_in_the_status() {
    let world = World::new().await;
    for number in 1..=5 {
        good_peer(&world, number).await;
    }
    world
        .run(
            "update wireguard_peers set assigned_ip = '192.0.2.1' where device_id in
                 (select id from devices where name = 'user-5');
             insert into groups (name) values ('staff');
             insert into policies (name) values ('office');
             insert into policy_targets (policy_id, target_type, target_id)
                 select policies.id, 'group', groups.id from policies, groups;
             insert into settings (category, key, value) values ('policy', 'default_effect', '\"deny\"')",
        )
        .await;
    let options = agent(&world, Memory::default()).await;
    let mut written = 0;
    for statement in LONG {
        written += usize::from(world.admin.batch_execute(statement).await.is_ok());
    }
    assert!(written >= 6, "{written} long texts are there");
    let mut agent = Running::start(options);
    let is_served =
        |status: &Status| status.peers.in_kernel >= 1 && !matches!(status.state, State::Starting);
    agent.waits_for("served", is_served).await;
    let status = agent.status.borrow().clone();
    assert!(!status.quarantined.is_empty() && !status.warnings.is_empty(), "{status:?}");
    let text = serde_json::to_string(&status).unwrap();
    assert!(text.len() < 20_000, "{} bytes: {}…", text.len(), &text[..20_000]);
    agent.stop().await;
}
