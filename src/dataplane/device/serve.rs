//! The process of a userspace device.

use std::io::{self, Write};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::warn;
use zeroize::Zeroizing;

use super::engine::Engine;
use super::error::{DeviceError, READY, check_name};
use super::request::Request;
use super::socket::{Question, SocketFile, answer_on, take_name};
use super::transport::Tun;
use crate::causes::causes;
use crate::dataplane::link::{self, Link};
use crate::dataplane::netlink::{Channel, NetlinkError};
use crate::dataplane::wireguard::socket_path;
use crate::model::InterfaceName;

/// How often the device looks at its link. The engine's own word that it failed says less: it also gives
/// that when it opens another port.
const LINK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the device notes handshakes between questions; a session lives three times as long.
const HANDSHAKE_LOOKS: u64 = 60;

/// Runs a userspace WireGuard device of this name in this process, in the network namespace of the
/// calling thread. Prints `ready` once it answers, and returns when `SIGTERM` or `SIGINT` ends it.
///
/// A panic of any thread ends the process: a device that lives on without one of its parts would hold
/// its port and answer no request.
///
/// # Errors
/// When the device cannot be made, and when its link is deleted or leaves the network namespace.
pub fn run_userspace_device(name: &InterfaceName) -> Result<(), DeviceError> {
    check_name(name)?;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    // The parent process may have blocked them, and a blocked signal ends nothing.
    let _ = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_unblock();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| DeviceError::Create { name: name.clone(), source })?;
    runtime.block_on(serve(name))
}

async fn serve(name: &InterfaceName) -> Result<(), DeviceError> {
    let create = |source| DeviceError::Create { name: name.clone(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(create)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(create)?;
    let listener = take_name(name)?;
    let (mut own_link, tun) = OwnLink::create(name)?;
    let mut engine = Engine::start(tun)
        .await
        .map_err(|error| DeviceError::Engine { name: name.clone(), source: Box::new(error) })?;
    let (ask, mut questions) = mpsc::channel(16);
    let _file = listen(name, listener, &ask)?;
    // The process that started it may be gone and not wait for the line any more.
    let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
    let mut looks = tokio::time::interval(LINK_INTERVAL);
    let mut look: u64 = 0;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(question) = questions.recv() => answer(&mut engine, question).await,
            _ = looks.tick() => {
                if !own_link.is_there(name)? {
                    return Err(DeviceError::LinkGone(name.clone()));
                }
                engine.release().await;
                look += 1;
                if look.is_multiple_of(HANDSHAKE_LOOKS) {
                    engine.look().await;
                }
            }
        }
    }
}

/// Answers on both sockets. `wg` is a convenience: without its file the device works.
fn listen(
    name: &InterfaceName,
    listener: std::os::unix::net::UnixListener,
    ask: &mpsc::Sender<Question>,
) -> Result<Option<SocketFile>, DeviceError> {
    let failed = |address: &dyn std::fmt::Display, source| DeviceError::Listen {
        name: name.clone(),
        address: address.to_string(),
        source,
    };
    answer_on(listener, ask.clone()).map_err(|source| failed(&"its name", source))?;
    let path = socket_path(name);
    match SocketFile::bind(name) {
        Ok(Some((file, listener))) => {
            answer_on(listener, ask.clone()).map_err(|source| failed(&path.display(), source))?;
            Ok(Some(file))
        }
        Ok(None) => {
            let path = path.display();
            warn!(
                interface = %name,
                "`wg show {name}` shows another device: one of this name in another network \
                 namespace has {path}"
            );
            Ok(None)
        }
        Err(error) => {
            let error = causes(&failed(&path.display(), error));
            warn!(interface = %name, error, "`wg show {name}` will not work: {error}");
            Ok(None)
        }
    }
}

async fn answer(engine: &mut Engine, (request, answer): Question) {
    let (mut text, errno) = match Request::parse(&request) {
        Ok(Request::Get) => told(engine.get().await),
        Ok(Request::GetButPeers) => told(engine.get_but_peers().await),
        Ok(Request::Set(set)) => (Zeroizing::default(), engine.set(set).await.err()),
        Err(errno) => (Zeroizing::default(), Some(errno)),
    };
    // Negative, as other devices say it and `wg` reads it.
    let errno = errno.map_or(0, |errno: Errno| -(errno as i32));
    text.push_str(&format!("errno={errno}\n\n"));
    // Who asked may have hung up.
    let _ = answer.send(text);
}

fn told(answer: Result<Zeroizing<String>, Errno>) -> (Zeroizing<String>, Option<Errno>) {
    match answer {
        Ok(text) => (text, None),
        Err(errno) => (Zeroizing::default(), Some(errno)),
    }
}

/// The link that the device made, whatever it is called now.
struct OwnLink {
    rtnetlink: Channel,
    index: u32,
    mtu: watch::Sender<u16>,
}

impl OwnLink {
    fn create(name: &InterfaceName) -> Result<(Self, Tun), DeviceError> {
        let unread = |source| DeviceError::Link { name: name.clone(), source };
        let mut rtnetlink = Channel::open(NETLINK_ROUTE).map_err(unread)?;
        let mut find = || link::find(&mut rtnetlink, name.as_str()).map_err(unread);
        // The kernel would make this process a second user of a link that another device has.
        if find()?.is_some() {
            return Err(DeviceError::Taken(name.clone()));
        }
        let (mtu, watched) = watch::channel(0);
        let tun = Tun::create(name.as_str(), watched)
            .map_err(|source| DeviceError::Create { name: name.clone(), source })?;
        let link = find()?.ok_or_else(|| DeviceError::LinkGone(name.clone()))?;
        let own_link = Self { rtnetlink, index: link.index, mtu };
        own_link.note_mtu(&link);
        Ok((own_link, tun))
    }

    fn is_there(&mut self, name: &InterfaceName) -> Result<bool, DeviceError> {
        let found: Result<Option<Link>, NetlinkError> =
            link::find_by_index(&mut self.rtnetlink, self.index);
        let found = found.map_err(|source| DeviceError::Link { name: name.clone(), source })?;
        if let Some(link) = &found {
            self.note_mtu(link);
        }
        Ok(found.is_some())
    }

    fn note_mtu(&self, link: &Link) {
        let now = u16::try_from(link.mtu_bytes).unwrap_or(u16::MAX);
        self.mtu.send_if_modified(|mtu| std::mem::replace(mtu, now) != now);
    }
}
