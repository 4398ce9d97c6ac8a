//! What the agent says of itself while it is at work.

use gatepost::model::{Bars, ChangedRows};
use gatepost::reconcile::status::PeerState;
use gatepost::reconcile::{Action, Event, ReadAnswer};

use super::machine::{World, quiet_world};

/// Revokes the first peer, up to the plan that the kernel is about to obey.
fn revoking(world: &mut World) -> Action {
    let mut row = world.tables.peers.values().next().unwrap().clone();
    row.bars = Bars::DEVICE_STATUS;
    let rows = ChangedRows {
        peers: [(row.device_id, vec![row])].into(),
        memberships: std::collections::BTreeMap::new(),
        policies: std::collections::BTreeMap::new(),
        taken_at: world.now().wall,
    };
    world.machine.handle(Event::Notified, world.now());
    let read = Event::Read(Ok(ReadAnswer::Changed(rows)));
    let mut actions = world.machine.handle(read, world.now());
    actions.retain(|action| matches!(action, Action::Apply(..)));
    actions.pop().unwrap()
}

#[test]
fn while_the_kernel_is_changed_everybody_is_told_what_it_holds_so_far() {
    let mut world = quiet_world();
    let Action::Apply(plan, observed) = revoking(&mut world) else { panic!("nothing to do") };
    let in_kernel = |world: &World| {
        let peers = world.machine.peers();
        peers.iter().filter(|peer| peer.state == PeerState::InKernel).count()
    };
    assert_eq!(world.machine.status(world.now()).peers.in_kernel, 20);
    assert_eq!(in_kernel(&world), 19, "the 20th is not wanted any more");
    plan.steps().iter().for_each(|step| observed.obey(step));
    assert_eq!(world.machine.status(world.now()).peers.in_kernel, 19);
    assert_eq!(in_kernel(&world), 19);
}
