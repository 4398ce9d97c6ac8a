//! `strace` on the agent's data plane: what it sends, to the kernel and to a userspace device, its
//! death between two messages, and its stop before a change of the firewall.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Agent, Lab, eventually};

/// Follows the thread that owns the data plane, and it alone: a userspace device that it starts goes
/// free. Dropping it lets the thread go.
pub struct Trace {
    strace: Child,
    log: PathBuf,
}

impl Trace {
    /// Records the messages. The trace is attached when this returns.
    pub fn watch(lab: &Lab, agent: &Agent) -> Self {
        Self::attach(lab, agent, "sendto", &[])
    }

    /// Kills the agent when it is about to send the `number`th message from now on: the kernel never
    /// gets that one.
    pub fn kill_at(lab: &Lab, agent: &Agent, number: usize) -> Self {
        let inject = format!("inject=sendto:signal=SIGKILL:when={number}");
        Self::attach(lab, agent, "sendto", &["-e", &inject])
    }

    /// Makes `change`, and stops the agent when it is about to send the first transaction to nf_tables
    /// because of it. Does `meanwhile`, lets the agent go on, and returns when.
    pub fn stop_before_transaction(
        lab: &Lab,
        agent: &Agent,
        change: impl FnOnce(),
        meanwhile: impl FnOnce(),
    ) -> Instant {
        // Only a transaction asks for a send buffer of its size; other sockets set other options.
        let trace =
            Self::attach(lab, agent, "setsockopt", &["-e", "inject=setsockopt:signal=SIGSTOP"]);
        let (mut change, mut seen) = (Some(change), 0);
        eventually("the agent is about to change the firewall", || {
            if let Some(change) = change.take() {
                change();
            }
            let text = fs::read_to_string(&trace.log).unwrap();
            let calls: Vec<_> = text.lines().filter(|it| it.starts_with("setsockopt(")).collect();
            if calls.len() == seen || !agent.is_stopped() {
                return false;
            }
            seen = calls.len();
            let about_to = calls.last().is_some_and(|call| call.contains("SO_SNDBUFFORCE"));
            if !about_to {
                agent.signal(Signal::SIGCONT);
            }
            about_to
        });
        // The thread that it lets go stays stopped.
        drop(trace);
        meanwhile();
        agent.signal(Signal::SIGCONT);
        Instant::now()
    }

    fn attach(lab: &Lab, agent: &Agent, calls: &str, more: &[&str]) -> Self {
        let log = lab.folder.path().join("strace.log");
        let _ = fs::remove_file(&log);
        let mut command = Command::new("strace");
        command
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", "signal=none", "-o", log.to_str().unwrap()])
            .args(more)
            .args(["-p", &agent.thread("dataplane").to_string()])
            .stderr(Stdio::piped());
        // In the gateway's namespace it knows the agent's sockets, and so the words of netlink.
        let mut strace = lab.gateway.spawn(&mut command);
        let mut said = String::new();
        BufReader::new(strace.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace: {said}");
        Self { strace, log }
    }

    /// Waits for the death that it brings: which messages were writes, the one that the kernel never
    /// got the last of them.
    pub fn await_death(mut self) -> Vec<(usize, String)> {
        self.strace.wait().unwrap();
        self.writes()
    }

    /// Which messages until now were writes: their numbers, and what they are in a few words.
    pub fn writes(&self) -> Vec<(usize, String)> {
        let text = fs::read_to_string(&self.log).unwrap();
        let sent = text.lines().filter(|line| line.starts_with("sendto("));
        let read = |line: &str| {
            ["_GET", "\"get=1", "=nlctrl", "NLM_F_DUMP"].iter().any(|word| line.contains(word))
        };
        let writes = sent.zip(1..).filter(|(line, _)| !read(line));
        writes.map(|(line, number)| (number, in_words(line))).collect()
    }
}

/// The types of the netlink messages in one call; of a userspace device's request, its beginning.
fn in_words(call: &str) -> String {
    let mut types: Vec<_> =
        call.split("nlmsg_type=").skip(1).filter_map(|rest| rest.split(',').next()).collect();
    types.dedup();
    let said = || call.split('"').nth(1).unwrap_or(call).to_owned();
    if types.is_empty() { said() } else { types.join(" ") }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.strace.id()).unwrap()), Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}
