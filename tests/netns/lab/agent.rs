//! The built binary, running as a gateway's agent.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lab, eventually};

/// The built `gatepost`.
pub const BINARY: &str = env!("CARGO_BIN_EXE_gatepost");

/// A running `gatepost run`. Dropping it kills it.
pub struct Agent {
    child: Child,
}

impl Lab {
    /// Starts an agent from `binary` and does not wait.
    pub fn launch(&self, binary: &Path) -> Agent {
        self.launch_command(&mut Command::new(binary))
    }

    /// As [`launch`](Self::launch), where the program has more variables in its environment.
    pub fn launch_command(&self, program: &mut Command) -> Agent {
        let mut logs = self.logs.lock().unwrap();
        let log = self.folder.path().join(format!("agent-{}.log", logs.len()));
        program.arg("run").env("GATEPOST_CONFIG", self.config());
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let child = self.gateway.spawn(program);
        logs.push(log);
        Agent { child }
    }
}

impl Agent {
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Sends `signal` and waits for the end.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the agent ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Whether a signal has stopped it.
    pub fn is_stopped(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status.lines().any(|line| line.starts_with("State:\tT"))
    }

    /// Its resident memory.
    pub fn memory_kib(&self) -> u32 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for its thread of this name: the thread's id.
    pub fn thread(&self, name: &str) -> u32 {
        let mut found = None;
        eventually(&format!("the agent has a thread {name}"), || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            // A thread that has ended has no name.
            let named = threads.flatten().find(|thread| {
                std::fs::read_to_string(thread.path().join("comm"))
                    .is_ok_and(|comm| comm.trim() == name)
            });
            found = named.and_then(|thread| thread.file_name().to_str()?.parse().ok());
            found.is_some()
        });
        found.unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
