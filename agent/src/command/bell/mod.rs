//! `gatepost bell`: tells gateways over NATS that there are changes for them, and merges their reports.

mod merger;
mod rhythm;
mod ringer;
mod state;
mod troubles;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gatepost::store::{ConnectOptions, KnownBell, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::merger::Merger;
use self::ringer::Ringer;
use self::state::{BellState, BellWatcher, Counts};
use crate::config::{Config, ConfigError};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::hints::Broker;
use crate::output::{age, count, print};
use crate::pulse::Pulse;
use crate::runtime;
use crate::telemetry::{MetricsServer, set_filter};
use crate::{database, systemd};

/// A look takes about a millisecond. One that takes longer than this lets another bell take over.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// Runs until stopped.
///
/// # Errors
/// A wrong configuration. What a running bell cannot do, it says and tries again.
pub fn bell(config: &Config) -> Result<Exit, CommandError> {
    // `load` has parsed it.
    let _ = set_filter(&config.log.filter);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))?;
    Ok(Exit::Success)
}

async fn serve(config: &Config) -> Result<(), CommandError> {
    let broker = broker(config)?;
    let mut options = database::options(config)?;
    let merging = Store::connect(&options)?;
    options.statement_timeout = LOOK_WITHIN;
    let store = Store::connect(&options)?;
    database::follow_files(&merging, database::source(config.clone()));
    let soon = |options: &mut ConnectOptions| options.statement_timeout = LOOK_WITHIN;
    database::follow_files(&store, database::source_with(config.clone(), soon));
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let name = name();
    let (sender, state) = watch::channel(BellState::Starting);
    let (counts, pulse) = (Arc::new(Counts::default()), Pulse::new(Instant::now()));
    let watcher =
        BellWatcher { state: state.clone(), counts: Arc::clone(&counts), pulse: pulse.clone() };
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(name, version, "bell {name} of gatepost {version} has started");
    // Dropped at the end, and every task with it.
    let mut tasks = JoinSet::new();
    let listen = config.metrics.listen;
    match MetricsServer::bind(listen, false).await {
        Ok(metrics) => drop(tasks.spawn(metrics.serve_pages(watcher))),
        Err(error) => {
            tracing::warn!(%listen, %error, "no metrics: cannot listen on {listen}: {error}");
        }
    }
    tasks.spawn(systemd::follow_bell(state.clone(), pulse.clone()));
    tasks.spawn(Merger { store: merging, state, counts: Arc::clone(&counts) }.run());
    let ringer =
        Ringer { store: store.clone(), broker, name: name.clone(), state: sender, counts, pulse };
    let ringing = ringer.run();
    tokio::select! {
        never = ringing => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; another bell may ring now");
    // Where the database does not answer, the hold ends by itself.
    let _ = tokio::time::timeout(LOOK_WITHIN, store.leave_bell(&name)).await;
    Ok(())
}

fn broker(config: &Config) -> Result<Broker, ConfigError> {
    Broker::of(config)?.ok_or(ConfigError::Missing {
        key: "hints.url",
        file: config.file.clone(),
        variable: "GATEPOST_HINTS_URL",
    })
}

/// The host's name, and what tells this process from any other.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut random = [0; 4];
    // Without it, the process id has to do.
    let _ = getrandom::fill(&mut random);
    format!("{}/{}-{:08x}", host.trim(), std::process::id(), u32::from_be_bytes(random))
}

/// Prints whether a bell could ring here, and which one rings.
///
/// # Errors
/// A wrong configuration, or a database or broker that cannot be used.
pub fn check(config: &Config) -> Result<Exit, CommandError> {
    let broker = broker(config)?;
    let store = Store::connect(&database::options(config)?)?;
    let runtime = runtime::on_this_thread()?;
    let known = runtime.block_on(store.known_bell())?;
    let now = SystemTime::now();
    print(&format!("database   {}\n{}", store.place(), describe(known.as_ref(), now)))?;
    runtime.block_on(broker.connect("gatepost bell --check", |_| ()))?;
    print("nats       connected\n")?;
    Ok(if known.is_some_and(|bell| bell.is_alive) { Exit::Success } else { Exit::NotReady })
}

fn describe(known: Option<&KnownBell>, now: SystemTime) -> String {
    let Some(bell) = known else { return "bell       none has rung yet\n".to_owned() };
    let ago = |time: Option<SystemTime>| {
        let age_of = |time| age(now.duration_since(time).unwrap_or_default());
        time.map_or_else(|| "at no time".to_owned(), age_of)
    };
    let gateways = usize::try_from(bell.gateways).unwrap_or_default();
    let state = if bell.is_alive { "rings" } else { "rings no more" };
    format!(
        "bell       {} {state}; it took over {}\ngateways   {}\n",
        bell.holder,
        ago(bell.since),
        count(gateways, "gateway")
    )
}
