//! SIGHUP: reads configuration and secrets again while the agent runs.

use std::sync::Arc;

use gatepost::model::Local;
use gatepost::reconcile::{Reloaded, Timing};
use gatepost::store::Store;

use crate::config::{Config, Source, load, read_psk_keys};
use crate::database::{self, follow_files};
use crate::loop_options::{stale_options, timing};
use crate::telemetry::set_filter;

/// The options that the agent follows, and their origin.
pub struct Reloader {
    source: Source,
    config: Config,
    local: Arc<Local>,
    timing: Timing,
    store: Store,
}

/// The parts of the configuration that were read again.
pub struct Reread {
    pub options: Box<Reloaded>,
    /// Keys whose new values wait for a restart.
    pub need_restart: Vec<&'static str>,
}

impl Reloader {
    /// For an agent that follows this configuration. From now on the store reads its password and
    /// certificates again when a login is refused.
    pub fn new(source: Source, config: Config, local: Arc<Local>, store: Store) -> Self {
        let timing = timing(&config);
        follow_files(&store, database::source(config.clone()));
        Self { source, config, local, timing, store }
    }

    /// Reads everything, and follows it as far as that needs no restart.
    ///
    /// # Errors
    /// A sentence that names the mistake. Then everything stays as it is.
    pub fn reload(&mut self) -> Result<Reread, String> {
        let new = load(self.source.clone()).map_err(|error| error.to_string())?;
        let (config, need_restart) = self.config.reloaded(new);
        let psk_keys = read_psk_keys(&config).map_err(|error| error.to_string())?;
        let former = &self.local;
        let local = Arc::new(Local {
            interface: former.interface.clone(),
            private_key: former.private_key.clone(),
            mtu_bytes: former.mtu_bytes,
            addresses: former.addresses.clone(),
            fwmark: former.fwmark,
            site_prefixes: former.site_prefixes.clone(),
            masquerade: former.masquerade,
            deny_log: config.firewall.deny_log.then_some(config.firewall.deny_log_group),
            gateway_opens: former.gateway_opens.clone(),
            flush_conntrack: former.flush_conntrack,
            flows_per_address: former.flows_per_address,
            gate: former.gate,
            psk_keys: psk_keys.unwrap_or_default(),
        });
        // The last that can fail, and so the first that is followed.
        self.store.follow(database::source(config.clone()))?;
        // `load` has parsed it.
        let _ = set_filter(&config.log.filter);
        let Timing { report_interval, heartbeat, heartbeat_among_many, .. } = timing(&config);
        let timing = Timing { report_interval, heartbeat, heartbeat_among_many, ..self.timing };
        let options = Box::new(Reloaded {
            local: Arc::clone(&local),
            timing,
            max_removed: config.guard.max_removed_peers,
            lost_history: config.guard.lost_history,
            stale: stale_options(&config),
        });
        (self.config, self.local, self.timing) = (config, local, timing);
        Ok(Reread { options, need_restart })
    }
}
