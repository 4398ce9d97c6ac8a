//! The seam between the host and the firewall's own netlink code.

use crate::model::{FirewallChange, InterfaceName, ObservedFirewall};

/// Our table, as the host uses it.
pub trait Firewall {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads our table back. `None`: there is no such table.
    ///
    /// # Errors
    /// When the table cannot be read whole.
    fn observe(
        &mut self,
        interface: &InterfaceName,
    ) -> Result<Option<ObservedFirewall>, Self::Error>;

    /// Obeys a change in one transaction: after an error nothing of it is in force.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn apply(&mut self, change: &FirewallChange) -> Result<(), Self::Error>;
}
