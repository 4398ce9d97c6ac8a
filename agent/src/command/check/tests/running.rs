//! What the running agent tells, and what its silence means.

use std::io;
use std::time::Duration;

use gatepost::model::PeerId;
use gatepost::reconcile::status::{HeldBack, QuarantinedPeer, State, Status};

use super::found;
use crate::control::ControlError;
use crate::exit::Exit;

#[test]
fn running_agent_is_asked_for_what_only_it_knows() {
    let told = |change: fn(&mut Status), wanted: &str| {
        let (texts, exit) = found(|_, facts| change(facts.agent.as_mut().unwrap()));
        assert!(texts.len() == 1 && texts[0].starts_with(&format!("agent: {wanted}")), "{texts:?}");
        exit
    };
    let degraded =
        |status: &mut Status| status.state = State::Degraded { why: "no trigger".into() };
    assert_eq!(told(degraded, "degraded: no trigger"), Exit::Failure);
    let warned = |status: &mut Status| status.warnings = vec!["the disk is full".into()];
    assert_eq!(told(warned, "the disk is full"), Exit::Failure);
    let held = |status: &mut Status| status.held_back = Some(HeldBack { removals: 60, of: 100 });
    assert_eq!(told(held, "removing 60 of 100 peers waits -> "), Exit::Failure);
    let quarantined = |status: &mut Status| {
        status.peers.quarantined = 1;
        status.quarantined = vec![QuarantinedPeer {
            peer_id: PeerId(uuid::Uuid::nil()),
            user: "alice".into(),
            device: "laptop".into(),
            reason: "not base64".into(),
        }];
    };
    assert_eq!(told(quarantined, "quarantined alice/laptop: not base64 -> "), Exit::Failure);
    let repaired = |status: &mut Status| status.sync.drift_repaired = 2;
    assert_eq!(told(repaired, "repaired what other programs had changed, 2 times"), Exit::Success);
    let starting = |status: &mut Status| status.state = State::Starting;
    assert_eq!(told(starting, "starting: "), Exit::Success);
}

#[test]
fn agent_that_is_away_is_a_note_and_one_that_is_silent_a_warning() {
    let path = || std::path::PathBuf::from("/run/gatepost/control.sock");
    let away = ControlError::NoAgent { path: path(), source: io::ErrorKind::NotFound.into() };
    let silent = ControlError::Silent { path: path(), waited: Duration::from_secs(10) };
    let (texts, exit) = found(|_, facts| facts.agent = Err(away));
    assert!(texts[0].starts_with("agent: none answers on /run/gatepost/control.sock"), "{texts:?}");
    assert_eq!(exit, Exit::Success);
    let (texts, exit) = found(|_, facts| facts.agent = Err(silent));
    assert!(texts[0].contains("has not answered for 10 s"), "{texts:?}");
    assert_eq!(exit, Exit::Failure);
}

#[test]
fn warning_that_another_finding_gives_is_not_repeated() {
    let (texts, _) = found(|_, facts| {
        facts.host.forwarding_ipv4 = Some(0);
        let warning = "IPv4 forwarding is off, so peers reach only this host: sysctl -w".into();
        facts.agent.as_mut().unwrap().warnings = vec![warning];
    });
    assert_eq!(texts.len(), 1, "{texts:?}");
}
