//! Numbers of include/uapi/linux/wireguard.h and genetlink.h. Names without the `WG` prefixes and `_A`.

pub const CMD_GET_DEVICE: u8 = 0;
pub const CMD_SET_DEVICE: u8 = 1;
pub const VERSION: u8 = 1;

pub const DEVICE_IFINDEX: u16 = 1;
pub const DEVICE_PRIVATE_KEY: u16 = 3;
pub const DEVICE_PUBLIC_KEY: u16 = 4;
pub const DEVICE_LISTEN_PORT: u16 = 6;
pub const DEVICE_FWMARK: u16 = 7;
pub const DEVICE_PEERS: u16 = 8;

pub const PEER_PUBLIC_KEY: u16 = 1;
pub const PEER_PRESHARED_KEY: u16 = 2;
pub const PEER_FLAGS: u16 = 3;
pub const PEER_ENDPOINT: u16 = 4;
pub const PEER_KEEPALIVE: u16 = 5;
pub const PEER_LAST_HANDSHAKE: u16 = 6;
pub const PEER_RX_BYTES: u16 = 7;
pub const PEER_TX_BYTES: u16 = 8;
pub const PEER_ALLOWED_IPS: u16 = 9;

pub const PEER_REMOVE_ME: u32 = 1;
pub const PEER_REPLACE_ALLOWED_IPS: u32 = 2;
pub const PEER_UPDATE_ONLY: u32 = 4;

pub const ALLOWED_IP_FAMILY: u16 = 1;
pub const ALLOWED_IP_ADDRESS: u16 = 2;
pub const ALLOWED_IP_PREFIX_LEN: u16 = 3;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// Generic netlink's own family, which knows the numbers of the others.
pub mod ctrl {
    pub const FAMILY: u16 = 16;
    pub const CMD_GET_FAMILY: u8 = 3;
    pub const VERSION: u8 = 2;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
}
