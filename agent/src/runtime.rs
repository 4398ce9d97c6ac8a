//! The runtime of a command that asks something and ends.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// A runtime on the calling thread alone.
///
/// # Errors
/// The kernel refuses the file descriptors that it needs.
pub fn on_this_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
