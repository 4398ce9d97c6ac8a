//! Finds the owner of a peer in the comments of a `wg-quick` file. Pure.
//!
//! ```text
//! # alice/laptop          ### Client alice        [Peer] # alice        # friendly_name = alice
//! [Peer]                  [Peer]                                        [Peer]
//! ```

/// A user, and the device if the comment names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName {
    pub user: String,
    pub device: Option<String>,
}

/// Words of other programs before the name.
const LABELS: [&str; 8] =
    ["begin ", "client:", "client ", "peer:", "user:", "name:", "friendly_name:", "device:"];
/// Keys of other programs, as in `# friendly_name = alice`.
const NAMING_KEYS: [&str; 6] = ["name", "friendly_name", "client", "user", "peer", "device"];
const MOST_CHARS: usize = 64;

/// The name that the first comment with one gives.
pub fn name_of<'a>(comments: impl IntoIterator<Item = &'a str>) -> Option<PeerName> {
    comments.into_iter().find_map(name_in)
}

/// The name in a comment: `USER/DEVICE`, `USER's DEVICE`, or the user alone.
fn name_in(comment: &str) -> Option<PeerName> {
    let ornament = |c: char| c.is_whitespace() || "#-=*".contains(c);
    let mut text = comment.trim_matches(ornament);
    if let Some((key, value)) = text.split_once('=') {
        // Any other key: a setting that was put out of force.
        let key = key.trim();
        NAMING_KEYS.iter().find(|known| key.eq_ignore_ascii_case(known))?;
        text = value.trim();
    }
    let starts = |text: &str, word: &str| {
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if starts(text, "end ") {
        return None;
    }
    while let Some(label) = LABELS.iter().find(|label| starts(text, label)) {
        text = text[label.len()..].trim();
    }
    let text = without_id(text);
    let (user, device) = match text.split_once('/').or_else(|| text.split_once("'s ")) {
        Some((user, device)) => (user.trim(), Some(device.trim())),
        None => (text, None),
    };
    let device = device.filter(|device| !device.is_empty()).map(plain);
    (user.contains(char::is_alphanumeric)).then(|| PeerName { user: plain(user), device })
}

/// Without an identifier in parentheses at the end.
fn without_id(text: &str) -> &str {
    match text.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
        Some((name, id)) if uuid::Uuid::try_parse(id).is_ok() => name.trim(),
        _ => text,
    }
}

/// Short, and without characters that a name of a user or device should not have.
fn plain(text: &str) -> String {
    let odd = |c: char| c.is_control() || c == '\\' || c == '/';
    text.chars().take(MOST_CHARS).map(|c| if odd(c) { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_known_programs_name_user_and_device() {
        let name = |comment: &str| {
            name_of([comment]).map(|name| (name.user, name.device.unwrap_or_default()))
        };
        let is = |user: &str, device: &str| Some((user.to_owned(), device.to_owned()));
        assert_eq!(name(" alice/laptop"), is("alice", "laptop"));
        assert_eq!(name("alice's phone"), is("alice", "phone"));
        assert_eq!(name("## Client bob"), is("bob", ""));
        assert_eq!(name("## begin carol ###"), is("carol", ""));
        assert_eq!(name("## end carol ###"), None);
        assert_eq!(name(" Client: dave (8c6ee0a9-3d9c-4bd6-a9fb-8f1ec01f4b8e)"), is("dave", ""));
        assert_eq!(name(" friendly_name = erin/tablet"), is("erin", "tablet"));
        assert_eq!(name(" Bob Smith"), is("Bob Smith", ""));
        assert_eq!(name(" PersistentKeepalive = 25"), None);
        assert_eq!(name(" -------- "), None);
        assert_eq!(name(""), None);
        let first = name_of(["-----", "alice", "bob"]).map(|name| name.user);
        assert_eq!(first.as_deref(), Some("alice"));
    }
}
