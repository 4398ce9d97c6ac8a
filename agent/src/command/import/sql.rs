//! The rows as SQL, and as comments what the agent's configuration has to say. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use gatepost::model::{InterfaceName, Masquerade};
use ipnet::IpNet;
use uuid::Uuid;

use super::arrange::{ArrangedPeer, Arrangement};
use super::found::Found;
use crate::output::printable;

/// Values that the SQL needs besides the found gateway.
pub struct Script<'a> {
    /// The interface or file that it comes from.
    pub source: &'a str,
    /// `gateways.name`.
    pub gateway: &'a str,
    pub endpoint: &'a str,
    pub interface: &'a InterfaceName,
    pub masquerade: Option<Masquerade>,
    pub found: &'a Found,
    pub arranged: &'a Arrangement,
    pub ids: Ids,
}

/// New identifiers. Envelopes are sealed for the gateway's.
pub struct Ids {
    pub gateway: Uuid,
    pub policy: Uuid,
    /// One for each peer.
    pub devices: Vec<Uuid>,
    /// The preshared key of each peer that has one.
    pub envelopes: Vec<Option<String>>,
}

impl Script<'_> {
    /// The whole text. It runs in one transaction, or not at all.
    pub fn text(&self) -> String {
        let mut text = self.title();
        text += &self.configuration();
        text += "\n";
        text += &self.gateway_rows();
        if !self.arranged.peers.is_empty() {
            text += &self.peer_rows();
            text += &self.policy_rows();
        }
        text
    }

    fn title(&self) -> String {
        let source = printable(self.source);
        let peers = gatepost::count::count(self.arranged.peers.len(), "peer");
        format!(
            "-- {source} as gateway {gateway} with {peers}, written by `gatepost import`.\n\
             -- Run it as an owner of a database that `gatepost migrate` has prepared:\n\
             --   psql -1 -v ON_ERROR_STOP=1 -f THIS_FILE\n\
             -- The page docs/import.md says what comes before and after it.\n",
            gateway = printable(self.gateway),
        )
    }

    /// Lists the settings that no row can hold.
    fn configuration(&self) -> String {
        let Self { interface, found, arranged, .. } = self;
        let mut lines = vec![
            "[gateway]".to_owned(),
            format!("name = {:?}", self.gateway),
            "[interface]".to_owned(),
            format!("name = \"{interface}\""),
        ];
        let own = IpNet::new(arranged.own, arranged.pool.prefix_len()).ok();
        if found.addresses.iter().any(|address| Some(*address) != own) {
            let mut addresses: BTreeSet<IpNet> = found.addresses.iter().copied().collect();
            addresses.extend(own);
            let addresses: Vec<_> = addresses.iter().map(|it| format!("\"{it}\"")).collect();
            lines.push(format!("addresses = [{}]", addresses.join(", ")));
        }
        if let Some(bytes) = found.mtu_bytes.filter(|bytes| *bytes != 1420) {
            lines.push(format!("mtu_bytes = {bytes}"));
        }
        if found.fwmark != 0 {
            lines.push(format!("fwmark = {:#x}", found.fwmark));
        }
        lines.push("[firewall]".to_owned());
        lines.push(match self.masquerade {
            Some(Masquerade::None) => "masquerade = \"none\"".to_owned(),
            Some(_) => "masquerade = \"all\"".to_owned(),
            None => "masquerade = \"all\"   # or \"none\", if the host translates no addresses of peers now".to_owned(),
        });
        let lines: String = lines.iter().map(|line| format!("--   {line}\n")).collect();
        format!("--\n-- /etc/gatepost/gatepost.toml needs, besides [database]:\n--\n{lines}")
    }

    fn gateway_rows(&self) -> String {
        let Self { found, arranged, ids, .. } = self;
        let id = ids.gateway;
        let mut text = format!(
            "insert into gateways (id, name, endpoint, public_key, listen_port, vpn_cidr)\n\
             values ('{id}', {}, {}, '{}', {}, '{}');\n\n\
             insert into ip_allocations (id, gateway_id, address, status)\n\
             values (gen_random_uuid(), '{id}', '{}', 'gateway');\n\n",
            quoted(self.gateway),
            quoted(self.endpoint),
            found.public_key,
            found.listen_port,
            arranged.pool,
            arranged.own,
        );
        let category = quoted(&format!("gateway:{}", self.gateway));
        text +=
            "-- Hosts behind the gateway may open connections to peers, as they could so far.\n";
        let mut settings = vec![("allow_inbound", "true".to_owned())];
        if !arranged.site_prefixes.is_empty() {
            let sites: Vec<_> =
                arranged.site_prefixes.iter().map(|it| format!("\"{it}\"")).collect();
            settings.push(("site_prefixes", format!("[{}]", sites.join(", "))));
        }
        let rows = settings.iter().map(|(key, value)| {
            format!("(gen_random_uuid(), {category}, '{key}', {})", quoted(value))
        });
        text + "insert into settings (id, category, key, value)\nvalues " + &listed(rows) + ";\n\n"
    }

    fn peer_rows(&self) -> String {
        let Self { arranged, ids, .. } = self;
        let gateway = ids.gateway;
        let users: BTreeSet<&str> = arranged.peers.iter().map(|peer| peer.user.as_str()).collect();
        let users = listed(users.into_iter().map(|user| format!("({})", quoted(user))));
        let rows = || arranged.peers.iter().zip(&ids.devices).zip(&ids.envelopes);
        let devices = listed(rows().map(|((peer, id), _)| {
            let (user, device) = (quoted(&peer.user), quoted(&peer.device));
            format!("('{id}', {user}, {device}, '{}')", peer.public_key)
        }));
        let peers = listed(rows().map(|((peer, id), envelope)| {
            let allowed = allowed_ips(peer);
            let envelope = envelope.as_deref().map_or("null".to_owned(), quoted);
            format!(
                "(gen_random_uuid(), '{id}', '{gateway}', '{}', '{}', '{allowed}', {envelope})",
                peer.public_key, peer.assigned_ip
            )
        }));
        let allocations = listed(rows().map(|((peer, id), _)| {
            format!("(gen_random_uuid(), '{gateway}', '{id}', '{}')", peer.assigned_ip)
        }));
        format!(
            "-- Users who are there already keep their rows. '!' is the hash of no password.\n\
             insert into roles (id, name) values (gen_random_uuid(), 'vpn-user') on conflict (name) do nothing;\n\
             insert into users (id, role_id, username, display_name, password_hash)\n\
             select gen_random_uuid(), r.id, new.username, new.username, '!'\n\
             from roles r, (values\n    {users}\n) as new (username)\n\
             where r.name = 'vpn-user'\n\
             on conflict (username) do nothing;\n\n\
             insert into devices (id, user_id, name, platform, device_fingerprint, public_key, approved_at)\n\
             select new.id::uuid, (\n    \
                 select u.id from users u\n    \
                 where lower(u.username::text) = lower(new.username) and u.deleted_at is null\n\
             ), new.device, 'unknown', new.key, new.key, now()\n\
             from (values\n    {devices}\n) as new (id, username, device, key);\n\n\
             insert into wireguard_peers (id, device_id, gateway_id, public_key, assigned_ip, allowed_ips, preshared_key_ciphertext)\n\
             values {peers};\n\n\
             insert into ip_allocations (id, gateway_id, device_id, address)\n\
             values {allocations};\n\n"
        )
    }

    /// Every peer may reach what it could: the host forwarded everything. The policy is for devices, because
    /// one for their users would also be for the devices that they have at other gateways.
    fn policy_rows(&self) -> String {
        let Ids { policy, devices, .. } = &self.ids;
        let name = quoted(&format!("imported from {}", self.gateway));
        let targets = listed(
            devices.iter().map(|id| format!("(gen_random_uuid(), '{policy}', 'device', '{id}')")),
        );
        format!(
            "-- The first policy: the devices above may reach everything, as they could so far; other devices of their\n\
             -- users gain nothing. Any other policy goes before it. Narrow it once others say who may reach what.\n\
             insert into policies (id, name, description, priority)\n\
             values ('{policy}', {name}, 'Everything, as before the import', 1000);\n\
             insert into policy_destinations (id, policy_id, destination)\n\
             values (gen_random_uuid(), '{policy}', '0.0.0.0/0'),\n    \
                 (gen_random_uuid(), '{policy}', '::/0');\n\
             insert into policy_targets (id, policy_id, target_type, target_id)\n\
             values {targets};\n"
        )
    }
}

/// An array's text, as `cidr[]` reads it.
fn allowed_ips(peer: &ArrangedPeer) -> String {
    let mut text = String::from("{");
    for (index, prefix) in peer.allowed_ips.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{prefix}");
    }
    text + "}"
}

/// Rows one below the other.
fn listed(rows: impl Iterator<Item = String>) -> String {
    rows.collect::<Vec<_>>().join(",\n    ")
}

/// A string of SQL that is read the same whatever `standard_conforming_strings` says.
fn quoted(text: &str) -> String {
    let safe = printable(text).replace('\'', "''");
    if safe.contains('\\') {
        format!("E'{}'", safe.replace('\\', "\\\\"))
    } else {
        format!("'{safe}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_stays_within_its_quotes() {
        assert_eq!(quoted("o'neil"), "'o''neil'");
        assert_eq!(quoted("a'); drop table users; --\n"), "'a''); drop table users; --\u{fffd}'");
        assert_eq!(quoted(r"a\"), r"E'a\\'");
        assert_eq!(quoted(r"\'"), r"E'\\'''");
    }
}
