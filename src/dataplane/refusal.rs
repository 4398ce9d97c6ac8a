//! The remedy for a step that the kernel refused. Pure.

use nix::errno::Errno;

use super::DataplaneError;
use super::conntrack::is_unheard_of;
use super::netlink::NetlinkError;
use super::nft::NftError;
use crate::plan::{Blame, Step};

/// The kernel's refusal of a step, with what to do about it.
pub(super) fn refused(step: &Step, source: NetlinkError) -> DataplaneError {
    let remedy = source.refusal().and_then(|errno| remedy(step, errno));
    DataplaneError::Refused { source, remedy }
}

/// The part of a firewall change to which the kernel's refusal applies.
pub(super) fn blame(refusal: &NftError) -> Blame {
    match refusal {
        // That sets are left is for the next reading.
        NftError::SetsLeft(refusal) => blame(refusal),
        NftError::TooLarge { .. } => Blame::Content,
        NftError::Refused { errno, .. } => match errno {
            Errno::EPERM | Errno::EACCES | Errno::EAGAIN | Errno::EINTR | Errno::ERESTART => {
                Blame::Request
            }
            // It may be there for a smaller change, or for the next one.
            Errno::ENOMEM | Errno::ENOBUFS | Errno::EMFILE | Errno::ENOSPC => Blame::Host,
            Errno::ENOENT | Errno::EEXIST => Blame::Table,
            // EBUSY among them: another program's rule looks up a set that is to go or to be replaced.
            _ => Blame::Content,
        },
        _ => Blame::Request,
    }
}

/// What to do about a profile that the kernel does not load.
pub(super) fn way_out(refusal: &NftError) -> &'static str {
    match refusal {
        NftError::SetsLeft(refusal) => way_out(refusal),
        NftError::Refused { errno: Errno::EBUSY, .. } => {
            "another program's rule looks that set up: remove the rule (`nft list table inet gatepost` shows \
             it, unless it is gone already)"
        }
        _ => "give the policy fewer destinations, or the host more memory",
    }
}

fn remedy(step: &Step, errno: Errno) -> Option<String> {
    let text = match (step, errno) {
        (Step::CreateLink { name, .. }, Errno::EEXIST) => format!(
            "a link {name} exists already: `ip -d link show {name}` says what it is; rename it, or \
             give the gateway another `interface.name`"
        ),
        (Step::CreateLink { .. }, Errno::EOPNOTSUPP) => {
            "this kernel has no WireGuard: load the module `wireguard`, or set `interface.backend` \
             to \"auto\" or \"userspace\""
                .to_owned()
        }
        (Step::SetListenPort { port }, Errno::EADDRINUSE) => format!(
            "another socket has UDP port {port}: `ss -ulpn sport = :{port}` says which; stop it, \
             or change `gateways.listen_port`"
        ),
        (Step::SetUp, Errno::EADDRINUSE) => {
            "another socket has the interface's UDP port: `ss -ulpn` says which; stop it, or change \
             `gateways.listen_port`"
                .to_owned()
        }
        (Step::AddRoute { prefix }, Errno::EEXIST) => format!(
            "somebody else's route to {prefix} is there and is left alone: `ip route show {prefix}` \
             says whose; remove it, or take {prefix} from the peer"
        ),
        (Step::AddAddress { address } | Step::ReplaceAddress { to: address, .. }, Errno::EEXIST) => {
            format!("{address} is there already: `ip address show` says where")
        }
        (
            Step::AddAddress { address } | Step::ReplaceAddress { to: address, .. },
            Errno::EACCES | Errno::EOPNOTSUPP,
        ) if is_v6(address) => {
            format!("IPv6 is switched off here: {address} needs net.ipv6.conf.all.disable_ipv6 = 0")
        }
        (Step::SetMtu { bytes }, Errno::EINVAL) => {
            format!("{bytes} bytes is no MTU for this link: see `interface.mtu_bytes`")
        }
        (Step::AddPeer { .. } | Step::WidenPeer { .. }, Errno::EINVAL) => {
            "one of its prefixes or keys is not what WireGuard takes".to_owned()
        }
        (Step::CutFlows { .. }, errno) if is_unheard_of(errno) => {
            "tracked flows cannot be listed, and who gets an address would inherit them: load the \
             module `nf_conntrack_netlink`, or set `firewall.flush_conntrack` to false"
                .to_owned()
        }
        (_, Errno::EPERM | Errno::EACCES) => {
            "the agent needs CAP_NET_ADMIN in the network namespace where the interface was made"
                .to_owned()
        }
        (_, Errno::ENODEV) => "the link was removed meanwhile".to_owned(),
        (_, Errno::ENOBUFS | Errno::ENOMEM) => "the kernel has no memory for it".to_owned(),
        _ => return None,
    };
    Some(text)
}

fn is_v6(address: &ipnet::IpNet) -> bool {
    matches!(address, ipnet::IpNet::V6(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_thing_the_value_and_the_way_out() {
        let error = NetlinkError::Refused { errno: Errno::EADDRINUSE, message: String::new() };
        let refused = refused(&Step::SetListenPort { port: 51820 }, error);
        assert_eq!(
            refused.to_string(),
            "the kernel says EADDRINUSE: Address already in use; another socket has UDP port 51820: \
             `ss -ulpn sport = :51820` says which; stop it, or change `gateways.listen_port`"
        );
    }

    #[test]
    fn what_the_host_lacks_for_a_moment_is_blamed_on_no_policy() {
        let blamed = |errno| blame(&NftError::Refused { request: String::new(), errno });
        for errno in [Errno::ENOMEM, Errno::ENOBUFS, Errno::EMFILE, Errno::ENOSPC] {
            assert_eq!(blamed(errno), Blame::Host, "{errno}");
        }
        assert_eq!(blamed(Errno::EPERM), Blame::Request);
        assert_eq!(blamed(Errno::EINVAL), Blame::Content);
        assert_eq!(blamed(Errno::EBUSY), Blame::Content);
        assert_eq!(blamed(Errno::ENOENT), Blame::Table);
        let refusal = NftError::Refused { request: String::new(), errno: Errno::ENOMEM };
        assert_eq!(blame(&NftError::SetsLeft(Box::new(refusal))), Blame::Host);
    }

    #[test]
    fn a_set_that_another_programs_rule_holds_is_no_matter_of_its_size() {
        let refused = |errno| NftError::Refused { request: String::new(), errno };
        assert!(way_out(&refused(Errno::EBUSY)).contains("remove the rule"));
        assert!(way_out(&refused(Errno::EINVAL)).contains("fewer destinations"));
    }

    #[test]
    fn flows_that_cannot_be_listed_name_the_module() {
        let cut = Step::CutFlows { prefixes: std::collections::BTreeSet::new() };
        let error = NetlinkError::Refused { errno: Errno::EINVAL, message: String::new() };
        assert!(refused(&cut, error).to_string().contains("`nf_conntrack_netlink`"));
    }
}
