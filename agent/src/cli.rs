//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gatepost::model::{GatewayId, InterfaceName, PublicKey};
use gatepost::reconcile::parse_destination;
use ipnet::IpNet;
use uuid::Uuid;

/// Makes a WireGuard gateway host match what stands in PostgreSQL
///
/// Exit codes: 0 done; 1 failed, or warnings; 2 changes (plan), denied (explain); 3 not ready;
/// 4 no agent; 64 wrong command line; 78 wrong configuration.
#[derive(Debug, Parser)]
#[command(name = "gatepost", version, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration [default: /etc/gatepost/gatepost.toml]
    #[arg(long, global = true, value_name = "FILE", env = "GATEPOST_CONFIG")]
    pub config: Option<PathBuf>,

    /// What to log, in the syntax of RUST_LOG [default: info for run and device, else warn]
    #[arg(long, global = true, value_name = "FILTER", env = "GATEPOST_LOG")]
    pub log: Option<String>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep this host as the database wants it, until stopped
    Run {
        /// One full pass, a report, and out; fails if the kernel could not be proven equal
        #[arg(long)]
        once: bool,
    },
    /// Make or update the database's schema
    Migrate {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Print what would be applied, and apply nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Let a database role act for a gateway
    Grant {
        /// gateways.name
        gateway: String,
        /// The role that the gateway's agent logs in as
        role: String,
        /// Make the role if there is none
        #[arg(long)]
        create: bool,
        /// The password it is made with, in a file
        #[arg(long, value_name = "FILE", requires = "create")]
        role_password_file: Option<PathBuf>,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Make this gateway's key if there is none, and its row in the database
    Enroll(EnrollArgs),
    /// Show what a pass would change
    Plan(JsonArg),
    /// Show how the agent is
    Status {
        #[command(flatten)]
        json: JsonArg,
        /// Show it anew at each change, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Show every peer
    Peers(JsonArg),
    /// Say whether somebody may reach an address, and why
    Explain {
        /// A user, a device, user/device, a tunnel address, a public key or an id
        who: String,
        /// The address to reach
        #[arg(value_parser = parse_destination)]
        destination: IpAddr,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Compare everything anew, and wait for it
    Resync,
    /// Let the removal that the guard holds back go ahead
    Confirm,
    /// Look for what keeps this gateway from working, each with its remedy
    Check(JsonArg),
    /// Seal and open preshared keys
    #[command(subcommand)]
    Psk(PskCommand),
    /// Make keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// A userspace WireGuard device, in the foreground, until stopped
    Device {
        /// Of the interface, at most 15 characters
        name: InterfaceName,
        /// Be the device's process itself
        #[arg(long, value_enum, hide = true)]
        serve: Option<Serve>,
    },
    /// Write man pages and shell completions, for a package
    #[command(hide = true)]
    Manual {
        /// Where to
        folder: PathBuf,
    },
    /// Remove what is ours from the kernel: every tunnel through this gateway ends
    Down {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArg {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// The database, as a role that may change it [default: the configuration's]
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// That role's password, in a file; one on the command line would show in the process list
    #[arg(long, value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct EnrollArgs {
    /// Where clients find this gateway, HOST:PORT; needed for a new row
    #[arg(long, value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// UDP port; needed for a new row
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: Option<u16>,
    /// The network that peers get their addresses from; needed for a new row
    #[arg(long, value_name = "CIDR")]
    pub vpn_cidr: Option<IpNet>,
    /// A DNS server for clients; may be repeated
    #[arg(long = "dns", value_name = "ADDRESS")]
    pub dns_servers: Vec<IpAddr>,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a private key and print its public key
    Generate {
        /// Where to put it, readable by this user alone [default: the configuration's]
        file: Option<PathBuf>,
    },
    /// Print the public key of a private key
    Public {
        /// The private key's file, or - for standard input [default: the configuration's]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PskCommand {
    /// Read a preshared key in base64 from standard input, print its envelope
    Seal(PskArgs),
    /// Read an envelope from standard input, print the preshared key in base64
    Open(PskArgs),
}

#[derive(Debug, Args)]
pub struct PskArgs {
    /// gateways.id
    #[arg(long, value_name = "UUID")]
    pub gateway: Uuid,
    /// The peer's public key
    #[arg(long, value_name = "KEY")]
    pub peer: PublicKey,
    /// The sealing keys, one `key-id base64` per line [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
}

impl PskArgs {
    /// The gateway that the envelope is bound to.
    #[must_use]
    pub const fn gateway_id(&self) -> GatewayId {
        GatewayId(self.gateway)
    }
}

/// How long the process of a userspace device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Serve {
    /// Until it is stopped, whatever becomes of who started it.
    Alone,
    /// Not longer than who started it.
    WithParent,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
