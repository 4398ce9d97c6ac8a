//! Flaws of a policy's row, and how the agent treats them.

use std::fmt::{self, Write};

use serde::Serialize;
use uuid::Uuid;

use crate::model::{BeyondLimit, Effect, PolicyId, PolicyRow, TargetType};

/// Something in a policy that makes no sense or cannot be applied. The rest of the policy is in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PolicyNote {
    pub policy_id: PolicyId,
    pub policy_name: Box<str>,
    #[serde(flatten)]
    pub flaw: Flaw,
}

/// The flaw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "flaw", rename_all = "snake_case")]
pub enum Flaw {
    /// Neither a destination nor full tunnel: has a say about no address.
    NoDestinations,
    /// Nothing with this id exists.
    DanglingTarget { target_type: Box<str>, target_id: Uuid },
    /// An unknown target type: it matches no device.
    UnknownTargetType { target_type: Box<str>, target_id: Uuid },
    /// An unknown effect: denies.
    UnknownEffect { effect: Box<str> },
    /// Too many destinations: allows nothing, or denies every address.
    BeyondLimit { beyond: BeyondLimit, denies: bool },
}

impl PolicyNote {
    /// Everything that is wrong with a row; usually nothing.
    #[must_use]
    pub fn of(row: &PolicyRow) -> Vec<Self> {
        let effect = match &row.effect {
            Effect::Allow | Effect::Deny => None,
            Effect::Unknown(effect) => Some(Flaw::UnknownEffect { effect: effect.clone() }),
        };
        let targets = row.targets.iter().filter_map(|target| {
            let target_id = target.target_id;
            let name = match &target.target_type {
                TargetType::Unknown(word) => {
                    let target_type = word.clone();
                    return Some(Flaw::UnknownTargetType { target_type, target_id });
                }
                TargetType::User => "user",
                TargetType::Device => "device",
                TargetType::Group => "group",
            };
            let target_type = name.into();
            target.dangling.then_some(Flaw::DanglingTarget { target_type, target_id })
        });
        let targets = Vec::from_iter(targets);
        // The database shows no destinations of a policy whose targets are all dangling.
        let is_dangling = !targets.is_empty() && targets.len() == row.targets.len();
        let void = row.destinations.is_empty() && !row.full_tunnel && !is_dangling;
        let denies = row.effect != Effect::Allow;
        let beyond = row.beyond.map(|beyond| Flaw::BeyondLimit { beyond, denies });
        let void = beyond.or_else(|| void.then_some(Flaw::NoDestinations));
        let flaws = effect.into_iter().chain(void).chain(targets);
        flaws
            .map(|flaw| Self { policy_id: row.id, policy_name: row.name.as_str().into(), flaw })
            .collect()
    }
}

impl fmt::Display for PolicyNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {}: ", Quoted(&self.policy_name))?;
        match &self.flaw {
            Flaw::NoDestinations => f.write_str(
                "has neither a destination nor full_tunnel, so it decides nothing: add a row to \
                 policy_destinations",
            ),
            Flaw::DanglingTarget { target_type, target_id } => write!(
                f,
                "names {target_type} {target_id}, which does not exist: delete that row of \
                 policy_targets"
            ),
            Flaw::UnknownTargetType { target_type, target_id } => write!(
                f,
                "target {target_id} has type {}, which aims at no device: use user, device or group",
                Quoted(target_type)
            ),
            Flaw::UnknownEffect { effect } => {
                write!(f, "has effect {}, so it denies: use allow or deny", Quoted(effect))
            }
            Flaw::BeyondLimit { beyond, denies } => {
                let therefore =
                    if *denies { ", so it denies every address" } else { ", so it allows nothing" };
                beyond.write(f, therefore)
            }
        }
    }
}

/// Prints a text from the database, in quotes on one line: escaped, and cut
/// after 64 characters.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST_CHARS: usize = 64;
        f.write_char('"')?;
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(MOST_CHARS) {
            write!(f, "{}", char.escape_debug())?;
        }
        f.write_str(if chars.next().is_some() { "…\"" } else { "\"" })
    }
}

/// A name from the database, on one line: as it is if it is plain, else quoted.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |char: char| char.is_alphanumeric() || "@._-+'/".contains(char);
        if (1..=64).contains(&self.0.chars().count()) && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            Quoted(self.0).fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RowLimit, TargetRow};

    #[test]
    fn each_flaw_names_the_thing_and_the_way_out() {
        let id = Uuid::from_u128(7);
        let target = |target_type, dangling| TargetRow { target_type, target_id: id, dangling };
        let row = PolicyRow {
            id: id.into(),
            name: "a\nb".into(),
            priority: 1,
            effect: Effect::Unknown("Permit".into()),
            full_tunnel: false,
            destinations: vec![],
            targets: vec![
                target(TargetType::User, false),
                target(TargetType::Group, true),
                target(TargetType::Unknown("role".into()), false),
            ],
            beyond: None,
        };
        let texts: Vec<String> = PolicyNote::of(&row).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                r#"policy "a\nb": has effect "Permit", so it denies: use allow or deny"#,
                r#"policy "a\nb": has neither a destination nor full_tunnel, so it decides nothing: add a row to policy_destinations"#,
                r#"policy "a\nb": names group 00000000-0000-0000-0000-000000000007, which does not exist: delete that row of policy_targets"#,
                r#"policy "a\nb": target 00000000-0000-0000-0000-000000000007 has type "role", which aims at no device: use user, device or group"#,
            ]
        );
    }

    #[test]
    fn policy_beyond_its_limit_allows_nothing_or_denies_everything() {
        let text = |effect| {
            let row = PolicyRow { effect, full_tunnel: true, ..crate::test_rows::policy_row(7) };
            let beyond = RowLimit::Destinations.check(row.id.0, 300_000).unwrap();
            let row = row.closed(beyond);
            let notes = PolicyNote::of(&row);
            assert!(!row.full_tunnel && notes.len() == 1, "{notes:?}");
            (
                row.destinations.iter().map(ToString::to_string).collect::<Vec<_>>(),
                notes[0].to_string(),
            )
        };
        let (none, text_of_allow) = text(Effect::Allow);
        assert_eq!(none, [""; 0]);
        assert_eq!(
            text_of_allow,
            "policy \"policy-7\": row 00000000-0000-0000-0000-000000000007 of policies has 300000 rows in \
             policy_destinations; the limit is 200000, so it allows nothing: write fewer and wider \
             prefixes, or several policies"
        );
        let (every, text_of_deny) = text(Effect::Deny);
        assert_eq!(every, ["0.0.0.0/0", "::/0"]);
        assert!(text_of_deny.contains("; the limit is 200000, so it denies every address: "));
    }

    #[test]
    fn a_name_is_plain_where_it_can_be() {
        assert_eq!(Plain("o'neil@example.org").to_string(), "o'neil@example.org");
        assert_eq!(Plain("laptop\n  decided by").to_string(), r#""laptop\n  decided by""#);
    }

    #[test]
    fn a_long_name_is_cut_and_escaped() {
        let long = "\u{1b}".to_owned() + &"é".repeat(1_000);
        let text = Quoted(&long).to_string();
        assert_eq!(text, format!("\"\\u{{1b}}{}…\"", "é".repeat(63)));
    }
}
