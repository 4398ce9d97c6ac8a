//! Carries out what the team does, in both databases at once.

use std::path::Path;
use std::process::{Command, Output};

use gatepost::store::{ConnectOptions, migrate};

use super::events::Deed;
use super::servers::{BOTH, OURS, Servers, TWIN, await_true, deadlocks_of};
use crate::postgres::{Cluster, bin};
use crate::world::connect;

/// A restore that met a writer in a deadlock is made again. The portal's writers, which lock tables in another order
/// than a restore, never rest.
const TRIES: usize = 25;

impl Servers {
    pub async fn carry_out(&self, deed: &Deed) {
        match deed {
            Deed::Portal(statements) => self.run("portal", statements).await,
            Deed::Superuser(statements) => self.run("postgres", statements).await,
            Deed::Migrate => {
                migrate(&ConnectOptions::new(self.url("postgres", OURS))).await.unwrap();
            }
            Deed::RestoreRows => self.restore_rows(),
            Deed::Restore => self.restore(),
            Deed::Restart => self.with_primary(|it| it.pg_ctl(&["-m", "fast", "restart"])),
            Deed::Crash => self.with_primary(|it| {
                it.pg_ctl(&["-m", "immediate", "stop"]);
                it.pg_ctl(&["start"]);
            }),
            Deed::Promote(loss) => {
                self.add_standbys();
                self.promote(*loss);
            }
            Deed::Subscribe => self.subscribe(),
            Deed::Unsubscribe => self.unsubscribe(),
        }
    }

    /// What the twin takes, the database with Gatepost must take.
    async fn run(&self, role: &str, statements: &[&str]) {
        let run = async |database| {
            let client = connect(&self.url(role, database)).await;
            for statement in statements {
                let done = client.batch_execute(statement).await;
                let told =
                    |error| panic!("{database}: {statement}: {error:?}; {:#?}", self.deadlocks());
                done.unwrap_or_else(told);
            }
        };
        tokio::join!(run(OURS), run(TWIN));
    }

    fn restore_rows(&self) {
        self.with_primary(|primary| {
            for database in BOTH {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("rows");
                let options = ["--data-only", "--disable-triggers", "--schema=public"];
                dump(primary, database, &options, &file);
                // In the order in which the portal's transactions lock them.
                let empty = "truncate devices, users, wireguard_peers, gateways, roles, groups, \
                    group_memberships, policies, policy_targets, policy_destinations, settings, \
                    ip_allocations, sessions, refresh_tokens, audit_logs";
                again_after_deadlocks(primary, || {
                    let mut psql = primary_client(primary, "psql", database);
                    psql.args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-c", empty, "-f"]);
                    psql.arg(&file).output().unwrap()
                });
            }
        });
    }

    fn restore(&self) {
        self.with_primary(|primary| {
            for database in BOTH {
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("dump");
                dump(primary, database, &["--format=custom"], &file);
                again_after_deadlocks(primary, || {
                    let mut restore = primary_client(primary, "pg_restore", database);
                    restore.args(["--clean", "--if-exists", "--single-transaction"]);
                    restore.arg(&file).output().unwrap()
                });
            }
        });
    }

    fn subscribe(&self) {
        self.with_primary(|primary| {
            primary.psql("postgres", "create database feed");
            primary.psql("feed", FEED);
            for database in BOTH {
                let (host, port) = (primary.dir.display(), primary.port);
                let slot =
                    format!("select pg_create_logical_replication_slot('{database}', 'pgoutput')");
                primary.psql("feed", &slot);
                let subscribe = format!(
                    "create subscription {database} connection
                         'host={host} port={port} user=postgres dbname=feed' publication feed
                     with (create_slot = false, copy_data = false, slot_name = {database})"
                );
                primary.psql(database, &subscribe);
            }
            let row = "insert into settings (category, key, value) values ('portal', 'theme', '1')";
            primary.psql("feed", row);
        });
    }

    fn unsubscribe(&self) {
        self.with_primary(|primary| {
            for database in BOTH {
                for statement in ["disable", "set (slot_name = none)"] {
                    primary.psql(database, &format!("alter subscription {database} {statement}"));
                }
                primary.psql(database, &format!("drop subscription {database}"));
                let idle = format!(
                    "select not active from pg_replication_slots where slot_name = '{database}'"
                );
                await_true(primary, &idle);
                primary.psql("feed", &format!("select pg_drop_replication_slot('{database}')"));
            }
            primary.psql("postgres", "drop database feed");
        });
    }
}

const FEED: &str = "
    create table settings (id uuid primary key default gen_random_uuid(), category text not null,
        key text not null, value jsonb not null, created_at timestamptz not null default now(),
        updated_at timestamptz not null default now());
    create publication feed for table settings";

fn primary_client(cluster: &Cluster, program: &str, database: &str) -> Command {
    let mut command = Command::new(bin(program));
    command.args(["-h", cluster.dir.to_str().unwrap(), "-p", &cluster.port.to_string()]);
    command.args(["-U", "postgres", "-d", database]);
    command
}

fn dump(cluster: &Cluster, database: &str, options: &[&str], file: &Path) {
    let mut dump = primary_client(cluster, "pg_dump", database);
    let output = dump.args(options).arg("-f").arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn again_after_deadlocks(primary: &Cluster, attempt: impl Fn() -> Output) {
    let before = deadlocks_of(primary).len();
    for _ in 0..TRIES {
        let output = attempt();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return;
        }
        assert!(told.contains("deadlock detected"), "{told}");
    }
    panic!("a deadlock each time: {:#?}", &deadlocks_of(primary)[before..]);
}
