//! Gatepost makes a WireGuard gateway host match what is in PostgreSQL, keeps it matching,
//! and writes back what is true.
//!
//! The code reads in the direction the data flows:
//!
//! ```text
//! store  ->  model  ->  plan  ->  dataplane  ->  report
//! rows       desired    steps     kernel         rows
//! ```
//!
//! [`model`] and [`plan`] are pure: no clock, no environment, no I/O, no async. They build without
//! default features, and `clippy.toml` bans the calls of the standard library that would break this.
//! `store` and `dataplane` are thin effects around them and never import each other; `reconcile`
//! connects the two.
#![forbid(unsafe_code)]
#![cfg_attr(
    all(not(test), feature = "store", feature = "dataplane"),
    warn(unused_crate_dependencies)
)]

// Rows for tests, which name the library as other crates do.
#[cfg(test)]
extern crate self as gatepost;
#[cfg(test)]
#[path = "../tests/support/rows.rs"]
mod test_rows;

#[cfg(feature = "store")]
pub mod backoff;
#[cfg(any(feature = "store", feature = "dataplane"))]
pub mod causes;
pub mod count;
#[cfg(feature = "dataplane")]
pub mod dataplane;
#[cfg(all(any(test, feature = "fuzzing"), feature = "store", feature = "dataplane"))]
pub mod decoder;
#[cfg(all(any(test, feature = "fuzzing"), feature = "store", feature = "dataplane"))]
pub mod decoders;
pub mod model;
pub mod plan;
#[cfg(all(feature = "store", feature = "dataplane"))]
pub mod reconcile;
#[cfg(feature = "store")]
pub mod store;
