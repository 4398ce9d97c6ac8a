//! One gateway host: reads everything of ours back, and applies plans.

mod apply;
mod cut;
mod glance;
mod remove;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::batch::{head_of, refuse_unasked, run_len};
use super::conntrack::Flows;
use super::ended::EndedSessions;
use super::link::{self, KIND_TUN, KIND_WIREGUARD, Link};
use super::netlink::Channel;
use super::nft::ProfileCounters;
use super::wireguard::{self, DeviceReading, Kernel, Userspace};
use super::{
    Backend, BackendInUse, Dataplane, DataplaneError, Firewall, Glance, Outcome, Reading,
    RefusedStep, SharedObserved, address, route, rule,
};
use crate::model::{
    HostRouting, InterfaceName, LinkOwner, ObservedInterface, ProfileId, Stray, Tag,
};
use crate::plan::{Interlock, Plan, Step};

/// A host's settings beyond its plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    pub interface: InterfaceName,
    pub backend: Backend,
    /// The program that is a userspace device when called as `<exe> device <name> --serve alone`.
    pub device_exe: PathBuf,
}

/// The network of the host, or of the network namespace of the thread that made this value; it must
/// be used on that thread.
pub struct Host<F> {
    settings: HostSettings,
    rtnetlink: Channel,
    kernel: Kernel,
    userspace: Userspace,
    firewall: F,
    flows: Flows,
    /// Why the host's own sockets could not be destroyed when that was last tried.
    sockets_refusal: Option<Box<str>>,
    /// The link that was read last, or made since: what is planned for it is done to no other.
    link_index: Option<u32>,
    /// Addresses added by this value: on kernels that do not keep the tag, how ours are known.
    added: BTreeSet<IpNet>,
    /// Sessions may have been lost by the steps so far: their peers are to be called.
    calls_due: bool,
    ended: EndedSessions,
}

impl<F: Firewall> Host<F> {
    /// Opens the sockets. Touches nothing.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open(settings: HostSettings, firewall: F) -> Result<Self, DataplaneError> {
        let open = || DataplaneError::during("opening a netlink socket");
        let rtnetlink = Channel::open(NETLINK_ROUTE).map_err(open())?;
        let kernel = Kernel::open().map_err(open())?;
        let ended = EndedSessions::listen().map_err(open())?;
        Ok(Self {
            userspace: Userspace::new(settings.interface.clone()),
            settings,
            rtnetlink,
            kernel,
            firewall,
            flows: Flows::default(),
            sockets_refusal: None,
            link_index: None,
            added: BTreeSet::new(),
            calls_due: false,
            ended,
        })
    }

    /// The firewall, for what only it can answer.
    pub fn firewall(&mut self) -> &mut F {
        &mut self.firewall
    }

    /// The netlink port that our changes of links, addresses and routes come from.
    pub const fn port(&self) -> u32 {
        self.rtnetlink.port()
    }

    /// The index of our link, for a [`Monitor`](super::Monitor).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_index(&mut self) -> Result<Option<u32>, DataplaneError> {
        Ok(self.find()?.map(|link| link.index))
    }

    fn find(&mut self) -> Result<Option<Link>, DataplaneError> {
        let name = &self.settings.interface;
        link::find(&mut self.rtnetlink, name.as_str())
            .map_err(DataplaneError::during(format!("looking for the link {name}")))
    }

    /// What does WireGuard on this link; `None`: nothing that we may use.
    fn backend_of(&mut self, link: &Link) -> Result<Option<BackendInUse>, DataplaneError> {
        match (link.kind.as_str(), self.settings.backend) {
            (KIND_WIREGUARD, Backend::Auto | Backend::Kernel) => Ok(Some(BackendInUse::Kernel)),
            (KIND_TUN, Backend::Auto | Backend::Userspace) => self.find_device(link),
            _ => Ok(None),
        }
    }

    /// The device listens under the name that it was made with, whatever its link is called now, and
    /// whatever the configuration calls it.
    fn find_device(&mut self, link: &Link) -> Result<Option<BackendInUse>, DataplaneError> {
        for name in [Some(self.settings.interface.clone()), link.name.parse().ok()] {
            if let Some(name) = name
                && wireguard::answers(&name)?
            {
                self.userspace.follow(name);
                return Ok(Some(BackendInUse::Userspace));
            }
        }
        Ok(None)
    }

    /// Our interface, and other links with our mark.
    fn find_ours(&mut self) -> Result<(Option<Link>, Vec<Link>), DataplaneError> {
        let (interface, mut others) = self.find_links()?;
        others.retain(|link| link.gateway_id().is_some());
        Ok((interface, others))
    }

    /// Our interface, and all other links.
    fn find_links(&mut self) -> Result<(Option<Link>, Vec<Link>), DataplaneError> {
        let name = &self.settings.interface;
        let mut links = link::list(&mut self.rtnetlink)
            .map_err(DataplaneError::during("looking for links of ours"))?;
        let named = links.iter().position(|link| *link.name == *name.as_str());
        let ours = named.or_else(|| links.iter().position(|link| link.gateway_id().is_some()));
        Ok((ours.map(|at| links.remove(at)), links))
    }

    fn read_device(
        &mut self,
        link: &Link,
        backend: BackendInUse,
    ) -> Result<DeviceReading, DataplaneError> {
        let name = &self.settings.interface;
        match backend {
            BackendInUse::Kernel => self
                .kernel
                .read(link.index)
                .map_err(DataplaneError::during(format!("reading the peers of {name}"))),
            BackendInUse::Userspace => Ok(self.userspace.read()?),
        }
    }

    fn read_interface(
        &mut self,
        link: &Link,
        device: &DeviceReading,
    ) -> Result<ObservedInterface, DataplaneError> {
        let name = &self.settings.interface;
        let mut addresses = address::list(&mut self.rtnetlink, link.index)
            .map_err(DataplaneError::during(format!("reading the addresses of {name}")))?;
        for (address, tag) in &mut addresses {
            if self.added.contains(address) {
                *tag = Tag::Ours;
            }
        }
        // The kernel may add a link-local address by itself, and at its own time.
        addresses.retain(|address, tag| *tag == Tag::Ours || !is_link_local(address));
        Ok(ObservedInterface {
            name: link.name.clone(),
            owner: link.gateway_id().map_or(LinkOwner::Unmarked, LinkOwner::Ours),
            up: link.up,
            has_master: link.has_master,
            sessions_ended: link.kind == KIND_WIREGUARD && self.ended.of(link.index) && link.up,
            public_key: device.public_key,
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            mtu_bytes: link.mtu_bytes,
            addresses,
        })
    }

    fn read_routing(&mut self) -> Result<HostRouting, DataplaneError> {
        rule::read(&mut self.rtnetlink).map_err(DataplaneError::during("reading the routing rules"))
    }

    fn read_routes(
        &mut self,
        link: &Link,
        interface: &ObservedInterface,
    ) -> Result<BTreeMap<IpNet, Tag>, DataplaneError> {
        route::list(&mut self.rtnetlink, link.index, &interface.networks().collect())
            .map_err(DataplaneError::during("reading our routes"))
    }
}

impl<F: Firewall> Dataplane for Host<F> {
    fn observe(&mut self) -> Result<Reading, DataplaneError> {
        let mut reading = Reading::default();
        reading.state.firewall = self.firewall.observe()?;
        reading.table_owned = self.firewall.is_owned();
        reading.firewall_difference = self.firewall.difference().cloned();
        reading.state.routing = self.read_routing()?;
        let (interface, others) = self.find_links()?;
        reading.state.networks = link::networks(&mut self.rtnetlink, &others)
            .map_err(DataplaneError::during("reading the addresses of other links"))?;
        let marked = |link: Link| {
            let owner = link.gateway_id()?;
            Some((link.name, Stray { owner, up: link.up }))
        };
        reading.state.strays = others.into_iter().filter_map(marked).collect();
        self.link_index = interface.as_ref().map(|link| link.index);
        let Some(link) = interface else { return Ok(reading) };
        let Some(backend) = self.backend_of(&link)? else {
            let device = DeviceReading::default();
            let interface = self.read_interface(&link, &device)?;
            let owner = LinkOwner::Foreign(link.kind);
            reading.state.interface = Some(ObservedInterface { owner, ..interface });
            return Ok(reading);
        };
        let device = self.read_device(&link, backend)?;
        let interface = self.read_interface(&link, &device)?;
        reading.state.routes = self.read_routes(&link, &interface)?;
        reading.state.interface = Some(interface);
        reading.backend = Some(backend);
        reading.state.peers = device.peers;
        reading.traffic = device.traffic;
        Ok(reading)
    }

    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, DataplaneError> {
        Ok(self.firewall.counters_of(id)?)
    }

    fn glance(&mut self) -> Result<Glance, DataplaneError> {
        self.read_but_peers()
    }

    fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome {
        let began = Instant::now();
        let mut outcome = Outcome::default();
        let mut interlock = Interlock::default();
        let mut rest = plan.steps();
        while let Some(first) = rest.first() {
            // One run is always applied, so that a plan that is interrupted again and again ends.
            let is_begun = rest.len() < plan.steps().len();
            if is_begun && observed.stops_after().is_some_and(|after| began.elapsed() >= after) {
                outcome.untried = rest.len();
                break;
            }
            let reading = observed.read();
            let own_key = reading.interface.as_ref().and_then(|link| link.public_key);
            let run = &rest[..run_len(rest, own_key)];
            let (run, permitted) = head_of(run, |step| interlock.permits(step, &reading));
            rest = &rest[run.len()..];
            if !permitted {
                let part = interlock.part_of(first, &reading);
                run.iter().for_each(|step| interlock.not_applied(step, &reading));
                drop(reading);
                if let Some(Step::Firewall { phase, change }) = part {
                    let part = (phase, &change);
                    self.apply_firewall(part, observed, &mut interlock, &mut outcome);
                }
                continue;
            }
            drop(reading);
            if let Step::Firewall { phase, change } = first {
                self.apply_firewall((*phase, change), observed, &mut interlock, &mut outcome);
                continue;
            }
            let verdicts = match refuse_unasked(first, own_key) {
                Some(error) => vec![Err(error.into())],
                None => self.apply_run(run, &observed.read(), &mut outcome),
            };
            for (step, verdict) in run.iter().zip(verdicts) {
                match verdict {
                    Ok(()) => {
                        outcome.applied += 1;
                        observed.apply(step);
                    }
                    Err(error) => {
                        interlock.not_applied(step, &observed.read());
                        outcome.refused.push(RefusedStep::new(step.clone(), error));
                    }
                }
            }
        }
        if outcome.untried == 0 {
            self.call_peers(&observed.read());
        }
        outcome
    }
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}
