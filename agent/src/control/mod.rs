//! The control socket: how `gatepost status`, `peers` and `explain` ask the running agent.
//!
//! A request is one line of JSON, `{"op":"status"}`. The reply is one line per item,
//! `{"item":...}`, and a last line, `{"done":...}` or `{"error":"..."}`. Then the connection ends.
//! The socket's mode decides who may read. Only root and [`Writers`] may change something.

mod caller;
mod client;
mod error;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use caller::Writers;
pub use client::Client;
pub use error::ControlError;
#[cfg(test)]
pub use protocol::Request;
pub use server::Server;
