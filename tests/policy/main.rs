//! Properties of policies, from rows to what the firewall should hold. All pure: no kernel, no
//! database.

mod book;
mod firewall;
mod world;
