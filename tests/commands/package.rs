//! The scripts that dpkg runs: what they leave in the kernel and on the disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::documents::root;

/// A host on which the scripts run: its files below a folder, its programs write down how they are called.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    /// `installed`: the version of the package that is there.
    fn new(installed: &str) -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        for folder in [
            "bin",
            "etc/sysctl.d",
            "etc/gatepost",
            "var/lib/gatepost",
            "run/systemd/system",
            "usr/share/gatepost",
        ] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        let note =
            format!("#!/bin/sh\necho \"${{0##*/}} $*\" >>{}\n", host.path("calls").display());
        for program in ["ip", "systemctl", "systemd-sysctl"] {
            host.program(program, &note);
        }
        host.program("dpkg-query", &format!("#!/bin/sh\necho {installed}\n"));
        let packaged = root().join("systemd/sysctl.d/60-gatepost.conf");
        fs::copy(packaged, host.path("usr/share/gatepost/60-gatepost.conf")).unwrap();
        host
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script as dpkg does, and returns the calls that it made.
    fn run(&self, script: &str, arguments: &[&str]) -> Vec<String> {
        let _ = fs::remove_file(self.path("calls"));
        let mut text = fs::read_to_string(root().join("systemd/debian").join(script)).unwrap();
        for folder in ["/etc/", "/var/", "/run/", "/usr/share/"] {
            text = text.replace(
                &format!(" {folder}"),
                &format!(" {}{folder}", self.folder.path().display()),
            );
            text = text.replace(
                &format!("={folder}"),
                &format!("={}{folder}", self.folder.path().display()),
            );
        }
        text = text.replace("/lib/systemd/systemd-sysctl", "systemd-sysctl");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        let output = Command::new("sh")
            .args(["-c", &text, script])
            .args(arguments)
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{script} {arguments:?}: {output:?}");
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls
            .lines()
            .map(|line| line.replace(&format!("{}", self.folder.path().display()), ""))
            .collect()
    }
}

const FLUSHED: [&str; 2] = ["ip -4 rule flush protocol 71", "ip -6 rule flush protocol 71"];

#[test]
fn rules_of_the_gate_go_with_the_package_and_before_an_older_one() {
    let host = Host::new("2.0.0-1");
    // The agent would put them back, so it stops first.
    let stopped_and_flushed = ["systemctl stop gatepost.service", FLUSHED[0], FLUSHED[1]];
    assert_eq!(host.run("prerm", &["remove"]), stopped_and_flushed);
    assert_eq!(host.run("prerm", &["upgrade", "1.9.0-1"]), stopped_and_flushed);
    assert_eq!(host.run("prerm", &["upgrade", "2.0.1-1"]), [""; 0]);
    assert_eq!(host.run("prerm", &["upgrade", "2.0.0-1"]), [""; 0]);
}

#[test]
fn only_the_upgrade_of_a_configured_gateway_from_the_first_version_turns_on_forwarding() {
    let host = Host::new("2.0.0-1");
    let file = host.path("etc/sysctl.d/60-gatepost.conf");
    assert_eq!(host.run("postinst", &["configure", ""]), [""; 0]);
    assert_eq!(host.run("postinst", &["configure", "0.1.0-1"]), [""; 0], "not configured");
    assert!(!file.exists());
    fs::write(host.path("etc/gatepost/gatepost.toml"), "").unwrap();
    assert_eq!(host.run("postinst", &["configure", ""]), [""; 0], "a first installation");
    assert!(!file.exists());
    let applied = ["systemd-sysctl /etc/sysctl.d/60-gatepost.conf"];
    assert_eq!(host.run("postinst", &["configure", "0.1.0-1"]), applied);
    assert!(fs::read_to_string(&file).unwrap().contains("\nnet.ipv4.ip_forward = 1\n"));
    fs::remove_file(&file).unwrap();
    assert_eq!(
        host.run("postinst", &["configure", "0.2.0-1"]),
        [""; 0],
        "it was removed on purpose"
    );
    assert!(!file.exists());
    // What an administrator has changed holds.
    fs::write(&file, "mine").unwrap();
    assert_eq!(host.run("postinst", &["configure", "0.1.0-1"]), [""; 0]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn purge_removes_what_names_users_and_leaves_keys() {
    let host = Host::new("2.0.0-1");
    let exist = |names: &[&str]| {
        names.iter().map(|name| host.path(name)).all(|it: std::path::PathBuf| Path::exists(&it))
    };
    for name in
        ["var/lib/gatepost/last-good", "etc/sysctl.d/60-gatepost.conf", "etc/gatepost/private.key"]
    {
        fs::write(host.path(name), "").unwrap();
    }
    host.run("postrm", &["remove"]);
    assert!(exist(&["var/lib/gatepost/last-good", "etc/sysctl.d/60-gatepost.conf"]));
    host.run("postrm", &["purge"]);
    assert!(!exist(&["var/lib/gatepost"]) && !exist(&["etc/sysctl.d/60-gatepost.conf"]));
    assert!(exist(&["etc/gatepost/private.key"]));
    // Without a key in them, the folders go as well.
    fs::remove_file(host.path("etc/gatepost/private.key")).unwrap();
    fs::create_dir(host.path("etc/gatepost-bell")).unwrap();
    host.run("postrm", &["purge"]);
    assert!(!exist(&["etc/gatepost"]) && !exist(&["etc/gatepost-bell"]));
}

/// A minimal system has neither `ip` nor /bin/kill.
#[test]
fn package_depends_on_what_has_the_programs_that_it_calls() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let manifest = read("agent/Cargo.toml");
    let depends = manifest.lines().find_map(|line| line.strip_prefix("depends = ")).unwrap();
    for (file, call, package) in [
        ("systemd/debian/prerm", "ip \"$family\" rule", "iproute2"),
        ("systemd/debian/prerm", "systemctl stop", "systemd"),
        ("systemd/gatepost.service", "+/bin/kill ", "procps"),
    ] {
        assert!(read(file).contains(call), "{file} no longer calls {call}");
        let names = depends.split(['"', ',', ' ']);
        assert!(names.into_iter().any(|name| name == package), "{file} needs {package}: {depends}");
    }
    let recommends = manifest.lines().find(|line| line.starts_with("recommends = ")).unwrap();
    assert!(!recommends.contains("wireguard-tools"), "it recommends a kernel");
}

/// The repository alone has these; where a document names one of `deploy`, it says where the package has it.
const ELSEWHERE: [&str; 3] = ["LICENSE", "CONTRIBUTING.md", "deploy/"];

#[test]
fn links_of_packaged_documents_lead_to_packaged_files() {
    let manifest = fs::read_to_string(root().join("agent/Cargo.toml")).unwrap();
    let sources = manifest.lines().filter_map(|line| line.trim().strip_prefix("[\"../"));
    let sources: Vec<&str> = sources.map(|rest| rest.split('"').next().unwrap()).collect();
    let is_packaged = |path: &str| {
        sources.iter().any(|source| match source.split_once('*') {
            Some((before, after)) => path.starts_with(before) && path.ends_with(after),
            None => path == *source,
        })
    };
    let documents = root().join("docs").read_dir().unwrap();
    let documents = documents.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let documents = documents.filter(|name| name.ends_with(".md"));
    let documents = documents.map(|name| format!("docs/{name}"));
    let above = ["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "SECURITY.md"].map(str::to_owned);
    let mut dead = Vec::new();
    for document in documents.chain(above) {
        assert!(is_packaged(&document), "{document}");
        let text = fs::read_to_string(root().join(&document)).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            let path = match (link.strip_prefix("../"), document.starts_with("docs/")) {
                (Some(above), true) => above.to_owned(),
                (None, true) => format!("docs/{link}"),
                (_, false) => link.to_owned(),
            };
            let is_here = !link.is_empty() && !link.starts_with("https://");
            let is_elsewhere = ELSEWHERE.iter().any(|place| path.starts_with(place));
            if is_here && !is_elsewhere && !is_packaged(&path) {
                dead.push(format!("{document}: {link}"));
            }
        }
    }
    assert_eq!(dead, [""; 0], "dead links in the package");
}
