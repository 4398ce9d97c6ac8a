//! A gateway that `wg-quick` runs passes to Gatepost under traffic.

use std::fs;
use std::process::{Child, Stdio};

use crate::lab::{Backend, GATEWAY, GATEWAY_TUNNEL, LAN_SERVER, LISTEN_PORT, Lab, eventually};

/// The interface of another program, and the process behind it in userspace.
struct Running {
    device: Option<Child>,
}

impl Running {
    /// As `wg-quick up` leaves it: addresses, peers, no firewall but masquerading toward the LAN.
    fn start(lab: &Lab, peers: &str) -> Self {
        let link = lab.link();
        let device = match lab.backend {
            Backend::Kernel => {
                lab.gateway.run("ip", &["link", "add", &link, "type", "wireguard"]);
                None
            }
            Backend::Userspace => {
                let mut command = lab.command(&["device", &link]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                Some(lab.gateway.spawn(&mut command))
            }
        };
        eventually("the device answers", || {
            lab.gateway.output("wg", &["show", &link]).status.success()
        });
        let key = fs::read_to_string(lab.folder.path().join("private.key")).unwrap();
        let file = lab.folder.path().join("wg.conf");
        fs::write(
            &file,
            format!("[Interface]\nPrivateKey = {key}\nListenPort = {LISTEN_PORT}\n{peers}"),
        )
        .unwrap();
        lab.gateway.run("wg", &["setconf", &link, file.to_str().unwrap()]);
        lab.gateway.run("ip", &["address", "add", &format!("{GATEWAY_TUNNEL}/16"), "dev", &link]);
        lab.gateway.run("ip", &["address", "add", "fd99::1/64", "dev", &link, "nodad"]);
        lab.gateway.run("ip", &["link", "set", &link, "mtu", "1400", "up"]);
        let rules = "table ip theirs {
            chain post { type nat hook postrouting priority 100; oifname lan0 masquerade; }
        }";
        let rules_file = lab.folder.path().join("theirs.nft");
        fs::write(&rules_file, rules).unwrap();
        lab.gateway.run("nft", &["-f", rules_file.to_str().unwrap()]);
        Self { device }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(device) = &mut self.device {
            let _ = device.kill();
            let _ = device.wait();
        }
    }
}

/// `gatepost` in the gateway's namespace with the configuration that `import` asks for.
fn import(lab: &Lab) -> String {
    let names = lab.folder.path().join("wg.conf");
    let (code, sql, notes) = lab.gatepost(&[
        "import",
        &lab.link(),
        "--names",
        names.to_str().unwrap(),
        "--endpoint",
        "vpn.example.org:51820",
    ]);
    assert_eq!((code, notes.as_str()), (0, ""), "{sql}");
    sql
}

#[test]
fn a_gateway_is_taken_over_under_traffic_without_losing_a_packet() {
    let lab = Lab::open();
    lab.database.exec("delete from gatepost.gateway_role; delete from gateways");
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    let psk = lab.folder.path().join("psk.keys");
    fs::write(&psk, "k1 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n").unwrap();
    let preshared = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let peers = format!(
        "# alice/laptop\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32, {}/128\n\
         [Peer]\n# bob\nPublicKey = {}\nAllowedIPs = {}/32\nPresharedKey = {preshared}\n",
        alice.key, alice.address, alice.address6, bob.key, bob.address
    );
    let running = Running::start(&lab, &peers);
    bob.preshare(preshared);
    alice.connect();
    eventually("bob is answered by the gateway", || bob.reaches(GATEWAY_TUNNEL));
    let config = fs::read_to_string(lab.config()).unwrap();
    fs::write(lab.config(), config.replace("site_prefixes = [\"fd99::/64\"]", "")).unwrap();
    let addresses =
        format!("addresses = [\"{GATEWAY_TUNNEL}/16\", \"fd99::1/64\"]\nmtu_bytes = 1400\n");
    lab.configure_interface(&addresses);
    let pings =
        [alice.ping(LAN_SERVER, 10), alice.ping(&bob.address, 10), bob.ping(GATEWAY_TUNNEL, 10)];
    pings.iter().for_each(|ping| ping.await_answers(20));
    let sessions = || lab.wg_show("latest-handshakes");
    let before = sessions();

    let sql = import(&lab);
    for line in addresses.lines() {
        assert!(sql.contains(&format!("--   {line}\n")), "{line}: {sql}");
    }
    lab.database.exec(&sql);
    let granted = lab.admin_command(&["grant", GATEWAY, lab.database.role()]).output().unwrap();
    assert!(granted.status.success(), "{granted:?}");
    // Standard error may say what the kernel lacks.
    let (code, plan, error) = lab.gatepost(&["plan"]);
    assert_eq!(code, 2, "{plan}{error}");
    assert!(!plan.contains("peer remove") && !plan.contains("cut off"), "{plan}");
    let (link, who) = (lab.link(), format!("alice/laptop, bob/{}", lab.link()));
    let words = format!("gatepost takes over {link} with 2 of its 2 peers, whose sessions go on");
    assert!(plan.contains(&words), "{plan}");
    assert!(plan.contains(&format!("  {who} will reach 0.0.0.0/0, ::/0\n")), "{plan}");
    lab.database.exec("update policies set is_active = false");
    let (_, plan, _) = lab.gatepost(&["plan"]);
    assert!(plan.contains(&format!("  {who} will reach nothing: no policy")), "{plan}");
    lab.database.exec("update policies set is_active = true");

    let _agent = lab.start();
    pings.iter().for_each(|ping| ping.await_answers(50));
    for ping in pings {
        let pinged = ping.end();
        assert_eq!(pinged.lost, 0, "of {}\n{plan}", pinged.last);
    }
    assert_eq!(sessions(), before);
    assert_eq!(lab.gatepost(&["plan"]).0, 0);
    drop(running);
}
