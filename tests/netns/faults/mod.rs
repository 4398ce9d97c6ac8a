//! Faults under traffic, each a row of docs/faults.md.

mod link;
mod peers;
