//! Chains of `iptables-legacy` that drop packets of peers, from the text of `iptables-legacy-save`. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The saved rules of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyRules {
    /// `iptables-legacy` or `ip6tables-legacy`.
    pub program: &'static str,
    pub text: String,
}

/// A built-in chain that drops packets that none of its rules accepts, and has no rule for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyDrop {
    pub program: &'static str,
    pub table: String,
    pub chain: LegacyChain,
    pub has_docker: bool,
}

/// Through which of them packets of peers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyChain {
    /// WireGuard's own packets.
    Input,
    Forward,
}

impl LegacyChain {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// A chain that jumps lead to, or a built-in one.
#[derive(Debug, Default)]
struct Chain<'a> {
    drops_by_policy: bool,
    rules: Vec<Vec<&'a str>>,
}

type Chains<'a> = BTreeMap<&'a str, Chain<'a>>;

/// All such chains. Without a port, those for WireGuard's own packets are not looked for.
#[must_use]
pub fn legacy_drops(rules: &LegacyRules, link: &str, port: Option<u16>) -> Vec<LegacyDrop> {
    let mut found = Vec::new();
    for (table, chains) in tables(&rules.text) {
        let port = port.map(|port| port.to_string());
        let names_port = |rule: &Vec<&str>| {
            let listed = |list: &&str| list.split(',').any(|it| Some(it) == port.as_deref());
            value_of(rule, &["--dport", "--dports"]).is_some_and(|list| listed(&list))
        };
        let names_link = |rule: &Vec<&str>| {
            let is_ours = |name: &str| match name.strip_suffix('+') {
                Some(beginning) => link.starts_with(beginning),
                None => name == link,
            };
            ["-i", "-o"].iter().any(|it| value_of(rule, &[it]).is_some_and(is_ours))
        };
        let mut look = |chain: LegacyChain, names: &dyn Fn(&Vec<&str>) -> bool| {
            let Some(base) = chains.get(chain.name()) else { return };
            let knows_us = reachable(&chains, chain.name()).any(names);
            if drops(base) && !knows_us {
                let has_docker = chains.contains_key("DOCKER-USER");
                let table = table.to_owned();
                found.push(LegacyDrop { program: rules.program, table, chain, has_docker });
            }
        };
        look(LegacyChain::Forward, &names_link);
        if port.is_some() {
            look(LegacyChain::Input, &names_port);
        }
    }
    found
}

/// The tables of a text, each with its chains.
fn tables(text: &str) -> Vec<(&str, Chains<'_>)> {
    let mut tables: Vec<(&str, Chains<'_>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.trim(), Chains::new()));
        }
        let Some((_, chains)) = tables.last_mut() else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let chain = words.next().unwrap_or_default();
            chains.entry(chain).or_default().drops_by_policy = words.next() == Some("DROP");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = rule.split_whitespace();
            let chain = words.next().unwrap_or_default();
            chains.entry(chain).or_default().rules.push(words.collect());
        }
    }
    tables
}

/// Whether the chain drops what none of its rules accepts.
fn drops(chain: &Chain<'_>) -> bool {
    let verdict = chain.rules.iter().find_map(|rule| match rule.as_slice() {
        ["-j", "ACCEPT"] => Some(false),
        ["-j", "DROP"] | ["-j", "REJECT", ..] => Some(true),
        _ => None,
    });
    verdict.unwrap_or(chain.drops_by_policy)
}

/// The rules that a packet may meet in a chain and in those that it calls.
fn reachable<'a>(chains: &'a Chains<'a>, from: &'a str) -> impl Iterator<Item = &'a Vec<&'a str>> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(name) = left.pop() {
        if seen.insert(name) {
            let rules = chains.get(name).into_iter().flat_map(|chain| &chain.rules);
            left.extend(rules.filter_map(|rule| value_of(rule, &["-j", "-g"])));
        }
    }
    seen.into_iter().filter_map(|name| chains.get(name)).flat_map(|chain| &chain.rules)
}

/// The word after one of these options, unless it is negated.
fn value_of<'a>(rule: &[&'a str], options: &[&str]) -> Option<&'a str> {
    let at = rule.iter().position(|word| options.contains(word))?;
    let negated = at.checked_sub(1).and_then(|before| rule.get(before)) == Some(&"!");
    rule.get(at + 1).copied().filter(|_| !negated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(LegacyChain, bool)> {
        let rules = LegacyRules { program: "iptables-legacy", text: text.into() };
        let drops = legacy_drops(&rules, "gatepost0", Some(51820));
        drops.iter().map(|drop| (drop.chain, drop.has_docker)).collect()
    }

    #[test]
    fn policy_or_a_last_rule_that_drops_counts_unless_a_rule_names_us() {
        let filter = |forward: &str, rules: &str| {
            format!(
                "# Generated by iptables-save v1.8.9\n*filter\n:INPUT ACCEPT [1:60]\n\
                 :FORWARD {forward} [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}\nCOMMIT\n"
            )
        };
        let forward = [(LegacyChain::Forward, false)];
        assert_eq!(found(&filter("DROP", "")), forward);
        assert_eq!(found(&filter("ACCEPT", "")), []);
        assert_eq!(
            found(&filter("ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-port-unreachable")),
            forward
        );
        assert_eq!(found(&filter("DROP", "-A FORWARD -j ACCEPT")), []);
        assert_eq!(found(&filter("DROP", "-A FORWARD -i gate+ -j ACCEPT")), []);
        assert_eq!(found(&filter("DROP", "-A FORWARD -i eth0 -j ACCEPT")), forward);
        assert_eq!(found(&filter("DROP", "-A FORWARD ! -i gatepost0 -j ACCEPT")), forward);
        let called = ":ours - [0:0]\n-A FORWARD -j ours\n-A ours -o gatepost0 -j ACCEPT";
        assert_eq!(found(&filter("DROP", called)), []);
        let uncalled = ":ours - [0:0]\n:DOCKER-USER - [0:0]\n-A ours -o gatepost0 -j ACCEPT";
        assert_eq!(found(&filter("DROP", uncalled)), [(LegacyChain::Forward, true)]);
    }

    #[test]
    fn wireguards_own_packets_need_a_rule_for_the_port() {
        let input = |rule: &str| {
            found(&format!(
                "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n{rule}\nCOMMIT\n"
            ))
        };
        assert_eq!(input(""), [(LegacyChain::Input, false)]);
        assert_eq!(input("-A INPUT -p udp -m udp --dport 51820 -j ACCEPT"), []);
        assert_eq!(input("-A INPUT -p udp -m multiport --dports 53,51820 -j ACCEPT"), []);
        assert_eq!(
            input("-A INPUT -p udp -m udp --dport 53 -j ACCEPT"),
            [(LegacyChain::Input, false)]
        );
    }
}
