//! Who asks through the control socket: the agent's log names them, and strangers change nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::unistd::{Group, User};

use crate::lab::{Lab, eventually, new_keys, peer_rows};

const PEERS: usize = 12;

/// A process of this user, and what it should be named.
struct Caller {
    user: User,
    gid: u32,
}

impl Caller {
    fn of(name: &str, gid: Option<u32>) -> Self {
        let user = User::from_name(name).unwrap().unwrap();
        let gid = gid.unwrap_or(user.gid.as_raw());
        Self { user, gid }
    }

    /// Runs `gatepost`: its exit code, its standard error, and how the agent should name it.
    fn run(&self, lab: &Lab, arguments: &[&str]) -> (i32, String, String) {
        let uid = self.user.uid.as_raw();
        let child = lab.gateway.within(|| {
            let mut command = lab.command(arguments);
            command.uid(uid).gid(self.gid).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let who = format!("user {} (uid {uid}, pid {})", self.user.name, child.id());
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap_or(-1), error, who)
    }
}

#[test]
fn log_names_the_user_of_each_change_and_each_refusal() {
    let lab = Lab::open();
    let config = fs::read_to_string(lab.config()).unwrap();
    let group = Group::from_gid(0.into()).unwrap().unwrap().name;
    let with_group = format!("[control]\nwrite_group = \"{group}\"\n");
    fs::write(lab.config(), config.replace("[control]\n", &with_group)).unwrap();
    fs::set_permissions(lab.folder.path(), Permissions::from_mode(0o755)).unwrap();
    for number in 1..=PEERS {
        let rows = peer_rows(&format!("user{number}"), &new_keys().1, &format!("10.99.1.{number}"));
        lab.database.exec(&rows);
    }
    let _agent = lab.start();
    fs::set_permissions(lab.folder.path().join("control.sock"), Permissions::from_mode(0o666))
        .unwrap();
    let in_kernel = || lab.kernel_peers().len();
    assert_eq!(in_kernel(), PEERS);
    let says = |line: &str| lab.log().lines().any(|logged| logged.contains(line));

    let stranger = Caller::of("daemon", None);
    let member = Caller::of("nobody", Some(0));
    let request = |arguments: &[&str]| {
        arguments.join(" ").replace(" user1", " \"user1\"").replace(" --yes", "")
    };
    let refused = |arguments: &[&str]| {
        let (code, error, who) = stranger.run(&lab, arguments);
        assert_eq!(code, 1, "{arguments:?}: {error}");
        assert!(error.contains(&format!("{who} may only read")), "{arguments:?}: {error}");
        let line = format!("refused {}: {who} may only read", request(arguments));
        assert!(says(&line), "{line}: {}", lab.log());
        assert_eq!(in_kernel(), PEERS, "a stranger changed something");
    };
    let done = |arguments: &[&str]| {
        let (code, error, who) = member.run(&lab, arguments);
        assert_eq!(code, 0, "{arguments:?}: {error}");
        let line = format!("{who} asked for {}", request(arguments));
        assert!(says(&line), "{line}: {}", lab.log());
    };
    for arguments in [&["block", "user1"][..], &["unblock", "user1"], &["resync"]] {
        refused(arguments);
    }
    done(&["block", "user1"]);
    assert_eq!(in_kernel(), PEERS - 1);
    done(&["unblock", "user1"]);
    done(&["resync"]);
    assert_eq!(in_kernel(), PEERS);
    lab.database.exec("update users set is_active = false");
    eventually("the removals are held back", || !lab.status()["held_back"].is_null());
    refused(&["confirm", "--yes"]);
    done(&["confirm", "--yes"]);
    eventually("the removals are confirmed", || in_kernel() == 0);

    // A process may have been given a group that its user is no member of.
    let inner = lab.command(&["resync"]);
    let mut given = Command::new("setpriv");
    given.args(["--reuid=daemon", "--regid=daemon", "--groups=0"]);
    given.arg(inner.get_program()).args(inner.get_args());
    given.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let given = lab.gateway.within(|| given.output().unwrap());
    let error = String::from_utf8(given.stderr).unwrap();
    assert!(error.contains("may only read") && error.contains("as a member of group"), "{error}");

    // No request of the socket, because nothing may run that would make everything again.
    for caller in [&stranger, &member] {
        let (code, error, _) = caller.run(&lab, &["down", "--yes"]);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains(&lab.link()), "{error}");
    }
    assert!(lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success());
}
