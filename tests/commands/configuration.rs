use crate::gatepost::Gatepost;

#[test]
fn every_command_ends_with_78_on_a_wrong_configuration() {
    let gatepost = Gatepost::with("[gateway]\nnmae = \"fra-1\"");
    for command in ["run", "enroll", "plan", "status", "peers", "migrate"] {
        let done = gatepost.run(&[command]).must_exit(78);
        assert_eq!(
            done.error(&gatepost),
            "gatepost: gatepost.toml: unknown key `gateway.nmae`; did you mean `name`?\n",
            "{command}"
        );
    }
}

#[test]
fn missing_key_or_file_is_named() {
    let gatepost = Gatepost::with("");
    let cases = [
        (
            "run",
            "`gateway.name` is not set; set it in gatepost.toml or in environment variable GATEPOST_GATEWAY_NAME",
        ),
        (
            "migrate",
            "`database.url` is not set; set it in gatepost.toml or in environment variable GATEPOST_DATABASE_URL",
        ),
    ];
    for (command, error) in cases {
        let done = gatepost.run(&[command]).must_exit(78);
        assert_eq!(done.error(&gatepost), format!("gatepost: {error}\n"));
    }
    let named = gatepost.run(&["status", "--config", "/nowhere.toml"]).must_exit(78);
    assert!(named.stderr.contains("/nowhere.toml"), "{}", named.stderr);
}

#[test]
fn run_needs_a_key_before_it_touches_anything() {
    let gatepost = Gatepost::with(
        "[gateway]\nname = \"fra-1\"\n[database]\nurl = \"postgres://gw@127.0.0.1:1/vpn\"",
    );
    let done = gatepost.run(&["run"]).must_exit(78);
    let error = done.error(&gatepost);
    assert!(
        error.starts_with("gatepost: cannot read the private key from private.key: "),
        "{error}"
    );
    assert!(!gatepost.path("control.sock").exists());
}

#[test]
fn environment_overrides_the_file() {
    let gatepost = Gatepost::with("[database]\nurl = \"postgres://gw@127.0.0.1:1/vpn\"");
    let mut command = gatepost.command(&["migrate"]);
    command.env("GATEPOST_DATABASE_URL", "mysql://db");
    let done: crate::gatepost::Done = command.output().unwrap().into();
    assert_eq!(
        done.must_exit(78).stderr,
        "gatepost: environment variable GATEPOST_DATABASE_URL: `database.url` is not a database URL: \
         write postgres://ROLE@HOST/DATABASE\n"
    );
}

#[test]
fn wrong_argument_is_named_without_its_password() {
    let wrong = ["migrate", "--database-url", "mysql://gw:s3cret@db"];
    let done = Gatepost::with("").run(&wrong).must_exit(78);
    assert_eq!(
        done.stderr,
        "gatepost: --database-url: `database.url` is not a database URL: write \
         postgres://ROLE@HOST/DATABASE\n"
    );
}

#[test]
fn exit_code_of_a_wrong_command_line_is_64() {
    let gatepost = Gatepost::with("");
    gatepost.run(&["explain", "anna", "not-an-address"]).must_exit(64);
    gatepost.run(&["dance"]).must_exit(64);
    gatepost.run(&["--log", "===", "status"]).must_exit(64);
    let help = gatepost.run(&["--help"]).must_exit(0);
    let words = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("78 wrong configuration"), "{words}");
}

#[test]
fn unreachable_database_is_named_without_its_password() {
    let gatepost = Gatepost::with(
        "[database]\nurl = \"postgres://gw:hunter2@127.0.0.1:1/vpn\"\ntls = \"disable\"",
    );
    let done = gatepost.run(&["migrate"]).must_exit(1);
    assert!(done.stderr.contains("database vpn at 127.0.0.1:1 as role gw"), "{}", done.stderr);
    assert!(done.stderr.ends_with("database.url is right, then try again\n"), "{}", done.stderr);
    assert!(!done.stderr.contains("hunter2"), "{}", done.stderr);
}

#[test]
fn wrong_ports_are_a_wrong_configuration() {
    for (url, why) in [
        ("db1/vpn?port=a,b", "invalid value for option `port`"),
        (
            "db1,db2/vpn?port=1,2,3",
            "database.url does not give each host one port: write each port after its host",
        ),
    ] {
        let gatepost = Gatepost::with(&format!("[database]\nurl = \"postgres://a@{url}\""));
        let done = gatepost.run(&["migrate"]).must_exit(78);
        assert!(done.stderr.contains(why), "{}", done.stderr);
    }
}

#[test]
fn manual_writes_man_pages_and_completions() {
    let gatepost = Gatepost::with("");
    gatepost.run(&["manual", "out"]).must_exit(0);
    let read = |name: &str| std::fs::read_to_string(gatepost.path("out").join(name)).unwrap();
    assert!(read("gatepost.8").contains("78 wrong configuration"));
    assert!(read("gatepost-psk-seal.8").contains("envelope"));
    for completion in ["gatepost.bash", "gatepost.fish", "_gatepost"] {
        assert!(read(completion).contains("vpn-cidr"), "{completion}");
    }
}
