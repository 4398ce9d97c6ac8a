//! What keeps the whole plan from being made or carried out, each made for real.

use std::fs;
use std::os::unix::net::UnixStream;

use super::{OTHERS, Scene};
use crate::lab::{Client, eventually, refuse_large_profiles, run, wide_policy_rows};

/// How the agent learns what is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learns {
    /// From the rows.
    Rows,
    /// Rows cannot be read: from its own clock, and from the host's block list.
    NoRows,
}

pub struct Obstacle {
    pub what: &'static str,
    pub set: fn(&Scene),
    /// Whether it is in force, by the status and by what the agent wrote since.
    pub in_force: fn(&Scene, &str) -> bool,
    pub remove: fn(&Scene),
    pub learns: Learns,
    /// Whether the whole plan would add a peer meanwhile.
    pub grants: bool,
}

/// A row of `gateways` that cannot be used, or whose link cannot be planned.
const fn row(what: &'static str, set: fn(&Scene), in_force: fn(&Scene, &str) -> bool) -> Obstacle {
    let remove = |scene: &Scene| spoil(scene, RIGHT_ROW);
    Obstacle { what, set, in_force, remove, learns: Learns::Rows, grants: false }
}

/// A change that there is to read.
const RENAME_A_DEVICE: &str =
    "update devices set name = name || '2' where device_fingerprint = 'carol'";
const RIGHT_ROW: &str = "id = r.id, listen_port = r.listen_port, public_key = r.public_key,
     vpn_cidr = r.vpn_cidr from right_row r";

fn spoil(scene: &Scene, change: &str) {
    scene.sql(&format!("update gateways set {change}"));
}

pub const OBSTACLES: &[Obstacle] = &[
    row(
        "a wrong port",
        |scene| spoil(scene, "listen_port = 0"),
        |scene, _| scene.why().contains("listen_port"),
    ),
    row(
        "a wrong key",
        |scene| spoil(scene, "public_key = 'no key'"),
        |scene, _| scene.why().contains("public_key"),
    ),
    row(
        "the key of another gateway",
        |scene| spoil(scene, &format!("public_key = '{}'", scene.dave.key)),
        |scene, _| scene.why().contains(&scene.dave.key),
    ),
    row(
        "a network without room",
        |scene| spoil(scene, "vpn_cidr = '10.99.0.0/32'"),
        |scene, _| scene.why().contains("10.99.0.0/32"),
    ),
    row(
        "a network that no tunnel may have",
        |scene| spoil(scene, "vpn_cidr = '169.254.0.0/16'"),
        |scene, _| scene.why().contains("169.254.0.0/16"),
    ),
    row(
        "a mistyped network",
        |scene| spoil(scene, "vpn_cidr = '10.98.0.0/16'"),
        |scene, _| !scene.lab.status()["held_back"].is_null(),
    ),
    Obstacle {
        what: "the network of another link around the tunnel's",
        set: |scene| {
            let link = ["link", "add", "other0", "type", "bridge"];
            scene.lab.gateway.run("ip", &link);
            scene.lab.gateway.run("ip", &["address", "add", "10.96.0.1/11", "dev", "other0"]);
            scene.lab.gateway.run("ip", &["link", "set", "other0", "up"]);
            // The addresses of other links are read at a complete reading.
            scene.lab.gatepost(&["resync"]);
        },
        in_force: |scene, _| scene.why().contains("other0"),
        remove: |scene| drop(scene.lab.gateway.run("ip", &["link", "delete", "other0"])),
        learns: Learns::Rows,
        grants: false,
    },
    Obstacle {
        what: "another gateway's alias",
        set: |scene| alias(scene, "6f1c2b0e-0000-4000-8000-000000000001"),
        in_force: |scene, _| scene.why().contains("6f1c2b0e-0000-4000-8000-000000000001"),
        remove: |scene| alias(scene, &scene.lab.database.value("select id from right_row")),
        learns: Learns::Rows,
        grants: false,
    },
    Obstacle {
        what: "a link with the former name",
        set: |scene| {
            scene.restart(|| {
                let (config, link) = (scene.lab.config(), scene.lab.link());
                let text = fs::read_to_string(&config).unwrap();
                let renamed = text.replace(&format!("\"{link}\""), &format!("\"{link}n\""));
                fs::write(config, renamed).unwrap();
            });
        },
        in_force: |_, log| log.contains("may still guard"),
        remove: |scene| scene.restart(|| scene.lab.write_config("")),
        learns: Learns::Rows,
        grants: false,
    },
    Obstacle {
        what: "a gateway's row that a restore made anew",
        set: |scene| renew_row(scene, "gen_random_uuid()"),
        in_force: |scene, _| scene.why().contains("belongs to gateway"),
        remove: |scene| renew_row(scene, "(select id from right_row)"),
        learns: Learns::Rows,
        grants: false,
    },
    Obstacle {
        what: "no sealing key",
        set: |scene| {
            let folder = scene.lab.folder.path();
            give_preshared_key(scene, &scene.carol);
            fs::rename(folder.join("psk.keys"), folder.join("psk.keys.away")).unwrap();
            scene.reread_configuration();
        },
        in_force: |scene, _| scene.why().contains("sealing key"),
        remove: |scene| {
            let folder = scene.lab.folder.path();
            fs::rename(folder.join("psk.keys.away"), folder.join("psk.keys")).unwrap();
            scene.reread_configuration();
            scene.sql("update wireguard_peers set preshared_key_ciphertext = null");
            scene.carol.forget_preshared_key();
        },
        learns: Learns::Rows,
        grants: true,
    },
    Obstacle {
        what: "a block list that cannot be read",
        set: |scene| scene.restart(|| fs::write(block_list(scene), "[{\"kind\":").unwrap()),
        in_force: |scene, _| scene.why().contains("blocked"),
        remove: |scene| {
            fs::write(block_list(scene), "[]").unwrap();
            assert_eq!(scene.lab.gatepost(&["resync"]).0, 0);
        },
        learns: Learns::Rows,
        grants: false,
    },
    Obstacle {
        what: "removals that the guard holds back",
        set: |scene| scene.sql("update users set is_active = false where username ~ '^other'"),
        in_force: |scene, _| {
            scene.lab.status()["held_back"]["removals"].as_u64() == Some(OTHERS as u64)
        },
        remove: |scene| scene.sql("update users set is_active = true"),
        learns: Learns::Rows,
        grants: true,
    },
    Obstacle {
        what: "a revocation that the database lost",
        set: |scene| {
            let of_other =
                |change: &str| format!("update devices set {change} where name = 'other0-laptop'");
            let key = scene.lab.database.value("select encode(sha256('other0'), 'base64')");
            scene.sql(&of_other("status = 'revoked'"));
            eventually("the withdrawal is carried out", || {
                !scene.lab.kernel_peers().contains(&key)
            });
            // As after a failover: the marks are gone, and the history is another.
            scene.sql(&format!(
                "{}; delete from gatepost.change; update gatepost.state set database_epoch = gen_random_uuid()",
                of_other("status = 'active'")
            ));
        },
        in_force: |scene, _| {
            scene.lab.status()["warnings"].to_string().contains("lost the revocation")
        },
        remove: |scene| assert_eq!(scene.lab.gatepost(&["confirm", "--yes"]).0, 0),
        learns: Learns::Rows,
        grants: true,
    },
    Obstacle {
        what: "no file descriptor to cut flows with",
        set: |scene| {
            let agent = scene.agent.borrow().as_ref().unwrap().pid().to_string();
            let is_open =
                |number: &usize| fs::symlink_metadata(format!("/proc/{agent}/fd/{number}")).is_ok();
            let first_free = (0..).find(|number| !is_open(number)).unwrap();
            limit_files(scene, first_free);
            drop(UnixStream::connect(scene.lab.folder.path().join("control.sock")));
        },
        in_force: |_, log| log.contains("Too many open files"),
        remove: |scene| limit_files(scene, 1024),
        learns: Learns::Rows,
        grants: true,
    },
    Obstacle {
        what: "a policy that the kernel refuses",
        set: |scene| {
            scene.restart(|| scene.lab.write_config("[firewall]\nown_table = false\n"));
            scene.lab.await_ready();
            let agent = scene.agent.borrow();
            refuse_large_profiles(&scene.lab, agent.as_ref().unwrap(), || {
                scene.sql(&wide_policy_rows("wide", &["other0"]));
            });
        },
        in_force: |scene, _| scene.lab.status()["quarantined_policies"][0]["policy"] == "wide",
        remove: |scene| {
            scene.sql("update policies set is_active = false where name = 'wide'");
            scene.restart(|| scene.lab.write_config(""));
        },
        learns: Learns::Rows,
        grants: true,
    },
    Obstacle {
        what: "a database that answers no more",
        set: |scene| {
            scene.lab.relay.fall_silent();
            scene.sql(RENAME_A_DEVICE);
        },
        in_force: |scene, _| scene.lab.relay.withholds(),
        remove: |scene| scene.lab.relay.speak(),
        learns: Learns::NoRows,
        grants: false,
    },
    Obstacle {
        what: "a read that waits for a lock",
        set: |scene| {
            scene.sql("begin; lock table wireguard_peers in access exclusive mode");
            let writer = scene.lab.database.session();
            writer.exec(RENAME_A_DEVICE);
        },
        in_force: |scene, _| {
            scene.lab.database.holds(
                "exists (select from pg_locks where not granted and relation = 'wireguard_peers'::regclass
                     and database = (select oid from pg_database where datname = current_database()))",
            )
        },
        remove: |scene| scene.sql("rollback"),
        learns: Learns::NoRows,
        grants: false,
    },
    Obstacle {
        what: "a database that is away, and rows that are stale",
        set: |scene| {
            scene.lab.write_config("[stale]\npolicy = \"deny_new\"\nafter = \"1s\"\n");
            scene.reread_configuration();
            scene.lab.relay.refuse();
        },
        in_force: |scene, _| scene.lab.status()["why"].to_string().contains("stale"),
        remove: |scene| {
            scene.lab.relay.accept();
            scene.lab.write_config("");
            scene.reread_configuration();
        },
        learns: Learns::NoRows,
        grants: false,
    },
];

/// Its session goes on with that key.
fn give_preshared_key(scene: &Scene, client: &Client) {
    let preshared = run("wg", &["genpsk"]);
    scene.sql(&format!(
        "update wireguard_peers set preshared_key_ciphertext = '{}' where public_key = '{}'",
        client.sealed(&scene.lab, &preshared),
        client.key
    ));
    let has_it = || scene.lab.wg_show("preshared-keys").iter().any(|it| it.contains(&preshared));
    eventually("the gateway has the preshared key", has_it);
    client.preshare(&preshared);
    client.connect();
}

fn alias(scene: &Scene, gateway: &str) {
    let alias = format!("gatepost:{gateway}");
    scene.lab.gateway.run("ip", &["link", "set", &scene.lab.link(), "alias", &alias]);
}

fn block_list(scene: &Scene) -> std::path::PathBuf {
    scene.lab.folder.path().join("blocked")
}

fn limit_files(scene: &Scene, number: usize) {
    let agent = scene.agent.borrow().as_ref().unwrap().pid().to_string();
    run("prlimit", &["--pid", &agent, &format!("--nofile={number}:1024")]);
}

/// Gives the gateway's row another id, as one has that was deleted and inserted again.
fn renew_row(scene: &Scene, id: &str) {
    scene.sql(&format!(
        "update gateways set name = 'former';
         insert into gateways (id, name, endpoint, public_key, listen_port, vpn_cidr)
             select {id}, '{0}', endpoint, public_key, listen_port, vpn_cidr from gateways;
         update wireguard_peers set gateway_id = g.id from gateways g where g.name = '{0}';
         update ip_allocations set gateway_id = g.id from gateways g where g.name = '{0}';
         update gatepost.gateway_role set gateway_id = g.id from gateways g where g.name = '{0}';
         delete from gateways where name = 'former'",
        crate::lab::GATEWAY
    ));
}
