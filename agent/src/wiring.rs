//! From the commands into the library: the loop, a look at what it would do, the data plane.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gatepost::dataplane::nft::{Nft, NftError, NftEvent, NftMonitor};
use gatepost::dataplane::{
    DataplaneError, DataplaneHandle, DeviceError, Firewall as _, Host, HostEvent, HostSettings,
    Monitor, run_userspace_device,
};
use gatepost::model::psk::{PskKeys, PskKeysError};
use gatepost::model::{InterfaceName, Local, PrivateKey};
use gatepost::reconcile::status::{Explanation, PlanReport};
use gatepost::reconcile::{
    Cache, MachineOptions, Options, RunError, StaleOptions, Timing, preview, preview_explanation,
};
use gatepost::store::{Store, StoreError};
use tokio::sync::mpsc;

use crate::config::{Config, ConfigError, Secret, read_private_key, read_secret};
use crate::database;
use crate::handles::LoopEnd;

/// Why a command got no answer from the library.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("[gateway] psk_keys_file: {0}")]
    PskKeys(#[from] PskKeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    Firewall(#[from] NftError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot watch the network: {0}")]
    Watch(std::io::Error),
    #[error("{0}")]
    Said(String),
}

/// What the loop needs beside its [`LoopEnd`].
#[derive(Debug)]
pub struct RunOptions<'a> {
    pub config: &'a Config,
    pub private_key: PrivateKey,
    /// One full pass and a report, then return.
    pub once: bool,
}

type GatewayHost = Host<Nft>;

/// Runs the reconcile loop until `end.stop` becomes true, or for one pass.
pub async fn run(options: RunOptions<'_>, end: LoopEnd) -> Result<(), WiringError> {
    let RunOptions { config, private_key, once } = options;
    let machine = machine_options(config, private_key)?;
    let store = Store::connect(&database::options(config)?)?;
    let dataplane = open_host(config)?;
    let options = Options {
        machine,
        store,
        mode: config.sync.mode,
        kernel_events: watch_kernel(config, &dataplane).await?,
        dataplane,
        cache: (!once).then(|| Cache::new(config.path(&config.cache.file))),
        gateway: config.gateway_name()?.to_owned(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let LoopEnd { status, asks, pulse, stop } = end;
    if once {
        return Ok(gatepost::reconcile::run_once(options, status).await?);
    }
    let alive = || pulse.beat(std::time::Instant::now());
    gatepost::reconcile::run(options, asks, status, stop, alive).await;
    Ok(())
}

/// What a pass would change.
pub async fn plan(config: &Config) -> Result<PlanReport, WiringError> {
    let machine = machine_options(config, read_private_key(config)?)?;
    let store = Store::connect(&database::options(config)?)?;
    preview(&machine, &store, &open_host(config)?).await.map_err(WiringError::Said)
}

/// The verdict, from the database and the kernel as they are now, without an agent.
pub async fn explain(
    config: &Config,
    who: &str,
    destination: IpAddr,
) -> Result<Explanation, WiringError> {
    let machine = machine_options(config, read_private_key(config)?)?;
    let store = Store::connect(&database::options(config)?)?;
    let dataplane = open_host(config)?;
    preview_explanation(&machine, &store, &dataplane, who, &destination.to_string())
        .await
        .map_err(WiringError::Said)
}

/// Runs the userspace device in this process.
pub fn serve_device(name: &InterfaceName) -> Result<(), WiringError> {
    Ok(run_userspace_device(name)?)
}

/// Stops the userspace device of this name, in whichever process it is, and removes its socket.
pub fn stop_device(name: &InterfaceName) -> Result<(), WiringError> {
    Ok(gatepost::dataplane::stop_device(name)?)
}

/// Removes what is ours from the kernel; says what that was. The links go first: while one is there,
/// the table may guard it.
pub async fn down(config: &Config) -> Result<Vec<String>, WiringError> {
    let dataplane = open_host(config)?;
    dataplane
        .run(move |host| -> Result<Vec<String>, WiringError> {
            let described = |name| format!("interface {name}, its peers, addresses and routes");
            let mut removed: Vec<String> =
                host.remove_links()?.into_iter().map(described).collect();
            if host.firewall().remove()? {
                removed.push("nftables table inet gatepost".to_owned());
            }
            Ok(removed)
        })
        .await?
}

fn machine_options(
    config: &Config,
    private_key: PrivateKey,
) -> Result<MachineOptions, WiringError> {
    let psk_keys = match read_secret(config, Secret::PskKeys)? {
        Some(text) => text.expose_text().parse()?,
        None => PskKeys::default(),
    };
    let local = Local {
        interface: config.interface.name.clone(),
        private_key,
        mtu_bytes: config.interface.mtu_bytes,
        addresses: config.interface.addresses.iter().copied().collect(),
        fwmark: config.interface.fwmark.0,
        site_prefixes: config.interface.site_prefixes.iter().copied().collect(),
        masquerade: config.firewall.masquerade,
        deny_log: config.firewall.deny_log,
        flush_conntrack: config.firewall.flush_conntrack,
        psk_keys,
    };
    let sync = &config.sync;
    Ok(MachineOptions {
        local: Arc::new(local),
        timing: Timing {
            poll_interval: sync.poll_interval.unwrap_or(Duration::from_millis(700)),
            safety_poll_interval: sync.poll_interval.unwrap_or(Duration::from_secs(10)),
            resync_interval: sync.resync_interval,
            report_interval: config.report.interval,
            heartbeat: config.report.heartbeat,
            seed: u64::from(std::process::id()),
        },
        max_removed: config.guard.max_removed_peers,
        stale: StaleOptions { policy: config.stale.policy, after: config.stale.after },
    })
}

fn open_host(config: &Config) -> Result<DataplaneHandle<GatewayHost>, WiringError> {
    let settings = HostSettings {
        interface: config.interface.name.clone(),
        backend: config.interface.backend,
        device_exe: std::env::current_exe().map_err(WiringError::Watch)?,
    };
    let open = move || {
        let firewall = Nft::open().map_err(|error| DataplaneError::Firewall(Box::new(error)))?;
        Host::open(settings, firewall)
    };
    Ok(DataplaneHandle::spawn(open)?)
}

/// Says why to look at the kernel again, whenever somebody changes what is ours.
async fn watch_kernel(
    config: &Config,
    dataplane: &DataplaneHandle<GatewayHost>,
) -> Result<mpsc::Receiver<String>, WiringError> {
    /// A storm of changes is one reason to look.
    const REASONS: usize = 16;
    let (why, reasons) = mpsc::channel(REASONS);
    let index = dataplane.run(Host::link_index).await??;
    let links = Monitor::open(config.interface.name.clone(), index).map_err(WiringError::Watch)?;
    let own_port = dataplane.run(|host| host.firewall().port()).await?;
    tokio::spawn(tell_links(links, why.clone()));
    tokio::spawn(tell_rules(NftMonitor::open(own_port)?, why));
    Ok(reasons)
}

async fn tell_links(mut links: Monitor, why: mpsc::Sender<String>) {
    while let Some(event) = links.next().await {
        let reason = match event {
            HostEvent::Link => "the link changed",
            HostEvent::Address => "an address changed",
            HostEvent::Route => "a route changed",
            HostEvent::Resync => "network events were lost",
        };
        // A full channel holds a reason to look already.
        drop(why.try_send(reason.to_owned()));
    }
    tracing::warn!("network events have ended; the compare interval still finds changes");
}

async fn tell_rules(mut rules: NftMonitor, why: mpsc::Sender<String>) {
    loop {
        match rules.next().await {
            Ok(NftEvent::Foreign(change)) if change.touched_ours => {
                let reason =
                    format!("{} (pid {}) changed our firewall", change.process, change.pid);
                drop(why.try_send(reason));
            }
            Ok(NftEvent::Foreign(_)) => {}
            Ok(NftEvent::Lost) => drop(why.try_send("firewall events were lost".to_owned())),
            Err(error) => {
                tracing::warn!(%error, "firewall events have ended, the compare interval still finds changes: {error}");
                return;
            }
        }
    }
}
