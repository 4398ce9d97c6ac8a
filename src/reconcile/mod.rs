//! The loop: listen, read, plan, apply, prove, report, wait.
//!
//! Its core, [`Machine`], is a state machine that takes events and time as values, so that whole
//! lives of an agent can be simulated. It consists of parts with private state; only the machine
//! sees two of them. The shell around it carries out what the machine asks for, and the views show
//! what it knows.

mod audit;
mod bell;
mod changes;
mod clock;
mod comparison;
mod device_standings;
mod error;
mod event;
mod handshakes;
mod hints;
mod history;
mod hold;
mod lags;
mod ledger;
mod machine;
mod mirror;
mod mode;
mod name;
mod note;
mod notices;
mod notifications;
mod options;
mod outbox;
mod pace;
mod proof;
mod row_status;
mod rows;
mod session;
mod shell;
mod source;
mod stale;
mod trouble;
mod view;
mod volume;
mod without_row;
mod work;

pub use bell::BellNews;
pub use changes::{Changes, NameList};
pub use clock::Now;
pub use device_standings::{AskedDevice, DeviceStandings};
pub use error::{DatabaseError, DatabaseState, RunError};
pub use event::{
    Action, EpochRead, Event, Keep, KernelChange, LastGood, Provenance, ReadAnswer, ReadKind, Sent,
};
pub use hints::{Heard, Hearing, Hints, hints};
pub use history::{Lost, Withdrawal, Withdrawals};
pub use ledger::Report;
pub use machine::Machine;
pub use mode::Mode;
pub use name::{PeerName, did_you_mean, near_names};
pub use note::{Ignored, Note};
pub use options::{MachineOptions, Reloaded, StaleOptions, StalePolicy, SyncMode, Timing};
pub use session::SESSION_SECS;
#[cfg(any(test, feature = "fuzzing"))]
pub use shell::DECODERS;
pub use shell::{
    Ask, BlockFile, BlockFileError, Cache, CacheError, Chosen, NothingHeldBack, Options, Present,
    ROUND_AT_MOST, Until, choose, run, run_once,
};
pub use trouble::Trouble;
pub use view::{
    Answers, ExplainError, Link, Obstacle, PreviewError, ResyncError, Totals, View, WhoError,
    parse_destination, preview, preview_explanation, preview_rows, status,
};
