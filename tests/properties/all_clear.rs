//! Each trouble has one line in the journal that says what is wrong, the same in the status, and one
//! all-clear.

use std::time::Duration;

use gatepost::model::PeerId;
use gatepost::reconcile::{BellNews, Event};

use super::rows::id;
use super::trouble::{MINUTE, SECOND};
use super::world::{Trouble, World, quiet_world};

struct Kind {
    name: &'static str,
    begin: fn(&mut World),
    /// What the journal says once, and only once in ten minutes.
    journal: &'static str,
    /// What state or warnings of the status say.
    status: &'static str,
    end: fn(&mut World),
    all_clear: &'static str,
}

/// The trouble begins, and something is to do.
fn suffer(world: &mut World, trouble: Trouble) {
    world.troubles.insert(trouble);
    world.tell(Event::Resync);
}

fn recover(world: &mut World) {
    world.troubles.clear();
    world.tell(Event::Resync);
}

fn set_address(world: &mut World, address: &str) {
    let row = world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap();
    row.assigned_ip = address.parse().unwrap();
    world.tell(Event::Notified);
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "database down",
        begin: |world| {
            world.database_up = false;
            world.tell(Event::Resync);
        },
        journal: "the database is unreachable; the kernel stays as it is",
        status: "the database is unreachable",
        end: |world| world.database_up = true,
        all_clear: "over: the database is read again",
    },
    Kind {
        name: "reads that fail",
        begin: |world| suffer(world, Trouble::Reads),
        journal: "the database is unreachable; the kernel stays as it is",
        status: "the database is unreachable",
        end: recover,
        all_clear: "over: the database is read again",
    },
    Kind {
        name: "no session to listen on",
        begin: |world| world.tell(Event::NoSession { why: Some("no room".to_owned()) }),
        journal: "polling until there is a session to listen on: no room",
        status: "polling until there is a session to listen on: no room",
        end: |world| world.tell(Event::NoSession { why: None }),
        all_clear: "over: there is a session to listen on again",
    },
    Kind {
        name: "no bell is heard",
        begin: |world| world.tell(Event::Bell(BellNews::Expected)),
        journal: "no bell is heard; until one is, the agent polls for changes",
        status: "no bell has been heard since",
        end: |world| world.bell_lives = true,
        all_clear: "the bell is heard",
    },
    Kind {
        name: "reports refused",
        begin: |world| suffer(world, Trouble::Reports),
        journal: "and they wait: trigger history on devices: no write at ",
        status: "and they wait: trigger history on devices: no write at ",
        end: recover,
        all_clear: "over: the database takes this gateway's reports again",
    },
    Kind {
        name: "gateway's row unusable",
        begin: |world| suffer(world, Trouble::GatewayRow),
        journal: "applying withdrawals only: gateways.listen_port 0 is no UDP port",
        status: "gateways.listen_port 0 is no UDP port",
        end: recover,
        all_clear: "over: the gateway's row and settings can be used again",
    },
    Kind {
        name: "key mismatch",
        begin: |world| suffer(world, Trouble::WrongKey),
        journal: "applying withdrawals only: gateways.public_key of fra-1 is ",
        status: "gateways.public_key of fra-1 is ",
        end: recover,
        all_clear: "over: the gateway's row and settings can be used again",
    },
    Kind {
        name: "bad row",
        begin: |world| set_address(world, "10.99.0.1/32"),
        journal: "quarantined user-1/laptop: ",
        status: "",
        end: |world| set_address(world, "10.64.0.2/32"),
        all_clear: "user-1/laptop is no longer quarantined",
    },
];

#[test]
fn each_trouble_has_one_line_one_all_clear_and_its_place_in_the_status() {
    for Kind { name, begin, journal, status, end, all_clear } in KINDS {
        let mut world = quiet_world();
        let said = |world: &World, text: &str| {
            world.notes.iter().filter(|note| note.to_string().contains(text)).count()
        };
        assert_eq!(said(&world, all_clear), 0, "{name}");
        begin(&mut world);
        world.pass_time(10 * MINUTE);
        let notes: Vec<_> = world.notes.iter().map(ToString::to_string).collect();
        assert_eq!(said(&world, journal), 1, "{name}: {notes:#?}");
        assert_eq!(said(&world, all_clear), 0, "{name}: {notes:#?}");
        let now = world.machine.view().status();
        let told = format!("{:?} {:?}", now.state, now.warnings);
        assert!(told.contains(status), "{name}: {told}");
        end(&mut world);
        world.pass_time(10 * MINUTE + Duration::from_secs(1));
        let notes: Vec<_> = world.notes.iter().map(ToString::to_string).collect();
        assert_eq!(said(&world, all_clear), 1, "{name}: {notes:#?}");
        assert!(world.machine.view().status().warnings.is_empty(), "{name}");
        world.pass_time(SECOND);
    }
}
