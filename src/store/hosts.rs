//! Tries the hosts of a URL one after the other. The driver would name only the last one in its error.

use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::{Client, Config, Connection, Error, Socket};

use super::connector::Judged;
use super::error::{Place, StoreError, is_about_secrets, tells};
use super::options::Target;

pub(super) type Connected = (Client, Connection<Socket, Judged>);

/// Why no host could be used.
#[derive(Debug)]
pub(super) struct NoHost {
    /// Of the host that answered, if one did.
    pub error: Error,
    /// That host, and what the others said.
    pub place: Place,
    /// Whether another password or certificate may help at any of them.
    pub is_about_secrets: bool,
}

/// Connects to the first host that can be used.
pub(super) async fn connect(
    target: &Target,
    application_name: Option<&str>,
) -> Result<Connected, NoHost> {
    let (mut failed, mut silent) = (Vec::new(), Vec::new());
    let mut hosts = each_host(&target.config).into_iter().peekable();
    while let Some(mut config) = hosts.next() {
        if let Some(name) = application_name {
            config.application_name(name);
        }
        let connecting = config.connect(target.tls.clone());
        // The driver's limit ends with the TCP handshake, which the kernel of a stuck server still makes. For
        // the last host, the caller has a limit.
        let answer = match config.get_connect_timeout().filter(|_| hosts.peek().is_some()) {
            Some(limit) => tokio::time::timeout(*limit, connecting).await.map_err(|_| *limit),
            None => Ok(connecting.await),
        };
        match answer {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => failed.push((Place::of(&config), error)),
            Err(limit) => silent.push(format!(
                "{} did not answer within {} s",
                Place::of(&config).hosts,
                limit.as_secs()
            )),
        }
    }
    Err(NoHost::of(failed, silent))
}

impl NoHost {
    /// `failed` is never empty: the last host is not given up for being silent.
    fn of(mut failed: Vec<(Place, Error)>, silent: Vec<String>) -> Self {
        let is_about_secrets = failed.iter().any(|(_, error)| is_about_secrets(error));
        let most = (0..failed.len()).rev().max_by_key(|index| tells(&failed[*index].1));
        let (mut place, error) = failed.remove(most.unwrap_or_default());
        place.others = failed.into_iter().map(in_short).chain(silent).collect();
        Self { error, place, is_about_secrets }
    }
}

/// The host, and what is wrong there.
fn in_short((place, error): (Place, Error)) -> String {
    let text = StoreError::of(&place, "connect", error).to_string();
    let what = text.strip_prefix(&place.to_string()).unwrap_or(&text);
    format!("{}{what}", place.hosts)
}

/// The configuration with each of its hosts alone, in the order in which to try them.
fn each_host(config: &Config) -> Vec<Config> {
    let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
    if hosts <= 1 || (addresses > 0 && addresses != hosts) {
        // The driver says what is wrong with the addresses.
        return vec![config.clone()];
    }
    let mut each: Vec<_> = (0..hosts).map(|index| with_host(config, index)).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut each);
    }
    each
}

/// This configuration with one of its hosts. The driver's type cannot lose the others, so it is built anew.
fn with_host(config: &Config, index: usize) -> Config {
    /// Sets what is set.
    macro_rules! copy {
        ($one:ident: $($setting:ident = $value:expr,)*) => {
            $(if let Some(value) = $value {
                $one.$setting(value);
            })*
        };
    }
    let mut one = Config::new();
    match config.get_hosts().get(index) {
        Some(Host::Tcp(name)) => one.host(name),
        Some(Host::Unix(folder)) => one.host_path(folder),
        None => &mut one,
    };
    let ports = config.get_ports();
    copy! { one:
        hostaddr = config.get_hostaddrs().get(index).copied(),
        port = ports.get(index).or(ports.first()).copied(),
        user = config.get_user(),
        password = config.get_password(),
        dbname = config.get_dbname(),
        options = config.get_options(),
        application_name = config.get_application_name(),
        connect_timeout = config.get_connect_timeout().copied(),
        tcp_user_timeout = config.get_tcp_user_timeout().copied(),
        keepalives_interval = config.get_keepalives_interval(),
        keepalives_retries = config.get_keepalives_retries(),
    }
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "user=gw password=secret dbname=vpn options='-c geqo=off' \
        application_name=mine sslmode=require sslnegotiation=direct connect_timeout=3 \
        tcp_user_timeout=4 keepalives=0 keepalives_idle=5 keepalives_interval=6 keepalives_retries=7 \
        target_session_attrs=read-write channel_binding=require load_balance_hosts=random";

    #[test]
    fn each_host_is_tried_with_all_that_the_url_says() {
        let both: Config =
            format!("{ALL} host=a,b hostaddr=192.0.2.1,192.0.2.2 port=5432,5433").parse().unwrap();
        let alone = |host, address, port| -> Config {
            format!("{ALL} host={host} hostaddr={address} port={port}").parse().unwrap()
        };
        let (a, b) = (alone("a", "192.0.2.1", 5432), alone("b", "192.0.2.2", 5433));
        assert!(
            [&a, &b].into_iter().enumerate().all(|(index, one)| with_host(&both, index) == *one)
        );
        let tried = each_host(&both);
        assert!(tried.len() == 2 && tried.contains(&a) && tried.contains(&b));
        assert!(each_host(&a) == [a]);
    }
}
