//! The agent's ear at a real NATS server with the permissions that the documentation gives.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::{Client, Event, ServerError};
use futures_util::StreamExt as _;
use gatepost::model::GatewayId;
use gatepost::reconcile::{Heard, Hints, hints};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Broker, BrokerError, FOR_ALL, SIGNS_OF_LIFE, listen, subject_of, try_to_hear};
use crate::config::scratch::Scratch;

#[path = "../../../tests/support/broker.rs"]
mod broker_server;

use broker_server::{AGENT, BELL, EXAMPLE_GATEWAY, Nats};

const PATIENCE: Duration = Duration::from_secs(30);

fn own() -> GatewayId {
    GatewayId(EXAMPLE_GATEWAY.parse().unwrap())
}

fn other() -> GatewayId {
    GatewayId(uuid::Uuid::from_u128(2))
}

/// What the configuration makes of a URL and a login.
fn broker(url: &str, login: &str, further: &str) -> Broker {
    let scratch = Scratch::new();
    scratch.file("hints.login", login);
    let config = scratch.load(&format!("[hints]\nurl = \"{url}\"\n{further}")).unwrap();
    Broker::of(&config).unwrap().unwrap()
}

fn plain(nats: &Nats, login: &str) -> Broker {
    broker(&format!("nats://127.0.0.1:{}", nats.port), login, "")
}

async fn bell(nats: &Nats) -> Client {
    plain(nats, BELL).connect("test", |_| ()).await.unwrap()
}

async fn publish(bell: &Client, subject: &str) {
    bell.publish(subject.to_owned(), "".into()).await.unwrap();
    bell.flush().await.unwrap();
}

/// An ear that listens for the gateway of the example.
fn ear(broker: Broker) -> Hints {
    let (hints, hearing) = hints();
    tokio::spawn(listen(broker, "gatepost fra-1".to_owned(), 1, hearing));
    hints.gateway.send_replace(Some(own()));
    hints
}

async fn until(hints: &mut Hints, what: impl FnMut(&Heard) -> bool) -> Heard {
    let heard = timeout(PATIENCE, hints.heard.wait_for(what)).await;
    heard.expect("it is heard in time").unwrap().clone()
}

/// Gives signs of life until the ear hears them: it has subscribed by then.
async fn until_it_listens(bell: &Client, hints: &mut Hints) -> Heard {
    let before = hints.heard.borrow().signs_of_life;
    let life = async {
        loop {
            publish(bell, SIGNS_OF_LIFE).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = life => unreachable!(),
        heard = until(hints, |heard| heard.signs_of_life > before) => heard,
    }
}

#[tokio::test]
async fn an_agent_hears_hints_for_its_gateway_and_for_all_and_no_other() {
    let nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let (bell, mut hints) = (bell(&nats).await, ear(plain(&nats, AGENT)));
    let before = until_it_listens(&bell, &mut hints).await.hints;
    publish(&bell, &subject_of(other())).await;
    // What comes after it shows that it was not heard.
    publish(&bell, SIGNS_OF_LIFE).await;
    let lives = hints.heard.borrow().signs_of_life;
    let heard = until(&mut hints, |heard| heard.signs_of_life > lives).await;
    assert_eq!((heard.hints, heard.trouble), (before, None), "a hint for another gateway");
    publish(&bell, &subject_of(own())).await;
    until(&mut hints, |heard| heard.hints == before + 1).await;
    publish(&bell, FOR_ALL).await;
    until(&mut hints, |heard| heard.hints == before + 2).await;
}

#[tokio::test]
async fn a_gateways_user_is_refused_foreign_subjects_wildcards_and_any_publishing() {
    let nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let (happened, mut events) = mpsc::channel(16);
    let agent = plain(&nats, AGENT).connect("test", move |it| drop(happened.try_send(it))).await;
    let agent = agent.unwrap();
    let mut refused = async |what: &str| {
        loop {
            let event = timeout(PATIENCE, events.recv()).await.expect("it is refused").unwrap();
            if let Event::ServerError(ServerError::Other(text)) = event {
                assert!(matches!(BrokerError::of_server(&text), BrokerError::Permissions { .. }));
                assert!(text.contains(what), "{text} instead of {what}");
                return;
            }
        }
    };
    for subject in [&subject_of(other()), "gatepost.hint.*", "gatepost.>", ">"] {
        let mut heard = agent.subscribe(subject.to_owned()).await.unwrap();
        refused(&format!("Subscription to \"{subject}\"")).await;
        publish(&bell(&nats).await, &subject_of(other())).await;
        let silence = timeout(Duration::from_millis(50), heard.next()).await;
        assert!(!matches!(silence, Ok(Some(_))), "{subject} is heard");
    }
    for subject in [&subject_of(own()), &subject_of(other()), FOR_ALL, SIGNS_OF_LIFE] {
        publish(&agent, subject).await;
        refused(&format!("Publish to \"{subject}\"")).await;
    }
}

#[tokio::test]
async fn a_broker_that_restarts_is_heard_again_and_counts_as_a_hint() {
    let mut nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let mut hints = ear(plain(&nats, AGENT));
    until_it_listens(&bell(&nats).await, &mut hints).await;
    nats.kill();
    let heard = until(&mut hints, |heard| heard.trouble.is_some()).await;
    let trouble = heard.trouble.unwrap();
    assert!(trouble.contains("lost") || trouble.contains("refused"), "{trouble}");
    nats.resume();
    let again = until_it_listens(&bell(&nats).await, &mut hints).await;
    assert!(again.hints > heard.hints && again.trouble.is_none(), "{again:?}");
}

#[tokio::test]
async fn a_wrong_login_and_missing_permissions_are_said() {
    let nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let mut hints = ear(plain(&nats, "fra-1:wrong"));
    let heard = until(&mut hints, |heard| heard.trouble.is_some()).await;
    assert!(heard.trouble.unwrap().contains("refuses the login"));
    // The user may hear the hints of another gateway only, and signs of life do not hide that.
    let nats = Nats::for_gateway(&other().to_string());
    let (bell, mut hints) = (bell(&nats).await, ear(plain(&nats, AGENT)));
    let heard = until(&mut hints, |heard| heard.trouble.is_some()).await;
    let trouble = heard.trouble.unwrap();
    assert!(trouble.contains(&format!("(subscription to {})", subject_of(own()))), "{trouble}");
    publish(&bell, SIGNS_OF_LIFE).await;
    assert_eq!(hints.heard.borrow().signs_of_life, 0);
}

#[tokio::test]
async fn a_try_says_whether_a_gateway_may_hear() {
    let nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let may = |gateway| {
        let broker = plain(&nats, AGENT);
        async move { try_to_hear(&broker, "test", gateway).await }
    };
    assert_eq!(may(own()).await, Ok(()));
    let refused = may(other()).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("(subscription to {})", subject_of(other()))), "{refused}");
    let wrong = try_to_hear(&plain(&nats, "fra-1:wrong"), "test", own()).await.unwrap_err();
    assert!(matches!(wrong, BrokerError::Login { .. }), "{wrong}");
}

#[tokio::test]
async fn a_login_that_was_changed_is_read_again() {
    let nats = Nats::for_gateway(EXAMPLE_GATEWAY);
    let scratch = Scratch::new();
    scratch.file("hints.login", "fra-1:of-yesterday");
    let url = format!("[hints]\nurl = \"nats://127.0.0.1:{}\"", nats.port);
    let mut hints = ear(Broker::of(&scratch.load(&url).unwrap()).unwrap().unwrap());
    let heard = until(&mut hints, |heard| heard.trouble.is_some()).await;
    assert!(heard.trouble.unwrap().contains("refuses the login"));
    scratch.file("hints.login", AGENT);
    let heard = until_it_listens(&bell(&nats).await, &mut hints).await;
    assert_eq!(heard.trouble, None);
}

#[tokio::test]
async fn tls_is_verified_and_its_errors_name_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
    self_signed("IP:127.0.0.1", "FALSE", &certificate, &key);
    let nats = Nats::with_tls(&certificate, &key);
    let url = format!("tls://127.0.0.1:{}", nats.port);
    let refusal = async |url: &str, further: &str| {
        let connected = broker(url, AGENT, further).connect("test", |_| ()).await;
        connected.expect_err("it is refused").to_string()
    };
    let trusted = format!("tls_ca_file = \"{}\"", certificate.display());
    broker(&url, AGENT, &trusted).connect("test", |_| ()).await.unwrap();
    let unknown = refusal(&url, "").await;
    assert!(unknown.contains("name its authority's certificate in hints.tls_ca_file"), "{unknown}");
    let name = refusal(&format!("tls://localhost:{}", nats.port), &trusted).await;
    assert!(name.contains("is not for the host in hints.url"), "{name}");
    // What OpenSSL makes unless it is told otherwise.
    let (certificate, key) = (folder.path().join("crt2"), folder.path().join("key2"));
    self_signed("IP:127.0.0.1", "TRUE", &certificate, &key);
    let nats = Nats::with_tls(&certificate, &key);
    let trusted = format!("tls_ca_file = \"{}\"", certificate.display());
    let authority = refusal(&format!("tls://127.0.0.1:{}", nats.port), &trusted).await;
    assert!(authority.contains("basicConstraints=CA:FALSE"), "{authority}");
    let plain = Nats::for_gateway(EXAMPLE_GATEWAY);
    let none = refusal(&format!("tls://127.0.0.1:{}", plain.port), &trusted).await;
    assert!(none.contains("offers no TLS"), "{none}");
}

fn self_signed(name: &str, authority: &str, certificate: &Path, key: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=nats"])
        .args(["-addext", &format!("subjectAltName={name}")])
        .args(["-addext", &format!("basicConstraints=critical,CA:{authority}")])
        .arg("-keyout")
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
