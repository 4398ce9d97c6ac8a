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
}
