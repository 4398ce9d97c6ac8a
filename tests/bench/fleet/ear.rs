//! What an agent hears from the broker. The agent's own ear belongs to the program, which this process is
//! not; this one makes the same connection and the same subscriptions.

use async_nats::ConnectOptions;
use futures_util::StreamExt as _;
use gatepost::reconcile::{Heard, Hearing, Hints, hints};

/// Hears for the gateway of this number.
pub fn listen(port: u16, number: usize) -> Hints {
    let (ends, hearing) = hints();
    tokio::spawn(hear(port, number.to_string(), hearing));
    ends
}

async fn hear(port: u16, login: String, mut hearing: Hearing) {
    let Ok(gateway) = hearing.gateway.wait_for(Option::is_some).await.map(|gateway| *gateway)
    else {
        return;
    };
    let own = format!("gatepost.hint.{}", gateway.unwrap());
    let client = ConnectOptions::new().user_and_password(login.clone(), login);
    let client = client.connect(format!("nats://127.0.0.1:{port}")).await.unwrap();
    let mut own = client.subscribe(own).await.unwrap();
    let mut for_all = client.subscribe("gatepost.hint.all").await.unwrap();
    let mut signs_of_life = client.subscribe("gatepost.alive").await.unwrap();
    loop {
        let change: fn(&mut Heard) = tokio::select! {
            Some(_) = own.next() => |heard| heard.hints += 1,
            Some(_) = for_all.next() => |heard| heard.hints += 1,
            Some(_) = signs_of_life.next() => |heard| heard.signs_of_life += 1,
            () = hearing.heard.closed() => return,
        };
        hearing.heard.send_modify(change);
    }
}
