//! How an agent learns of changes: which mode suits the database it is attached to.

use super::database::chain;
use super::event::Mode;
use crate::store::{Hello, Listener, Store, StoreError};

/// `sync.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Listen where notifications arrive and few gateways share the database, else poll.
    #[default]
    Auto,
    Listen,
    Poll,
}

/// Postgres wakes every listening session at every notification, so that each commit costs as much
/// as there are listeners: above this many gateways all of them poll.
const LISTENERS_AT_MOST: i64 = 50;
/// Gateways that poll listen again at so few: one that comes and goes must not turn all the others.
const LISTEN_AGAIN_AT: i64 = 40;

/// The mode that was chosen, and why.
pub(super) struct Chosen {
    pub mode: Mode,
    pub why: String,
    /// Where that is how changes are learnt of.
    pub listener: Option<Listener>,
    /// Whether the number of gateways may choose another one later.
    pub may_turn: bool,
}

/// Chooses, and listens where that is the choice. `present`: the mode of before.
///
/// # Errors
/// In words, with the way out.
pub(super) async fn choose(
    store: &Store,
    configured: SyncMode,
    hello: &Hello,
    present: Option<Mode>,
) -> Result<Chosen, String> {
    let failed = |error: StoreError| chain(&error);
    let poll = |why, may_turn| Chosen { mode: Mode::Poll, why, listener: None, may_turn };
    let listen = |why: &str, listener, may_turn| Chosen {
        mode: Mode::Listen,
        why: why.into(),
        listener: Some(listener),
        may_turn,
    };
    match configured {
        SyncMode::Poll => {
            store.attach(false).await.map_err(failed)?;
            Ok(poll("sync.mode = \"poll\"".into(), false))
        }
        SyncMode::Listen => {
            let listener = store.listen(hello).await.map_err(failed)?;
            Ok(listen("sync.mode = \"listen\"", listener, false))
        }
        SyncMode::Auto => {
            let gateways = store.attach(false).await.map_err(failed)?;
            if suits(gateways, present) == Mode::Poll {
                return Ok(poll(crowd(gateways), true));
            }
            let mut listener = store.listen(hello).await.map_err(failed)?;
            if listener.probe().await.map_err(failed)? {
                return Ok(listen("a notification sent to itself arrived", listener, true));
            }
            // Nobody hears: writers need not notify.
            store.attach(false).await.map_err(failed)?;
            let why = "no notification arrives, as behind a pooler in transaction mode";
            Ok(poll(why.into(), false))
        }
    }
}

/// The mode for a database that so many gateways share.
pub(super) const fn suits(gateways: i64, present: Option<Mode>) -> Mode {
    let at_most = match present {
        Some(Mode::Poll) => LISTEN_AGAIN_AT,
        Some(Mode::Listen) | None => LISTENERS_AT_MOST,
    };
    if gateways > at_most { Mode::Poll } else { Mode::Listen }
}

fn crowd(gateways: i64) -> String {
    format!(
        "{gateways} gateways share this database; above {LISTENERS_AT_MOST} every notification \
         would wake too many"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_listen_and_a_crowd_polls() {
        assert_eq!(suits(1, None), Mode::Listen);
        assert_eq!(suits(50, None), Mode::Listen);
        assert_eq!(suits(51, None), Mode::Poll);
        assert_eq!(suits(51, Some(Mode::Listen)), Mode::Poll);
        assert_eq!(suits(1_000, Some(Mode::Poll)), Mode::Poll);
    }

    #[test]
    fn a_gateway_that_comes_and_goes_turns_nobody() {
        for gateways in [41, 50, 51, 45] {
            assert_eq!(suits(gateways, Some(Mode::Poll)), Mode::Poll, "{gateways}");
        }
        assert_eq!(suits(40, Some(Mode::Poll)), Mode::Listen);
    }

    #[test]
    fn a_crowd_is_said_in_words() {
        assert!(crowd(1_000).starts_with("1000 gateways share this database; above 50 "));
    }
}
