use std::fs;
use std::os::unix::fs::PermissionsExt;

use gatepost::model::Masquerade;

use super::super::scratch::Scratch;
use super::super::secret::exposure;
use super::super::value::Fwmark;
use super::super::*;
use super::*;
use gatepost::plan::guard::MaxRemoved;
use gatepost::reconcile::{StalePolicy, SyncMode};

#[test]
fn every_key_has_its_default() {
    let config = Scratch::new().load("").unwrap();
    assert_eq!(config.interface.name.as_str(), "gatepost0");
    assert_eq!(config.interface.mtu_bytes, 1420);
    assert_eq!(config.sync.mode, SyncMode::Auto);
    assert_eq!(config.sync.resync_interval, Duration::from_secs(600));
    assert_eq!(config.firewall.masquerade, Masquerade::All);
    assert_eq!(config.guard.max_removed_peers, MaxRemoved::Percent(50));
    assert_eq!(config.stale.policy, StalePolicy::Keep);
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:7171");
    assert_eq!(config.control.socket, PathBuf::from("/run/gatepost/control.sock"));
}

/// Commented keys of the packaged example show their defaults.
#[test]
fn packaged_example_shows_the_defaults() {
    let example = include_str!("../../../systemd/gatepost.toml");
    let shown = example.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    let scratch = Scratch::new();
    let shown = scratch.load(&shown.collect::<Vec<_>>().join("\n")).unwrap();
    let default = scratch.load("").unwrap();
    assert!(shown.gateway.name.is_some() && shown.database.url.is_some());
    let tunable = |config: &Config| {
        let Config { sync, interface, firewall, guard, stale, metrics, .. } = config;
        format!("{sync:?} {interface:?} {firewall:?} {guard:?} {stale:?} {metrics:?}")
    };
    assert_eq!(tunable(&shown), tunable(&default));
}

#[test]
fn every_key_can_be_set() {
    let config = Scratch::new()
        .load(
            r#"
            [gateway]
            name = "fra-1"
            private_key_file = "private.key"
            psk_keys_file = "psk.keys"
            [database]
            url = "postgres://gatepost_fra_1@db1,db2/vpn?target_session_attrs=read-write"
            password_file = "db.password"
            tls = "verify-full"
            tls_ca_file = "ca.pem"
            tls_cert_file = "agent.pem"
            tls_key_file = "agent.key"
            require_auth = "scram-sha-256,none"
            [sync]
            mode = "poll"
            poll_interval = "250ms"
            resync_interval = "1h 30m"
            statement_timeout = "5s"
            [interface]
            name = "wg7"
            backend = "userspace"
            mtu_bytes = 1380
            addresses = ["10.8.0.1/24", "fd00::1/64"]
            fwmark = 0xca6c
            site_prefixes = ["192.168.0.0/16"]
            [firewall]
            masquerade = "internet"
            deny_log = false
            flush_conntrack = false
            own_table = false
            flows_per_address = 500
            fail_closed = true
            fail_closed_mark = "0x10000"
            gateway_udp_ports = [4789, "5000-5010"]
            gateway_protocols = ["gre", 50, "sctp"]
            [guard]
            max_removed_peers = 200
            [stale]
            policy = "deny_new"
            after = "1d"
            [report]
            heartbeat = "20s"
            interval = "1m"
            [metrics]
            listen = "[::1]:9999"
            [control]
            socket = "/run/other.sock"
            [cache]
            file = "last-good"
            "#,
        )
        .unwrap();
    assert_eq!(config.gateway_name().unwrap(), "fra-1");
    assert_eq!(config.database.tls, gatepost::store::Tls::VerifyFull);
    assert_eq!(config.database.require_auth.unwrap().to_string(), "scram-sha-256,none");
    assert_eq!(config.sync.poll_interval, Some(Duration::from_millis(250)));
    assert_eq!(config.interface.backend, Backend::Userspace);
    assert_eq!(config.interface.fwmark, Fwmark(51820));
    assert_eq!(config.interface.addresses.len(), 2);
    assert_eq!(config.guard.max_removed_peers, MaxRemoved::Peers(200));
    assert_eq!(config.stale.policy, StalePolicy::DenyNew);
}

#[test]
fn relative_paths_are_relative_to_the_files_folder() {
    let scratch = Scratch::new().with("GATEPOST_CACHE_FILE", "last-good");
    let config = scratch.load("[control]\nsocket = \"run/control.sock\"").unwrap();
    assert_eq!(config.control.socket, scratch.folder.path().join("run/control.sock"));
    assert_eq!(config.cache.file, scratch.folder.path().join("last-good"));
}

#[test]
fn environment_overrides_the_file() {
    let config = Scratch::new()
        .with("GATEPOST_DATABASE_URL", "postgres://other@db/vpn")
        .with("GATEPOST_GATEWAY_NAME", "7")
        .with("GATEPOST_SYNC_POLL_INTERVAL", "2s")
        .with("GATEPOST_FIREWALL_DENY_LOG", "false")
        .with("GATEPOST_INTERFACE_ADDRESSES", "10.0.0.1/24, fd00::1/64")
        .with("GATEPOST_CONFIG", "/not/a/key")
        .load("[database]\nurl = \"postgres://file@db/vpn\"\npassword_file = \"p\"")
        .unwrap();
    assert_eq!(config.database_url().unwrap().expose_text(), "postgres://other@db/vpn");
    assert_eq!(config.database.password_file, Some("p".into()), "what is not overridden stays");
    assert_eq!(config.gateway_name().unwrap(), "7");
    assert_eq!(config.sync.poll_interval, Some(Duration::from_secs(2)));
    assert!(!config.firewall.deny_log);
    assert_eq!(config.interface.addresses.len(), 2);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn unknown_key_names_the_nearest_known_one() {
    let cases = [
        (
            "[sync]\nintervall = \"1s\"",
            "gatepost.toml: unknown key `sync.intervall`; expected one of: mode, poll_interval, resync_interval, statement_timeout",
        ),
        (
            "[sync]\npoll_intervall = \"1s\"",
            "gatepost.toml: unknown key `sync.poll_intervall`; did you mean `poll_interval`?",
        ),
        (
            "[gatway]\nname = \"x\"",
            "gatepost.toml: unknown section `gatway`; did you mean `gateway`?",
        ),
        (
            "name = \"x\"",
            "gatepost.toml: unknown section `name`; expected one of: gateway, database, sync, hints, interface, firewall, guard, stale, report, metrics, control, cache, log",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(Scratch::new().error(text), wanted);
    }
    let scratch = Scratch::new().with("GATEPOST_DATABASE_ULR", "x");
    assert_eq!(
        scratch.error(""),
        "environment variable GATEPOST_DATABASE_ULR: unknown key `database.ulr`; did you mean `url`?"
    );
}

#[test]
fn wrong_value_names_key_value_and_remedy() {
    let cases = [
        (
            "[sync]\npoll_interval = 10",
            "gatepost.toml: `sync.poll_interval` is \"10\": write a duration with a unit, such as \"250ms\", \"10s\" or \"1h 30m\"",
        ),
        (
            "[sync]\npoll_interval = \"1ms\"",
            "gatepost.toml: `sync.poll_interval` is 1ms, but must be at least 100ms",
        ),
        (
            "[sync]\nmode = \"lsten\"",
            "gatepost.toml: `sync.mode` is \"lsten\"; did you mean `listen`?",
        ),
        (
            "[interface]\nmtu_bytes = 1000",
            "gatepost.toml: `interface.mtu_bytes` is 1000, but must be from 1280 (the minimum of IPv6) to 65535",
        ),
        (
            "[interface]\nname = \"a name too long\"",
            "gatepost.toml: `interface.name` \"a name too long\" is no interface name: 1 to 15 of A-Z a-z 0-9 . _ - and neither '.' nor '..'",
        ),
        (
            "[interface]\naddresses = [\"10.0.0.1\"]",
            "gatepost.toml: `interface.addresses` contains \"10.0.0.1\": write each with its prefix length, such as \"10.8.0.1/24\"",
        ),
        (
            "[interface]\nsite_prefixes = [\"10.20.0.0/16\", \"::/0\"]",
            "gatepost.toml: `interface.site_prefixes` contains ::/0, which is every address: write the networks behind peers, such as \"10.20.0.0/16\"",
        ),
        (
            "[interface]\nmtu_bytes = \"x\"",
            "gatepost.toml: `interface.mtu_bytes` is \"x\": write a number of bytes, such as 1420",
        ),
        (
            "[metrics]\nlisten = \"7171\"",
            "gatepost.toml: `metrics.listen` is \"7171\": write an IP address and a port, such as \"127.0.0.1:7171\" or \"[::1]:7171\"",
        ),
        (
            "[guard]\nmax_removed_peers = \"half\"",
            "gatepost.toml: `guard.max_removed_peers` \"half\" is neither a share such as \"50%\" (0% to 100%) nor a number of peers such as \"200\"",
        ),
        (
            "[database]\nurl = \"db.example\"",
            "gatepost.toml: `database.url` is not a database URL: write postgres://ROLE@HOST/DATABASE",
        ),
        (
            "[firewall]\ndeny_log = \"yes\"",
            "gatepost.toml: `firewall.deny_log` is \"yes\": write true or false",
        ),
        (
            "[gateway]\nname = \" \"",
            "gatepost.toml: `gateway.name` is empty: write the name as in gateways.name",
        ),
        ("gateway = 5", "gatepost.toml: `gateway` must be a section [gateway], not a number"),
    ];
    for (text, wanted) in cases {
        assert_eq!(Scratch::new().error(text), wanted);
    }
    let scratch = Scratch::new().with("GATEPOST_REPORT_HEARTBEAT", "soon");
    assert!(scratch.error("").starts_with(
        "environment variable GATEPOST_REPORT_HEARTBEAT: `report.heartbeat` is \"soon\":"
    ));
}

#[test]
fn syntax_error_names_file_and_line() {
    let error = Scratch::new().error("[gateway]\nname = fra-1");
    assert!(error.starts_with("gatepost.toml is not valid TOML: line 2, column 8: "), "{error}");
}

#[test]
fn no_error_repeats_a_password() {
    let mistakes = [
        "[database]\nurl = postgres://gw:s3cret@db/vpn",
        "[database]\nurl = \"postgres://gw:s3cret@db/vpn",
        "[database]\nurl = 'a' # \"postgres://gw:s3cret@db/vpn\"\nurl = 'postgres://gw:s3cret@db'",
        "database = \"postgres://gw:s3cret@db/vpn\"",
        "[database]\nurl = [\"postgres://gw:s3cret@db/vpn\"]",
        "[database]\nurl = { value = \"postgres://gw:s3cret@db/vpn\" }",
        "[database]\npassword_file = [\"s3cret\"]",
        "[database]\nurl = \"gw:s3cret@db/vpn\"",
        "[[database]]\nurl = \"postgres://gw:s3cret@db/vpn\"",
    ];
    for mistake in mistakes {
        let error = Scratch::new().error(mistake);
        assert!(!error.contains("s3cret"), "{error}");
        assert!(error.starts_with("gatepost.toml"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = Scratch::new().error("database = \"postgres://gw:s3cret@db/vpn\"");
    let wanted = "gatepost.toml: `database` must be a section [database], not a string";
    assert_eq!(error, wanted);
}

#[test]
fn named_file_must_exist() {
    let source = Source { file: Some("/nowhere/gatepost.toml".into()), ..Source::default() };
    assert_eq!(
        load(source).unwrap_err().to_string(),
        "cannot read the configuration /nowhere/gatepost.toml: No such file or directory (os \
         error 2); name another file with --config"
    );
}

#[test]
fn unreadable_file_asks_for_rights() {
    let source = io::Error::from(io::ErrorKind::PermissionDenied);
    let error = ConfigError::Unreadable { path: "gatepost.toml".into(), source }.to_string();
    assert!(error.ends_with("; run this as root or as a member of group gatepost"), "{error}");
}

#[test]
fn missing_key_names_both_ways_to_set_it() {
    let config = Scratch::new().load("").unwrap();
    let error = config.database_url().unwrap_err().to_string();
    assert!(error.starts_with("`database.url` is not set; set it in "), "{error}");
    assert!(
        error.ends_with("gatepost.toml or in environment variable GATEPOST_DATABASE_URL"),
        "{error}"
    );
}

#[test]
fn hints_need_servers_and_a_login_stays_out_of_their_url() {
    let scratch = Scratch::new();
    assert_eq!(
        scratch.error("[sync]\nmode = \"hints\""),
        "gatepost.toml: `sync.mode` is \"hints\", which needs hints.url: name the NATS servers, or write \
         \"auto\""
    );
    assert_eq!(
        scratch.error("[hints]\nurl = \"tls://fra-1:secret@nats\""),
        "gatepost.toml: `hints.url` contains a login: write USER:PASSWORD into the file that \
         hints.credentials_file names"
    );
    let error = scratch.error("[hints]\nurl = \"http://nats\"");
    assert!(error.contains("is no URL of NATS servers"), "{error}");
    let config = scratch.load("[hints]\nurl = \"tls://nats1,nats://nats2:4333\"").unwrap();
    assert_eq!(config.hints.url.unwrap().to_string(), "nats1:4222,nats2:4333");
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(warning.contains("write tls://nats2"), "{warning}");
}

#[test]
fn turns_mean_auto_with_a_warning() {
    let of_file = Scratch::new().load("[sync]\nmode = \"turns\"").unwrap();
    let of_variable = Scratch::new().with("GATEPOST_SYNC_MODE", "turns").load("").unwrap();
    for config in [of_file, of_variable] {
        assert_eq!(config.sync.mode, SyncMode::Auto);
        let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        assert!(warning.starts_with("`sync.mode` is \"turns\", which means \"auto\""), "{warning}");
    }
}

#[test]
fn variable_of_an_unknown_section_is_a_warning() {
    let scratch = Scratch::new().with("GATEPOST_DATBASE_URL", "x").with("GATEPOST_TEST_X", "y");
    assert_eq!(
        scratch.load("").unwrap().warnings,
        ["environment variable GATEPOST_DATBASE_URL is ignored: unknown section `datbase`; \
             did you mean `database`?"]
    );
}

#[test]
fn variables_of_a_container_orchestrator_are_ignored() {
    let service = ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_7171_TCP_ADDR"];
    let scratch = service.iter().fold(Scratch::new(), |scratch, end| {
        scratch.with(&format!("GATEPOST_METRICS_{end}"), "10.0.0.1")
    });
    let warnings = scratch.load("").unwrap().warnings;
    assert_eq!(warnings.len(), service.len(), "{warnings:?}");
    let text =
        "environment variable GATEPOST_METRICS_PORT is ignored: it looks like one that a container";
    assert!(warnings[0].starts_with(text), "{warnings:?}");
}

#[test]
fn secrets_come_from_the_named_file_else_from_a_credential() {
    let scratch = Scratch::new();
    let credentials = scratch.folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("db_password"), "from systemd\n").unwrap();
    scratch.file("db.password", "from the file\n");
    let scratch = scratch.with("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let read = |text: &str| {
        let config = scratch.load(text).unwrap();
        read_database_password(&config)
    };
    assert_eq!(read("").unwrap().unwrap().expose_text(), "from systemd");
    let named = "[database]\npassword_file = \"db.password\"";
    assert_eq!(read(named).unwrap().unwrap().expose_text(), "from the file");
    let error = read("[database]\npassword_file = \"gone\"").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the database password from "), "{error}");
    assert!(error.ends_with("; correct the path"), "{error}");
}

#[test]
fn private_key_that_the_unit_does_not_find_is_named() {
    let scratch = Scratch::new();
    let credentials = scratch.folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let unit = include_str!("../../../systemd/gatepost.service");
    let passed = unit.lines().find_map(|line| line.strip_prefix("SetCredential=private_key:"));
    fs::write(credentials.join("private_key"), passed.unwrap()).unwrap();
    let scratch = scratch.with("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let error = read_private_key(&scratch.load("").unwrap()).unwrap_err().to_string();
    assert!(error.contains("private.key: entity not found; the unit's LoadCredential="), "{error}");
    assert!(error.ends_with("with `gatepost enroll --new-key`"), "{error}");
}

#[test]
fn secrets_are_also_read_from_beside_the_configuration() {
    let mut config = Scratch::new().load("").unwrap();
    let scratch = Scratch::new();
    config.file = scratch.file("gatepost.toml", "");
    assert!(read_database_password(&config).unwrap().is_none());
    assert!(read_psk_keys(&config).unwrap().is_none());
    scratch.file("db.password", "beside\n");
    let keys = scratch.file("psk.keys", "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=\n");
    assert_eq!(read_database_password(&config).unwrap().unwrap().expose_text(), "beside");
    assert_eq!(read_psk_keys(&config).unwrap().unwrap().key_ids().count(), 1);
    assert!(secret_files(&config).contains(&keys), "`check` looks at them, too");

    config.secret_search = SecretSearch::None;
    assert!(read_database_password(&config).unwrap().is_none(), "another role's password");
}

#[test]
fn wrong_private_key_is_named_but_not_shown() {
    let scratch = Scratch::new();
    let config = scratch.load("").unwrap();
    assert!(read_private_key(&config).unwrap_err().to_string().contains("gatepost key generate"));
    let path = scratch.file("private.key", "c2VjcmV0\n");
    let error = read_private_key(&config).unwrap_err().to_string();
    assert!(error.contains("private.key is 6 bytes of base64, not 32"), "{error}");
    assert!(!error.contains("c2VjcmV0"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(exposure(&path), None);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(exposure(&path).unwrap().contains("(mode 0644): chmod o= "));
}
