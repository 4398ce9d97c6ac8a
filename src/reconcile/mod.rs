//! The loop: listen, read, plan, apply, prove, report, wait.
//!
//! Its core, [`Machine`], is a state machine fed with events and time as values, so that whole
//! lives of an agent can be simulated. The shell around it carries out what the machine asks for.

mod advance;
mod ask;
mod attach;
mod audit;
mod beat;
mod blocked;
mod cache;
mod database;
mod end;
mod event;
mod explain;
mod kernel;
mod lately;
mod ledger;
mod machine;
mod mode;
mod pass;
mod preview;
mod resync;
mod rows;
mod say;
mod session;
mod shell;
mod stale;
pub mod status;
mod summary;
mod timers;
mod timing;

pub use ask::Ask;
pub use cache::{Cache, CacheError};
pub use event::{Action, Event, Keep, Mode, Note, Now, ReadAnswer, ReadKind, Sent};
pub use explain::parse_destination;
pub use ledger::Report;
pub use machine::{Machine, MachineOptions, Obstacle, Proven, Totals};
pub use mode::{Chosen, SyncMode, Until, choose};
pub use pass::PassFigures;
pub use preview::{PreviewError, preview, preview_explanation};
pub use session::{SESSION_SECS, Seen, SessionEvent, Sessions};
pub use shell::{Host, Options, ROUND_AT_MOST, RunError, run, run_once};
pub use stale::{StaleOptions, StalePolicy};
pub use timing::Timing;
