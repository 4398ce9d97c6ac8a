//! Chooses how the agent learns about changes: the mode that suits its database.

use crate::reconcile::error::DatabaseError;
use crate::reconcile::mode::Mode;
use crate::reconcile::options::SyncMode;
use crate::store::{Attached, Hello, Listener, Store, StoreError};

/// Postgres wakes every listening session at every notification, so that the cost of a commit grows
/// with the listeners: above this many gateways writers do not notify.
const LISTENERS_AT_MOST: u32 = 50;
/// Gateways that poll because they are too many listen again at so few: one that comes and goes must
/// not switch all others.
const LISTEN_AGAIN_AT: u32 = 40;

/// The advice for gateways that poll because they are many.
const FOLLOW_A_BELL: &str =
    "To hear of changes at once, run `gatepost bell` and set hints.url (docs/scale.md)";

/// The mode that was chosen.
pub struct Chosen {
    pub mode: Mode,
    /// Why, for the status.
    pub why: String,
    /// In the mode that hears notifications.
    pub listener: Option<Listener>,
    /// Why the server has no session to listen on, where that is why the agent polls.
    pub no_session: Option<String>,
    pub until: Until,
    /// How many gateways share the database; 0: not asked.
    pub gateways: u32,
    /// Tables whose changes are not announced.
    pub unwatched: Vec<String>,
}

impl Chosen {
    /// For an agent that makes one pass and follows no changes.
    #[must_use]
    pub fn for_one_pass() -> Self {
        Self {
            mode: Mode::Poll,
            why: "one pass only".to_owned(),
            listener: None,
            no_session: None,
            until: Until::Reconfigured,
            gateways: 0,
            unwatched: Vec::new(),
        }
    }
}

/// How long a mode stays the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The configuration says so.
    Reconfigured,
    /// Another number of gateways may ask for another mode.
    FleetChanges,
    /// Without a bell, hints are no way to learn of changes.
    BellFallsSilent,
    /// The test notification did not arrive: it may have been late, or what swallowed it may go.
    ProbedAgain,
    /// The server had no session left to listen on.
    SessionIsFree,
}

/// The facts that are known before a mode is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Present {
    /// The mode in use, if the number of gateways chose it.
    pub mode: Option<Mode>,
    pub hears_bell: bool,
}

/// Chooses the mode, and begins to listen where it needs that.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn choose(
    store: &Store,
    configured: SyncMode,
    hello: &Hello,
    present: Present,
) -> Result<Chosen, DatabaseError> {
    let chosen = |mode, why: &str, listener: Option<Listener>, until, attached: Attached| {
        let Attached { gateways, unwatched, .. } = attached;
        let (why, no_session) = (why.to_owned(), None);
        Ok(Chosen { mode, why, listener, no_session, until, gateways, unwatched })
    };
    match configured {
        SyncMode::Poll => {
            let attached = store.attach(false).await?;
            chosen(Mode::Poll, "sync.mode = \"poll\"", None, Until::Reconfigured, attached)
        }
        SyncMode::Listen => {
            let listener = match store.listen(hello).await {
                Err(error) if error.is_want_of_room() => return poll_for_now(store, &error).await,
                listener => listener?,
            };
            let attached = listener.attached().clone();
            let why = "sync.mode = \"listen\"";
            chosen(Mode::Listen, why, Some(listener), Until::Reconfigured, attached)
        }
        SyncMode::Hints => {
            let attached = store.attach(false).await?;
            chosen(Mode::Hints, "sync.mode = \"hints\"", None, Until::Reconfigured, attached)
        }
        SyncMode::Auto if present.hears_bell => {
            let attached = store.attach(false).await?;
            chosen(Mode::Hints, "a bell is heard", None, Until::BellFallsSilent, attached)
        }
        // A session of a pool belongs to a gateway only for a transaction.
        SyncMode::Auto if store.is_pooled() => {
            let attached = store.attach(false).await?;
            let mut why =
                "gateways with a token share sessions, in which none can listen".to_owned();
            if attached.gateways > LISTENERS_AT_MOST {
                why = format!("{why}. {FOLLOW_A_BELL}");
            }
            chosen(Mode::Poll, &why, None, Until::ProbedAgain, attached)
        }
        SyncMode::Auto => {
            let attached = store.attach(present.mode == Some(Mode::Listen)).await?;
            if attached.prepared_at_most > 0 {
                let attached = store.attach(false).await?;
                let why = prepared(attached.prepared_at_most);
                return chosen(Mode::Poll, &why, None, Until::ProbedAgain, attached);
            }
            let (mode, why) = suits(attached.gateways, present.mode);
            if mode == Mode::Poll {
                store.attach(false).await?;
                return chosen(mode, &why, None, Until::FleetChanges, attached);
            }
            let mut listener = match store.listen(hello).await {
                Err(error) if error.is_want_of_room() => return poll_for_now(store, &error).await,
                listener => listener?,
            };
            if listener.probe().await? {
                return chosen(mode, &why, Some(listener), Until::FleetChanges, attached);
            }
            // This agent does not hear: writers need not notify it.
            store.attach(false).await?;
            let why = "NOTIFY does not arrive (as behind a pooler in transaction mode)";
            chosen(Mode::Poll, why, None, Until::ProbedAgain, attached)
        }
    }
}

/// Why no agent listens where a writer may prepare its transaction: PREPARE TRANSACTION fails after NOTIFY.
fn prepared(at_most: u32) -> String {
    format!(
        "the server lets transactions be prepared (max_prepared_transactions = {at_most}), and after a NOTIFY \
         PREPARE TRANSACTION would fail. {FOLLOW_A_BELL}"
    )
}

/// Until the server has a session to listen on.
async fn poll_for_now(store: &Store, error: &StoreError) -> Result<Chosen, DatabaseError> {
    // This agent does not hear: writers need not notify it.
    let Attached { gateways, unwatched, .. } = store.attach(false).await?;
    Ok(Chosen {
        mode: Mode::Poll,
        why: "the server has no session to listen on".to_owned(),
        listener: None,
        no_session: Some(error.to_string()),
        until: Until::SessionIsFree,
        gateways,
        unwatched,
    })
}

/// The mode that suits a database that so many gateways share, and why. `present`: the mode in use, if
/// the number of gateways chose it.
pub(super) fn suits(gateways: u32, present: Option<Mode>) -> (Mode, String) {
    let at_most = match present {
        Some(Mode::Poll) => LISTEN_AGAIN_AT,
        Some(Mode::Listen | Mode::Hints) | None => LISTENERS_AT_MOST,
    };
    if gateways > LISTENERS_AT_MOST {
        let why = format!(
            "{gateways} gateways share this database; above {LISTENERS_AT_MOST} each commit would \
             wake all of them. {FOLLOW_A_BELL}"
        );
        (Mode::Poll, why)
    } else if gateways > at_most {
        let why = format!(
            "{gateways} gateways share this database; those that poll listen again at \
             {LISTEN_AGAIN_AT}"
        );
        (Mode::Poll, why)
    } else {
        (Mode::Listen, "NOTIFY works (test notification received)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(gateways: u32, present: Option<Mode>) -> Mode {
        suits(gateways, present).0
    }

    #[test]
    fn up_to_fifty_gateways_listen_and_more_poll() {
        assert_eq!(mode(1, None), Mode::Listen);
        assert_eq!(mode(50, None), Mode::Listen);
        assert_eq!(mode(51, None), Mode::Poll);
        assert_eq!(mode(51, Some(Mode::Listen)), Mode::Poll);
        assert_eq!(mode(1_000, Some(Mode::Poll)), Mode::Poll);
        let (_, why) = suits(1_000, None);
        assert!(why.starts_with("1000 gateways share this database; above 50 "), "{why}");
        assert!(why.ends_with(FOLLOW_A_BELL), "{why}");
    }

    #[test]
    fn a_gateway_that_comes_and_goes_switches_no_other() {
        for gateways in [41, 50, 51, 45] {
            assert_eq!(mode(gateways, Some(Mode::Poll)), Mode::Poll, "{gateways}");
        }
        let (_, why) = suits(45, Some(Mode::Poll));
        assert_eq!(why, "45 gateways share this database; those that poll listen again at 40");
        assert_eq!(mode(40, Some(Mode::Poll)), Mode::Listen);
    }
}
