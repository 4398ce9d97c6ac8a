//! The troubles that an operator is called for. Of each the journal tells once, with the thing, the value and
//! the way out; `gatepost status` and `gatepost check` say the same while it lasts; and the journal tells once
//! that it is over.

pub mod secured;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::faults::disk::Disk;
use crate::lab::{Agent, BINARY, Backend, Lab, eventually, new_keys, peer_rows, run};
use secured::Secured;

struct Kind {
    name: &'static str,
    begin: fn(&Scene),
    /// The parts of the only warning.
    journal: &'static [&'static str],
    status: &'static [&'static str],
    check: &'static [&'static str],
    end: fn(&Scene),
    /// Of what the agent repairs itself, the warning says that it is over.
    all_clear: Option<&'static str>,
}

/// So many peers that their removal waits for an operator.
const PEERS: usize = 14;
const TAKEN_PORT: u16 = 51_999;
const READ_AGAIN: Option<&str> = Some("over: the database is read again");
const EQUAL: Option<&str> = Some("over: the kernel is proven equal");
const ROW_IS_USABLE: Option<&str> = Some("over: the gateway's row and settings can be used again");

/// `ROLE`, `LINK`, `KEY` and `DATABASE` stand for those of the lab.
const KINDS: &[Kind] = &[
    Kind {
        name: "database down",
        begin: |scene| {
            scene.lab.relay.refuse();
        },
        journal: &["the database is unreachable", "database DATABASE at 127.0.0.1", "database.url"],
        status: &["degraded: the database is unreachable"],
        check: &["DATABASE", "is unreachable"],
        end: |scene| scene.lab.relay.accept(),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "database hangs",
        begin: |scene| {
            scene.locks.exec("begin; lock table wireguard_peers in access exclusive mode");
            scene.resync();
        },
        journal: &[
            "the database is not ready for this agent",
            "database DATABASE at 127.0.0.1",
            "another transaction holds the lock",
        ],
        status: &[
            "degraded: the database is not ready for this agent",
            "another transaction holds the lock",
        ],
        check: &["another transaction holds the lock"],
        end: |scene| scene.locks.exec("rollback"),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "wrong password",
        begin: |scene| {
            scene.sql("alter role ROLE password 'another'");
            scene.lab.relay.cut();
        },
        journal: &["the database refuses this agent", "as role ROLE", "check the password file"],
        status: &["degraded: the database refuses this agent", "check the password file"],
        check: &["as role ROLE: login refused", "check the password file"],
        end: |scene| {
            let password = scene.lab.database.role_password();
            scene.sql(&format!("alter role ROLE password '{password}'"));
        },
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "TLS failure",
        begin: |scene| {
            scene.server.serve("unknown");
            scene.lab.relay.cut();
        },
        journal: &[
            "this agent refuses the database",
            "database DATABASE at",
            "database.tls_ca_file",
        ],
        status: &["degraded: this agent refuses the database", "database.tls_ca_file"],
        check: &["DATABASE", "database.tls_ca_file"],
        end: |scene| scene.server.serve("known"),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "role unbound",
        begin: |scene| scene.sql("delete from gatepost.gateway_role where role_name = 'ROLE'"),
        journal: &[
            "the database refuses this agent",
            "role ROLE is bound to no gateway",
            "run `gatepost grant <gateway> ROLE`",
        ],
        status: &[
            "degraded: the database refuses this agent",
            "run `gatepost grant <gateway> ROLE`",
        ],
        check: &["role ROLE is bound to no gateway", "run `gatepost grant <gateway> ROLE`"],
        end: |scene| scene.as_owner(&["grant", "fra-1", "ROLE"]),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "schema missing",
        begin: |scene| scene.sql("alter schema gatepost rename to lost"),
        journal: &[
            "the database is not ready for this agent",
            "database DATABASE",
            "no gatepost schema",
            "run `gatepost migrate`",
        ],
        status: &["the database is not ready for this agent", "run `gatepost migrate`"],
        check: &["database DATABASE", "no gatepost schema", "run `gatepost migrate`"],
        end: |scene| scene.sql("alter schema lost rename to gatepost"),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "trigger dropped",
        begin: |scene| {
            scene.sql(
                "do $$ declare name name; begin
                     for name in select tgname from pg_trigger
                         where tgrelid = 'devices'::regclass and not tgisinternal
                     loop execute format('drop trigger %I on devices', name); end loop; end $$",
            );
            scene.resync();
        },
        journal: &["changes to devices are not announced", "Run `gatepost migrate`"],
        status: &["degraded: changes to devices are not announced", "Run `gatepost migrate`"],
        check: &["changes to devices are not announced", "Run `gatepost migrate`"],
        end: |scene| {
            scene.as_owner(&["migrate"]);
            scene.resync();
        },
        all_clear: Some("changes to all tables are announced again"),
    },
    Kind {
        name: "reports refused",
        begin: |scene| {
            scene.sql(
                "create table history (id uuid);
                 create function keep() returns trigger language plpgsql as $$ begin
                     insert into history values (new.id); return new;
                 end $$;
                 create trigger history before update on gateways
                     for each row execute function keep()",
            );
        },
        journal: &[
            "the database has refused this gateway's reports since",
            "trigger history on gateways: permission denied for table history",
            "run `grant insert on public.history to gatepost_owner`",
        ],
        status: &["degraded: the database has refused", "run `grant insert on public.history"],
        check: &["trigger history on gateways", "run `grant insert on public.history"],
        end: |scene| {
            assert!(scene.metrics().contains("\ngatepost_reports_refused 1"));
            scene.sql("grant insert on history to gatepost_owner");
        },
        all_clear: Some("over: the database takes this gateway's reports again"),
    },
    Kind {
        name: "bad row",
        begin: |scene| scene.move_peer("10.99.1.1", "10.98.0.5"),
        journal: &["quarantined user1/user1-laptop", "10.98.0.5", "10.99.0.0/16"],
        status: &["user1/user1-laptop: ", "10.98.0.5", "10.99.0.0/16"],
        check: &["quarantined user1/user1-laptop: ", "10.98.0.5", "correct the row"],
        end: |scene| scene.move_peer("10.98.0.5", "10.99.1.1"),
        all_clear: Some("user1/user1-laptop is no longer quarantined"),
    },
    Kind {
        name: "key mismatch",
        begin: |scene| scene.sql("update gateways set public_key = encode(sha256('x'), 'base64')"),
        journal: &[
            "applying withdrawals only",
            "gateways.public_key of fra-1 is ",
            "KEY",
            "gatepost enroll",
        ],
        status: &["not ready: gateways.public_key of fra-1 is ", "KEY", "gatepost enroll"],
        check: &["KEY", "gatepost enroll"],
        end: |scene| scene.sql("update gateways set public_key = 'KEY'"),
        all_clear: ROW_IS_USABLE,
    },
    Kind {
        name: "port taken",
        begin: |scene| {
            let bind = || UdpSocket::bind(("0.0.0.0", TAKEN_PORT)).unwrap();
            *scene.taken.borrow_mut() = Some(scene.lab.gateway.within(bind));
            scene.sql(&format!("update gateways set listen_port = {TAKEN_PORT}"));
        },
        journal: &[
            "the kernel refused link listen-port 51999",
            "`ss -ulpn sport = :51999` says which",
        ],
        status: &["not ready: the kernel refused", "51999", "ss -ulpn"],
        check: &["the kernel refused", "51999", "ss -ulpn"],
        end: |scene| *scene.taken.borrow_mut() = None,
        all_clear: EQUAL,
    },
    Kind {
        name: "table deleted",
        begin: |scene| drop(scene.lab.gateway.run("nft", &["delete", "table", "inet", "gatepost"])),
        journal: &["repaired drift (nft, pid ", "changed our firewall"],
        status: &["repaired 1 time"],
        check: &["repaired what other programs had changed", "journalctl MESSAGE_ID="],
        end: |_| {},
        all_clear: None,
    },
    Kind {
        name: "guard held",
        begin: |scene| scene.sql("update users set is_active = false where username <> 'user0'"),
        journal: &["13 of 14 peers", "confirm with `gatepost confirm`"],
        status: &["removing 13 of 14 peers waits for `gatepost confirm`", "held until"],
        check: &["removing 13 of 14 peers waits", "gatepost confirm"],
        end: |scene| scene.sql("update users set is_active = true"),
        all_clear: Some("over: no removal is held back"),
    },
    Kind {
        name: "disk full",
        begin: |scene| {
            scene.disk.fill();
            scene.resync();
        },
        journal: &["/state/last-good", "make room"],
        status: &["/state/last-good", "make room"],
        check: &["/state/last-good", "make room"],
        end: |scene| {
            scene.disk.make_room();
            scene.resync();
        },
        all_clear: Some("over: the rows in force are on disk again"),
    },
    Kind {
        name: "foreign drop",
        begin: |scene| {
            let chain = "{ type filter hook forward priority 0; policy drop; }";
            scene.lab.gateway.run("nft", &["add", "table", "inet", "other"]);
            scene.lab.gateway.run("nft", &["add", "chain", "inet", "other", "forward", chain]);
        },
        journal: &[
            "chain forward of table inet other drops traffic of peers",
            "nft insert rule inet other forward iifname LINK accept",
        ],
        status: &["chain forward of table inet other drops", "nft insert rule inet other forward"],
        check: &["chain forward of table inet other drops", "nft insert rule inet other forward"],
        end: |scene| drop(scene.lab.gateway.run("nft", &["delete", "table", "inet", "other"])),
        all_clear: Some("over: no firewall of another program drops packets of peers"),
    },
    Kind {
        name: "standby",
        begin: |scene| scene.lab.relay.lead_to(scene.standby.address()),
        journal: &[
            "the database is not ready for this agent",
            "database DATABASE at",
            "is a standby: add the primary to the URL",
        ],
        status: &[
            "degraded: the database is not ready for this agent",
            "is a standby: add the primary",
        ],
        check: &["is a standby: add the primary to the URL"],
        end: |scene| scene.lab.relay.lead_to(scene.server.address()),
        all_clear: READ_AGAIN,
    },
    Kind {
        name: "userspace device gone",
        begin: |scene| kill(scene.device(), Signal::SIGKILL).unwrap(),
        journal: &["repaired drift (", "link create LINK"],
        status: &["repaired 2 times"],
        check: &["repaired what other programs had changed, 2 times"],
        end: |_| {},
        all_clear: None,
    },
];

#[test]
fn each_trouble_has_one_line_one_all_clear_and_its_place_in_status_and_check() {
    let scene = Scene::open();
    let wrong = Vec::from_iter(KINDS.iter().filter_map(|kind| scene.suffer(kind).err()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

struct Scene {
    agent: Agent,
    disk: Disk,
    server: Secured,
    standby: Secured,
    /// A session that holds locks.
    locks: crate::lab::Session,
    taken: RefCell<Option<UdpSocket>>,
    lab: Lab,
}

impl Scene {
    fn open() -> Self {
        let lab = Lab::open();
        assert_eq!(
            lab.backend,
            Backend::Userspace,
            "the guest has another server, and no such device"
        );
        for number in 0..PEERS {
            let key = new_keys().1;
            let rows = peer_rows(&format!("user{number}"), &key, &format!("10.99.1.{number}"));
            lab.database.exec(&rows);
        }
        let server = Secured::of(&lab);
        let disk = Disk::mount(&lab, "256k");
        let standby = server.standby();
        let agent = lab.start();
        let locks = lab.database.session();
        let scene = Self { agent, disk, server, standby, locks, taken: RefCell::default(), lab };
        eventually("all peers are served", || scene.is_ready());
        scene
    }

    /// An error names what was said too often, too seldom or without its parts.
    #[track_caller]
    fn suffer(&self, kind: &Kind) -> Result<(), String> {
        let told = |parts: &[&str]| Vec::from_iter(parts.iter().map(|part| self.named(part)));
        let has = |text: &str, parts: &[String]| parts.iter().all(|part| text.contains(&**part));
        let (name, start) = (kind.name, self.lab.log().len());
        let log = || self.lab.log()[start..].to_owned();
        (kind.begin)(self);
        let journal = told(kind.journal);
        eventually(&format!("{name}: the journal tells of {journal:?}"), || {
            log().lines().any(|line| line.contains(" WARN ") && has(line, &journal))
        });
        let status = told(kind.status);
        eventually(&format!("{name}: the status tells of {status:?}"), || {
            has(&self.lab.gatepost(&["status"]).1, &status)
        });
        let (code, checked, _) = self.lab.gatepost(&["check"]);
        // A report may be under way when the trouble comes, which is told as well, as is a connection that its end cuts.
        let is_told =
            |line: &&str| line.contains(" WARN ") && !line.contains("could not write the report");
        let warnings = log().lines().filter(is_told).count();
        (kind.end)(self);
        if let Some(all_clear) = kind.all_clear {
            eventually(&format!("{name}: {all_clear}"), || log().contains(all_clear));
        }
        eventually(&format!("{name} is over"), || self.is_ready());
        let log = log();
        let all_clears =
            log.lines().filter(|line| kind.all_clear.is_some_and(|it| line.contains(it)));
        let wanted = usize::from(kind.all_clear.is_some());
        let said = (warnings, all_clears.count());
        let is_checked = has(&checked, &told(kind.check));
        if said == (1, wanted) && is_checked && (code != 0 || kind.all_clear.is_none()) {
            return Ok(());
        }
        Err(format!("{name}: {said:?} warnings and all-clears: {log}\ncheck ({code}): {checked}"))
    }

    fn named(&self, text: &str) -> String {
        let (link, database) = (self.lab.link(), &self.lab.database);
        let text = text.replace("ROLE", database.role()).replace("LINK", &link);
        text.replace("KEY", &self.lab.gateway_key).replace("DATABASE", database.name())
    }

    fn sql(&self, statement: &str) {
        self.lab.database.exec(&self.named(statement));
    }

    fn move_peer(&self, from: &str, to: &str) {
        self.sql(&format!(
            "update wireguard_peers set assigned_ip = '{to}' where assigned_ip = '{from}'"
        ));
    }

    fn is_ready(&self) -> bool {
        let status = self.lab.status();
        status["state"] == "ready"
            && status["warnings"] == serde_json::json!([])
            && status["peers"]["in_kernel"] == PEERS
    }

    fn metrics(&self) -> String {
        self.lab.gateway.within(|| {
            let mut stream = TcpStream::connect("127.0.0.1:7171").unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).unwrap();
            page
        })
    }

    /// Asks for a comparison, and does not wait for it.
    fn resync(&self) {
        self.lab.ask("resync");
    }

    /// Runs a command of the database's owner, as the remedies say.
    #[track_caller]
    fn as_owner(&self, arguments: &[&str]) {
        let arguments = Vec::from_iter(arguments.iter().map(|part| self.named(part)));
        let arguments = Vec::from_iter(arguments.iter().map(String::as_str));
        let output = self.lab.admin_command(&arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The process of the userspace device.
    fn device(&self) -> Pid {
        let pids = run("ip", &["netns", "pids", self.lab.gateway.name()]);
        let agent = self.agent.pid().as_raw();
        let ours = pids.lines().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != agent && command.starts_with(BINARY.as_bytes())
        });
        Pid::from_raw(ours.expect("the device has a process"))
    }
}
