//! The data plane that the loop drives.

use crate::dataplane::Dataplane;

/// The data plane of a host.
pub trait Host: Dataplane + 'static {}

impl<D: Dataplane + 'static> Host for D {}
