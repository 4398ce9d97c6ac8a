//! `gatepost enroll`: this gateway's key and row.

use gatepost::model::GatewayId;
use gatepost::store::{Enrollment, Store, StoreError};

use crate::cli::EnrollArgs;
use crate::command::key;
use crate::config::{Config, private_key_file, read_private_key};
use crate::database;
use crate::exit::{CommandError, Exit};
use crate::output::print;

/// Makes the key if there is none, then the gateway's row with its public key.
///
/// # Errors
/// The key can be neither read nor made; the database cannot be reached or refuses.
pub fn enroll(config: &Config, args: &EnrollArgs) -> Result<Exit, CommandError> {
    let name = config.gateway_name()?;
    let file = private_key_file(config);
    let private_key = if file.path.exists() || file.is_credential {
        read_private_key(config)?
    } else {
        let made = key::generate(&file.path)?;
        print(&format!("private key made: {}\n", file.path.display()))?;
        made
    };
    let public_key = private_key.public_key();
    let enrollment = Enrollment {
        name: name.to_owned(),
        public_key,
        endpoint: args.endpoint.clone(),
        listen_port: args.listen_port,
        vpn_cidr: args.vpn_cidr,
        dns_servers: some_if_any(args.dns_servers.iter().map(ToString::to_string).collect()),
    };
    let options = database::options(config)?;
    let enrolling = async { Store::connect(&options)?.enroll(&enrollment).await };
    let id: Result<GatewayId, StoreError> = super::small_runtime()?.block_on(enrolling);
    let id = id?;
    print(&format!("gateway {name} ({id})\npublic key {public_key}\n"))?;
    Ok(Exit::Success)
}

/// No server named leaves the row's as they are.
fn some_if_any(servers: Vec<String>) -> Option<Vec<String>> {
    (!servers.is_empty()).then_some(servers)
}
