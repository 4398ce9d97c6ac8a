//! The demo leaves nothing behind, however it ends: no namespace, no server, no directory.
//!
//! Needs root and what the demo needs. Each test plays the first scenes, up to the moment when the
//! namespaces and the database server exist.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The demo strikes its stage within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A demo whose namespaces and database server exist.
struct Demo {
    child: Child,
    /// Its standard output; `None`: the reader is gone.
    output: Option<Lines<BufReader<ChildStdout>>>,
    /// The directory with the server's data.
    work: PathBuf,
}

impl Demo {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo.sh");
        // What it says of an error goes into the same pipe, as with `demo.sh |& tee log`.
        let mut child = Command::new("bash")
            .args(["-c", "exec \"$0\" 2>&1", script])
            .env("GATEPOST_TEST_BINARY", env!("CARGO_BIN_EXE_gatepost"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A group of its own, as a shell gives each job: a terminal signals the whole group.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line_with = |text: &str| loop {
            let line = output.next().unwrap_or_else(|| panic!("the demo ended before {text:?}"));
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
        };
        let server = line_with("its data in ");
        let (_, rest) = server.split_once("its data in ").unwrap();
        let work = PathBuf::from(rest.split_whitespace().next().unwrap());
        line_with("gatepost enroll");
        let demo = Self { child, output: Some(output), work };
        assert!(demo.work.join("postgres/data/postmaster.pid").exists(), "no server runs");
        assert_eq!(demo.namespaces().len(), 5);
        demo
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn namespaces(&self) -> Vec<String> {
        let list = Command::new("ip").args(["netns", "list"]).output().unwrap();
        let names = String::from_utf8(list.stdout).unwrap();
        let prefix = format!("gpd{}-", self.child.id());
        names.lines().filter(|line| line.starts_with(&prefix)).map(str::to_owned).collect()
    }

    /// Waits for its end: the exit code. Fails if anything of it is left.
    #[track_caller]
    fn must_leave_nothing(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the demo did not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert!(!self.work.exists(), "{} is left", self.work.display());
        assert_eq!(processes_with(&self.work), Vec::<String>::new());
        status.code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// The command lines that name a directory.
fn processes_with(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

#[test]
fn demo_leaves_nothing_after_ctrl_c_with_a_pipe_that_dies_too() {
    let mut demo = Demo::start();
    // The terminal's SIGINT ends the reader as well.
    demo.output = None;
    killpg(demo.pid(), Signal::SIGINT).unwrap();
    assert!(demo.must_leave_nothing().is_some_and(|code| code != 0));
}

#[test]
fn demo_leaves_nothing_when_only_its_pipe_dies() {
    let mut demo = Demo::start();
    demo.output = None;
    assert_eq!(demo.must_leave_nothing(), Some(141));
}

#[test]
fn demo_leaves_nothing_when_its_terminal_closes() {
    let mut demo = Demo::start();
    demo.output = None;
    killpg(demo.pid(), Signal::SIGHUP).unwrap();
    assert!(demo.must_leave_nothing().is_some_and(|code| code != 0));
}

#[test]
fn demo_leaves_nothing_when_terminated() {
    let demo = Demo::start();
    kill(demo.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(demo.must_leave_nothing(), Some(143));
}
