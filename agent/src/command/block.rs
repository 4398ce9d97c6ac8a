//! `gatepost block`, `unblock` and `blocked`: whom this host cuts off, whatever the database says.

use std::time::SystemTime;

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Table, age, printable, truncated};
use gatepost::reconcile::status::{BlockAnswer, BlockStatus};

/// Has the agent cut off `who`, and waits until no packet passes.
///
/// # Errors
/// No agent, or it is not clear whom `who` names.
pub fn block(config: &Config, who: &str) -> Result<Exit, CommandError> {
    let answer = Client::new(&config.control.socket).block(who)?;
    output::print(&describe("blocked", &answer))?;
    Ok(exit(&answer))
}

/// Has the agent lift a block.
///
/// # Errors
/// No agent, or it is not clear which block `who` names.
pub fn unblock(config: &Config, who: &str) -> Result<Exit, CommandError> {
    let answer = Client::new(&config.control.socket).unblock(who)?;
    output::print(&describe("unblocked", &answer))?;
    Ok(exit(&answer))
}

/// Prints every block.
///
/// # Errors
/// No agent, or a wrong answer.
pub fn blocked(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let blocks = Client::new(&config.control.socket).status()?.blocked;
    if json {
        output::print_json(&blocks)?;
    } else {
        output::print(&table(&blocks, SystemTime::now()))?;
    }
    Ok(Exit::Success)
}

const fn exit(answer: &BlockAnswer) -> Exit {
    let done = answer.kernel.is_none() && answer.file.is_none();
    if done { Exit::Success } else { Exit::Failure }
}

/// Describes the result of a change, line by line.
fn describe(verb: &str, answer: &BlockAnswer) -> String {
    let BlockAnswer { block: BlockStatus { kind, id, name, .. }, peers, kernel, file } = answer;
    let name = if name.is_empty() { String::new() } else { format!(" ({})", printable(name)) };
    let peers = match &peers[..] {
        [] => "no row names a peer with it".to_owned(),
        peers => printable(&peers.join(", ")),
    };
    let mut text = format!("{verb} {kind} {id}{name}: {peers}\n");
    if let Some(why) = kernel {
        text += &format!("BUT the kernel may not follow yet: {}\n", printable(why));
    }
    if let Some(why) = file {
        text += &format!("BUT a restart of the agent forgets it: {}\n", printable(why));
    }
    text
}

fn table(blocks: &[BlockStatus], now: SystemTime) -> String {
    let mut table = Table::new(["KIND", "NAME", "ID", ">SINCE"]);
    for BlockStatus { kind, id, name, since } in blocks {
        table.row([kind.clone(), truncated(name), id.clone(), age(since.age(now))]);
    }
    if table.is_empty() { "nothing is blocked\n".to_owned() } else { table.render() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost::reconcile::status::Timestamp;

    fn answer() -> BlockAnswer {
        let since = Timestamp(SystemTime::UNIX_EPOCH);
        let [kind, id, name] = ["user", "7", "alice"].map(str::to_owned);
        let block = BlockStatus { kind, id, name, since };
        let peers = vec!["alice/laptop".to_owned(), "alice/phone".to_owned()];
        BlockAnswer { block, peers, kernel: None, file: None }
    }

    #[test]
    fn what_could_not_be_done_is_said_and_fails() {
        let done = answer();
        assert_eq!(
            describe("blocked", &done),
            "blocked user 7 (alice): alice/laptop, alice/phone\n"
        );
        assert_eq!(exit(&done), Exit::Success);
        let half = BlockAnswer { file: Some("disk full".into()), peers: vec![], ..done };
        assert_eq!(
            describe("blocked", &half),
            "blocked user 7 (alice): no row names a peer with it\n\
             BUT a restart of the agent forgets it: disk full\n"
        );
        assert_eq!(exit(&half), Exit::Failure);
    }

    #[test]
    fn blocks_are_listed() {
        let hour_later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(3_600);
        let text = table(&[answer().block], hour_later);
        assert!(text.contains("user") && text.contains("alice"), "{text}");
        assert_eq!(table(&[], hour_later), "nothing is blocked\n");
    }
}
