//! Which keys may change while the agent runs.

use super::Config;

/// These are read again on SIGHUP. No session depends on them.
#[cfg(test)]
pub(super) const READ_AGAIN: [&str; 16] = [
    "database.password_file",
    "database.require_auth",
    "database.tls",
    "database.tls_ca_file",
    "database.tls_cert_file",
    "database.tls_key_file",
    "database.token_file",
    "firewall.deny_log",
    "gateway.psk_keys_file",
    "guard.lost_history",
    "guard.max_removed_peers",
    "log.filter",
    "report.heartbeat",
    "report.interval",
    "stale.after",
    "stale.policy",
];

/// All other keys, and whether the two configurations differ in them.
macro_rules! fixed {
    ($($section:ident.$key:ident)*) => {
        /// The keys that need a restart, each with whether the two configurations differ in it.
        pub(super) fn fixed(old: &Config, new: &Config) -> Vec<(&'static str, bool)> {
            vec![$((
                concat!(stringify!($section), ".", stringify!($key)),
                old.$section.$key != new.$section.$key,
            )),*]
        }

        /// The new configuration with the old values of the keys that need a restart.
        fn keep_fixed(old: &Config, new: &mut Config) {
            $(new.$section.$key = old.$section.$key.clone();)*
        }
    };
}

fixed! {
    cache.file
    control.socket
    control.write_group
    database.url
    firewall.deny_log_group
    firewall.fail_closed
    firewall.fail_closed_mark
    firewall.flows_per_address
    firewall.flush_conntrack
    firewall.gateway_protocols
    firewall.gateway_udp_ports
    firewall.masquerade
    firewall.own_table
    gateway.name
    gateway.private_key_file
    hints.credentials_file
    hints.tls_ca_file
    hints.url
    interface.addresses
    interface.backend
    interface.fwmark
    interface.mtu_bytes
    interface.name
    interface.site_prefixes
    metrics.listen
    metrics.per_peer
    sync.mode
    sync.poll_interval
    sync.resync_interval
    sync.statement_timeout
}

impl Config {
    /// The configuration that an agent can follow without a restart, and the keys that keep their
    /// former values until then.
    #[must_use]
    pub fn reloaded(&self, mut new: Self) -> (Self, Vec<&'static str>) {
        let differ = fixed(self, &new).into_iter().filter(|(_, differs)| *differs);
        let need_restart = differ.map(|(key, _)| key).collect();
        keep_fixed(self, &mut new);
        (new, need_restart)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::scratch::Scratch;

    #[test]
    fn what_needs_a_restart_keeps_its_value_and_is_named() {
        let scratch = Scratch::new();
        let old = scratch.load("sync.mode = \"poll\"\nguard.lost_history = \"1h\"").unwrap();
        let text = "sync.mode = \"listen\"\nguard.lost_history = \"2h\"\ninterface.name = \"wg7\"";
        let (config, need_restart) = old.reloaded(scratch.load(text).unwrap());
        assert_eq!(need_restart, ["interface.name", "sync.mode"]);
        assert_eq!(config.sync.mode, gatepost::reconcile::SyncMode::Poll);
        assert_eq!(config.guard.lost_history.as_secs(), 7_200);
    }

    #[test]
    fn another_password_in_the_url_is_noticed() {
        let scratch = Scratch::new();
        let url = |password| format!("database.url = \"postgres://a:{password}@db1/vpn\"");
        let old = scratch.load(&url("one")).unwrap();
        assert_eq!(old.reloaded(scratch.load(&url("two")).unwrap()).1, ["database.url"]);
    }
}
