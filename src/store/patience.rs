//! How long a connection waits for the network.

use std::time::Duration;

/// For a connection to one host.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How long after the server had no room for a session it is asked again: one that this agent closed
/// a moment ago may still count.
pub(super) const ROOM_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];

/// How long the agent makes do with the sessions that it has, once the server refused one more.
pub(super) const MAKES_DO_FOR: Duration = Duration::from_secs(60);

/// After this long without an acknowledgement a connection is lost.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(7);
