//! Desired against observed: which steps make the kernel what it should be. Pure.

mod compute;
pub mod firewall;
pub mod guard;
mod hands;
mod held;
mod join;
mod link;
mod model_kernel;
mod obey;
mod route;
mod step;
mod withdraw;

pub use compute::{Scope, plan, plan_around};
pub use held::Held;
pub use link::PlanError;
pub use model_kernel::{ModelKernel, Refusal};
pub use step::{Phase, Plan, Step};
pub use withdraw::withdraw;
