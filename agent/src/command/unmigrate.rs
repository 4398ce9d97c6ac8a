//! `gatepost unmigrate`: takes everything of Gatepost's out of a database.

use gatepost::store::{self, Unmigration};

use crate::command::ask;
use crate::config::Config;
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::print;
use crate::runtime;

/// Takes Gatepost out of the database after a question or with `yes`, or only prints the statements.
///
/// # Errors
/// The database cannot be reached or refuses; [`CommandError::NotConfirmed`], [`CommandError::CannotAsk`].
pub fn unmigrate(config: &Config, dry_run: bool, yes: bool) -> Result<Exit, CommandError> {
    let options = database::options(config)?;
    let runtime = runtime::on_this_thread()?;
    let found = runtime.block_on(store::unmigration(&options))?;
    if found.statements.is_empty() {
        print("nothing to remove\n")?;
    } else if dry_run {
        let lines = found.statements.iter().map(|statement| format!("{statement};\n"));
        print(&lines.collect::<String>())?;
    } else if !yes && !ask::yes_or_no("unmigrate", &question(&found))? {
        return Err(CommandError::NotConfirmed);
    } else {
        if yes {
            print(&following(&found))?;
        }
        let (done, kept) = runtime.block_on(store::unmigrate(&options))?;
        print(&describe(&done, &kept))?;
    }
    Ok(Exit::Success)
}

fn question(found: &Unmigration) -> String {
    let following = following(found);
    format!("{following}Take Gatepost's triggers, indexes, rights and schema out of this database?")
}

/// Names the gateways that no revocation reaches any more.
fn following(found: &Unmigration) -> String {
    match found.gateways.as_slice() {
        [] => String::new(),
        names => format!(
            "Gateways follow this database: {}. They keep their peers, and no revocation reaches them any \
             more, until `gatepost down`.\n",
            names.join(", ")
        ),
    }
}

fn describe(done: &Unmigration, kept: &[String]) -> String {
    let mut text =
        "removed triggers, indexes, rights and schema gatepost; the control plane's tables and their rows stay, \
         also tables that `gatepost migrate` made\n"
            .to_owned();
    for role in kept {
        text.push_str(&format!("kept role {role}\n"));
    }
    for role in &done.login_roles {
        text.push_str(&format!("role {role} can still log in: if no database needs it, drop it\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_names_the_gateways_that_no_revocation_reaches_any_more() {
        let found = Unmigration { gateways: vec!["fra-1".into()], ..Unmigration::default() };
        let asked = question(&found);
        assert!(asked.starts_with("Gateways follow this database: fra-1. They keep"), "{asked}");
        assert!(!question(&Unmigration::default()).contains("Gateways"));
    }

    #[test]
    fn output_says_which_roles_are_left() {
        let done = Unmigration { login_roles: vec!["fra_1".into()], ..Unmigration::default() };
        let text = describe(&done, &["gatepost_owner: not yours".into()]);
        assert!(text.ends_with(
            "kept role gatepost_owner: not yours\nrole fra_1 can still log in: if no database needs it, drop it\n"
        ));
    }
}
