//! The database goes away, in the middle of an answer too.

use super::{SPACING_MS, Scene};
use crate::lab::{Fault, LAN_SERVER, eventually};
use crate::seed::seed;

const ROUNDS: usize = 6;
/// About as many as a login and a full read have here.
const MOST_BYTES: u64 = 8_000;

#[test]
fn database_that_dies_within_an_answer_costs_nothing_and_is_followed_when_it_is_back() {
    let scene = Scene::open();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let (mut random, mut died_within) = (fastrand::Rng::with_seed(seed()), Vec::new());
    for round in 0..ROUNDS {
        let bytes = random.u64(..MOST_BYTES);
        lab.relay.die_after(bytes);
        lab.relay.cut();
        // A new connection reads only what has changed, unless everything is asked for. It may die before that.
        let _ = lab.gatepost(&["resync"]);
        eventually("the database dies", || lab.relay.has_died());
        died_within.push(bytes);
        let revokes = round % 2 == 0;
        lab.database
            .exec(if revokes { bob.revocation() } else { scene.admission().to_owned() }.as_str());
        lab.relay.accept();
        let wanted = if revokes { 1 } else { 2 };
        eventually(&format!("followed, after an end within {bytes} bytes"), || {
            lab.kernel_peers().len() == wanted
        });
    }
    println!("died after {died_within:?} bytes");
    let what = format!("database dies after n bytes of an answer, {ROUNDS} random n");
    Fault::new(lab, &what, "nothing changes; followed when it is back").spares(ping).cause(
        || assert!(lab.relay.cut() > 0),
        || lab.status()["database"]["connected"] == true && scene.is_ready(),
    );
}
