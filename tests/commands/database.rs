//! The commands that change a database, against a real one.

use std::fs;

use crate::gatepost::Gatepost;
use crate::postgres::Cluster;

/// A gateway host whose agent logs in as `role` to a database of its own.
struct Site {
    gatepost: Gatepost,
    database: String,
    owner_url: String,
}

impl Site {
    fn new(role: &str) -> Self {
        let cluster = Cluster::shared();
        let database = cluster.database(None);
        let url = cluster.socket_url(role, &database);
        let config = format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}");
        let owner_url = cluster.socket_url("postgres", &database);
        Self { gatepost: Gatepost::with(&config), database, owner_url }
    }

    /// A command with the owner's rights.
    fn as_owner(&self, args: &[&str]) -> crate::gatepost::Done {
        self.gatepost.run(&[args, &["--database-url", &self.owner_url]].concat())
    }

    fn psql(&self, sql: &str) -> String {
        Cluster::shared().psql(&self.database, sql).trim().to_owned()
    }

    /// Level and text of a finding of `check`, and the exit code.
    fn finding(&self, subject: &str) -> (String, String, i32) {
        let done = self.gatepost.run(&["check", "--json"]);
        let findings: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
        let found = findings.iter().find(|finding| finding["subject"] == subject).unwrap();
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        (text("level"), text("text"), done.code)
    }
}

#[test]
fn missing_database_is_named_with_the_command_that_creates_it() {
    let url = Cluster::shared().socket_url("postgres", "nowhere");
    let done = Gatepost::with("").run(&["migrate", "--database-url", &url]).must_exit(1);
    assert!(done.stderr.contains("\"nowhere\" does not exist"), "{}", done.stderr);
    assert!(done.stderr.contains("create the database with `createdb`"), "{}", done.stderr);
}

#[test]
fn gateway_is_migrated_granted_and_enrolled() {
    let site = Site::new("commands_fra");
    let unmigrated = site.as_owner(&["grant", "fra-1", "postgres"]).must_exit(1);
    assert!(unmigrated.stderr.contains("run `gatepost migrate`"), "{}", unmigrated.stderr);
    site.as_owner(&["grant", "fra-1", "left_behind", "--create"]).must_exit(1);
    assert_eq!(site.psql("select count(*) from pg_roles where rolname = 'left_behind'"), "0");

    let dry = site.as_owner(&["migrate", "--dry-run"]).must_exit(0);
    let parts: Vec<_> = dry.stdout.lines().filter(|line| line.starts_with("-- V1__")).collect();
    assert!(dry.stdout.starts_with("-- prepare\n") && parts.len() == 1, "{}", dry.stdout);
    assert_eq!(site.psql("select count(*) from pg_tables where tablename = 'gateways'"), "0");
    let applied = site.as_owner(&["migrate"]).must_exit(0);
    assert!(applied.stdout.ends_with(" migrations\n"), "{}", applied.stdout);
    let again = site.as_owner(&["migrate"]).must_exit(0);
    assert_eq!(again.stdout, "the schema is up to date\n");

    let unknown = site.as_owner(&["grant", "fra-1", "commands_fra"]).must_exit(1);
    assert!(unknown.stderr.contains("add --create"), "{}", unknown.stderr);
    let granted = site.as_owner(&["grant", "fra-1", "commands_fra", "--create"]).must_exit(0);
    assert!(granted.stdout.starts_with("created role commands_fra\n"), "{}", granted.stdout);

    let enroll = ["enroll", "--endpoint", "vpn.example:51820", "--listen-port", "51820"];
    let enroll = [&enroll[..], &["--vpn-cidr", "10.8.0.0/24", "--dns", "10.8.0.1"]].concat();
    let enrolled = site.gatepost.run(&enroll).must_exit(0);
    let key = site.psql("select public_key from gateways where name = 'fra-1'");
    assert!(enrolled.stdout.ends_with(&format!("\npublic key {key}\n")), "{}", enrolled.stdout);
    assert_eq!(site.gatepost.run(&["key", "public"]).must_exit(0).stdout, format!("{key}\n"));
    let again = site.gatepost.run(&["enroll"]).must_exit(0);
    assert!(!again.stdout.contains("generated private key"), "{}", again.stdout);
    assert_eq!(site.psql("select endpoint from gateways"), "vpn.example:51820");

    // A lost key locks out no client by accident, and the new one is not left behind.
    let lost = fs::rename(site.gatepost.path("private.key"), site.gatepost.path("kept.key"));
    lost.unwrap();
    for args in [&["enroll"][..], &["enroll", "--new-key"]] {
        let refused = site.gatepost.run(args).must_exit(1).stderr;
        assert!(refused.contains("`gatepost grant --enroll fra-1 commands_fra`"), "{refused}");
        assert!(!site.gatepost.path("private.key").exists());
    }
    site.as_owner(&["grant", "fra-1", "commands_fra", "--enroll"]).must_exit(0);
    let replaced = site.gatepost.run(&["enroll", "--new-key"]).must_exit(0).stdout;
    assert!(replaced.contains("restart it: systemctl restart gatepost"), "{replaced}");
    let new_key = site.psql("select public_key from gateways where name = 'fra-1'");
    assert!(new_key != key && replaced.contains(&new_key), "{replaced}");
    let key = new_key;

    let (level, text, _) = site.finding("key");
    assert_eq!((level.as_str(), text), ("ok", format!("{key}, matches the gateway's row")));
    assert_eq!(site.finding("database").0, "ok");
    assert_eq!(site.finding("clock").0, "ok");
}

#[test]
fn role_of_another_gateway_is_taken_only_after_a_question_or_with_yes() {
    let site = Site::new("commands_moves");
    site.as_owner(&["migrate"]).must_exit(0);
    site.as_owner(&["grant", "ber-1", "commands_moves", "--create"]).must_exit(0);
    let bound = || site.psql("select string_agg(gateway_name, ',') from gatepost.gateway_role");
    let unasked = site.as_owner(&["grant", "fra-1", "commands_moves"]).must_exit(1).stderr;
    assert!(unasked.starts_with("role commands_moves acts for gateway ber-1. Bound to fra-1, "));
    assert!(unasked.contains("`grant` cannot ask: pass --yes to confirm"), "{unasked}");
    assert_eq!(bound(), "ber-1");
    // The role stays with its gateway.
    site.as_owner(&["grant", "ber-1", "commands_moves"]).must_exit(0);
    let moved = site.as_owner(&["grant", "fra-1", "commands_moves", "--yes"]).must_exit(0).stdout;
    assert!(moved.starts_with("role commands_moves is bound to gateway fra-1 (before: ber-1)\n"));
    assert_eq!(bound(), "fra-1");
    // Its gateway was renamed: the role acts for the new name already.
    site.psql(
        "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
         values ('fra-1', 'e:1', 'k', 1, '10.8.0.0/16')",
    );
    site.as_owner(&["grant", "fra-1", "commands_moves"]).must_exit(0);
    site.psql("update gateways set name = 'fra-2'");
    site.as_owner(&["grant", "fra-2", "commands_moves"]).must_exit(0);
    let unasked = site.as_owner(&["grant", "fra-3", "commands_moves"]).must_exit(1).stderr;
    assert!(unasked.contains("acts for gateway fra-2"), "{unasked}");
}

#[test]
fn trigger_that_was_dropped_is_a_finding_without_an_agent() {
    let site = Site::new("commands_mute");
    site.as_owner(&["migrate"]).must_exit(0);
    site.as_owner(&["grant", "fra-1", "commands_mute", "--create"]).must_exit(0);
    let enroll = ["enroll", "--endpoint", "x:1", "--listen-port", "1", "--vpn-cidr", "10.8.0.0/24"];
    site.gatepost.run(&enroll).must_exit(0);
    site.psql(
        "do $$ declare t name; begin
            for t in select tgname from pg_trigger where tgrelid = 'devices'::regclass
                and tgname like 'gatepost%' loop
                execute format('drop trigger %I on devices', t);
            end loop; end $$",
    );
    let (level, text, _) = site.finding("triggers");
    assert!(
        level == "warning" && text.starts_with("changes to devices are not announced"),
        "{text}"
    );
}

#[test]
fn unmigrate_asks_and_leaves_the_tables() {
    let site = Site::new("commands_leaves");
    site.as_owner(&["migrate"]).must_exit(0);
    site.as_owner(&["grant", "fra-1", "commands_leaves", "--create"]).must_exit(0);
    let dry = site.as_owner(&["unmigrate", "--dry-run"]).must_exit(0).stdout;
    assert!(dry.ends_with(";\n") && dry.contains("drop schema gatepost;\n"), "{dry}");
    let unasked = site.as_owner(&["unmigrate"]).must_exit(1).stderr;
    assert!(unasked.contains("pass --yes to confirm"), "{unasked}");
    let schemas = "select count(*) from pg_namespace where nspname = 'gatepost'";
    assert_eq!(site.psql(schemas), "1");
    let done = site.as_owner(&["unmigrate", "--yes"]).must_exit(0).stdout;
    assert!(done.contains("role commands_leaves can still log in"), "{done}");
    assert_eq!(site.psql(schemas), "0");
    assert_eq!(site.psql("select count(*) from pg_tables where schemaname = 'public'"), "15");
    assert_eq!(site.as_owner(&["unmigrate"]).must_exit(0).stdout, "nothing to remove\n");
    // The server's other databases have the roles, and this one has no schema.
    let granted = site.as_owner(&["grant", "fra-1", "commands_leaves"]).must_exit(1).stderr;
    assert!(granted.contains("run `gatepost migrate`"), "{granted}");
}

#[test]
fn key_of_another_gateway_is_a_wrong_configuration() {
    let site = Site::new("commands_ber");
    site.as_owner(&["migrate"]).must_exit(0);
    site.as_owner(&["grant", "fra-1", "commands_ber", "--create"]).must_exit(0);
    let enroll = ["enroll", "--endpoint", "x:1", "--listen-port", "1", "--vpn-cidr", "10.8.0.0/24"];
    site.gatepost.run(&enroll).must_exit(0);
    let theirs = site.psql("select public_key from gateways");
    std::fs::remove_file(site.gatepost.path("private.key")).unwrap();
    let ours = site.gatepost.run(&["key", "generate"]).must_exit(0).stdout;
    let (level, text, code) = site.finding("key");
    assert_eq!((level.as_str(), code), ("wrong", 78));
    assert!(text.contains(ours.trim()) && text.contains(&theirs), "{text}");
}

#[test]
fn unbound_role_is_a_finding_that_names_the_remedy() {
    let site = Site::new("postgres");
    site.as_owner(&["migrate"]).must_exit(0);
    let (level, text, _) = site.finding("database");
    assert_eq!(level, "warning", "an owner of the database can fix it: {text}");
    assert!(text.contains("run `gatepost grant <gateway> postgres`"), "{text}");
}

/// As after `pg_restore --no-owner`, and with a trigger of the control plane that refuses a report.
#[test]
fn what_refuses_reports_is_named_with_the_grant_by_migrate_and_check() {
    let site = Site::new("commands_refused");
    site.as_owner(&["migrate"]).must_exit(0);
    site.as_owner(&["grant", "fra-1", "commands_refused", "--create"]).must_exit(0);
    let enroll = ["enroll", "--endpoint", "x:1", "--listen-port", "1", "--vpn-cidr", "10.8.0.0/24"];
    site.gatepost.run(&enroll).must_exit(0);
    site.psql(
        "create table seen_by_portal (at timestamptz);
         create function tell_portal() returns trigger language plpgsql as
             $$ begin insert into seen_by_portal values (now()); return new; end $$;
         create trigger tell_portal before update on gateways
             for each row execute function tell_portal()",
    );
    let names = |text: &str, whom: &str| {
        for word in ["trigger tell_portal on gateways", "grant insert", "seen_by_portal"] {
            assert!(text.to_lowercase().contains(word), "{whom} does not name {word}: {text}");
        }
    };
    let migrated = site.as_owner(&["migrate"]).must_exit(0);
    names(&(migrated.stdout + &migrated.stderr), "migrate");
    let (level, text, _) = site.finding("reports");
    assert_eq!(level, "warning");
    names(&text, "check");
    site.psql("grant insert on seen_by_portal to gatepost_owner");
    assert!(!site.as_owner(&["migrate"]).must_exit(0).stderr.contains("refuse"));

    // All of it belongs to the role that restored it.
    site.psql(
        "alter function gatepost.hello() owner to postgres;
         alter table gatepost.change owner to postgres;
         revoke execute on function gatepost.news(text, text) from gatepost_gateway",
    );
    let (level, text, _) = site.finding("rights");
    assert_eq!(level, "warning");
    assert!(text.contains("owners or rights are wrong, first: "), "{text}");
    site.as_owner(&["migrate"]).must_exit(0);
    let done = site.gatepost.run(&["check", "--json"]);
    assert!(!done.stdout.contains("\"rights\""), "{}", done.stdout);
}

#[test]
fn a_token_is_printed_once_and_alone_and_names_the_gateway() {
    let site = Site::new("commands_pool");
    site.as_owner(&["migrate"]).must_exit(0);
    let unknown = site.as_owner(&["grant", "--token", "fra-1"]).must_exit(1);
    assert!(unknown.stderr.contains("run `gatepost enroll` first"), "{}", unknown.stderr);
    site.psql(
        "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
         values ('fra-1', 'e:1', 'k', 1, '10.8.0.0/16')",
    );
    let grant = ["grant", "--token", "fra-1", "--pool-role", "commands_pool", "--create"];
    let granted = site.as_owner(&grant).must_exit(0);
    assert!(granted.stderr.contains("created role commands_pool\n"), "{}", granted.stderr);
    for allowed in
        ["`revoke temporary on database", "`revoke execute on function pg_cancel_backend"]
    {
        assert!(granted.stderr.contains(allowed), "{}", granted.stderr);
    }
    assert!(granted.stdout.starts_with("gpt_") && granted.stdout.lines().count() == 1);
    let kept =
        "select count(*) from gatepost.gateway_token where digest = sha256($t$TOKEN$t$::bytea)";
    assert_eq!(site.psql(&kept.replace("TOKEN", granted.stdout.trim())), "1");
    let limit =
        "select count(*) from pg_roles where rolname = 'commands_pool' and rolconnlimit = -1
        and 'statement_timeout=35s' = any (rolconfig)";
    assert_eq!(site.psql(limit), "1");

    // The agent takes it from beside its configuration.
    site.gatepost.write("db.token", &granted.stdout);
    let (_, text, _) = site.finding("database");
    assert!(!text.contains("token"), "{text}");
    site.gatepost.write("db.token", "hunter2");
    let wrong = site.gatepost.run(&["check"]).must_exit(78);
    let said = wrong.stdout + &wrong.stderr;
    assert!(said.contains("is no token: put what `gatepost grant --token` printed"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");

    let again = site.as_owner(&["grant", "--token", "fra-1"]).must_exit(0);
    assert!(again.stderr.contains("--keep-newest"), "{}", again.stderr);
    let revoke = ["grant", "--revoke-tokens", "fra-1", "--keep-newest"];
    let revoked = site.as_owner(&revoke).must_exit(0).stdout;
    assert_eq!(revoked, "revoked 1 token of gateway fra-1\n");
    site.gatepost.write("db.token", &granted.stdout);
    let (_, text, _) = site.finding("database");
    assert!(text.contains("the token of gateway fra-1 was revoked at"), "{text}");
    site.as_owner(&["grant"]).must_exit(64);
}
