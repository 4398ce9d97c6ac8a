//! A control plane that commits in two phases.

use gatepost::reconcile::{Mode, Present, SyncMode, choose};
use gatepost::store::Polled;

use crate::postgres::Setup;
use crate::world::World;

const REVOKE: &str = "begin; update devices set status = 'revoked', revoked_at = now(); \
    insert into policies (name) values ('new'); prepare transaction 'both'";

#[tokio::test]
async fn a_transaction_of_the_control_plane_is_prepared_and_its_change_is_found() {
    let settings = "autovacuum = off\nmax_prepared_transactions = 4";
    let world = World::alone_with(&Setup { settings, ..Setup::UNDISTURBED }).await;
    world.peer(world.gateway, "ann").await;
    let hello = world.store.hello().await.unwrap();
    // An agent that is told to listen goes on to hear, and the writer is told why it fails.
    let listens = choose(&world.store, SyncMode::Listen, &hello, Present::default()).await.unwrap();
    assert_eq!(listens.mode, Mode::Listen);
    let error = world.admin.batch_execute(REVOKE).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("NOTIFY"), "{error:?}");
    assert_eq!(world.store.prepared_at_most().await.unwrap(), 4);
    drop(listens);

    let mut present = Present::default();
    for _ in 0..2 {
        let chosen = choose(&world.store, SyncMode::Auto, &hello, present).await.unwrap();
        assert_eq!(chosen.mode, Mode::Poll);
        assert!(chosen.why.contains("max_prepared_transactions = 4"), "{}", chosen.why);
        present.mode = Some(Mode::Listen);
    }
    let cursor = world.cursor().await;
    world.run(REVOKE).await;
    assert!(matches!(world.store.poll(&cursor).await.unwrap(), Polled::Quiet(..)), "uncommitted");
    world.run("commit prepared 'both'").await;
    assert_eq!(world.store.poll(&cursor).await.unwrap(), Polled::News);
}
