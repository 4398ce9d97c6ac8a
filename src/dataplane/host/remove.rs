//! Taking what is ours away from the host.

use super::{Host, KIND_TUN, KIND_WIREGUARD, Link};
use crate::dataplane::device::stop_device;
use crate::dataplane::netlink::gone_is_done;
use crate::dataplane::{DataplaneError, Firewall, link, rule, wireguard};
use crate::model::Tag;
use crate::plan::Step;

impl<F: Firewall> Host<F> {
    /// The names of the links that [`remove_links`](Self::remove_links) would remove.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_names(&mut self) -> Result<Vec<Box<str>>, DataplaneError> {
        let (interface, strays) = self.find_ours()?;
        let links = interface.into_iter().chain(strays);
        Ok(links.filter(|link| link.gateway_id().is_some()).map(|link| link.name).collect())
    }

    /// Removes the rules of the gate, and says whether there were any. They go before the table does.
    ///
    /// # Errors
    /// When they cannot be read or removed.
    pub fn remove_rules(&mut self) -> Result<bool, DataplaneError> {
        let mut rules = self.read_routing()?.rules;
        rules.retain(|rule| rule.tag == Tag::Ours);
        rule::remove(&mut self.rtnetlink, &rules)
            .map_err(DataplaneError::during("removing the rules of the gate"))?;
        Ok(!rules.is_empty())
    }

    /// Removes every link with our mark, whatever its name and whichever gateway's, each with its
    /// peers, addresses and routes. Returns their names. The firewall's table stays: it guards them
    /// until they are gone, and is removed by the firewall's own means after this.
    ///
    /// # Errors
    /// When the interface's name is on a link without our mark, or a link cannot be removed.
    pub fn remove_links(&mut self) -> Result<Vec<Box<str>>, DataplaneError> {
        let (interface, strays) = self.find_ours()?;
        let links: Vec<Link> = interface.into_iter().chain(strays).collect();
        if links.iter().any(|link| link.gateway_id().is_none()) {
            return Err(DataplaneError::NotOurs(self.settings.interface.clone()));
        }
        links.iter().map(|link| self.remove_link(link).map(|()| link.name.clone())).collect()
    }

    fn remove_link(&mut self, link: &Link) -> Result<(), DataplaneError> {
        let Link { index, name, kind, .. } = link;
        match kind.as_str() {
            KIND_WIREGUARD => self.remove_peers(link)?,
            KIND_TUN => self.stop_device_of(link)?,
            _ => {
                let (name, kind) = (name.clone(), kind.clone());
                return Err(DataplaneError::ForeignLink { name, kind });
            }
        }
        gone_is_done(link::delete(&mut self.rtnetlink, *index))
            .map_err(DataplaneError::during(format!("removing the link {name}")))
    }

    fn remove_peers(&mut self, link: &Link) -> Result<(), DataplaneError> {
        let action = || format!("removing the peers of {}", link.name);
        let peers = self.kernel.read(link.index).map_err(DataplaneError::during(action()))?.peers;
        let steps: Vec<Step> = peers.keys().map(|key| Step::RemovePeer { key: *key }).collect();
        let removed: Result<(), _> =
            self.kernel.write_peers(link.index, &steps, &peers).into_iter().collect();
        removed.map_err(DataplaneError::during(action()))
    }

    /// The device listens under the name that it was made with, whatever its link is called now.
    fn stop_device_of(&self, link: &Link) -> Result<(), DataplaneError> {
        let names = [link.name.parse().ok(), Some(self.settings.interface.clone())];
        let mut names = names.into_iter().flatten();
        match names.find(|name| wireguard::answers(name).unwrap_or(false)) {
            Some(name) => Ok(stop_device(&name)?),
            None => Ok(()),
        }
    }
}
