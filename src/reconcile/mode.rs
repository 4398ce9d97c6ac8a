//! How an agent learns of changes: which mode suits the database it is attached to.

use super::database::chain;
use super::event::Mode;
use crate::store::{Attached, Hello, Listener, Store, StoreError};

/// `sync.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Listen where few gateways share the database, take turns where many do, and poll where no
    /// notification arrives.
    #[default]
    Auto,
    Listen,
    Turns,
    Poll,
}

/// Postgres wakes every listening session at every notification, so that each commit costs as much
/// as there are listeners: above this many gateways writers notify nobody.
const LISTENERS_AT_MOST: i64 = 50;
/// Gateways that take turns listen again at so few: one that comes and goes must not turn all others.
const LISTEN_AGAIN_AT: i64 = 40;

/// The mode that was chosen.
pub struct Chosen {
    pub mode: Mode,
    /// In words, for the status.
    pub why: String,
    /// Where that is how changes are learnt of.
    pub listener: Option<Listener>,
    pub until: Until,
    /// Tables of whose changes nobody tells.
    pub unwatched: Vec<String>,
}

impl Chosen {
    /// Nothing is to be learnt but what is read at once.
    #[must_use]
    pub fn for_one_pass() -> Self {
        Self {
            mode: Mode::Poll,
            why: "one pass only".to_owned(),
            listener: None,
            until: Until::Reconfigured,
            unwatched: Vec::new(),
        }
    }
}

/// How long a mode stays the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It is what the configuration says.
    Reconfigured,
    /// The number of gateways may choose another one.
    Crowd,
    /// No notification arrived: it may have been late, or what swallowed it may go.
    ProbedAgain,
}

/// Chooses, and listens where that is the choice. `present`: the mode of before.
///
/// # Errors
/// In words, with the way out.
pub async fn choose(
    store: &Store,
    configured: SyncMode,
    hello: &Hello,
    present: Option<Mode>,
) -> Result<Chosen, String> {
    let failed = |error: StoreError| chain(&error);
    let chosen = |mode, why: &str, listener: Option<Listener>, until, attached: &Attached| {
        let (why, unwatched) = (why.to_owned(), attached.unwatched.clone());
        Ok(Chosen { mode, why, listener, until, unwatched })
    };
    match configured {
        SyncMode::Poll => {
            let attached = store.attach(false).await.map_err(failed)?;
            chosen(Mode::Poll, "sync.mode = \"poll\"", None, Until::Reconfigured, &attached)
        }
        SyncMode::Turns => {
            let listener = store.listen_to_turns(hello).await.map_err(failed)?;
            let attached = listener.attached().clone();
            let why = "sync.mode = \"turns\"";
            chosen(Mode::Turns, why, Some(listener), Until::Reconfigured, &attached)
        }
        SyncMode::Listen => {
            let listener = store.listen(hello).await.map_err(failed)?;
            let attached = listener.attached().clone();
            let why = "sync.mode = \"listen\"";
            chosen(Mode::Listen, why, Some(listener), Until::Reconfigured, &attached)
        }
        SyncMode::Auto => {
            let attached = store.attach(present == Some(Mode::Listen)).await.map_err(failed)?;
            let (mode, why) = suits(attached.gateways, present);
            let mut listener = match mode {
                Mode::Listen => store.listen(hello).await.map_err(failed)?,
                Mode::Turns | Mode::Poll => store.listen_to_turns(hello).await.map_err(failed)?,
            };
            if listener.probe().await.map_err(failed)? {
                return chosen(mode, &why, Some(listener), Until::Crowd, &attached);
            }
            // Nobody hears: writers need not notify.
            store.attach(false).await.map_err(failed)?;
            let why = "no notification arrives, as behind a pooler in transaction mode";
            chosen(Mode::Poll, why, None, Until::ProbedAgain, &attached)
        }
    }
}

/// The mode for a database that so many gateways share, and why.
pub(super) fn suits(gateways: i64, present: Option<Mode>) -> (Mode, String) {
    let at_most = match present {
        Some(Mode::Turns) => LISTEN_AGAIN_AT,
        Some(Mode::Listen | Mode::Poll) | None => LISTENERS_AT_MOST,
    };
    if gateways > LISTENERS_AT_MOST {
        let why = format!(
            "{gateways} gateways share this database; above {LISTENERS_AT_MOST} every commit would \
             wake all of them"
        );
        (Mode::Turns, why)
    } else if gateways > at_most {
        let why = format!(
            "{gateways} gateways share this database; those that take turns listen again at \
             {LISTEN_AGAIN_AT}"
        );
        (Mode::Turns, why)
    } else {
        (Mode::Listen, "a notification sent to itself arrived".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(gateways: i64, present: Option<Mode>) -> Mode {
        suits(gateways, present).0
    }

    #[test]
    fn fifty_listen_and_a_crowd_takes_turns() {
        assert_eq!(mode(1, None), Mode::Listen);
        assert_eq!(mode(50, None), Mode::Listen);
        assert_eq!(mode(51, None), Mode::Turns);
        assert_eq!(mode(51, Some(Mode::Listen)), Mode::Turns);
        assert_eq!(mode(1_000, Some(Mode::Turns)), Mode::Turns);
        let (_, why) = suits(1_000, None);
        assert!(why.starts_with("1000 gateways share this database; above 50 "), "{why}");
    }

    #[test]
    fn a_gateway_that_comes_and_goes_turns_nobody() {
        for gateways in [41, 50, 51, 45] {
            assert_eq!(mode(gateways, Some(Mode::Turns)), Mode::Turns, "{gateways}");
        }
        let (_, why) = suits(45, Some(Mode::Turns));
        assert_eq!(
            why,
            "45 gateways share this database; those that take turns listen again at 40"
        );
        assert_eq!(mode(40, Some(Mode::Turns)), Mode::Listen);
    }
}
