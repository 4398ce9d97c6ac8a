//! The caller on the control socket, and whether it may change something.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::UnixStream;

/// The process at the other end of a connection, from `SO_PEERCRED`.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    uid: Uid,
    gid: Gid,
    pid: Option<i32>,
    /// Known for root, and for others after a look-up.
    user: Option<String>,
}

/// The users who may change something, besides root.
#[derive(Debug, Clone, Default)]
pub struct Writers {
    /// `control.write_group`.
    group: Option<Arc<str>>,
}

/// Why a caller may not change anything.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    #[error(
        "{0} may only read: run this as root, or name a group that may change something in [control] write_group"
    )]
    NoGroup(Caller),
    #[error(
        "{0} may only read: run this as root or as a member of group {1} ([control] write_group)"
    )]
    NoMember(Caller, Arc<str>),
    #[error(
        "{0} may only read: run this as root, or create group {1}, which [control] write_group names"
    )]
    NoSuchGroup(Caller, Arc<str>),
    #[error("{0} may only read: the groups of this host cannot be read ({1}); run this as root")]
    Unknown(Caller, io::Error),
}

impl Denied {
    pub(super) const fn caller(&self) -> &Caller {
        match self {
            Self::NoGroup(caller)
            | Self::NoMember(caller, _)
            | Self::NoSuchGroup(caller, _)
            | Self::Unknown(caller, _) => caller,
        }
    }
}

impl Caller {
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self::new(Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()), peer.pid()))
    }

    pub(super) fn new(uid: Uid, gid: Gid, pid: Option<i32>) -> Self {
        Self { uid, gid, pid, user: uid.is_root().then(|| "root".to_owned()) }
    }

    /// The numbers and the name, as journal fields.
    pub(super) fn fields(&self) -> (u32, Option<i32>, &str) {
        (self.uid.as_raw(), self.pid, self.user.as_deref().unwrap_or("?"))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uid, pid, user) = self.fields();
        write!(f, "user {user} (uid {uid}, pid {})", pid.unwrap_or(0))
    }
}

impl Writers {
    /// Root, and the members of this group.
    #[must_use]
    pub fn new(group: Option<&str>) -> Self {
        Self { group: group.map(Arc::from) }
    }

    /// The caller with its name, if it may change something. The groups are looked up each time, so
    /// that a change of them acts at once. A look-up may ask a directory server, so it has a thread.
    pub(super) async fn admit(&self, caller: Caller) -> Result<Caller, Denied> {
        if caller.uid.is_root() {
            return Ok(caller);
        }
        let (group, asking) = (self.group.clone(), caller.clone());
        let looked_up = tokio::task::spawn_blocking(move || look_up(asking, group));
        looked_up.await.unwrap_or_else(|error| Err(Denied::Unknown(caller, error.into())))
    }
}

fn look_up(mut caller: Caller, group: Option<Arc<str>>) -> Result<Caller, Denied> {
    let user = User::from_uid(caller.uid).ok().flatten();
    caller.user = user.as_ref().map(|user| user.name.clone());
    let Some(group) = group else { return Err(Denied::NoGroup(caller)) };
    let gid = match Group::from_name(&group) {
        Ok(Some(found)) => found.gid,
        Ok(None) => return Err(Denied::NoSuchGroup(caller, group)),
        Err(error) => return Err(Denied::Unknown(caller, error.into())),
    };
    if caller.gid == gid || user.is_some_and(|user| is_member(&user, gid)) {
        Ok(caller)
    } else {
        Err(Denied::NoMember(caller, group))
    }
}

fn is_member(user: &User, gid: Gid) -> bool {
    let groups = CString::new(&*user.name).ok().map(|name| getgrouplist(&name, user.gid));
    groups.is_some_and(|groups| groups.is_ok_and(|groups| groups.contains(&gid)))
}
