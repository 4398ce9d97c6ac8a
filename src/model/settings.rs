//! Rows of `settings` that concern one gateway, parsed.
//!
//! | category, key | value | default |
//! |---|---|---|
//! | `gateway`, `require_approval` | boolean: a device without `approved_at` is not eligible | `false` |
//! | `gateway`, `strict_ip_allocations` | boolean: a peer whose address is not allocated to its device is quarantined | `false` |
//! | `gateway`, `site_prefixes` | list of prefixes that peers may announce besides their address | `[]` |
//! | `gateway`, `guard_confirmed_at` | time: confirms the removals that were held back before it | `null` |
//! | `gateway`, `audit_events` | list of the events that are written to `audit_logs`, like `["gateway.*", "peer.revoked"]` | `null`: all |
//! | `policy`, `allow_dns` | boolean: peers may reach the DNS servers listed for them on port 53 | `true` |
//! | `policy`, `allow_inbound` | boolean: others may open flows toward peers | `false` |
//! | `policy`, `gateway_may_open` | boolean: the gateway itself may open flows toward peers | `true` |
//! | `policy`, `default_effect` | `"allow"` or `"deny"`: what happens where no policy decides | `"deny"` |
//!
//! These hold for all gateways. A row in category `gateway:<name>` with one of these keys holds
//! for that gateway and goes before. A boolean may be a string in any letter case. A value that
//! cannot be read is reported and restricts: approval and allocations are asked for, nothing is
//! allowed, there are no site prefixes, and nothing is confirmed. All
//! events are audited.

mod time;
mod warning;

use std::time::SystemTime;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::limit::{SETTING_BYTES, SITE_PREFIXES};
use super::policy::Verdict;
use super::{AuditEvents, SettingRow, check_network};
use warning::nearest;
pub use warning::{SettingFlaw, SettingWarning};

/// The settings in force for one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub require_approval: bool,
    pub strict_ip_allocations: bool,
    /// Sorted, each once, and none that [`check_network`] refuses.
    pub site_prefixes: Vec<IpNet>,
    /// An operator confirms what was held back by rows read before this time of the database.
    pub guard_confirmed_at: Option<SystemTime>,
    pub audit_events: AuditEvents,
    pub allow_dns: bool,
    pub allow_inbound: bool,
    pub gateway_may_open: bool,
    pub default_effect: Verdict,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            require_approval: false,
            strict_ip_allocations: false,
            site_prefixes: Vec::new(),
            guard_confirmed_at: None,
            audit_events: AuditEvents::default(),
            allow_dns: true,
            allow_inbound: false,
            gateway_may_open: true,
            default_effect: Verdict::Deny,
        }
    }
}

impl Settings {
    /// Reads the rows for the gateway of this name, in any order. Rows of other categories and of
    /// other gateways are passed over. `read_at`: the database's time of the rows.
    #[must_use]
    pub fn parse(
        gateway_name: &str,
        rows: &[SettingRow],
        read_at: SystemTime,
    ) -> (Self, Vec<SettingWarning>) {
        let own = format!("gateway:{gateway_name}");
        let mut rows: Vec<(&SettingRow, Category)> = rows
            .iter()
            .filter_map(|row| match row.category.as_str() {
                "gateway" => Some((row, Category::Gateway)),
                "policy" => Some((row, Category::Policy)),
                category if category == own => Some((row, Category::ThisGateway)),
                _ => None,
            })
            .collect();
        rows.sort_by(|(a, a_scope), (b, b_scope)| (a_scope, &a.key).cmp(&(b_scope, &b.key)));
        let mut settings = Self::default();
        let mut warnings = Vec::new();
        for (row, scope) in rows {
            settings.read(row, scope, read_at, &mut warnings);
        }
        (settings, warnings)
    }

    /// The keys that mean something.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        KEYS.iter().map(|(_, key, _)| *key)
    }

    fn read(
        &mut self,
        row: &SettingRow,
        scope: Category,
        read_at: SystemTime,
        warnings: &mut Vec<SettingWarning>,
    ) {
        let mut warn = |flaw| {
            let (category, key) = (row.category.clone(), row.key.clone());
            warnings.push(SettingWarning { category, key, flaw });
        };
        let known = KEYS.iter().filter(|(of, _, _)| scope == Category::ThisGateway || scope == *of);
        let Some((_, _, key)) = known.clone().find(|(_, name, _)| *name == row.key) else {
            let names = known.map(|(_, name, _)| *name);
            return warn(SettingFlaw::UnknownKey { nearest: nearest(&row.key, names) });
        };
        let is_too_long = row.value.len() > SETTING_BYTES;
        let bad = |expected| match is_too_long {
            true => SettingFlaw::TooLong { expected },
            false => SettingFlaw::BadValue { value: row.value.as_str().into(), expected },
        };
        // PostgreSQL's numbers may be larger than any of Rust's. No key takes an object.
        let value = serde_json::from_str(&row.value).ok().filter(|_| !is_too_long);
        let value = value.unwrap_or_else(|| Value::Object(Map::default()));
        let mut boolean = |restricting: bool| {
            boolean(&value).unwrap_or_else(|| {
                warn(bad(if restricting { TAKEN_FOR_TRUE } else { TAKEN_FOR_FALSE }));
                restricting
            })
        };
        match key {
            Key::RequireApproval => self.require_approval = boolean(true),
            Key::StrictIpAllocations => self.strict_ip_allocations = boolean(true),
            Key::AllowDns => self.allow_dns = boolean(false),
            Key::AllowInbound => self.allow_inbound = boolean(false),
            Key::GatewayMayOpen => self.gateway_may_open = boolean(false),
            Key::GuardConfirmedAt => {
                let at = time::parse(&value);
                self.guard_confirmed_at = at.filter(|at| *at <= read_at);
                if self.guard_confirmed_at.is_none() && value != Value::Null {
                    warn(bad(if at.is_some() { AHEAD } else { TIME }));
                }
            }
            Key::AuditEvents => {
                self.audit_events = AuditEvents::parse(&value).unwrap_or_else(|_| {
                    warn(bad(EVENTS));
                    AuditEvents::default()
                });
            }
            Key::SitePrefixes => {
                self.site_prefixes.clear();
                let entries = value.as_array().filter(|entries| entries.len() <= SITE_PREFIXES);
                let Some(entries) = entries else { return warn(bad(LIST_OF_SITES)) };
                for entry in entries {
                    match site_prefix(entry) {
                        Some(prefix) => self.site_prefixes.push(prefix),
                        None => warn(SettingFlaw::BadValue {
                            value: entry.to_string().into(),
                            expected: SITE_PREFIX,
                        }),
                    }
                }
                self.site_prefixes.sort_unstable();
                self.site_prefixes.dedup();
            }
            Key::DefaultEffect => {
                self.default_effect = match value.as_str() {
                    Some("allow") => Verdict::Allow,
                    Some("deny") => Verdict::Deny,
                    _ => {
                        warn(bad("\"allow\" or \"deny\"; denied"));
                        Verdict::Deny
                    }
                }
            }
        }
    }
}

/// The category of a row of `settings`, in the order of reading: a row of `ThisGateway` overrides the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Category {
    Gateway,
    Policy,
    /// Takes the keys of both others.
    ThisGateway,
}

#[derive(Debug, Clone, Copy)]
enum Key {
    RequireApproval,
    StrictIpAllocations,
    SitePrefixes,
    GuardConfirmedAt,
    AuditEvents,
    AllowDns,
    AllowInbound,
    GatewayMayOpen,
    DefaultEffect,
}

const KEYS: [(Category, &str, Key); 9] = [
    (Category::Gateway, "require_approval", Key::RequireApproval),
    (Category::Gateway, "strict_ip_allocations", Key::StrictIpAllocations),
    (Category::Gateway, "site_prefixes", Key::SitePrefixes),
    (Category::Gateway, "guard_confirmed_at", Key::GuardConfirmedAt),
    (Category::Gateway, "audit_events", Key::AuditEvents),
    (Category::Policy, "allow_dns", Key::AllowDns),
    (Category::Policy, "allow_inbound", Key::AllowInbound),
    (Category::Policy, "gateway_may_open", Key::GatewayMayOpen),
    (Category::Policy, "default_effect", Key::DefaultEffect),
];

const TAKEN_FOR_TRUE: &str = "true or false; taken for true until it is";
const TAKEN_FOR_FALSE: &str = "true or false; taken for false until it is";
const TIME: &str = "a time as to_jsonb(now()) writes it; it confirms nothing";
const AHEAD: &str = "past by the database's clock; it confirms nothing";
const EVENTS: &str = "a list of events, like [\"gateway.*\", \"peer.revoked\"]; all are written";
const LIST_OF_SITES: &str =
    "a list of at most 1000 prefixes, like [\"10.1.0.0/16\"]; taken for none";
const SITE_PREFIX: &str = "a prefix with its host bits zero, no wider than /8 (IPv6: /16), and none \
                           that every host needs; this entry is left out";

/// A boolean, or the string that spells it: forms that store all values as text write that, in the
/// letter case of their language.
fn boolean(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.to_ascii_lowercase().parse().ok())
}

/// `/0` would let one peer announce, and so take, the traffic of all peers.
fn site_prefix(value: &Value) -> Option<IpNet> {
    let prefix: IpNet = value.as_str()?.parse().ok()?;
    (prefix == prefix.trunc() && check_network(prefix).is_ok()).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs)
    }

    fn parse(rows: &[(&str, &str, &str)]) -> (Settings, Vec<String>) {
        let rows: Vec<SettingRow> = rows
            .iter()
            .map(|&(category, key, value)| SettingRow {
                category: category.into(),
                key: key.into(),
                value: value.into(),
            })
            .collect();
        let (settings, warnings) = Settings::parse("fra-1", &rows, at(1_000));
        (settings, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn without_rows_the_defaults_hold() {
        assert_eq!(parse(&[]), (Settings::default(), vec![]));
    }

    #[test]
    fn every_key_is_read() {
        let rows = [
            ("gateway", "require_approval", "true"),
            ("gateway", "strict_ip_allocations", "\"True\""),
            ("gateway", "site_prefixes", r#"["fd00:1::/32", "10.1.0.0/16", "10.1.0.0/16"]"#),
            ("gateway", "guard_confirmed_at", "\"1970-01-01T02:16:40+02:00\""),
            ("gateway", "audit_events", "[\"peer.revoked\"]"),
            ("policy", "allow_dns", "\"FALSE\""),
            ("policy", "allow_inbound", "true"),
            ("policy", "gateway_may_open", "false"),
            ("policy", "default_effect", "\"allow\""),
        ];
        let expected = Settings {
            require_approval: true,
            strict_ip_allocations: true,
            site_prefixes: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
            guard_confirmed_at: Some(at(1_000)),
            audit_events: AuditEvents::parse(&serde_json::json!(["peer.revoked"])).unwrap(),
            allow_dns: false,
            allow_inbound: true,
            gateway_may_open: false,
            default_effect: Verdict::Allow,
        };
        assert_eq!(parse(&rows), (expected.clone(), vec![]));
        let own = rows.map(|(_, key, value)| ("gateway:fra-1", key, value));
        assert_eq!(parse(&own), (expected, vec![]));
    }

    #[test]
    fn a_gateways_own_row_goes_before_the_general_one_and_others_do_not_count() {
        let (settings, warnings) = parse(&[
            ("gateway:fra-1", "allow_dns", "true"),
            ("gateway:fra-1", "default_effect", "\"deny\""),
            ("policy", "allow_dns", "false"),
            ("policy", "default_effect", "\"allow\""),
            ("gateway:ams-1", "allow_inbound", "true"),
            ("billing", "allow_inbound", "true"),
        ]);
        assert_eq!((settings, warnings), (Settings::default(), vec![]));
    }

    #[test]
    fn what_cannot_be_read_is_said_and_never_opens_anything() {
        let (settings, warnings) = parse(&[
            ("gateway", "require_aproval", "true"),
            ("gateway", "allow_dns", "false"),
            ("gateway", "site_prefixes", r#"["10.1.2.3/16", "0.0.0.0/0", 7, "10.2.0.0/16"]"#),
            ("policy", "allow_inbound", "yes\n"),
            ("policy", "default_effect", "\"Allow\""),
            ("policy", "default_effect\u{0}", "\"allow\""),
        ]);
        let site_prefixes = vec!["10.2.0.0/16".parse().unwrap()];
        assert_eq!(settings, Settings { site_prefixes, ..Settings::default() });
        let expected = [
            r#"setting "allow_dns" in category "gateway": no such key, the row is ignored"#,
            r#"setting "require_aproval" in category "gateway": no such key, the row is ignored; nearest is "require_approval""#,
            r#"setting "site_prefixes" in category "gateway": "\"10.1.2.3/16\"" is not a prefix with its host bits zero, no wider than /8 (IPv6: /16), and none that every host needs; this entry is left out"#,
            r#"setting "site_prefixes" in category "gateway": "\"0.0.0.0/0\"" is not a prefix with its host bits zero, no wider than /8 (IPv6: /16), and none that every host needs; this entry is left out"#,
            r#"setting "site_prefixes" in category "gateway": "7" is not a prefix with its host bits zero, no wider than /8 (IPv6: /16), and none that every host needs; this entry is left out"#,
            r#"setting "allow_inbound" in category "policy": "yes\n" is not true or false; taken for false until it is"#,
            r#"setting "default_effect" in category "policy": "\"Allow\"" is not "allow" or "deny"; denied"#,
            r#"setting "default_effect\0" in category "policy": no such key, the row is ignored; nearest is "default_effect""#,
        ];
        assert_eq!(warnings, expected);
    }

    #[test]
    fn a_value_that_is_too_long_is_said_and_restricts() {
        let sites = |number: usize, more: &str| {
            let list = (0..number).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256));
            let value = format!("[{}]{more}", list.collect::<Vec<_>>().join(","));
            let (settings, warnings) = parse(&[("gateway", "site_prefixes", &value)]);
            (settings.site_prefixes.len(), warnings)
        };
        assert_eq!(sites(SITE_PREFIXES, ""), (SITE_PREFIXES, vec![]));
        let (none, warnings) = sites(SITE_PREFIXES + 1, "");
        assert_eq!((none, warnings.len()), (0, 1));
        assert!(warnings[0].ends_with(
            "is not a list of at most 1000 prefixes, like [\"10.1.0.0/16\"]; taken for none"
        ));
        let (none, warnings) = sites(1, &" ".repeat(SETTING_BYTES));
        let expected = r#"setting "site_prefixes" in category "gateway": a value of more than 65536 bytes is not a list of at most 1000 prefixes, like ["10.1.0.0/16"]; taken for none"#;
        assert_eq!((none, warnings), (0, vec![expected.to_owned()]));
    }

    #[test]
    fn what_cannot_be_read_restricts_though_all_others_are_open() {
        let bad = ["\"yes\"", "1", "null", "\"\"", "[", "\" true\""];
        for value in bad {
            let (settings, warnings) = parse(&[
                ("gateway", "require_approval", "false"),
                ("gateway", "strict_ip_allocations", "false"),
                ("gateway", "site_prefixes", "[\"10.1.0.0/16\"]"),
                ("policy", "allow_inbound", "true"),
                ("gateway:fra-1", "require_approval", value),
                ("gateway:fra-1", "strict_ip_allocations", value),
                ("gateway:fra-1", "site_prefixes", value),
                ("gateway:fra-1", "allow_dns", value),
                ("gateway:fra-1", "allow_inbound", value),
                ("gateway:fra-1", "gateway_may_open", value),
            ]);
            let closed = Settings {
                require_approval: true,
                strict_ip_allocations: true,
                allow_dns: false,
                gateway_may_open: false,
                ..Settings::default()
            };
            assert_eq!((settings, warnings.len()), (closed, 6), "{value}");
        }
        let (_, warnings) = parse(&[("gateway", "require_approval", "\"yes\"")]);
        let expected = r#"setting "require_approval" in category "gateway": "\"yes\"" is not true or false; taken for true until it is"#;
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn an_unknown_event_is_reported_and_all_events_are_written() {
        for value in ["[\"peer.revoked\", \"peer.left\"]", "\"peer.*\"", "[1e400]", "1e400"] {
            let (settings, warnings) = parse(&[
                ("gateway", "audit_events", "[]"),
                ("gateway:fra-1", "audit_events", value),
            ]);
            assert_eq!((settings, warnings.len()), (Settings::default(), 1), "{warnings:?}");
        }
    }

    #[test]
    fn a_time_ahead_or_none_at_all_confirms_nothing() {
        let confirmed = |value: &str| {
            let general = ("gateway", "guard_confirmed_at", "\"1970-01-01T00:00:00Z\"");
            parse(&[general, ("gateway:fra-1", "guard_confirmed_at", value)])
        };
        let (settings, warnings) = confirmed("\"1970-01-01T00:16:40.000001Z\"");
        assert_eq!((settings.guard_confirmed_at, warnings.len()), (None, 1));
        assert!(warnings[0].ends_with("is not past by the database's clock; it confirms nothing"));
        for value in ["true", "\"yesterday\"", "1000"] {
            let (settings, warnings) = confirmed(value);
            assert_eq!(settings.guard_confirmed_at, None);
            assert!(
                warnings[0]
                    .ends_with("is not a time as to_jsonb(now()) writes it; it confirms nothing")
            );
        }
    }

    #[test]
    fn a_bad_default_effect_of_ones_own_denies_even_where_all_others_allow() {
        let (settings, _) = parse(&[
            ("policy", "default_effect", "\"allow\""),
            ("gateway:fra-1", "default_effect", "null"),
        ]);
        assert_eq!(settings.default_effect, Verdict::Deny);
    }
}
