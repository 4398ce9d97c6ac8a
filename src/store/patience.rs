//! How long a connection waits for the network.

use std::time::Duration;

/// For a connection to one host.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// After this long without an acknowledgement a connection is lost.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(7);
