//! What happens in the week, step by step.

use super::servers::Loss;
use crate::world::end_sessions;

pub struct Event {
    pub name: &'static str,
    pub steps: &'static [Step],
    /// SQLSTATEs that depend on the moment at which the event meets a writer.
    pub tolerates: &'static [&'static str],
    /// Its row of docs/faults.md, if it is a fault.
    pub expected: Option<&'static str>,
}

pub struct Step {
    pub deed: Deed,
    pub then: Then,
}

/// Done to both databases, by the portal's own role unless it says otherwise.
#[derive(Debug)]
pub enum Deed {
    /// One by one.
    Portal(&'static [&'static str]),
    Superuser(&'static [&'static str]),
    /// `gatepost migrate`, where Gatepost is.
    Migrate,
    /// The rows of a dump, while triggers are off.
    RestoreRows,
    /// A whole dump, over what is there.
    Restore,
    Restart,
    Crash,
    Promote(Loss),
    /// Rows of one table come from another database.
    Subscribe,
    Unsubscribe,
}

#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// The agent is ready, and the kernel has what the rows admit.
    Equal,
    /// The status says this.
    Says(&'static str),
    /// The guard holds removals. The portal pauses until the next step, or it would put back
    /// a part of the rows.
    Holds,
}

const fn equal(deed: Deed) -> Step {
    Step { deed, then: Then::Equal }
}

const fn says(deed: Deed, words: &'static str) -> Step {
    Step { deed, then: Then::Says(words) }
}

const fn event(name: &'static str, steps: &'static [Step]) -> Event {
    Event { name, steps, tolerates: &[], expected: None }
}

/// A fault that may end a writer's statement, if the two meet.
const fn fault(
    name: &'static str,
    expected: &'static str,
    tolerates: &'static [&'static str],
    steps: &'static [Step],
) -> Event {
    Event { name, steps, tolerates, expected: Some(expected) }
}

use Deed::{
    Crash, Migrate, Portal, Promote, Restart, Restore, RestoreRows, Subscribe, Superuser,
    Unsubscribe,
};

/// The portal's transactions lock several tables, and so do restores: either may be ended.
const DEADLOCK: &[&str] = &["40P01"];

pub const OF_THE_WEEK: &[Event] = &[
    event(
        "column added and dropped",
        &[
            equal(Portal(&["alter table devices add colour text not null default 'red'"])),
            equal(Portal(&["alter table devices drop column colour"])),
            equal(Migrate),
        ],
    ),
    event(
        "column renamed and back",
        &[
            says(
                Portal(&["alter table devices rename status to state"]),
                "column devices.status is missing",
            ),
            equal(Portal(&["alter table devices rename state to status"])),
        ],
    ),
    event(
        "column dropped and made again",
        &[
            says(
                Portal(&["alter table wireguard_peers drop column dns_servers"]),
                "column wireguard_peers.dns_servers is missing",
            ),
            says(Migrate, "column wireguard_peers.dns_servers is missing"),
            says(
                Portal(&[
                    "alter table wireguard_peers add dns_servers text[] not null default '{}'",
                ]),
                "gatepost_owner may not read wireguard_peers.dns_servers",
            ),
            equal(Migrate),
        ],
    ),
    event(
        "columns of other types that read alike, and back",
        &[
            equal(Portal(&[
                "alter table devices alter status type varchar(40)",
                "alter table gateways alter listen_port type bigint",
                "alter table users alter username type varchar(80)",
            ])),
            equal(Migrate),
            equal(Portal(&[
                "alter table devices alter status type text",
                "alter table gateways alter listen_port type integer",
                "alter table users alter username type citext",
            ])),
        ],
    ),
    event(
        "column of a type that cannot be read, and back",
        &[
            says(
                Portal(&["alter table users alter is_active drop default,
                    alter is_active type text using is_active::text"]),
                "column users.is_active is text",
            ),
            equal(Portal(&["alter table users
                alter is_active type boolean using is_active::boolean,
                alter is_active set default true"])),
        ],
    ),
    event(
        "table renamed and back",
        &[
            says(
                Portal(&["alter table group_memberships rename to members"]),
                "table group_memberships is missing",
            ),
            equal(Portal(&["alter table members rename to group_memberships"])),
        ],
    ),
    event(
        "migration of several tables in one transaction",
        &[
            equal(Portal(&["begin; alter table devices add note text; select pg_sleep(1.5);
                alter table users add note text; alter table gateways add note text;
                alter table policies add note text; commit"])),
            equal(Portal(&["begin; alter table policies drop note; select pg_sleep(1.5);
                alter table devices drop note; alter table users drop note;
                alter table gateways drop note; commit"])),
        ],
    ),
    event(
        "table made anew by copy and swap",
        &[
            says(
                Portal(&["begin; lock table devices, gateways in share row exclusive mode;
                    lock table wireguard_peers in access exclusive mode;
                    create table copy (like wireguard_peers including all);
                    insert into copy select * from wireguard_peers;
                    drop table wireguard_peers; alter table copy rename to wireguard_peers;
                    alter table wireguard_peers add foreign key (device_id) references devices,
                        add foreign key (gateway_id) references gateways; commit"]),
                "wireguard_peers",
            ),
            equal(Migrate),
        ],
    ),
    event(
        "triggers that keep history",
        &[
            says(
                Portal(&[
                    "create table history (relation text, row jsonb, at timestamptz default now())",
                    "create function keep_history() returns trigger language plpgsql as $$ begin
                         insert into history values (tg_table_name, to_jsonb(new)); return new;
                     end $$",
                    "create trigger history before insert or update on devices
                         for each row execute function keep_history()",
                    "create trigger history before insert or update on gateways
                         for each row execute function keep_history()",
                ]),
                "run `grant insert on public.history to gatepost_owner`",
            ),
            equal(Portal(&["grant insert on history to gatepost_owner"])),
            equal(Portal(&["drop function keep_history() cascade", "drop table history"])),
        ],
    ),
    event(
        "moddatetime",
        &[
            equal(Portal(&["create trigger touched before update on devices
                for each row execute function moddatetime(updated_at)"])),
            equal(Portal(&["drop trigger touched on devices"])),
        ],
    ),
    event(
        "row-level security on and off",
        &[
            says(Portal(&["alter table devices enable row level security"]), "row-level security"),
            equal(Portal(&["alter table devices disable row level security"])),
        ],
    ),
    event(
        "indexes made and rebuilt concurrently",
        &[equal(Portal(&[
            "create index concurrently by_name on devices (name)",
            "reindex table concurrently wireguard_peers",
            "drop index concurrently by_name",
        ]))],
    ),
    event(
        "tables rewritten",
        &[equal(Portal(&[
            "vacuum full wireguard_peers",
            "cluster devices using devices_pkey",
            "vacuum (freeze, analyze) users",
        ]))],
    ),
    event(
        "table truncated and filled again",
        &[
            Step {
                deed: Portal(&[
                    "create table kept as table wireguard_peers",
                    "truncate wireguard_peers restart identity",
                ]),
                then: Then::Holds,
            },
            equal(Portal(&[
                "insert into wireguard_peers select * from kept on conflict do nothing",
                "drop table kept",
            ])),
        ],
    ),
    event(
        "tables of another owner",
        &[
            equal(Superuser(&[
                "grant create on schema public to clerk",
                "alter table devices owner to clerk",
                "alter table users owner to clerk",
            ])),
            equal(Superuser(&[
                "alter table devices owner to portal",
                "alter table users owner to portal",
            ])),
        ],
    ),
    event(
        "other search_path",
        &[
            equal(Superuser(&["create schema app", OTHER_PATH, END_ALL])),
            equal(Superuser(&[FORMER_PATH, END_ALL, "drop schema app"])),
        ],
    ),
    fault(
        "data-only restore with triggers off, over a running agent",
        "read at the next look; degraded until `gatepost migrate`",
        DEADLOCK,
        &[says(RestoreRows, "are not announced"), equal(Migrate)],
    ),
    fault(
        "dump restored over a running agent (pg_restore --clean)",
        "read anew; what it revoked meanwhile stays out for guard.lost_history",
        DEADLOCK,
        &[equal(Restore)],
    ),
    fault(
        "connection limit of the database reached",
        "degraded; followed once there is room",
        &[],
        &[
            says(Superuser(&[LIMIT, END_AGENT]), "has no room for another session"),
            equal(Superuser(&[NO_LIMIT])),
        ],
    ),
    fault("database restarted", "followed when it is back", &[], &[equal(Restart)]),
    fault("database crashed", "read anew when it is back", &[], &[equal(Crash)]),
    event(
        "rows that come by logical replication",
        &[says(Subscribe, "changes to settings are not announced"), equal(Unsubscribe)],
    ),
];

/// Each takes a server.
pub const AT_ITS_END: &[Event] = &[
    fault(
        "standby promoted, and no transaction lost",
        "read anew, and followed",
        &[],
        &[equal(Promote(Loss::None))],
    ),
    fault(
        "standby promoted without the last transactions, under writers",
        "read anew; lost revocations hold for guard.lost_history",
        &[],
        &[equal(Promote(Loss::LastWrites))],
    ),
];

const OTHER_PATH: &str = "do $$ begin
    execute format('alter database %I set search_path = app, public', current_database()); end $$";
const FORMER_PATH: &str = "do $$ begin
    execute format('alter database %I reset search_path', current_database()); end $$";
/// Sessions that exist go on.
const LIMIT: &str = "do $$ begin
    execute format('alter database %I connection limit 0', current_database()); end $$";
const NO_LIMIT: &str = "do $$ begin
    execute format('alter database %I connection limit -1', current_database()); end $$";
const END_AGENT: &str = end_sessions!("usename = 'agent' and datname = current_database()");
const END_ALL: &str = end_sessions!(
    "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
);
