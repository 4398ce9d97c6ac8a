//! Reading back what does not grow with the peers.

use std::collections::BTreeMap;

use super::{BackendInUse, Host};
use crate::dataplane::{DataplaneError, Firewall, Glance};

impl<F: Firewall> Host<F> {
    /// A link that is missing or not ours is no interface: a complete reading tells which.
    pub(super) fn read_but_peers(&mut self) -> Result<Glance, DataplaneError> {
        let firewall_is_current = self.firewall.is_current()?;
        let routing = self.read_routing()?;
        let (interface, routes) = (None, BTreeMap::new());
        let nothing = Glance { interface, routes, routing, firewall_is_current };
        let Some(link) = self.find()? else { return Ok(nothing) };
        let Some(backend) = self.backend_of(&link)? else { return Ok(nothing) };
        let name = &self.settings.interface;
        let device = match backend {
            BackendInUse::Kernel => self
                .kernel
                .read_but_peers(link.index)
                .map_err(DataplaneError::during(format!("reading the device {name}")))?,
            BackendInUse::Userspace => self.userspace.read_but_peers()?,
        };
        let interface = self.read_interface(&link, &device)?;
        let routes = self.read_routes(&link, &interface)?;
        Ok(Glance { interface: Some(interface), routes, ..nothing })
    }
}
