//! The command line.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use gatepost::model::{GatewayId, InterfaceName, PublicKey};
use gatepost::reconcile::parse_destination;
use ipnet::IpNet;
use uuid::Uuid;

/// Where `--help` lists the options that every command takes.
const GLOBAL: &str = "Global options";

/// Keeps a WireGuard gateway in sync with a PostgreSQL database
///
/// Exit codes: 0 success; 1 failure, or warnings of check; 2 changes (plan) or denied (explain);
/// 3 not ready (status); 4 no agent is running; 64 wrong command line; 75 another agent is running
/// (run); 78 wrong configuration, or check found an error.
#[derive(Debug, Parser)]
#[command(name = "gatepost", version, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file [default: /etc/gatepost/gatepost.toml]
    #[arg(long, global = true, value_name = "FILE", env = "GATEPOST_CONFIG", help_heading = GLOBAL)]
    pub config: Option<PathBuf>,

    /// Log filter in the syntax of RUST_LOG [default: info for run and device, else warn]
    #[arg(long, global = true, value_name = "FILTER", env = "GATEPOST_LOG", help_heading = GLOBAL)]
    pub log: Option<String>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: keep this host in sync with the database until stopped
    Run {
        /// Make one full pass, report it and exit; fail if the kernel is not proven equal
        #[arg(long)]
        once: bool,
    },
    /// Tell gateways over NATS that there are changes for them, and merge their reports
    ///
    /// For more than 50 gateways. Its configuration is /etc/gatepost-bell/bell.toml unless --config
    /// says otherwise. Run two: one rings, the other takes over.
    Bell {
        /// Print whether a bell could ring here and which one rings; fail if none does
        #[arg(long)]
        check: bool,
    },
    /// Create or update the database schema
    Migrate {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Print the pending migrations without applying them
        #[arg(long)]
        dry_run: bool,
    },
    /// Take Gatepost's triggers, indexes, rights and schema out of the database again
    Unmigrate {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Print the statements without running them
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: YesArg,
    },
    /// Bind a database role to a gateway
    Grant {
        #[command(flatten)]
        args: GrantArgs,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Generate this gateway's key if it has none, and write its row in the database
    Enroll(EnrollArgs),
    /// Print the configuration of a device's WireGuard client, and note that it was issued
    Profile(ProfileArgs),
    /// Print the SQL that takes over a WireGuard gateway without Gatepost, and change nothing
    Import(ImportArgs),
    /// Show what the agent would change, and change nothing
    Plan(PlanArgs),
    /// Show the agent's status
    Status {
        #[command(flatten)]
        json: JsonArg,
        /// Repeat until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// List the peers
    Peers(PeersArgs),
    /// Explain whether a user or device may reach an address
    Explain {
        /// User, device, USER/DEVICE, tunnel address, public key or id
        who: String,
        /// IP address to reach
        #[arg(value_parser = parse_destination)]
        destination: IpAddr,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Show the packets that the firewall denied, with their peers and the reason
    Denied {
        /// Only to or from this user, device, USER/DEVICE, id, public key or address
        who: Option<String>,
        /// Keep printing newly denied packets until interrupted
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Cut off a user, device, key or address on this host, whatever the database says
    Block {
        /// User, device, USER/DEVICE, id, tunnel address or public key
        who: String,
    },
    /// Lift a block
    Unblock {
        /// As `gatepost blocked` lists it: name, id, tunnel address or public key
        who: String,
    },
    /// List the blocks of this host
    Blocked(JsonArg),
    /// Make the agent compare everything again, and wait until it is done
    Resync,
    /// Show the peers that the guard holds back or keeps out; confirm their removal, or let them in
    Confirm(YesArg),
    /// Check configuration, database and host; print findings with remedies
    Check(JsonArg),
    /// Write status, check, plan, journal and versions to one file for support, without secrets
    Bundle {
        /// File to create, with mode 0600
        file: PathBuf,
    },
    /// Seal and open preshared keys
    #[command(subcommand)]
    Psk(PskCommand),
    /// Generate keys and print public keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Run a userspace WireGuard device in the foreground until stopped
    Device {
        /// Interface name, at most 15 characters
        name: InterfaceName,
        /// Without effect: agents pass it when they start a device
        #[arg(long, value_enum, hide = true)]
        serve: Option<Serve>,
    },
    /// Write man pages and shell completions, for a package
    #[command(hide = true)]
    Manual {
        /// Target folder
        folder: PathBuf,
    },
    /// List and forget the hosts of this gateway
    #[command(subcommand)]
    Host(HostCommand),
    /// Remove interfaces, routing rules and firewall table, which ends every tunnel
    Down(YesArg),
}

#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArg {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct YesArg {
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub struct PeersArgs {
    /// Only this user's
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only those with a handshake in the last 180 s
    #[arg(long)]
    pub connected: bool,
    /// Only those whose rows cannot be used
    #[arg(long)]
    pub quarantined: bool,
    /// Add endpoints and policies, for a terminal of more than 80 columns
    #[arg(long, conflicts_with = "json")]
    pub wide: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show what it would change if these statements were committed; they are rolled back
    #[arg(long, value_name = "FILE")]
    pub sql: Option<PathBuf>,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// Database URL of a role that may change the schema [default: the configured URL]
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// File with that role's password, which in the URL would show in the process list
    #[arg(long, value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct GrantArgs {
    /// The gateway's name (gateways.name)
    #[arg(required_unless_present_any = ["bell", "token", "revoke_tokens"])]
    pub gateway: Option<String>,
    /// The role that the gateway's agent logs in as
    #[arg(required_unless_present_any = ["bell", "token", "revoke_tokens"])]
    pub role: Option<String>,
    /// Let this role ring (gatepost bell), instead of binding a gateway
    #[arg(long, value_name = "ROLE", conflicts_with_all = ["gateway", "enroll", "token", "revoke_tokens"])]
    pub bell: Option<String>,
    /// Print a token for this gateway, for gateways that log in as one role through a pool
    #[arg(long, value_name = "GATEWAY", conflicts_with_all = ["gateway", "enroll", "revoke_tokens"])]
    pub token: Option<String>,
    /// Let this role call with tokens: the gateways of a pool log in as this role
    #[arg(long, value_name = "ROLE", requires = "token")]
    pub pool_role: Option<String>,
    /// Revoke the tokens of this gateway
    #[arg(long, value_name = "GATEWAY", conflicts_with_all = ["gateway", "enroll", "create"])]
    pub revoke_tokens: Option<String>,
    /// Keep the token that was granted last
    #[arg(long, requires = "revoke_tokens")]
    pub keep_newest: bool,
    /// Create the role if it does not exist; an existing role keeps its password
    #[arg(long)]
    pub create: bool,
    /// Let the role change the gateway's row once more with `gatepost enroll`
    #[arg(long)]
    pub enroll: bool,
    /// File with the created role's password
    #[arg(long, value_name = "FILE", requires = "create")]
    pub role_password_file: Option<PathBuf>,
    #[command(flatten)]
    pub yes: YesArg,
}

#[derive(Debug, Args)]
pub struct EnrollArgs {
    /// Address that clients connect to; required for a new row
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_endpoint)]
    pub endpoint: Option<String>,
    /// UDP port of WireGuard; required for a new row
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: Option<u16>,
    /// Network of the tunnel addresses; required for a new row
    #[arg(long, value_name = "CIDR")]
    pub vpn_cidr: Option<IpNet>,
    /// DNS server for clients; may be repeated
    #[arg(long = "dns", value_name = "ADDRESS")]
    pub dns_servers: Vec<IpAddr>,
    /// Let this host's key replace another key in the row: every client then needs the new key
    #[arg(long)]
    pub new_key: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("private").args(["new_key", "private_key_file"]))]
pub struct ProfileArgs {
    /// The device, as USER/DEVICE
    pub who: String,
    /// The gateway, if the device has a peer on several
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Generate another key for the device and write its public key; that gateway refuses the former from then on
    #[arg(long)]
    pub new_key: bool,
    /// File with the device's private key, to print it with the rest, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "new_key")]
    pub private_key_file: Option<PathBuf>,
    /// Print a QR code for the terminal; needs --new-key or --private-key-file
    #[arg(long, requires = "private", conflicts_with = "json")]
    pub qr: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// File of sealing keys, one `key-id base64` per line [default: the configured sealing keys]
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// WireGuard interface of this host, or a file of wg-quick(8)
    #[arg(value_name = "LINK|FILE")]
    pub source: String,
    /// The gateway's name (gateways.name) [default: the configured name]
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Address that clients connect to, for new profiles
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_endpoint)]
    pub endpoint: Option<String>,
    /// File of wg-quick(8) whose comments name the peers of LINK [default: /etc/wireguard/LINK.conf]
    #[arg(long, value_name = "FILE")]
    pub names: Option<PathBuf>,
    /// File of sealing keys for preshared keys, one `key-id base64` per line [default: the configured sealing keys]
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List the hosts whose agents report for this gateway
    List(JsonArg),
    /// Forget a host that is gone, so that last_sync_at no longer waits for it
    Forget {
        /// Its name or machine, as `gatepost host list` shows them
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Generate a private key and print its public key
    Generate {
        /// File to create, with mode 0600 [default: the configured private key]
        file: Option<PathBuf>,
    },
    /// Print the public key of a private key
    Public {
        /// File with the private key, or - for standard input [default: the configured private key]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PskCommand {
    /// Read a preshared key (base64) from standard input and print its envelope
    Seal(PskArgs),
    /// Read an envelope from standard input and print its preshared key (base64)
    Open(PskArgs),
}

#[derive(Debug, Args)]
pub struct PskArgs {
    /// The gateway's id (gateways.id)
    #[arg(long, value_name = "UUID")]
    pub gateway: Uuid,
    /// The peer's public key
    #[arg(long, value_name = "KEY")]
    pub peer: PublicKey,
    /// File of sealing keys, one `key-id base64` per line [default: the configured sealing keys]
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

/// How the process of a userspace device was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Serve {
    /// By an agent that it outlives.
    Alone,
    /// By the last version, whose `gatepost device` had two processes.
    WithParent,
}

/// An address for clients: a host name or an address, and a port. An IPv6 address stands in brackets.
fn parse_endpoint(text: &str) -> Result<String, &'static str> {
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|it| it.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains(':'),
    };
    let parts = text.rsplit_once(':');
    let is_whole = parts
        .is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok_and(|it| it > 0));
    if is_whole {
        Ok(text.to_owned())
    } else {
        Err("write HOST:PORT, for example vpn.example.org:51820")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn endpoint_has_a_host_and_a_port() {
        for right in ["vpn.example.org:51820", "192.0.2.1:1", "[2001:db8::1]:51820"] {
            assert_eq!(parse_endpoint(right), Ok(right.to_owned()));
        }
        for wrong in ["vpn.example.org", "gw:51820x", "gw:0", ":51820", "2001:db8::1", "[gw]:1"] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
