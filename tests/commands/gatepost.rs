//! Runs the binary in a folder of its own, with an empty environment.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub struct Gatepost {
    folder: tempfile::TempDir,
}

/// What a command did.
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Gatepost {
    /// A folder with this `gatepost.toml` and a control socket of its own.
    pub fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let config = format!("{config}\n[control]\nsocket = {socket:?}\n");
        fs::write(folder.path().join("gatepost.toml"), config).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The command, ready to run in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(args).current_dir(self.folder.path()).env_clear();
        command.env("GATEPOST_CONFIG", self.path("gatepost.toml"));
        command.stdin(Stdio::null());
        command
    }

    /// A shell script, ready to run in this folder, that finds the binary by its name.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        let folder = Path::new(env!("CARGO_BIN_EXE_gatepost")).parent().unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        command.args(["-euo", "pipefail", "-c", script]).current_dir(self.folder.path());
        command.env_clear().env("PATH", path).env("GATEPOST_CONFIG", self.path("gatepost.toml"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        self.command(args).output().unwrap().into()
    }

    pub fn run_with_input(&self, args: &[&str], input: &str) -> Done {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        match child.stdin.take().unwrap().write_all(input.as_bytes()) {
            // A command that has failed already reads nothing.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        child.wait_with_output().unwrap().into()
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no command is ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    /// Fails unless the command ended with this exit code.
    #[track_caller]
    pub fn must_exit(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard error, with the changing name of the folder taken out.
    pub fn error(&self, gatepost: &Gatepost) -> String {
        self.stderr.replace(&format!("{}/", gatepost.folder.path().display()), "")
    }
}

/// The permissions of a file.
pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
