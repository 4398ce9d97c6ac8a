//! One gateway host: reads everything of ours back, and obeys plans.

mod glance;

use std::collections::BTreeSet;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::batch::{is_peer, is_route, refuse_unasked, run_len};
use super::device::{spawn_device, stop_device};
use super::link::{self, KIND_TUN, KIND_WIREGUARD, Link};
use super::netlink::{Channel, NetlinkError, gone_is_done};
use super::nft::ProfileCounters;
use super::refusal::{Consequence, chain, explain};
use super::wireguard::{self, DeviceReading, Kernel, UserspaceError};
use super::{
    Dataplane, DataplaneError, Firewall, Glance, Outcome, Reading, address, conntrack, route,
};
use crate::model::{
    GatewayId, InterfaceName, LinkOwner, ObservedInterface, ObservedState, ProfileId, Tag,
};
use crate::plan::{Plan, Step};

/// `interface.backend`: who does WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The kernel where it can, else a userspace device. A device that is there is kept.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

/// What a host must know beyond its plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    pub interface: InterfaceName,
    pub backend: Backend,
    /// The program that runs a userspace device when called as `<exe> device <name>`.
    pub device_exe: PathBuf,
}

/// The network of the host, or of the network namespace of the thread that made this value; it must
/// be used on that thread.
pub struct Host<F> {
    settings: HostSettings,
    rtnetlink: Channel,
    kernel: Kernel,
    firewall: F,
    /// Addresses added by this value: on kernels that do not keep the tag, how ours are known.
    added: BTreeSet<IpNet>,
}

/// Which of the two does WireGuard on a link that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Userspace,
}

impl<F: Firewall> Host<F> {
    /// Opens the sockets. Touches nothing.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open(settings: HostSettings, firewall: F) -> Result<Self, DataplaneError> {
        let open = DataplaneError::during("opening a netlink socket");
        let rtnetlink = Channel::open(NETLINK_ROUTE).map_err(open)?;
        let kernel = Kernel::open().map_err(DataplaneError::during("opening a netlink socket"))?;
        Ok(Self { settings, rtnetlink, kernel, firewall, added: BTreeSet::new() })
    }

    /// The firewall, for what only it can answer.
    pub fn firewall(&mut self) -> &mut F {
        &mut self.firewall
    }

    /// The index of our link, for a [`Monitor`](super::Monitor).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_index(&mut self) -> Result<Option<u32>, DataplaneError> {
        Ok(self.find()?.map(|link| link.index))
    }

    /// Forgets every tracked flow that an address of these prefixes opened or answers, and returns
    /// their number.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn cut_flows(&mut self, prefixes: &BTreeSet<IpNet>) -> Result<usize, DataplaneError> {
        conntrack::cut_flows(prefixes).map_err(DataplaneError::during("cutting flows"))
    }

    /// Removes the interface of this gateway, with its peers, addresses and routes. Returns whether
    /// there was one. The firewall's table stays: it is removed by the firewall's own means, after
    /// this.
    ///
    /// # Errors
    /// When the link is not this gateway's, or cannot be removed.
    pub fn remove_link(&mut self, gateway_id: GatewayId) -> Result<bool, DataplaneError> {
        let name = self.settings.interface.clone();
        let Some(link) = self.find()? else { return Ok(false) };
        let kind = self.kind(&link).ok_or_else(|| DataplaneError::ForeignLink {
            name: name.clone(),
            kind: link.kind.clone(),
        })?;
        if link.gateway_id() != Some(gateway_id) {
            return Err(DataplaneError::NotOurs(name));
        }
        match kind {
            Kind::Kernel => {
                let peers = self.read_device(kind)?.peers;
                let steps: Vec<Step> =
                    peers.into_keys().map(|key| Step::RemovePeer { key }).collect();
                let emptied = self.kernel.write_peers(&name, &steps).into_iter().collect();
                let emptied: Result<(), _> = emptied;
                emptied.map_err(DataplaneError::during(format!("removing the peers of {name}")))?;
            }
            Kind::Userspace => stop_device(&name)?,
        }
        gone_is_done(link::delete(&mut self.rtnetlink, link.index))
            .map_err(DataplaneError::during(format!("removing the link {name}")))?;
        Ok(true)
    }

    /// Removes the interface, whichever gateway its alias names. Returns whether there was one.
    ///
    /// # Errors
    /// When a link of that name has no alias of ours, or cannot be removed.
    pub fn remove_our_link(&mut self) -> Result<bool, DataplaneError> {
        let Some(link) = self.find()? else { return Ok(false) };
        let owner = link.gateway_id();
        self.remove_link(
            owner.ok_or_else(|| DataplaneError::NotOurs(self.settings.interface.clone()))?,
        )
    }

    fn find(&mut self) -> Result<Option<Link>, DataplaneError> {
        let name = &self.settings.interface;
        link::find(&mut self.rtnetlink, name)
            .map_err(DataplaneError::during(format!("looking for the link {name}")))
    }

    /// What does WireGuard on this link; `None`: nothing that we may use.
    fn kind(&self, link: &Link) -> Option<Kind> {
        match (link.kind.as_str(), self.settings.backend) {
            (KIND_WIREGUARD, Backend::Auto | Backend::Kernel) => Some(Kind::Kernel),
            (KIND_TUN, Backend::Auto | Backend::Userspace)
                if wireguard::answers(&self.settings.interface) =>
            {
                Some(Kind::Userspace)
            }
            _ => None,
        }
    }

    fn read_device(&mut self, kind: Kind) -> Result<DeviceReading, DataplaneError> {
        let name = &self.settings.interface;
        match kind {
            Kind::Kernel => self
                .kernel
                .read(name)
                .map_err(DataplaneError::during(format!("reading the peers of {name}"))),
            Kind::Userspace => Ok(wireguard::read(name)?),
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
        Ok(ObservedInterface {
            owner: link.gateway_id().map_or(LinkOwner::Unmarked, LinkOwner::Ours),
            up: link.up,
            public_key: device.public_key,
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            mtu_bytes: link.mtu_bytes,
            addresses,
        })
    }

    fn observe_firewall(
        &mut self,
    ) -> Result<Option<crate::model::ObservedFirewall>, DataplaneError> {
        self.firewall
            .observe(&self.settings.interface)
            .map_err(|error| DataplaneError::Firewall(Box::new(error)))
    }

    /// Obeys a run of steps and returns what became of each.
    fn obey(&mut self, run: &[Step], observed: &ObservedState) -> Vec<Result<(), String>> {
        let refuse_all = |error: DataplaneError| run.iter().map(|_| Err(chain(&error))).collect();
        match &run[0] {
            Step::Firewall { change, .. } => {
                let table = observed.firewall.as_ref();
                vec![self.firewall.apply(change, table).map_err(|error| chain(&error))]
            }
            Step::CreateLink { gateway_id, .. } => {
                vec![self.create_link(*gateway_id).map_err(|error| chain(&error))]
            }
            first => match self.target() {
                Err(error) => refuse_all(error),
                Ok((_, kind)) if is_peer(first) => self.obey_peers(kind, run),
                Ok((link, _)) if is_route(first) => {
                    in_words(run, route::write(&mut self.rtnetlink, link.index, run))
                }
                Ok((link, kind)) => vec![self.obey_interface(&link, kind, first)],
            },
        }
    }

    fn target(&mut self) -> Result<(Link, Kind), DataplaneError> {
        let name = self.settings.interface.clone();
        let link = self.find()?.ok_or_else(|| DataplaneError::NoLink(name.clone()))?;
        match self.kind(&link) {
            Some(kind) => Ok((link, kind)),
            None => Err(DataplaneError::ForeignLink { name, kind: link.kind }),
        }
    }

    fn create_link(&mut self, gateway_id: GatewayId) -> Result<(), DataplaneError> {
        let name = self.settings.interface.clone();
        self.added.clear();
        if self.settings.backend != Backend::Userspace {
            let created = link::create(&mut self.rtnetlink, &name, gateway_id);
            let no_wireguard =
                matches!(&created, Err(error) if error.refusal() == Some(Errno::EOPNOTSUPP));
            if !(no_wireguard && self.settings.backend == Backend::Auto) {
                let step = Step::CreateLink { name, gateway_id };
                return created.map_err(|error| DataplaneError::Refused(explain(&step, &error)));
            }
        }
        if self.find()?.is_some() {
            return Err(DataplaneError::NotOurs(name));
        }
        spawn_device(&self.settings.device_exe, &name)?;
        let link = self.find()?.ok_or_else(|| DataplaneError::NoLink(name.clone()))?;
        link::claim(&mut self.rtnetlink, link.index, gateway_id)
            .map_err(DataplaneError::during(format!("marking the link {name} as ours")))
    }

    fn obey_interface(&mut self, link: &Link, kind: Kind, step: &Step) -> Result<(), String> {
        let (index, name) = (link.index, &self.settings.interface);
        let rtnetlink = &mut self.rtnetlink;
        let verdict = match (step, kind) {
            (Step::ClaimLink { gateway_id }, _) => link::claim(rtnetlink, index, *gateway_id),
            (Step::SetMtu { bytes }, _) => link::set_mtu(rtnetlink, index, *bytes),
            (Step::SetUp, _) => link::set_up(rtnetlink, index),
            (Step::AddAddress { address }, _) => {
                let added = address::add(rtnetlink, index, *address);
                if added.is_ok() {
                    self.added.insert(*address);
                }
                added
            }
            (Step::RemoveAddress { address }, _) => {
                self.added.remove(address);
                address::remove(rtnetlink, index, *address)
            }
            (Step::SetPrivateKey { private_key }, Kind::Kernel) => {
                self.kernel.set_private_key(name, private_key)
            }
            (Step::SetListenPort { port }, Kind::Kernel) => {
                self.kernel.set_listen_port(name, *port)
            }
            (Step::SetFwmark { fwmark }, Kind::Kernel) => self.kernel.set_fwmark(name, *fwmark),
            (_, Kind::Userspace) => {
                return obey_userspace(name, step).map_err(|error| chain(&error));
            }
            (_, Kind::Kernel) => Ok(()),
        };
        verdict.map_err(|error| {
            // A link that is down takes any port; only coming up shows that it is in use.
            let taken = error.refusal() == Some(Errno::EADDRINUSE) && *step == Step::SetUp;
            let port = taken.then(|| self.read_device(kind).ok()).flatten();
            match port.map(|device| device.listen_port) {
                Some(port) => explain(&Step::SetListenPort { port }, &error),
                None => explain(step, &error),
            }
        })
    }

    fn obey_peers(&mut self, kind: Kind, run: &[Step]) -> Vec<Result<(), String>> {
        let name = &self.settings.interface;
        match kind {
            Kind::Kernel => in_words(run, self.kernel.write_peers(name, run)),
            Kind::Userspace => wireguard::write_peers(name, run)
                .into_iter()
                .map(|verdict| verdict.map_err(|error| chain(&error)))
                .collect(),
        }
    }
}

impl<F: Firewall> Dataplane for Host<F> {
    type Error = DataplaneError;

    fn observe(&mut self) -> Result<Reading, DataplaneError> {
        let mut reading = Reading::default();
        reading.state.firewall = self.observe_firewall()?;
        let Some(link) = self.find()? else { return Ok(reading) };
        let Some(kind) = self.kind(&link) else {
            let device = DeviceReading::default();
            let interface = self.read_interface(&link, &device)?;
            let owner = LinkOwner::Foreign(link.kind);
            reading.state.interface = Some(ObservedInterface { owner, ..interface });
            return Ok(reading);
        };
        let device = self.read_device(kind)?;
        reading.state.interface = Some(self.read_interface(&link, &device)?);
        reading.state.routes = route::list(&mut self.rtnetlink, link.index)
            .map_err(DataplaneError::during("reading our routes"))?;
        reading.backend = Some(match kind {
            Kind::Kernel => Backend::Kernel,
            Kind::Userspace => Backend::Userspace,
        });
        reading.state.peers = device.peers;
        reading.traffic = device.traffic;
        Ok(reading)
    }

    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, DataplaneError> {
        let counters = self.firewall.counters_of(id);
        counters.map_err(|error| DataplaneError::Firewall(Box::new(error)))
    }

    fn glance(&mut self) -> Result<Glance, DataplaneError> {
        self.read_but_peers()
    }

    fn apply(&mut self, plan: &Plan, observed: &mut ObservedState) -> Outcome {
        let mut outcome = Outcome::default();
        let mut consequence = Consequence::None;
        let mut rest = plan.steps();
        while let Some(first) = rest.first() {
            let own_key = observed.interface.as_ref().and_then(|interface| interface.public_key);
            let run;
            (run, rest) = rest.split_at(run_len(rest, own_key));
            if !consequence.permits(first) {
                continue;
            }
            if let Step::CutFlows { prefixes } = first {
                match self.cut_flows(prefixes) {
                    Ok(flows) => {
                        outcome.applied += 1;
                        outcome.flows_cut += flows;
                    }
                    Err(error) => outcome.refused.push((first.clone(), chain(&error))),
                }
                continue;
            }
            let verdicts = match refuse_unasked(first, own_key) {
                Some(reason) => vec![Err(reason)],
                None => self.obey(run, observed),
            };
            for (step, verdict) in run.iter().zip(verdicts) {
                match verdict {
                    Ok(()) => {
                        outcome.applied += 1;
                        observed.obey(step);
                    }
                    Err(reason) => {
                        consequence = consequence.max(Consequence::of(step));
                        if consequence >= Consequence::NoGrants {
                            outcome.halted_in.get_or_insert(step.phase());
                        }
                        outcome.refused.push((step.clone(), reason));
                    }
                }
            }
        }
        outcome
    }
}

fn obey_userspace(name: &InterfaceName, step: &Step) -> Result<(), UserspaceError> {
    match step {
        Step::SetPrivateKey { private_key } => wireguard::set_private_key(name, private_key),
        Step::SetListenPort { port } => wireguard::set_listen_port(name, *port),
        Step::SetFwmark { fwmark } => wireguard::set_fwmark(name, *fwmark),
        _ => Ok(()),
    }
}

fn in_words(run: &[Step], verdicts: Vec<Result<(), NetlinkError>>) -> Vec<Result<(), String>> {
    let in_words = |(step, verdict): (&Step, Result<(), NetlinkError>)| {
        verdict.map_err(|error| explain(step, &error))
    };
    run.iter().zip(verdicts).map(in_words).collect()
}
