//! A network namespace that lives as long as its value, and programs run in it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

/// A namespace without a name: nothing to collide with, nothing to clean up.
pub struct Netns(File);

impl Netns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(made.join().unwrap());
        netns.run("ip link set lo up");
        netns
    }

    /// Moves this thread, and the sockets it opens from now on, into the namespace.
    pub fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// The path by which programs that we start find the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).args(["sh", "-c", line]);
        command.stdin(Stdio::null());
        command
    }

    pub fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub fn succeeds(&self, line: &str) -> bool {
        self.output(line).status.success()
    }

    /// Runs a shell line that must succeed, and returns its output.
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Gives a link an address, and returns when packets to it are received. A worker of the
    /// kernel makes the route that receives them, for IPv6 after the address can be seen.
    pub fn add_address(&self, address: &str, link: &str) {
        self.run(&format!("ip address replace {address} dev {link} nodad"));
        self.receives(address);
    }

    /// Waits until packets to an address are received.
    pub fn receives(&self, address: &str) {
        self.run(&format!(
            "timeout 20 sh -c 'until ip route get {address} | grep -q ^local; do :; done'"
        ));
    }

    /// Loads a ruleset's text with the `nft` program.
    pub fn load(&self, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        self.run(&format!("nft -f {}", file.path().display()));
    }
}
