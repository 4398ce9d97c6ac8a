//! Properties of the model and the plan, on random rows, kernels and changes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

mod all_clear;
mod barred;
mod beats;
mod blocks;
mod clocks;
mod costs;
mod gone;
mod guard;
mod held;
mod history;
mod incremental;
mod jobs;
mod machine;
mod meet;
mod mistakes;
mod obstacles;
mod packets;
mod past;
mod plans;
mod probes;
mod refusals;
mod refused;
mod rows;
mod stale;
mod status;
mod trouble;
mod undone;
mod unloadable;
mod world;
