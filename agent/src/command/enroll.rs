//! `gatepost enroll`: creates this gateway's key and row.

use gatepost::dataplane::networks_of_other_links;
use gatepost::model::GatewayId;
use gatepost::plan::usable_network;
use gatepost::store::{Enrollment, Store, StoreError};

use crate::cli::EnrollArgs;
use crate::config::{Config, private_key_file, read_private_key};
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::key_file;
use crate::output::print;
use crate::runtime;

/// Generates the key if there is none, then inserts or updates the gateway's row.
///
/// # Errors
/// The network cannot be the tunnel's on this host; the key cannot be read or written; the database
/// cannot be reached or refuses.
pub fn enroll(config: &Config, args: &EnrollArgs) -> Result<Exit, CommandError> {
    let name = config.gateway_name()?;
    if let Some(pool) = args.vpn_cidr {
        let others = networks_of_other_links(&config.interface.name).unwrap_or_default();
        usable_network(pool.trunc(), &others).map_err(CommandError::Pool)?;
    }
    let file = private_key_file(config);
    let private_key = if file.path.exists() || file.is_credential {
        read_private_key(config)?
    } else {
        let generated = key_file::generate(&file.path)?;
        print(&format!("generated private key {}\n", file.path.display()))?;
        generated
    };
    let public_key = private_key.public_key();
    let enrollment = Enrollment {
        name: name.to_owned(),
        public_key,
        endpoint: args.endpoint.clone(),
        listen_port: args.listen_port,
        vpn_cidr: args.vpn_cidr,
        dns_servers: dns_servers(args),
    };
    let options = database::options(config)?;
    let enrolling = async { Store::connect(&options)?.enroll(&enrollment).await };
    let id: Result<GatewayId, StoreError> = runtime::on_this_thread()?.block_on(enrolling);
    let id = id?;
    print(&format!("gateway {name} ({id})\npublic key {public_key}\n"))?;
    Ok(Exit::Success)
}

/// `None`, which leaves the row's as they are, unless the command line names some.
fn dns_servers(args: &EnrollArgs) -> Option<Vec<String>> {
    let servers = args.dns_servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    (!servers.is_empty()).then_some(servers)
}
