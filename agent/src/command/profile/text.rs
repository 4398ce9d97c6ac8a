//! A profile as the file of `wg-quick(8)`, as a QR code and as JSON.

use std::net::IpAddr;

use gatepost::model::{PresharedKey, PrivateKey, PublicKey};
use ipnet::IpNet;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use qrcode::types::QrError;
use serde_json::{Value, json};

use crate::output::printable;

/// The client's keepalives keep its NAT's entry open (WireGuard's own recommendation).
const KEEPALIVE_SECS: u16 = 25;

/// The values that a client needs. It holds secrets: only printing exposes them.
pub struct Profile {
    pub user: String,
    pub device: String,
    pub gateway: String,
    /// `wireguard_peers.profile_revision`.
    pub revision: i32,
    pub address: IpAddr,
    /// Addresses and search domains.
    pub dns_servers: Vec<String>,
    pub public_key: PublicKey,
    pub private_key: Option<PrivateKey>,
    pub gateway_key: String,
    pub preshared_key: Option<PresharedKey>,
    /// Where the gateway is: `host:port`.
    pub endpoint: String,
    /// The destinations that the client sends through the tunnel.
    pub allowed_ips: Vec<IpNet>,
}

impl Profile {
    /// The file for `wg-quick`. Without a private key in it, that is read from a file on the client.
    pub fn text(&self) -> String {
        let Self { user, device, gateway, revision, .. } = self;
        let title = printable(&format!("# {user}/{device} on {gateway}, revision {revision}"));
        let key = match &self.private_key {
            Some(key) => format!("PrivateKey = {}", key.expose_text()),
            None => "PostUp = wg set %i private-key /etc/wireguard/%i.key".to_owned(),
        };
        let list = |name: &str, items: &[String]| {
            (!items.is_empty()).then(|| format!("{name} = {}", items.join(", ")))
        };
        let allowed: Vec<String> = self.allowed_ips.iter().map(ToString::to_string).collect();
        let preshared = self.preshared_key.as_ref();
        let lines = [
            Some(title),
            Some("[Interface]".to_owned()),
            Some(format!("Address = {}", IpNet::from(self.address))),
            list("DNS", &self.dns_servers),
            Some(key),
            Some(String::new()),
            Some("[Peer]".to_owned()),
            Some(format!("PublicKey = {}", self.gateway_key)),
            preshared.map(|key| format!("PresharedKey = {}", key.expose_text())),
            Some(format!("Endpoint = {}", self.endpoint)),
            list("AllowedIPs", &allowed),
            Some(format!("PersistentKeepalive = {KEEPALIVE_SECS}")),
        ];
        lines.into_iter().flatten().map(|line| line + "\n").collect()
    }

    /// Every field, for programs.
    pub fn json(&self) -> Value {
        json!({
            "user": self.user,
            "device": self.device,
            "gateway": self.gateway,
            "profile_revision": self.revision,
            "assigned_ip": self.address,
            "dns_servers": self.dns_servers,
            "public_key": self.public_key,
            "private_key": self.private_key.as_ref().map(PrivateKey::expose_text),
            "gateway_public_key": self.gateway_key,
            "preshared_key": self.preshared_key.as_ref().map(PresharedKey::expose_text),
            "endpoint": self.endpoint,
            "allowed_ips": self.allowed_ips,
            "keepalive_secs": KEEPALIVE_SECS,
        })
    }
}

/// The text as a QR code for a terminal, light on dark.
pub fn qr_code(text: &str) -> Result<String, QrError> {
    let code = QrCode::new(text)?;
    let mut image = code.render::<Dense1x2>();
    Ok(image.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let private_key = PrivateKey::from_bytes([1; 32]).unwrap();
        Profile {
            user: "alice".into(),
            device: "lap\ntop".into(),
            gateway: "fra-1".into(),
            revision: 3,
            address: "10.99.0.2".parse().unwrap(),
            dns_servers: vec!["10.99.0.1".into(), "corp.example".into()],
            public_key: private_key.public_key(),
            private_key: None,
            gateway_key: "gCtIt9iGCMpVtL3bN/xnQrdx2yKmsw93Xv1IL5iJLws=".into(),
            preshared_key: None,
            endpoint: "vpn.example.org:51820".into(),
            allowed_ips: vec!["10.20.0.0/16".parse().unwrap(), "10.99.0.1/32".parse().unwrap()],
        }
    }

    #[test]
    fn file_holds_only_the_secrets_that_were_given() {
        let text = "\
# alice/lap\u{fffd}top on fra-1, revision 3
[Interface]
Address = 10.99.0.2/32
DNS = 10.99.0.1, corp.example
PostUp = wg set %i private-key /etc/wireguard/%i.key

[Peer]
PublicKey = gCtIt9iGCMpVtL3bN/xnQrdx2yKmsw93Xv1IL5iJLws=
Endpoint = vpn.example.org:51820
AllowedIPs = 10.20.0.0/16, 10.99.0.1/32
PersistentKeepalive = 25
";
        assert_eq!(profile().text(), text);
        let with_keys = Profile {
            private_key: Some(PrivateKey::from_bytes([1; 32]).unwrap()),
            preshared_key: Some(PresharedKey::from_bytes([2; 32]).unwrap()),
            dns_servers: Vec::new(),
            ..profile()
        };
        let text = with_keys.text();
        assert!(text.contains("\nPrivateKey = AQEB") && !text.contains("PostUp"), "{text}");
        assert!(text.contains("\nPresharedKey = AgIC") && !text.contains("DNS"), "{text}");
        assert_eq!(profile().json()["private_key"], Value::Null);
        assert_eq!(with_keys.json()["preshared_key"].as_str().map(str::len), Some(44));
    }

    #[test]
    fn qr_code_is_square() {
        let code = qr_code(&profile().text()).unwrap();
        let widths: std::collections::BTreeSet<_> =
            code.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 1);
        assert_eq!(code.lines().count(), widths.first().unwrap().div_ceil(2));
    }

    #[test]
    fn addresses_and_networks_of_ipv6_are_written_as_wg_quick_reads_them() {
        let profile = Profile {
            address: "fd99::2".parse().unwrap(),
            dns_servers: vec!["fd99::1".into()],
            endpoint: "[2001:db8::1]:51820".into(),
            allowed_ips: vec!["fd20::/48".parse().unwrap(), "10.20.0.0/16".parse().unwrap()],
            ..profile()
        };
        let text = profile.text();
        for line in [
            "Address = fd99::2/128",
            "DNS = fd99::1",
            "Endpoint = [2001:db8::1]:51820",
            "AllowedIPs = fd20::/48, 10.20.0.0/16",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        assert_eq!(profile.json()["allowed_ips"], json!(["fd20::/48", "10.20.0.0/16"]));
    }
}
