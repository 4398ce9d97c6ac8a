//! `gatepost run`: the daemon.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::command::status::describe;
use crate::config::{Config, exposure, secret_files};
use crate::control::Server;
use crate::exit::{CommandError, Exit};
use crate::handles::{Ask, LoopEnd, Watcher, pair};
use crate::output::{Style, print};
use crate::telemetry::MetricsServer;
use crate::{systemd, wiring};
use gatepost::model::WithoutPskKeys;
use gatepost::reconcile::status::{AgentStatus, Status, Timestamp};

/// Runs until stopped; with `once` for one pass.
///
/// # Errors
/// A wrong configuration; another agent on this control socket; what ended the loop.
pub fn run(config: &Config, once: bool) -> Result<Exit, CommandError> {
    let name = config.gateway_name()?;
    for exposed in secret_files(config).iter().filter_map(|path| exposure(path)) {
        tracing::warn!("{exposed}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (watcher, end, stop) = pair(beginning(config, name), Instant::now());
    let served = runtime.block_on(serve(config, once, watcher.clone(), end, stop));
    let status = watcher.status.borrow().clone();
    if once {
        print(&describe(&status, SystemTime::now(), Style::of_stdout()))?;
    }
    served?;
    let converged = !once || status.state.is_ready();
    Ok(if converged { Exit::Success } else { Exit::Failure })
}

/// What is known before anything was read.
fn beginning(config: &Config, name: &str) -> Status {
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
    once: bool,
    watcher: Watcher,
    end: LoopEnd,
    stop: watch::Sender<bool>,
) -> Result<(), CommandError> {
    // Everything that only a person can mend is found before anything is touched.
    let without_psk_keys = if once { WithoutPskKeys::Refuse } else { WithoutPskKeys::LeaveOut };
    let prepared = wiring::prepare(config, without_psk_keys)?;
    let control = Server::bind(&config.control.socket)?;
    let signals = Signals::new()?;
    // Dropped, and with it every task, when the loop has ended.
    let mut around = JoinSet::new();
    if !once {
        say_started(&watcher.status.borrow());
        let listen = config.metrics.listen;
        match MetricsServer::bind(listen).await {
            Ok(metrics) => drop(around.spawn(metrics.serve(watcher.clone()))),
            // Not worth a VPN: the gateway serves its peers without being watched.
            Err(error) => {
                tracing::warn!(%listen, %error, "going on without metrics on {listen}: {error}")
            }
        }
        around.spawn(systemd::follow(watcher.clone()));
    }
    around.spawn(control.serve(watcher.clone()));
    around.spawn(signals.obey(watcher, Arc::new(stop)));
    if once { prepared.run_once(end).await } else { prepared.run(end).await }?;
    Ok(())
}

fn say_started(status: &Status) {
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

    /// SIGTERM and SIGINT stop the loop, SIGHUP has it compare everything anew.
    async fn obey(mut self, watcher: Watcher, stop: Arc<watch::Sender<bool>>) {
        let mut resyncs = JoinSet::new();
        loop {
            tokio::select! {
                _ = self.terminate.recv() => stop_loop(&stop, "SIGTERM"),
                _ = self.interrupt.recv() => stop_loop(&stop, "SIGINT"),
                _ = self.hangup.recv() => drop(resyncs.spawn(resync(watcher.clone()))),
                Some(_) = resyncs.join_next() => {}
            }
        }
    }
}

fn stop_loop(stop: &watch::Sender<bool>, signal: &str) {
    tracing::info!(signal, "{signal}: stopping; tunnels and rules stay as they are");
    systemd::tell_stopping();
    stop.send_replace(true);
}

/// A resync that systemd sees as a reload. Before the first proof there is nothing to reload, and
/// saying so would tell systemd that we are ready.
async fn resync(watcher: Watcher) {
    let ready = watcher.status.borrow().state.is_ready();
    tracing::info!(signal = "SIGHUP", "SIGHUP: comparing everything anew");
    if ready {
        systemd::tell_reloading();
    }
    let (answer, answered) = oneshot::channel();
    let asked = watcher.asks.send(Ask::Resync(answer)).await.is_ok();
    match answered.await {
        Ok(Err(why)) => tracing::warn!(%why, "the comparison failed: {why}"),
        Err(_) if asked => tracing::debug!("the loop ended before the comparison"),
        _ => {}
    }
    if ready {
        systemd::tell_reloaded();
    }
}
