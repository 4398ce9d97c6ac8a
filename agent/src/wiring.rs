//! Connects the commands to the library: the loop, its preview, and the data plane.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use gatepost::dataplane::nft::{Nft, NftError, NftEvent, NftMonitor, Ownership};
use gatepost::dataplane::{
    DataplaneError, DataplaneHandle, DeviceError, Firewall as _, Host, HostEvent, HostSettings,
    Monitor, NetlinkError, run_userspace_device,
};
use gatepost::model::{Gate, InterfaceName, Local};
use gatepost::reconcile::status::{Explanation, PlanReport};
use gatepost::reconcile::{
    BlockFile, Cache, CacheError, DatabaseError, Hints, KernelChange, LastGood, Link,
    MachineOptions, Options, PreviewError, RunError, Withdrawals, hints, preview,
    preview_explanation, preview_rows,
};
use gatepost::store::{
    HeldLock, Ineffective, REHEARSAL_WITHIN, Rehearsal, Statement, Store, StoreError, Unchanged,
    rehearse,
};
use tokio::sync::mpsc;

use crate::config::{Config, ConfigError, Source, read_private_key, read_psk_keys};
use crate::database;
use crate::handles::LoopHandle;
use crate::hindrances::Hindrances;
use crate::hints::{Broker, listen};
use crate::loop_options::{stale_options, timing};
use crate::openings::openings;
use crate::reload::Reloader;

/// Errors of the library, and of what connects commands to it.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    Firewall(#[from] NftError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    LastGood(#[from] CacheError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot watch the network for changes: {0}")]
    Watch(NetlinkError),
    #[error(
        "cannot find this program's own file, which is needed to start a userspace device: {0}"
    )]
    OwnFile(std::io::Error),
    #[error(transparent)]
    Preview(#[from] PreviewError),
}

/// A checked configuration, before anything is touched.
pub struct Prepared<'a> {
    config: &'a Config,
    gateway: &'a str,
    machine: MachineOptions,
    block_file: BlockFile,
    store: Store,
    broker: Option<Broker>,
}

/// The changes that a pass would make after statements that were rolled back.
pub struct SqlPlan {
    pub after: PlanReport,
    /// How many steps a pass would make without them.
    pub already: usize,
    pub locks: Vec<HeldLock>,
    /// How long the locks were held.
    pub lasted: Duration,
    /// The statements that changed no row, though they were to.
    pub unchanged: Vec<Unchanged>,
    /// Rows that change nothing.
    pub ineffective: Vec<Ineffective>,
}

type GatewayHost = Host<Nft>;

/// Reads every secret and setting, and touches nothing. Errors that only a person can fix come from
/// here.
pub fn prepare(config: &Config) -> Result<Prepared<'_>, WiringError> {
    Ok(Prepared {
        config,
        gateway: config.gateway_name()?,
        machine: machine_options(config)?,
        block_file: block_file(config),
        store: Store::connect(&database::options(config)?)?,
        broker: Broker::of(config)?,
    })
}

impl Prepared<'_> {
    /// The parts of the configuration that SIGHUP makes the agent read again.
    pub fn reloader(&self, source: Source) -> Reloader {
        let local = Arc::clone(&self.machine.local);
        Reloader::new(source, self.config.clone(), local, self.store.clone())
    }

    /// Runs the reconcile loop until `handle.stop` becomes true.
    pub async fn run(self, handle: LoopHandle) -> Result<(), WiringError> {
        let cache = Cache::new(self.config.cache.file.clone(), &self.machine.local.private_key);
        let hints = self.broker.clone().map(|broker| hear(broker, self.gateway));
        let LoopHandle { status, asks, pulse, hindrances, stop } = handle;
        let options = Options { hints, ..self.options(Some(cache), hindrances).await? };
        let alive = || pulse.beat(std::time::Instant::now());
        Ok(gatepost::reconcile::run(options, asks, status, stop, alive).await?)
    }

    /// Makes one full pass and a report.
    pub async fn run_once(self, handle: LoopHandle) -> Result<(), WiringError> {
        let options = self.options(None, handle.hindrances).await?;
        Ok(gatepost::reconcile::run_once(options, handle.status, handle.stop).await?)
    }

    /// Plans a pass without changing anything.
    pub async fn plan(self) -> Result<PlanReport, WiringError> {
        self.require_own_gateway().await?;
        let Self { config, machine, store, .. } = self;
        Ok(preview(&machine, &store, &open_host(config, Ownership::Respected)?).await?)
    }

    /// Plans a pass as if these statements were committed, as an owner of the database.
    pub async fn plan_sql(self, statements: &[Statement]) -> Result<SqlPlan, WiringError> {
        let Self { config, gateway, machine, .. } = self;
        let rehearsal =
            rehearse(&database::options(config)?, gateway, statements, REHEARSAL_WITHIN).await?;
        let Rehearsal { before, after, locks, unchanged, ineffective, lasted } = rehearsal;
        let host = open_host(config, Ownership::Respected)?;
        let already = match before {
            Some(rows) => preview_rows(&machine, rows, &host).await?.steps.len(),
            None => 0,
        };
        let after = preview_rows(&machine, after, &host).await?;
        Ok(SqlPlan { after, already, locks, unchanged, ineffective, lasted })
    }

    /// The verdict, from database and kernel, without an agent, and the link as it should be.
    pub async fn explain(
        self,
        who: &str,
        destination: IpAddr,
    ) -> Result<(Explanation, Link), WiringError> {
        self.require_own_gateway().await?;
        let Self { config, machine, store, .. } = self;
        let (host, destination) =
            (open_host(config, Ownership::Respected)?, destination.to_string());
        Ok(preview_explanation(&machine, &store, &host, who, &destination).await?)
    }

    async fn options(
        self,
        cache: Option<Cache>,
        hindrances: Hindrances,
    ) -> Result<Options<GatewayHost>, WiringError> {
        let Self { config, gateway, machine, block_file, store, .. } = self;
        let dataplane = open_host(config, Ownership::Taken)?;
        Ok(Options {
            machine,
            store,
            mode: config.sync.mode,
            kernel_events: watch_kernel(config, &dataplane, hindrances).await?,
            hints: None,
            dataplane,
            cache,
            block_file,
            gateway: gateway.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        })
    }

    /// The loop refuses a role that is bound to another gateway, so a preview must, too.
    async fn require_own_gateway(&self) -> Result<(), WiringError> {
        let bound = self.store.hello().await?.gateway_name;
        if bound == self.gateway {
            return Ok(());
        }
        let configured = self.gateway.to_owned();
        Err(RunError::from(DatabaseError::OtherGateway { bound, configured }).into())
    }
}

/// Begins to hear hints, once the loop says for which gateway.
fn hear(broker: Broker, gateway: &str) -> Hints {
    let (hints, hearing) = hints();
    let (name, seed) = (format!("gatepost {gateway}"), u64::from(std::process::id()));
    tokio::spawn(listen(broker, name, seed, hearing));
    hints
}

/// Runs the userspace device in this process.
pub fn serve_device(name: &InterfaceName) -> Result<(), WiringError> {
    Ok(run_userspace_device(name)?)
}

/// The names of the links that [`down`] would remove.
pub async fn links(config: &Config) -> Result<Vec<Box<str>>, WiringError> {
    Ok(open_host(config, Ownership::Respected)?.run(Host::link_names).await??)
}

/// Removes gate, links and firewall table from the kernel, and returns what was removed. The table goes
/// last, because it guards the links, and because the gate drops what no table marks.
pub async fn down(config: &Config) -> Result<Vec<String>, WiringError> {
    let dataplane = open_host(config, Ownership::Respected)?;
    dataplane
        .run(move |host| -> Result<Vec<String>, WiringError> {
            let mut removed = Vec::new();
            if host.remove_rules()? {
                removed.push("routing rules of the gate".to_owned());
            }
            let described = |name| format!("interface {name}, its peers, addresses and routes");
            removed.extend(host.remove_links()?.into_iter().map(described));
            if host.firewall().remove()? {
                removed.push("nftables table inet gatepost".to_owned());
            }
            Ok(removed)
        })
        .await?
}

fn machine_options(config: &Config) -> Result<MachineOptions, WiringError> {
    let local = Local {
        interface: config.interface.name.clone(),
        private_key: read_private_key(config)?,
        mtu_bytes: config.interface.mtu_bytes,
        addresses: config.interface.addresses.iter().copied().collect(),
        fwmark: config.interface.fwmark.0,
        site_prefixes: config.interface.site_prefixes.iter().copied().collect(),
        masquerade: config.firewall.masquerade,
        deny_log: config.firewall.deny_log.then_some(config.firewall.deny_log_group),
        gateway_opens: openings(config),
        flush_conntrack: config.firewall.flush_conntrack,
        flows_per_address: NonZeroU32::new(config.firewall.flows_per_address),
        gate: Gate::new(config.firewall.fail_closed, config.firewall.fail_closed_mark),
        psk_keys: read_psk_keys(config)?.unwrap_or_default(),
    };
    let cache = Cache::new(config.cache.file.clone(), &local.private_key);
    Ok(MachineOptions {
        local: Arc::new(local),
        block_list: block_file(config).load_or_deny(),
        timing: timing(config),
        max_removed: config.guard.max_removed_peers,
        lost_history: config.guard.lost_history,
        withdrawals: Withdrawals::load_beside(&cache),
        stale: stale_options(config),
    })
}

/// Reads the last good rows, from which the agent starts if it boots without the database.
pub fn last_good(config: &Config) -> Result<Option<LastGood>, WiringError> {
    let cache = Cache::new(config.cache.file.clone(), &read_private_key(config)?);
    Ok(cache.load(config.gateway_name()?)?)
}

/// The host's block list lies beside the last good rows.
pub fn block_file(config: &Config) -> BlockFile {
    BlockFile::new(config.cache.file.with_file_name("blocked"))
}

/// `ownership` is that of the table, unless the configuration leaves it to every program.
fn open_host(
    config: &Config,
    ownership: Ownership,
) -> Result<DataplaneHandle<GatewayHost>, WiringError> {
    let ownership = if config.firewall.own_table { ownership } else { Ownership::Shared };
    let settings = HostSettings {
        interface: config.interface.name.clone(),
        backend: config.interface.backend,
        device_exe: std::env::current_exe().map_err(WiringError::OwnFile)?,
    };
    let open = move || {
        let firewall = Nft::open_with(ownership)?;
        Host::open(settings, firewall)
    };
    Ok(DataplaneHandle::spawn(open)?)
}

/// Watches links, addresses, routes, routing rules and the firewall.
async fn watch_kernel(
    config: &Config,
    dataplane: &DataplaneHandle<GatewayHost>,
    hindrances: Hindrances,
) -> Result<mpsc::Receiver<KernelChange>, WiringError> {
    const CHANGES: usize = 16;
    let (news, changes) = mpsc::channel(CHANGES);
    let (index, port) = dataplane.run(|host| host.link_index().map(|i| (i, host.port()))).await??;
    let name = config.interface.name.clone();
    let links = Monitor::open(name, index, port).map_err(WiringError::Watch)?;
    let own_port = dataplane.run(|host| host.firewall().port()).await?;
    let rules = NftMonitor::open(own_port)?;
    let membership = rules.membership();
    dataplane.run(move |host| host.firewall().mute(membership)).await?;
    tokio::spawn(forward_link_events(links, news.clone(), hindrances.clone()));
    tokio::spawn(forward_firewall_events(rules, news, hindrances));
    Ok(changes)
}

async fn forward_link_events(
    mut links: Monitor,
    news: mpsc::Sender<KernelChange>,
    hindrances: Hindrances,
) {
    loop {
        let why = match links.next().await {
            Ok(HostEvent::Link) => "the link changed",
            Ok(HostEvent::Address) => "an address changed",
            Ok(HostEvent::Route) => "a route changed",
            Ok(HostEvent::Rule) => {
                // Forwarding is announced like the source checks.
                hindrances.look_again();
                // Whatever fills the channel makes the loop look at them, too.
                drop(news.try_send(KernelChange::Routing));
                continue;
            }
            Ok(HostEvent::Resync) => "network events were lost",
            Err(error) => {
                tracing::warn!(%error, "network events have ended; changes are still found by the periodic comparison: {error}");
                return;
            }
        };
        if news.send(KernelChange::Anything(why.to_owned())).await.is_err() {
            // The loop has ended.
            return;
        }
    }
}

async fn forward_firewall_events(
    mut rules: NftMonitor,
    news: mpsc::Sender<KernelChange>,
    hindrances: Hindrances,
) {
    loop {
        let event = rules.next().await;
        hindrances.look_again();
        let why = match event {
            Ok(NftEvent::Foreign(change)) if change.touched_ours => {
                format!("{}, pid {}, changed our firewall", change.process, change.pid)
            }
            Ok(NftEvent::Foreign(_)) => continue,
            Ok(NftEvent::Lost) => "firewall events were lost".to_owned(),
            Err(error) => {
                tracing::warn!(%error, "firewall events have ended; changes are still found by the periodic comparison: {error}");
                return;
            }
        };
        if news.send(KernelChange::Anything(why)).await.is_err() {
            return;
        }
    }
}
