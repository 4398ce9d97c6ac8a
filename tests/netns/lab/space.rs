//! A network namespace, with every process in it, as one value.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A named namespace. Dropping it kills what runs in it.
#[derive(Debug)]
pub struct Space {
    name: String,
}

impl Space {
    pub fn new(name: &str) -> Self {
        super::run("ip", &["netns", "add", name]);
        Self { name: name.to_owned() }
    }

    /// Carries out commands of ip(8) in one process: starting one is expensive on an emulated processor.
    pub fn ip(&self, commands: &[&str]) {
        let mut ip = Command::new("ip");
        ip.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut ip);
        child.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "ip {commands:?}: {output:?}");
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` on a thread in this namespace. Sockets and processes made there stay in it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn spawn(&self, command: &mut Command) -> Child {
        self.within(|| command.spawn()).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.within(|| Command::new(program).args(arguments).output())
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs a program that must succeed: its trimmed output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.within(|| super::run(program, arguments))
    }

    /// Our table without its counters, which grow, and its owner, which changes with the process.
    pub fn firewall(&self) -> String {
        let listing = self.run("nft", &["--stateless", "list", "table", "inet", "gatepost"]);
        let lasts = |line: &&str| !line.starts_with("table") && !line.starts_with("\tflags");
        listing.lines().filter(lasts).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        for pid in pids.iter().flat_map(|output| {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
        }) {
            if let Ok(pid) = pid.trim().parse() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}
