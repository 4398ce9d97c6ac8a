//! Desired against observed: which steps make the kernel what it should be, and which of them may
//! still be applied after a refusal. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
mod compute;
mod cut;
mod doubt;
pub mod firewall;
pub mod gate;
pub mod guard;
mod held;
mod interlock;
mod join;
mod link;
mod meet;
mod meets;
mod model_job;
mod model_kernel;
mod moved;
mod pool;
mod prefix;
mod route;
mod scope;
mod step;
mod transfer;
mod uncut;
mod unloadable;
mod wanted;

pub use compute::{plan, plan_around};
pub use cut::CutArea;
pub use doubt::{Doubt, Unacknowledged};
pub use held::{Held, HeldCause, HeldPeer};
pub use interlock::Interlock;
pub use link::PlanError;
pub use meet::{Allowed, is_ours, meet, narrow, withdraw, withdrawals};
pub use meets::ByPair;
pub use model_job::ModelJob;
pub use model_kernel::{Fate, Fault, ModelKernel, Refusal};
pub use pool::{networks_within, usable_network};
pub use scope::Scope;
pub use step::{Phase, Plan, Step};
pub use uncut::Uncut;
pub use unloadable::{Blame, Parted, before_slow, load_in_parts};
pub use wanted::Wanted;
