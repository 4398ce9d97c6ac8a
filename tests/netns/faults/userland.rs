//! Programs of the distribution that manage a host, in the gateway's network namespace. They find their
//! own /etc, /usr, /var/lib and parts of /run, so that this machine's are left alone.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{BINARY, Lab, eventually};

/// Where `tests/install-deps.sh test` unpacks what it does not install.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/userland");

/// Arguments: a folder for what is written, and [`PROGRAMS`]. /sys is read-only as in a container, so
/// that nothing waits for udev.
const OPEN: &str = r#"
set -eu
mount -t tmpfs own "$1"
for folder in etc usr var/lib; do
	mkdir -p "$1/upper/$folder" "$1/scratch/$folder"
	lower=/$folder
	[ ! -d "$2/$folder" ] || lower=$2/$folder:$lower
	mount -t overlay -o "lowerdir=$lower,upperdir=$1/upper/$folder,workdir=$1/scratch/$folder" own "/$folder"
done
for folder in dbus systemd NetworkManager; do
	mkdir -p "/run/$folder"
	mount -t tmpfs -o mode=755 own "/run/$folder"
done
mount -t sysfs -o ro own /sys
echo open
exec sleep infinity
"#;

const BUS: &str = r#"<busconfig>
	<type>system</type>
	<listen>unix:path=/run/dbus/system_bus_socket</listen>
	<auth>EXTERNAL</auth>
	<policy context="default">
		<allow user="*"/>
		<allow own="*"/>
		<allow send_destination="*"/>
		<allow receive_sender="*"/>
	</policy>
</busconfig>
"#;

/// A mount namespace, which ends with this value.
pub struct Userland<'a> {
    lab: &'a Lab,
    keeper: Child,
}

impl<'a> Userland<'a> {
    pub fn open(lab: &'a Lab) -> Self {
        assert!(Path::new(PROGRAMS).exists(), "no {PROGRAMS}: tests/install-deps.sh test");
        let own = lab.folder.path().join("own");
        fs::create_dir(&own).unwrap();
        let mut open = Command::new("unshare");
        open.args(["--mount", "sh", "-c", OPEN, "sh"]).arg(own).arg(PROGRAMS);
        let mut keeper = lab.gateway.spawn(open.stdout(Stdio::piped()));
        let mut said = [0; 4];
        keeper.stdout.take().unwrap().read_exact(&mut said).expect("a mount namespace of its own");
        Self { lab, keeper }
    }

    /// A file as its programs see it.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.keeper.id()).into()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // NetworkManager reads no profile that others may read.
        let mode =
            if path.extension().is_some_and(|it| it == "nmconnection") { 0o600 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command.args(["--", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
        command.args(line.split(' '));
        command
    }

    /// Runs a command that may fail.
    pub fn output(&self, line: &str) -> Output {
        self.lab.gateway.within(|| self.command(line).output().unwrap())
    }

    /// Runs a command that must succeed: its output.
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a program that stays.
    pub fn start(&self, line: &str) -> Daemon {
        let name = line.split(['/', ' ']).find(|word| word.len() > 8).unwrap_or("daemon");
        let folder = self.lab.folder.path();
        let mut logs = (0..).map(|number| folder.join(format!("{name}-{number}.log")));
        let log = logs.find(|log| !log.exists()).unwrap();
        let mut command = self.command(line);
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Daemon { child: self.lab.gateway.spawn(&mut command), log }
    }

    /// Starts a system bus.
    pub fn bus(&self) -> Daemon {
        self.write("/etc/bus.conf", BUS);
        let bus = self.start("dbus-daemon --config-file=/etc/bus.conf --nofork");
        let socket = self.path("/run/dbus/system_bus_socket");
        eventually("there is a bus", || socket.exists());
        bus
    }

    /// A program that is the agent's binary, where it sees what its programs write to /run.
    pub fn agent(&self) -> PathBuf {
        let script = self.lab.folder.path().join("agent-within");
        let namespace = format!("/proc/{}/ns/mnt", self.keeper.id());
        let text = format!("#!/bin/sh\nexec nsenter --mount={namespace} -- {BINARY} \"$@\"\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }
}

impl Drop for Userland<'_> {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A program that stays until it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as systemd does.
    pub fn end(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        eventually("it ends", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}
