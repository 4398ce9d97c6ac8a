//! Network namespaces for tests: unique names, gone when dropped.

use std::fs::File;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A text that no other test of this machine has: the tag, the process, a number. At most 15 bytes
/// for a tag of up to 4, so that it is also the name of an interface.
pub fn unique(tag: &str) -> String {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{tag}{:x}n{number}", std::process::id())
}

/// A network namespace with its loopback up.
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one.
    pub fn new(tag: &str) -> Self {
        let netns = Self { name: unique(tag) };
        run(Command::new("ip").args(["netns", "add", &netns.name]));
        netns.exec("ip link set lo up");
        netns
    }

    /// What `ip netns` calls it.
    #[allow(dead_code, reason = "not every test that uses this file needs it")]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command in this namespace, not yet started. The words are parted by spaces.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words.split_whitespace());
        command
    }

    /// Runs a command in this namespace and returns what it printed; panics if it fails.
    pub fn exec(&self, words: &str) -> String {
        run(&mut self.command(words))
    }

    /// Whether a command in this namespace succeeds.
    pub fn succeeds(&self, words: &str) -> bool {
        output(&mut self.command(words)).status.success()
    }

    /// Runs a closure on a thread of this namespace, which has the name of this one. Threads and
    /// processes that it starts are in the namespace too.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let path = format!("/var/run/netns/{}", self.name);
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        std::thread::scope(|scope| {
            let job = || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                job()
            };
            let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, job).unwrap();
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Joins two namespaces by a cable whose ends are called `veth` and have these addresses.
    pub fn connect(&self, address: &str, other: &Self, other_address: &str) {
        self.plug("veth", other);
        for (netns, address) in [(self, address), (other, other_address)] {
            netns.exec(&format!("ip address add {address} dev veth"));
        }
    }

    /// Joins two namespaces by a cable whose ends have this name and are up.
    pub fn plug(&self, link: &str, other: &Self) {
        let (this, that) = (&self.name, &other.name);
        let add = format!("link add {link} netns {this} type veth peer name {link} netns {that}");
        run(Command::new("ip").args(add.split_whitespace()));
        for netns in [self, other] {
            netns.exec(&format!("ip link set {link} up"));
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn run(command: &mut Command) -> String {
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
