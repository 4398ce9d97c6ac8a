//! The lines of a plan, one for each kind of step.

use std::collections::BTreeMap;
use std::sync::Arc;

use gatepost::model::{
    AllowedIps, FirewallBase, FirewallChange, GatewayId, InterfaceName, MarkBit, Masquerade,
    Networks, NflogGroup, Peer, PresharedKey, PrivateKey, Profile, ProfileId, PublicKey,
};
use gatepost::plan::{Phase, Step, gate};
use ipnet::IpNet;
use uuid::Uuid;

use super::golden;

/// One step of each kind.
fn steps() -> Vec<Step> {
    let key = PublicKey::from_bytes([1; 32]).unwrap();
    let name: InterfaceName = "gatepost0".parse().unwrap();
    let gateway_id = GatewayId(Uuid::nil());
    let prefix = |text: &str| text.parse::<IpNet>().unwrap();
    let allowed_ips: AllowedIps = ["10.8.0.2/32", "10.20.0.0/24"].map(prefix).into_iter().collect();
    let profile = Arc::new(Profile::default());
    let base = FirewallBase {
        interface: name.clone(),
        masquerade: Masquerade::All,
        deny_log: Some(NflogGroup::DEFAULT),
        allow_inbound: false,
        gateway_opens: Some(Default::default()),
        networks: Networks::new(prefix("10.8.0.0/16"), [].iter()),
        flows_per_address: None,
        gate: None,
    };
    let profiles = [(ProfileId(1), (true, profile.clone())), (ProfileId(2), (false, profile))];
    let change = FirewallChange {
        load_base: Some(base),
        unassign: vec![prefix("10.8.0.3/32")],
        put_profiles: BTreeMap::from(profiles),
        assign: BTreeMap::from([(prefix("10.8.0.2/32"), ProfileId(1))]),
        remove_profiles: vec![ProfileId(3)],
    };
    let without_base = FirewallChange { load_base: None, ..change.clone() };
    let peer = Peer { allowed_ips: allowed_ips.clone(), ..Peer::default() };
    let rules = gate::rules(&name, [prefix("10.8.0.0/16")], MarkBit::default());
    let preshared_key = PresharedKey::from_bytes([1; 32]).ok();
    vec![
        Step::Firewall { phase: Phase::Fence, change },
        Step::RenameLink { from: "wg7".into(), to: name.clone() },
        Step::FreeLink { name: "wg7".into() },
        Step::TakeDown { name: "wg7".into() },
        Step::CreateLink { name, gateway_id },
        Step::ClaimLink { gateway_id },
        Step::SetMtu { bytes: 1420 },
        Step::SetPrivateKey { private_key: PrivateKey::from_random([7; 32]) },
        Step::SetListenPort { port: 51820 },
        Step::SetFwmark { fwmark: 0xca6c },
        Step::AddAddress { address: prefix("10.8.0.1/16") },
        Step::ReplaceAddress { from: prefix("fd00::1/64"), to: prefix("fd00::1/56") },
        Step::SetUp,
        Step::CutFlows { prefixes: allowed_ips.iter().collect() },
        Step::RemovePeer { key },
        Step::NarrowPeer { key, allowed_ips: allowed_ips.clone() },
        Step::Firewall { phase: Phase::Policy, change: without_base },
        Step::AddPeer { key, peer },
        Step::WidenPeer { key, allowed_ips },
        Step::SetPresharedKey { key, preshared_key },
        Step::SetPresharedKey { key, preshared_key: None },
        Step::SetKeepalive { key, keepalive_secs: 25 },
        Step::AddRoute { prefix: prefix("10.20.0.0/24") },
        Step::OpenSessions,
        Step::AddRules { rules: rules.clone() },
        Step::RemoveRules { rules },
        Step::RemoveRoute { prefix: prefix("10.20.0.0/24") },
        Step::RemoveAddress { address: prefix("10.8.0.1/16") },
    ]
}

/// A step that is new belongs in [`steps`] before it belongs here.
const fn is_listed(step: &Step) {
    match step {
        Step::Firewall { .. }
        | Step::RenameLink { .. }
        | Step::FreeLink { .. }
        | Step::TakeDown { .. }
        | Step::CreateLink { .. }
        | Step::ClaimLink { .. }
        | Step::SetMtu { .. }
        | Step::SetPrivateKey { .. }
        | Step::SetListenPort { .. }
        | Step::SetFwmark { .. }
        | Step::AddAddress { .. }
        | Step::ReplaceAddress { .. }
        | Step::SetUp
        | Step::CutFlows { .. }
        | Step::RemovePeer { .. }
        | Step::NarrowPeer { .. }
        | Step::AddPeer { .. }
        | Step::WidenPeer { .. }
        | Step::SetPresharedKey { .. }
        | Step::SetKeepalive { .. }
        | Step::AddRoute { .. }
        | Step::OpenSessions
        | Step::AddRules { .. }
        | Step::RemoveRules { .. }
        | Step::RemoveRoute { .. }
        | Step::RemoveAddress { .. } => {}
    }
}

#[test]
fn plan_lines() {
    let steps = steps();
    steps.iter().for_each(is_listed);
    let phase = |step: &Step| format!("{:?}", step.phase()).to_lowercase();
    let lines: Vec<_> = steps.iter().map(|step| format!("{:<7}{step}", phase(step))).collect();
    golden::check("plan lines", &lines);
}
