//! A NATS server and two bells on the gateway's host.

use std::process::{Child, Command, Stdio};

use crate::broker::{AGENT, BELL, Nats};
use crate::lab::{BINARY, Lab, eventually};

const PASSWORD: &str = "a-bells-password";

/// They end when dropped.
pub struct Bells {
    nats: Nats,
    bells: Vec<Bell>,
}

struct Bell {
    child: Child,
    config: std::path::PathBuf,
}

impl Bells {
    /// The agent's login is put beside its configuration.
    pub fn start(lab: &Lab) -> Self {
        let gateway = lab.database.value("select id from gateways");
        let nats = lab.gateway.within(|| Nats::for_gateway(&gateway));
        std::fs::write(lab.folder.path().join("hints.login"), AGENT).unwrap();
        let mut bells = Self { nats, bells: Vec::new() };
        for name in ["a", "b"] {
            let role = format!("{}_bell_{name}", lab.database.role());
            lab.database.exec(&format!(
                "create role {role} login password '{PASSWORD}' in role gatepost_bell"
            ));
            let folder = lab.folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("hints.login"), BELL).unwrap();
            let config = folder.join("bell.toml");
            let url = lab.relay.url(&role, lab.database.name(), PASSWORD);
            let port = if name == "a" { 9601 } else { 9602 };
            let text = format!(
                "[database]\nurl = \"{url}\"\n[hints]\nurl = \"{}\"\n\
                 [metrics]\nlisten = \"127.0.0.1:{port}\"\n",
                bells.url()
            );
            std::fs::write(&config, text).unwrap();
            bells.bells.push(Bell::launch(lab, config));
        }
        bells.await_one_that_rings(lab);
        bells
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats.port)
    }

    /// Kills it at once, and starts another one in its place.
    pub fn kill_the_one_that_rings(&mut self, lab: &Lab) {
        self.await_one_that_rings(lab);
        let holder = holder(lab);
        let at = self.bells.iter().position(|bell| bell.child.id() == holder);
        let at = at.expect("a bell of this test rings");
        let config = self.bells[at].config.clone();
        drop(self.bells.remove(at));
        eventually("another bell rings", || rings(lab) && self::holder(lab) != holder);
        self.bells.push(Bell::launch(lab, config));
    }

    pub fn restart_broker(&mut self, lab: &Lab) {
        self.nats.kill();
        eventually("no bell rings without a broker", || !rings(lab));
        lab.gateway.within(|| self.nats.resume());
    }

    pub fn await_one_that_rings(&self, lab: &Lab) {
        eventually("a bell rings", || rings(lab));
    }
}

fn rings(lab: &Lab) -> bool {
    lab.database.holds("gatepost.has_bell()")
}

/// The process that holds the bell.
fn holder(lab: &Lab) -> u32 {
    let holder = lab.database.value("select holder from gatepost.bell");
    let (_, process) = holder.split_once('/').unwrap();
    process.split('-').next().unwrap().parse().unwrap()
}

impl Bell {
    fn launch(lab: &Lab, config: std::path::PathBuf) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("bell").env("GATEPOST_CONFIG", &config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: lab.gateway.spawn(&mut command), config }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
