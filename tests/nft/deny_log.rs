//! The log of denied packets, read as a log daemon reads it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use gatepost::model::{NflogGroup, ProfileId};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigMode, ConfigNla, PacketNla, ULogMessage, config_request,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv};

use super::netns::Netns;
use super::network::{LAN4, LAN6, Network, within};
use super::table::{base, load, profile};

const GROUP: u16 = NflogGroup::DEFAULT.0;
const ALICE: ProfileId = ProfileId(1);
const FLOOD: u32 = 1_000;
/// The rule's burst, and one more in case ten seconds pass.
const AT_MOST: u32 = 6;
/// Packets from elsewhere share one burst; a few more may pass as time passes.
const OUTSIDE_AT_MOST: u32 = 30;

/// Source and destination of a denied packet, from its own header.
type Denied = (IpAddr, IpAddr);

/// The reader of the group, in the namespace of the thread that opens it.
struct Log(Socket);

impl Log {
    fn open() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        let settings = vec![
            ConfigCmd::Bind.into(),
            ConfigMode::PACKET_MAX.into(),
            // Send each message at once, not a hundred together.
            ConfigNla::QThresh(1),
        ];
        let request = config_request(NetfilterProtoFamily::IPv4, GROUP, settings);
        let mut bytes = vec![0; request.header.length as usize];
        request.serialize(&mut bytes);
        socket.send(&bytes, 0).unwrap();
        let log = Self(socket);
        let answers = log.receive();
        let [Message::Verdict(None)] = answers[..] else { panic!("the group is not ours") };
        log
    }

    /// Counts logged packets until `last` is logged.
    fn read_until(&self, last: Denied) -> BTreeMap<Denied, u32> {
        let mut told = BTreeMap::new();
        while !told.contains_key(&last) {
            for message in self.receive() {
                let Message::Packet(attributes) = message else { panic!("not a packet") };
                *told.entry(read(&attributes)).or_default() += 1;
            }
        }
        told
    }

    fn receive(&self) -> Vec<Message> {
        let mut buffer = vec![0; 64 * 1024];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        let mut rest = &buffer[..length];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = <NetlinkMessage<NetfilterMessage>>::deserialize(rest).unwrap();
            rest = &rest[(message.header.length as usize).next_multiple_of(4).min(rest.len())..];
            messages.push(match message.payload {
                NetlinkPayload::Error(error) => Message::Verdict(error.code.map(|code| code.get())),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::ULog(ULogMessage::Packet(attributes)),
                    ..
                }) => Message::Packet(attributes),
                other => panic!("{other:?}"),
            });
        }
        messages
    }
}

enum Message {
    Verdict(Option<i32>),
    Packet(Vec<PacketNla>),
}

/// Peer and destination, from a message that must also carry our prefix and the interface.
fn read(attributes: &[PacketNla]) -> Denied {
    let find =
        |wanted: fn(&PacketNla) -> bool| attributes.iter().find(|&found| wanted(found)).unwrap();
    let PacketNla::Prefix(prefix) = find(|found| matches!(found, PacketNla::Prefix(_))) else {
        unreachable!()
    };
    assert_eq!(prefix.to_str().unwrap(), "gatepost-deny ");
    find(|found| matches!(found, PacketNla::IfIndexInDev(_)));
    let PacketNla::Payload(packet) = find(|found| matches!(found, PacketNla::Payload(_))) else {
        unreachable!()
    };
    fn ip<const BYTES: usize>(packet: &[u8], at: usize) -> [u8; BYTES] {
        packet[at..at + BYTES].try_into().unwrap()
    }
    match packet[0] >> 4 {
        4 => (ip::<4>(packet, 12).into(), ip::<4>(packet, 16).into()),
        6 => (ip::<16>(packet, 8).into(), ip::<16>(packet, 24).into()),
        version => panic!("IP version {version}"),
    }
}

fn send(from: &Netns, to: &str, times: u32) {
    let to = SocketAddr::new(to.parse().unwrap(), 80);
    within(from, || {
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        for _ in 0..times {
            socket.send_to(b"?", to).unwrap();
        }
    });
}

fn denied(peer: &str, destination: &str) -> Denied {
    (peer.parse().unwrap(), destination.parse().unwrap())
}

#[test]
fn forged_sources_from_outside_do_not_crowd_peers_out_of_the_log() {
    let profiles = [(ALICE, profile(&[], &[]))].into();
    let assignments = [("10.64.0.2/32".parse().unwrap(), ALICE)];
    let mut network = Network::new();
    network.nft.apply(&load(&base(), &(profiles, assignments.into())), None).unwrap();
    let log = Log::open();
    let forged: Vec<String> = (1..=60).map(|host| format!("172.16.1.1{host:02}")).collect();
    let add = |address: &String| format!("ip address add {address}/24 dev lan0;");
    network.lan.run(&forged.iter().map(add).collect::<String>());
    within(&network.lan, || {
        for source in &forged {
            let socket = UdpSocket::bind((source.as_str(), 0)).unwrap();
            for _ in 0..3 {
                socket.send_to(b"?", "10.64.0.2:80").unwrap();
            }
        }
    });
    send(&network.alice, LAN4, 1);
    let told = log.read_until(denied("10.64.0.2", LAN4));
    let flood: u32 = told.values().sum();
    assert!(flood <= 1 + OUTSIDE_AT_MOST, "{flood} messages of 180 packets");
    let counted = network.gateway.run("nft list set inet gatepost denied4");
    assert!(counted.contains("10.64.0.2") && !counted.contains("172.16.1."), "{counted}");
}

#[test]
fn the_deny_log_names_peer_and_destination_and_limits_a_flood() {
    let profiles = [(ALICE, profile(&[], &[]))].into();
    let assignments = ["10.64.0.2/32", "fd64::2/128"].map(|net| (net.parse().unwrap(), ALICE));
    let mut network = Network::new();
    network.nft.apply(&load(&base(), &(profiles, assignments.into())), None).unwrap();
    let log = Log::open();
    for (alice, bob, destination) in
        [("10.64.0.2", "10.64.0.3", LAN4), ("fd64::2", "fd64::3", LAN6)]
    {
        send(&network.alice, destination, FLOOD);
        // Each peer has its own limit: this one is logged, and last.
        send(&network.bob, destination, 1);
        let told = log.read_until(denied(bob, destination));
        let flood = told[&denied(alice, destination)];
        assert!((1..=AT_MOST).contains(&flood), "{flood} messages of {FLOOD} packets");
        assert_eq!(told.len(), 2, "{told:?}");
    }
    let counted = network.nft.read_counters_of(ALICE).unwrap().unwrap();
    assert!(counted.denied.packets > FLOOD.into(), "the flood was not denied: {counted:?}");
}
