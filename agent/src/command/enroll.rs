//! `gatepost enroll`: creates this gateway's key and row.

use std::fs;
use std::path::Path;

use gatepost::dataplane::networks_of_other_links;
use gatepost::model::GatewayId;
use gatepost::plan::usable_network;
use gatepost::store::{Enrollment, KeyChange, Store, StoreError};

use crate::cli::EnrollArgs;
use crate::config::{Config, DEFAULT_FILE, private_key_file, read_private_key};
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::forwarding::{self, Places, Prepared};
use crate::key_file;
use crate::output::print;
use crate::runtime;

/// Generates the key if there is none, then inserts or updates the gateway's row.
///
/// # Errors
/// The network cannot be the tunnel's on this host; the key cannot be read or written; the database
/// cannot be reached or refuses. A generated key that it refuses is removed again.
pub fn enroll(config: &Config, args: &EnrollArgs) -> Result<Exit, CommandError> {
    let name = config.gateway_name()?;
    if let Some(pool) = args.vpn_cidr {
        let others = networks_of_other_links(&config.interface.name).unwrap_or_default();
        usable_network(pool.trunc(), &others).map_err(CommandError::Pool)?;
    }
    let file = private_key_file(config);
    let is_new = !file.path.exists() && !file.is_credential;
    let private_key =
        if is_new { key_file::generate(&file.path)? } else { read_private_key(config)? };
    let public_key = private_key.public_key();
    let enrollment = Enrollment {
        name: name.to_owned(),
        public_key,
        endpoint: args.endpoint.clone(),
        listen_port: args.listen_port,
        vpn_cidr: args.vpn_cidr,
        dns_servers: dns_servers(args),
        key_change: if args.new_key { KeyChange::Allowed } else { KeyChange::Refused },
    };
    let options = database::options(config)?;
    let enrolling = async { Store::connect(&options)?.enroll(&enrollment).await };
    let id: Result<GatewayId, StoreError> = runtime::on_this_thread()?.block_on(enrolling);
    if is_new && matches!(id, Err(StoreError::EnrollmentRefused { .. })) {
        fs::remove_file(&file.path)?;
    } else if is_new {
        // After any other error the row may hold it.
        print(&format!("generated private key {}\n", file.path.display()))?;
    }
    let id = id?;
    print(&format!("gateway {name} ({id})\npublic key {public_key}\n"))?;
    prepare_host(config);
    if args.new_key {
        print("if the agent runs with another key, restart it: systemctl restart gatepost\n")?;
    }
    Ok(Exit::Success)
}

/// Turns on forwarding for the host that the package's unit serves. Another configuration may be that of a
/// container or of a test, whose kernel settings are not its own.
fn prepare_host(config: &Config) {
    if config.file != Path::new(DEFAULT_FILE) || !nix::unistd::geteuid().is_root() {
        return;
    }
    let places = Places { folder: Path::new("/etc/sysctl.d"), kernel: Path::new("/proc/sys") };
    match forwarding::prepare(&places) {
        Ok(Prepared { written, applied }) => {
            if let Some(path) = written {
                tracing::warn!("wrote {}: a gateway forwards packets", path.display());
            }
            if !applied.is_empty() {
                tracing::warn!("set {}", applied.join(", "));
            }
        }
        Err(error) => tracing::warn!(
            "could not turn on forwarding ({error}): `gatepost check` says what is missing"
        ),
    }
}

/// `None`, which leaves the row's as they are, unless the command line names some.
fn dns_servers(args: &EnrollArgs) -> Option<Vec<String>> {
    let servers = args.dns_servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    (!servers.is_empty()).then_some(servers)
}
