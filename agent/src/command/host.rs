//! `gatepost host`: the hosts that the gateway's row has.

use gatepost::reconcile::status::Timestamp;
use gatepost::store::{KnownHost, Store};
use serde::Serialize;

use crate::config::Config;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, print, printable};
use crate::{database, runtime};

/// One host, as `host list --json` prints it.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub name: String,
    pub machine: String,
    pub boot: String,
    pub since: Timestamp,
    pub seen_at: Timestamp,
    pub proven_at: Option<Timestamp>,
    pub leads: bool,
}

impl From<KnownHost> for Listed {
    fn from(host: KnownHost) -> Self {
        let KnownHost { name, machine, boot, since, seen_at, proven_at, leads } = host;
        let (since, seen_at) = (Timestamp(since), Timestamp(seen_at));
        Self { name, machine, boot, since, seen_at, proven_at: proven_at.map(Timestamp), leads }
    }
}

/// Lists the hosts of the gateway.
///
/// # Errors
/// The database cannot be reached or refuses.
pub fn list(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let store = Store::connect(&database::options(config)?)?;
    let hosts = runtime::on_this_thread()?.block_on(store.hosts())?;
    let hosts: Vec<Listed> = hosts.into_iter().map(Listed::from).collect();
    if json {
        output::print_json(&hosts)?;
    } else {
        print(&hosts.iter().map(line).collect::<String>())?;
    }
    Ok(Exit::Success)
}

fn line(host: &Listed) -> String {
    let proven = host.proven_at.map_or("never".to_owned(), |at| at.to_string());
    let leads = if host.leads { ", reports for the gateway" } else { "" };
    let name = if host.name.is_empty() { "(no name)" } else { &host.name };
    let (machine, seen_at) = (&host.machine, host.seen_at);
    printable(&format!("{name}  {machine}  last heard of {seen_at}, last proof {proven}{leads}"))
        + "\n"
}

/// Forgets the hosts of this name or machine.
///
/// # Errors
/// The database cannot be reached or refuses; no host has that name.
pub fn forget(config: &Config, who: &str) -> Result<Exit, CommandError> {
    let store = Store::connect(&database::options(config)?)?;
    runtime::on_this_thread()?.block_on(async {
        let hosts = store.hosts().await?;
        let mut forgotten = 0;
        for host in hosts.iter().filter(|host| host.name == who || host.machine == who) {
            store.forget_host(host).await?;
            forgotten += 1;
        }
        if forgotten == 0 {
            return Err(CommandError::HostUnknown { name: who.to_owned() });
        }
        print(&format!("forgot {}\n", output::count(forgotten, "host")))?;
        Ok(Exit::Success)
    })
}
