//! Applying steps, run by run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::debug;

use super::{Backend, BackendInUse, Host, Link};
use crate::causes::causes;
use crate::dataplane::batch::{Part, part};
use crate::dataplane::device::{abandon_device, spawn_device};
use crate::dataplane::netlink::NetlinkError;
use crate::dataplane::nft::NftError;
use crate::dataplane::refusal::{blame, refused, way_out};
use crate::dataplane::wireguard::{self, Userspace};
use crate::dataplane::{
    DataplaneError, Firewall, Outcome, RefusedStep, SharedObserved, address, link, route, rule,
};
use crate::model::{FirewallChange, GatewayId, InterfaceName, ObservedState, Unloadable};
use crate::plan::{Blame, Interlock, Parted, Phase, Step, before_slow, load_in_parts};

/// A device looks at its link each second.
const DEVICE_PATIENCE: Duration = Duration::from_secs(3);

/// The kernel's answer to one step.
pub(super) type Verdict = Result<(), Arc<DataplaneError>>;

impl<F: Firewall> Host<F> {
    /// Applies a run of steps and returns what became of each.
    pub(super) fn apply_run(
        &mut self,
        run: &[Step],
        observed: &ObservedState,
        outcome: &mut Outcome,
    ) -> Vec<Verdict> {
        match &run[0] {
            step @ Step::CutFlows { prefixes } => {
                let cut = self.cut_flows(prefixes, observed, outcome);
                alone(cut.map_err(|error| refused(step, error)))
            }
            Step::CreateLink { gateway_id, .. } => alone(self.create_link(*gateway_id)),
            Step::RenameLink { from, to } => alone(self.rename_link(from, to)),
            Step::FreeLink { name } => alone(self.free_link(name)),
            Step::TakeDown { name } => alone(self.take_down(name)),
            Step::AddRules { rules } => {
                let added = rule::add(&mut self.rtnetlink, rules);
                alone(added.map_err(DataplaneError::during("adding the rules of the gate")))
            }
            Step::RemoveRules { rules } => {
                let removed = rule::remove(&mut self.rtnetlink, rules);
                alone(removed.map_err(DataplaneError::during("removing rules of the gate")))
            }
            first => match (self.target_of(first), part(first)) {
                (Err(error), _) => {
                    let error = Arc::new(error);
                    run.iter().map(|_| Err(Arc::clone(&error))).collect()
                }
                (Ok((link, backend)), Part::Peer) => {
                    self.apply_peers(&link, backend, run, observed)
                }
                (Ok((link, _)), Part::Route) => {
                    with_remedies(run, route::write(&mut self.rtnetlink, link.index, run))
                }
                (Ok((link, backend)), _) => {
                    alone(self.apply_interface(&link, backend, first, observed))
                }
            },
        }
    }

    /// Applies a change of the firewall, without the profiles that the kernel refuses.
    pub(super) fn apply_firewall(
        &mut self,
        (phase, change): (Phase, &FirewallChange),
        observed: &SharedObserved,
        interlock: &mut Interlock,
        outcome: &mut Outcome,
    ) {
        let slow = self.firewall.slow_profiles(change, observed.read().firewall.as_ref());
        let parts = before_slow(change, observed.read().firewall.as_ref(), &slow);
        let mut is_unsure = false;
        let mut load = |change: &FirewallChange| {
            let applied = self.firewall.apply(change, observed.read().firewall.as_ref());
            is_unsure |= matches!(&applied, Err(refusal) if !refusal.table_is_as_before());
            applied?;
            observed.apply(&Step::Firewall { phase, change: change.clone() });
            Ok(())
        };
        let first = parts.as_ref().map_or(Ok(()), |[first, _]| load(first));
        let rest = parts.as_ref().filter(|_| first.is_ok()).map(|[_, rest]| rest);
        let change = rest.unwrap_or(change);
        let mut parted = match first.and_then(|()| load(change)) {
            Ok(()) => Parted::default(),
            Err(refusal) if blame(&refusal) == Blame::Request => Parted::refused(change, refusal),
            Err(refusal) => {
                let table = observed.read().firewall.clone();
                load_in_parts(change, table.as_ref(), refusal, blame, load)
            }
        };
        parted.lacks_room &= !is_unsure;
        interlock.parted(phase, &parted, &observed.read());
        for (_, profile, refusal) in parted.unloadable {
            let (why, remedy) = (causes(&refusal).into(), way_out(&refusal));
            outcome.unloadable.push(Unloadable { profile, why, remedy });
        }
        // One part without an answer makes the table unsure, whatever became of the others.
        let part = |left: Option<(_, _)>| left.map_or_else(|| change.clone(), |(part, _)| part);
        let unsure = |left| Some((part(left), NftError::NoAnswer));
        let left = if is_unsure { unsure(parted.left) } else { parted.left };
        match left {
            None => outcome.applied += 1,
            Some((change, refusal)) => {
                let step = Step::Firewall { phase, change };
                outcome.refused.push(RefusedStep::new(step, DataplaneError::from(refusal)));
            }
        }
    }

    /// Lost sessions begin anew, and peers send to the port that they hear from. This comes after all
    /// steps: no withdrawal waits for it, and no peer that is withdrawn is called. A peer that cannot be
    /// called begins the next session itself.
    pub(super) fn call_peers(&mut self, observed: &ObservedState) {
        let is_due = std::mem::take(&mut self.calls_due);
        // By another program, or by these steps, which free or rename a link.
        let ended = self.link_index.is_some_and(|index| self.ended.of(index));
        if !is_due && !ended {
            return;
        }
        let link = match self.target() {
            Ok((link, BackendInUse::Kernel)) if link.up => link,
            Ok(_) => return,
            // A call that is repeated at every reading would be a plan that never ends.
            Err(error) => {
                self.ended.forget();
                return debug!(%error, "lost sessions are left to their clients: {error}");
            }
        };
        self.ended.forget();
        if let Err(error) = self.kernel.call_peers(link.index, &observed.peers) {
            debug!(%error, "lost sessions are left to their clients: {error}");
        }
    }

    /// The link that a step is about. What only takes away may be done to one that has lost its name, or
    /// that the configuration calls otherwise by now.
    fn target_of(&mut self, step: &Step) -> Result<(Link, BackendInUse), DataplaneError> {
        let taking = matches!(step, Step::RemovePeer { .. } | Step::NarrowPeer { .. });
        let index = self.link_index.filter(|_| taking);
        let Some(index) = index.filter(|_| !matches!(self.find(), Ok(Some(_)))) else {
            return self.target();
        };
        let found = link::find_by_index(&mut self.rtnetlink, index)
            .map_err(DataplaneError::during("looking for our link"))?;
        match found.filter(|link| link.gateway_id().is_some()) {
            Some(link) => self.with_backend(link),
            None => self.target(),
        }
    }

    /// The link that the plan was made for. Another that has its name now may be anybody's, and one
    /// that lost its name is guarded by no table.
    fn target(&mut self) -> Result<(Link, BackendInUse), DataplaneError> {
        let name = &self.settings.interface;
        let gone = DataplaneError::NoLink(name.as_str().into());
        let link = self.find()?.filter(|link| Some(link.index) == self.link_index).ok_or(gone)?;
        self.with_backend(link)
    }

    fn with_backend(&mut self, link: Link) -> Result<(Link, BackendInUse), DataplaneError> {
        match self.backend_of(&link)? {
            Some(backend) => Ok((link, backend)),
            None => Err(DataplaneError::ForeignLink { name: link.name, kind: link.kind }),
        }
    }

    fn create_link(&mut self, gateway_id: GatewayId) -> Result<(), DataplaneError> {
        let name = self.settings.interface.clone();
        self.added.clear();
        if !self.create_in_kernel(&name, gateway_id)? {
            if self.find()?.is_some() {
                return Err(DataplaneError::NotOurs(name));
            }
            self.await_device_without_link(&name)?;
            spawn_device(&self.settings.device_exe, &name)?;
            self.userspace.follow(name.clone());
        }
        // Until it is marked, it has neither key nor peer: an agent that is killed here leaves a link that the
        // next plan may take over.
        let gone = DataplaneError::NoLink(name.as_str().into());
        let link = self.find()?.ok_or(gone)?;
        self.link_index = Some(link.index);
        link::claim(&mut self.rtnetlink, link.index, gateway_id)
            .map_err(DataplaneError::during(format!("marking the link {name} as ours")))
    }

    /// A device that answers and has no link is about to make one, or about to end because it lost it.
    /// One that does neither hangs, and is ended.
    fn await_device_without_link(&mut self, name: &InterfaceName) -> Result<(), DataplaneError> {
        let asked = Instant::now();
        while wireguard::answers(name)? && self.find()?.is_none() {
            if asked.elapsed() > DEVICE_PATIENCE {
                return Ok(abandon_device(name)?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the kernel makes the link; if not, a userspace device may.
    fn create_in_kernel(
        &mut self,
        name: &InterfaceName,
        gateway_id: GatewayId,
    ) -> Result<bool, DataplaneError> {
        if self.settings.backend == Backend::Userspace {
            return Ok(false);
        }
        match link::create(&mut self.rtnetlink, name) {
            Ok(()) => Ok(true),
            Err(error)
                if error.refusal() == Some(Errno::EOPNOTSUPP)
                    && self.settings.backend == Backend::Auto =>
            {
                Ok(false)
            }
            Err(error) => {
                let step = Step::CreateLink { name: name.clone(), gateway_id };
                Err(refused(&step, error))
            }
        }
    }

    fn rename_link(&mut self, from: &str, to: &InterfaceName) -> Result<(), DataplaneError> {
        let link = self.marked(from)?;
        if Some(link.index) != self.link_index {
            return Err(DataplaneError::NoLink(from.into()));
        }
        link::rename(&mut self.rtnetlink, link.index, to)
            .map_err(DataplaneError::during(format!("renaming the link {from} to {to}")))
    }

    fn free_link(&mut self, name: &str) -> Result<(), DataplaneError> {
        let found = link::find(&mut self.rtnetlink, name)
            .map_err(DataplaneError::during(format!("looking for the link {name}")))?;
        let link = found.filter(|link| Some(link.index) == self.link_index);
        let link = link.ok_or_else(|| DataplaneError::NoLink(name.into()))?;
        link::free(&mut self.rtnetlink, link.index)
            .map_err(DataplaneError::during(format!("taking the link {name} out of its master")))
    }

    fn take_down(&mut self, name: &str) -> Result<(), DataplaneError> {
        let link = self.marked(name)?;
        link::set_down(&mut self.rtnetlink, link.index)
            .map_err(DataplaneError::during(format!("taking the link {name} down")))
    }

    /// A link that has this name and our mark.
    fn marked(&mut self, name: &str) -> Result<Link, DataplaneError> {
        let found = link::find(&mut self.rtnetlink, name)
            .map_err(DataplaneError::during(format!("looking for the link {name}")))?;
        let marked = found.filter(|link| link.gateway_id().is_some());
        marked.ok_or_else(|| DataplaneError::NoLink(name.into()))
    }

    fn apply_interface(
        &mut self,
        link: &Link,
        backend: BackendInUse,
        step: &Step,
        observed: &ObservedState,
    ) -> Result<(), DataplaneError> {
        let (index, userspace) = (link.index, &self.userspace);
        let (rtnetlink, kernel) = (&mut self.rtnetlink, &mut self.kernel);
        let in_kernel = |verdict: Result<(), NetlinkError>| {
            verdict.map_err(|error| refused(&as_noticed(step, &error, observed), error))
        };
        match (step, backend) {
            (Step::ClaimLink { gateway_id }, _) => {
                in_kernel(link::claim(rtnetlink, index, *gateway_id))
            }
            (Step::SetMtu { bytes }, _) => {
                if backend == BackendInUse::Userspace {
                    Userspace::check_mtu(*bytes)?;
                }
                in_kernel(link::set_mtu(rtnetlink, index, *bytes))
            }
            (Step::SetUp, _) => {
                in_kernel(link::set_up(rtnetlink, index))?;
                self.calls_due |= backend == BackendInUse::Kernel;
                Ok(())
            }
            // As after any steps, `call_peers` does it.
            (Step::OpenSessions, _) => Ok(()),
            (Step::AddAddress { address }, _) => {
                in_kernel(address::add(rtnetlink, index, *address))?;
                self.added.insert(*address);
                Ok(())
            }
            (Step::ReplaceAddress { from, to }, _) => {
                in_kernel(address::replace(rtnetlink, index, *from, *to))?;
                self.added.remove(from);
                self.added.insert(*to);
                Ok(())
            }
            (Step::RemoveAddress { address }, _) => {
                self.added.remove(address);
                in_kernel(address::remove(rtnetlink, index, *address))
            }
            (Step::SetPrivateKey { private_key }, BackendInUse::Kernel) => {
                in_kernel(kernel.set_private_key(index, private_key))?;
                self.calls_due = true;
                Ok(())
            }
            (Step::SetPrivateKey { private_key }, BackendInUse::Userspace) => {
                Ok(userspace.set_private_key(private_key)?)
            }
            (Step::SetListenPort { port }, BackendInUse::Kernel) => {
                // Where it is refused, they must hear from the port that another program has set.
                self.calls_due = true;
                in_kernel(kernel.set_listen_port(index, *port))
            }
            (Step::SetListenPort { port }, BackendInUse::Userspace) => {
                Ok(userspace.set_listen_port(*port)?)
            }
            (Step::SetFwmark { fwmark }, BackendInUse::Kernel) => {
                in_kernel(kernel.set_fwmark(index, *fwmark))
            }
            (Step::SetFwmark { fwmark }, BackendInUse::Userspace) => {
                Ok(userspace.set_fwmark(*fwmark)?)
            }
            _ => Err(DataplaneError::NoInterfaceStep(step.to_string())),
        }
    }

    fn apply_peers(
        &mut self,
        link: &Link,
        backend: BackendInUse,
        run: &[Step],
        observed: &ObservedState,
    ) -> Vec<Verdict> {
        match backend {
            BackendInUse::Kernel => {
                let written = self.kernel.write_peers(link.index, run, &observed.peers);
                with_remedies(run, written)
            }
            BackendInUse::Userspace => self
                .userspace
                .write_peers(run)
                .into_iter()
                .map(|verdict| verdict.map_err(|error| Arc::new(error.into())))
                .collect(),
        }
    }
}

/// A link that is down takes any port; only coming up shows that it is in use.
fn as_noticed(step: &Step, error: &NetlinkError, observed: &ObservedState) -> Step {
    match &observed.interface {
        Some(link) if *step == Step::SetUp && error.refusal() == Some(Errno::EADDRINUSE) => {
            Step::SetListenPort { port: link.listen_port }
        }
        _ => step.clone(),
    }
}

fn alone(verdict: Result<(), DataplaneError>) -> Vec<Verdict> {
    vec![verdict.map_err(Arc::new)]
}

fn with_remedies(run: &[Step], verdicts: Vec<Result<(), NetlinkError>>) -> Vec<Verdict> {
    let with_remedy = |(step, verdict): (&Step, Result<(), NetlinkError>)| {
        verdict.map_err(|error| Arc::new(refused(step, error)))
    };
    run.iter().zip(verdicts).map(with_remedy).collect()
}
