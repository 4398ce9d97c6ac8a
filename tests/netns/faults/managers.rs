//! Programs that manage the host's network are restarted while clients send.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::tries::{Tries, ping, scene};
use super::userland::{Daemon, Userland};
use crate::lab::{Fault, Lab, eventually};

/// Our addresses and routes are removed, and the agent puts them back.
const REPAIR: Duration = Duration::from_secs(1);
/// The other links of the gateway, and their addresses.
const LINKS: [(&str, &[&str]); 2] =
    [("eth0", &["198.51.100.1/24"]), ("lan0", &["10.20.0.1/24", "fd20::1/64"])];
const UNTOUCHED: &str = "nothing of ours is touched";
const PUT_BACK: &str = "addresses and routes that it removes are put back at once";

/// A network manager that manages `LINKS`.
struct Manager<'a> {
    host: &'a Userland<'a>,
    line: &'static str,
    /// Whether it is done with a link.
    manages: fn(&Userland<'_>, &Lab, &str) -> bool,
    daemon: Option<Daemon>,
}

impl Manager<'_> {
    /// As `systemctl restart`. Waits until it is done with all links.
    fn restart(&mut self, lab: &Lab) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end();
        }
        self.daemon = Some(self.host.start(self.line));
        for (link, _) in LINKS {
            eventually(self.line, || (self.manages)(self.host, lab, link));
        }
    }
}

/// The number of a link of the gateway.
fn index(lab: &Lab, link: &str) -> String {
    let shown = lab.gateway.run("ip", &["-o", "link", "show", "dev", link]);
    shown.split(':').next().unwrap().to_owned()
}

fn networkd_manages(host: &Userland<'_>, lab: &Lab, link: &str) -> bool {
    let state = host.path(&format!("/run/systemd/netif/links/{}", index(lab, link)));
    std::fs::read_to_string(state).is_ok_and(|it| it.contains("ADMIN_STATE=configured"))
}

#[test]
fn networkd_that_restarts_or_takes_our_link_costs_a_repair_at_most() {
    let mut scene = scene();
    let host = Userland::open(&scene.lab);
    let _bus = host.bus();
    scene.agent.end(Signal::SIGTERM);
    // It sees that networkd runs.
    scene.agent = scene.lab.launch(&host.agent());
    scene.lab.await_ready();
    let (lab, link, tries) = (&scene.lab, scene.lab.link(), Tries::open(&scene));
    let network = |name: &str, of: &str, rest: &str| {
        let text = format!("[Match]\nName={of}\n[Network]\nLinkLocalAddressing=no\n{rest}");
        host.write(&format!("/etc/systemd/network/{name}.network"), &text);
    };
    for (link, addresses) in LINKS {
        let lines = addresses.iter().map(|address| format!("Address={address}\n"));
        network(link, link, &lines.collect::<String>());
    }
    // A file for every link, as images for clouds have.
    network("zz-all", "*", "");
    let line = "/lib/systemd/systemd-networkd";
    let mut networkd = Manager { host: &host, line, manages: networkd_manages, daemon: None };
    networkd.restart(lab);
    let makes_room = || lab.status()["firewall"]["gate"] == false && scene.repairs() == 1;
    eventually("the gate makes room", makes_room);
    let repairs = scene.repairs();
    tries.cause(
        Fault::new(lab, "systemd-networkd restarted, with a file that names every link", UNTOUCHED)
            .spares(ping(&scene)),
        || {
            networkd.restart(lab);
            eventually("it has our link", || networkd_manages(&host, lab, &link));
        },
        || scene.is_ready(),
    );
    assert_eq!(scene.repairs(), repairs);
    tries.cause(
        Fault::new(
            lab,
            "systemd-networkd told to configure our link (networkctl reconfigure)",
            PUT_BACK,
        )
        .may_cost(REPAIR, ping(&scene)),
        || drop(host.run(&format!("networkctl reconfigure {link}"))),
        || scene.repairs() > repairs,
    );
}

fn network_manager_manages(host: &Userland<'_>, _: &Lab, link: &str) -> bool {
    let devices = host.output("nmcli --terse --fields DEVICE,STATE device").stdout;
    String::from_utf8(devices)
        .unwrap()
        .lines()
        .any(|line| line.starts_with(&format!("{link}:connected")))
}

#[test]
fn network_manager_that_restarts_or_takes_our_link_costs_a_repair_at_most() {
    let scene = scene();
    let (lab, tries) = (&scene.lab, Tries::open(&scene));
    let host = Userland::open(lab);
    let _bus = host.bus();
    host.write(
        "/etc/NetworkManager/NetworkManager.conf",
        "[main]\nplugins=keyfile\nno-auto-default=*\nauth-polkit=false\ndns=none\n",
    );
    for (link, addresses) in LINKS {
        let of = |family: char| {
            let is_of = move |it: &&&str| it.contains(':') == (family == '6');
            let lines = addresses.iter().filter(is_of).enumerate();
            let lines: String = lines.map(|(n, it)| format!("address{}={it}\n", n + 1)).collect();
            let method = if lines.is_empty() { "disabled" } else { "manual" };
            format!("[ipv{family}]\nmethod={method}\n{lines}")
        };
        let profile = format!(
            "[connection]\nid={link}\ntype=ethernet\ninterface-name={link}\n{}{}",
            of('4'),
            of('6')
        );
        let file = format!("/etc/NetworkManager/system-connections/{link}.nmconnection");
        host.write(&file, &profile);
    }
    let line = "NetworkManager --debug";
    let mut manager = Manager { host: &host, line, manages: network_manager_manages, daemon: None };
    manager.restart(lab);
    for (link, _) in LINKS {
        host.run(&format!("nmcli connection up {link}"));
    }
    let repairs = scene.repairs();
    tries.cause(
        Fault::new(lab, "NetworkManager restarted", UNTOUCHED).spares(ping(&scene)),
        || manager.restart(lab),
        || scene.is_ready(),
    );
    assert_eq!(scene.repairs(), repairs);
    let link = lab.link();
    let sees = host.run("nmcli --terse --fields DEVICE,STATE device");
    assert!(sees.contains(&format!("{link}:connected (externally)")), "{sees}");
    tries.cause(
        Fault::new(
            lab,
            "NetworkManager told to disconnect our link (nmcli device disconnect)",
            PUT_BACK,
        )
        .may_cost(REPAIR, ping(&scene)),
        || drop(host.run(&format!("nmcli device disconnect {link}"))),
        || scene.repairs() > repairs,
    );
}
