//! Desired against observed: which steps make the kernel what it should be. Pure.

pub mod firewall;
mod step;

pub use step::{Phase, Plan, Step};
