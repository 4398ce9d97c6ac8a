//! What a thousand gateways need beside their database: PgBouncer, nats-server and a bell, each the real
//! program.

use std::process::{Child, Command, Stdio};

use gatepost::store::{CreateRole, Token, grant_bell, grant_token};

use super::bouncer::Bouncer;
use super::broker::{BELL, Nats};
use super::fleet::{Fleet, name};

/// Server sessions of the pool.
pub const POOL: usize = 8;

/// They end when dropped.
pub struct Services {
    pub bouncer: Bouncer,
    pub nats: Nats,
    /// The role of all gateways.
    pub role: String,
    bell: Child,
    _folder: tempfile::TempDir,
}

impl Services {
    pub async fn start(fleet: &Fleet<'_>) -> Self {
        let (role, bell_role) =
            (format!("{}_pool", fleet.database), format!("{}_bell", fleet.database));
        let create = CreateRole::IfAbsent(None);
        for number in 1..=fleet.gateways {
            let (owner, gateway) = (fleet.owner(), name(number));
            grant_token(&owner, &gateway, &token(number), Some(&role), &create).await.unwrap();
        }
        grant_bell(&fleet.owner(), &bell_role, &create).await.unwrap();
        let ids = fleet.sql("select id from gateways order by substr(name, 2)::integer");
        let nats = Nats::for_gateways(&ids.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("bell.toml");
        std::fs::write(folder.path().join("hints.login"), BELL).unwrap();
        let text = format!(
            "[database]\nurl = \"{}\"\n[hints]\nurl = \"nats://127.0.0.1:{}\"\n\
             credentials_file = \"hints.login\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n",
            fleet.cluster.socket_url(&bell_role, &fleet.database),
            nats.port
        );
        std::fs::write(&config, text).unwrap();
        let bell = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .arg("bell")
            .env("GATEPOST_CONFIG", &config)
            .stdin(Stdio::null())
            .env_remove("GATEPOST_BENCH_GATEWAYS")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bouncer = Bouncer::shared(fleet, &role, POOL);
        Self { bouncer, nats, role, bell, _folder: folder }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let _ = self.bell.kill();
        let _ = self.bell.wait();
    }
}

/// Of the gateway of this number.
pub fn token(number: usize) -> Token {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Token::from_random(&bytes)
}
