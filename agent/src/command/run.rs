//! `gatepost run`: the daemon.

use std::time::{Instant, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::command::look;
use crate::command::status::{describe, is_kernel_read};
use crate::config::{Config, Source, exposure, secret_files};
use crate::control::{Server, Writers};
use crate::denied;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::handles::{Ask, LoopHandle, Watcher, channels};
use crate::namespace_lock::{self, Holder, NamespaceLock, NamespaceLockError};
use crate::output::{Style, print};
use crate::reload::{Reloader, Reread};
use crate::telemetry::{MetricsServer, set_filter};
use crate::{systemd, wiring};
use gatepost::reconcile::status::{AgentStatus, Status, Timestamp};

/// Runs until stopped; with `once` for one pass.
///
/// # Errors
/// A wrong configuration; another agent in this network namespace or on this control socket; what
/// ended the loop.
pub fn run(config: &Config, source: Source, once: bool) -> Result<Exit, CommandError> {
    let name = config.gateway_name()?;
    // `load` has parsed it.
    let _ = set_filter(&config.log.filter);
    for exposed in secret_files(config).iter().filter_map(|path| exposure(path)) {
        tracing::warn!("{exposed}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (watcher, handle, stop) = channels(initial_status(config, name), Instant::now());
    let served = runtime.block_on(serve(config, source, once, watcher.clone(), handle, stop));
    let mut status = watcher.status.borrow().clone();
    // Where the host was not even read, there is nothing to report but the error.
    if once && is_kernel_read(&status) {
        // There is no next poll.
        status.sync.poll_interval_ms = None;
        print(&describe(&status, SystemTime::now(), Style::of_stdout()))?;
    }
    served?;
    let converged = !once || status.state.is_ready();
    Ok(if converged { Exit::Success } else { Exit::Failure })
}

/// The status before anything was read.
fn initial_status(config: &Config, name: &str) -> Status {
    let mut status = Status::default();
    name.clone_into(&mut status.gateway.name);
    config.interface.name.as_str().clone_into(&mut status.interface.name);
    status.agent = AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Some(Timestamp(SystemTime::now())),
    };
    status
}

async fn serve(
    config: &Config,
    source: Source,
    once: bool,
    watcher: Watcher,
    handle: LoopHandle,
    stop: watch::Sender<bool>,
) -> Result<(), CommandError> {
    // What only a person can fix is found before anything is touched.
    let prepared = wiring::prepare(config)?;
    let _lock = lock_namespace(config)?;
    let control = Server::bind(&config.control.socket)?;
    let signals = Signals::new()?;
    let reloader = prepared.reloader(source);
    // Dropped when the loop has ended, and every task with it.
    let mut tasks = JoinSet::new();
    if !once {
        log_started(&watcher.status.borrow());
        let listen = config.metrics.listen;
        match MetricsServer::bind(listen, config.metrics.per_peer).await {
            Ok(metrics) => drop(tasks.spawn(metrics.serve(watcher.clone()))),
            // Peers are served without metrics, too.
            Err(error) => {
                tracing::warn!(%listen, %error, "no metrics: cannot listen on {listen}: {error}")
            }
        }
        tasks.spawn(systemd::follow(watcher.clone()));
        watcher.denied.set_logs(config.firewall.deny_log);
        let (denied, asks) = (watcher.denied.clone(), watcher.asks.clone());
        tasks.spawn(denied::follow(config.firewall.deny_log_group, denied, asks));
        let (hindrances, status) = (watcher.hindrances.clone(), watcher.status.clone());
        tasks.spawn(look::for_hindrances(config.clone(), hindrances, status));
    }
    let writers = Writers::new(config.control.write_group.as_deref());
    tasks.spawn(control.serve(watcher.clone(), writers));
    tasks.spawn(signals.handle(watcher, reloader, stop));
    if once { prepared.run_once(handle).await } else { prepared.run(handle).await }?;
    Ok(())
}

/// Refuses to start beside another agent. Where that cannot be told, peers are served all the same.
fn lock_namespace(config: &Config) -> Result<Option<NamespaceLock>, CommandError> {
    let holder = Holder {
        pid: std::process::id(),
        gateway: config.gateway_name()?,
        control_socket: &config.control.socket,
    };
    match NamespaceLock::take(namespace_lock::FOLDER.as_ref(), holder) {
        Ok(lock) => Ok(Some(lock)),
        Err(taken @ NamespaceLockError::Taken { .. }) => Err(taken.into()),
        Err(error) => {
            tracing::warn!(
                %error,
                "a second agent in this network namespace would not be noticed: {error}"
            );
            Ok(None)
        }
    }
}

fn log_started(status: &Status) {
    let (gateway, version) = (&status.gateway.name, &status.agent.version);
    tracing::info!(
        // Explained in the journal's catalog, `systemd/gatepost.catalog`.
        message_id = "5e5eb948f08c4db8a3dab5ec7bd77366",
        gateway,
        version,
        "gatepost {version} has started for gateway {gateway}"
    );
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM and SIGINT stop the loop; SIGHUP makes it read its configuration and compare
    /// everything again.
    async fn handle(mut self, watcher: Watcher, mut reloader: Reloader, stop: watch::Sender<bool>) {
        let (rereads, received) = mpsc::unbounded_channel();
        let mut following = JoinSet::new();
        following.spawn(follow(watcher, received));
        loop {
            tokio::select! {
                _ = self.terminate.recv() => stop_loop(&stop, "SIGTERM"),
                _ = self.interrupt.recv() => stop_loop(&stop, "SIGINT"),
                _ = self.hangup.recv() => {
                    // A few small files; nothing else waits for this task meanwhile.
                    let reread = tokio::task::block_in_place(|| reloader.reload());
                    // `follow` ends only after this.
                    let _ = rereads.send(reread);
                }
            }
        }
    }
}

fn stop_loop(stop: &watch::Sender<bool>, signal: &str) {
    tracing::info!(signal, "{signal}: stopping; tunnels and firewall stay as they are");
    systemd::notify_stopping();
    stop.send_replace(true);
}

/// Follows what was read again, in the order of the signals, and compares everything. systemd sees it
/// as a reload, but not before the agent is ready: the end of a reload would tell systemd that it is.
async fn follow(watcher: Watcher, mut rereads: mpsc::UnboundedReceiver<Result<Reread, String>>) {
    let mut resyncs = JoinSet::new();
    loop {
        tokio::select! {
            Some(reread) = rereads.recv() => {
                let ready = watcher.status.borrow().state.is_ready();
                if ready {
                    systemd::notify_reloading();
                }
                pass_on(&watcher, reread).await;
                // Newer options do not wait for the end of a comparison.
                resyncs.spawn(resync(watcher.clone(), ready));
            }
            Some(_) = resyncs.join_next() => {}
            else => return,
        }
    }
}

async fn pass_on(watcher: &Watcher, reread: Result<Reread, String>) {
    match reread {
        Ok(Reread { options, need_restart }) => {
            tracing::info!(signal = "SIGHUP", "SIGHUP: read configuration and secrets again");
            if !need_restart.is_empty() {
                let keys = need_restart.join(", ");
                tracing::warn!(keys, "SIGHUP: the new values of these keys need a restart: {keys}");
            }
            watcher.denied.set_logs(options.local.deny_log.is_some());
            // Where the loop has ended, there is nothing to follow.
            let _ = watcher.asks.send(Ask::Reload(options)).await;
        }
        Err(why) => tracing::warn!(
            signal = "SIGHUP",
            why,
            "SIGHUP: the former configuration and secrets stay in force: {why}"
        ),
    }
}

async fn resync(watcher: Watcher, ready: bool) {
    tracing::info!(signal = "SIGHUP", "SIGHUP: comparing everything again");
    let (answer, answered) = oneshot::channel();
    let asked = watcher.asks.send(Ask::Resync(answer)).await.is_ok();
    match answered.await {
        Ok(Err(why)) => tracing::warn!(%why, "resync failed: {why}"),
        Err(_) if asked => tracing::debug!("the loop ended before the resync"),
        _ => {}
    }
    if ready {
        systemd::notify_reloaded();
    }
}
