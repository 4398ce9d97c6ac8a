//! Reports are written to the database without notifying any agent.

use crate::lab::{Lab, Listener, eventually};

#[test]
fn reports_send_no_notification() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let _agent = lab.start();
    let gateway_id = lab.database.value("select id from gateways");
    let listener = Listener::open(
        &lab.database,
        &["gatepost_all".to_owned(), format!("gatepost_{gateway_id}")],
    );

    alice.connect();
    let seen = "exists (select from devices where last_seen_at is not null)";
    eventually("the handshake is reported", || lab.database.holds(seen));
    for _ in 0..3 {
        let last = lab.database.value("select last_sync_at from gateways");
        let newer = format!("exists (select from gateways where last_sync_at > '{last}')");
        eventually("a heartbeat", || lab.database.holds(&newer));
    }
    assert_eq!(listener.count(), 0, "reports notified the fleet");

    lab.database.exec("update policies set priority = 1; update devices set status = 'revoked'");
    eventually("a change that matters is heard", || listener.count() > 0);
}

#[test]
fn audit_entries_that_are_refused_do_not_stop_last_sync() {
    let lab = Lab::open();
    lab.database.exec(
        "create function refuse() returns trigger language plpgsql as $$ begin
             raise exception 'no gateway writes here';
         end $$;
         create trigger refuse before insert on audit_logs
             for each row when (new.event_type like 'gateway.%') execute function refuse()",
    );
    let _agent = lab.start();
    for _ in 0..2 {
        let last =
            lab.database.value("select coalesce(max(last_sync_at), '-infinity') from gateways");
        let newer = format!("exists (select from gateways where last_sync_at > '{last}')");
        eventually("a heartbeat", || lab.database.holds(&newer));
    }
    eventually("the journal names it", || {
        lab.log().contains("trigger refuse on audit_logs: no gateway writes here")
    });
}
