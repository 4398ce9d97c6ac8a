//! Properties of policies, from rows to what the firewall should hold, and of the sources. All pure: no kernel,
//! no database.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod book;
mod firewall;
mod gate;
mod sources;
mod unloadable;
mod words;
mod world;
