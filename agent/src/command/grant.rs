//! `gatepost grant`: binds a database role or a token to a gateway, or lets a role ring.

use gatepost::store::{self, CreateRole, Granted, GrantedToken, Password, Token};

use crate::cli::GrantArgs;
use crate::command::ask;
use crate::command::check::of_public;
use crate::config::{Config, read_secret_file};
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::key_file::KeyFileError;
use crate::output::{count, print};
use crate::runtime;

/// Binds the role to the gateway, if it acts for another after a question or with `--yes`. Creates the role
/// first, and lets it enroll once more, if asked to.
///
/// # Errors
/// The database cannot be reached or refuses; [`CommandError::NotRebound`], [`CommandError::CannotAsk`].
pub fn grant(config: &Config, args: &GrantArgs) -> Result<Exit, CommandError> {
    let password = args.role_password_file.as_deref();
    let password =
        password.map(|path| read_secret_file(path, "the role's password")).transpose()?;
    let password = password.map(|text| Password::from(text.expose_text().to_owned()));
    let create = if args.create { CreateRole::IfAbsent(password) } else { CreateRole::No };
    let options = database::options(config)?;
    let runtime = runtime::on_this_thread()?;
    if let Some(role) = &args.bell {
        let created = runtime.block_on(store::grant_bell(&options, role, &create))?;
        print(&describe_bell(role, created))?;
        return Ok(Exit::Success);
    }
    if let Some(gateway) = &args.token {
        let token = new_token()?;
        let role = args.pool_role.as_deref();
        let granting = store::grant_token(&options, gateway, &token, role, &create);
        let granted = runtime.block_on(granting)?;
        eprint!("{}", describe_token(gateway, role, &granted));
        if let Some(role) = role {
            let public = runtime.block_on(store::rights_of_public(&options, role))?;
            if let Some((text, remedy)) = of_public(role, &public) {
                eprintln!("note: {text}: {remedy}");
            }
        }
        print(&format!("{}\n", token.expose()))?;
        return Ok(Exit::Success);
    }
    if let Some(gateway) = &args.revoke_tokens {
        let revoking = store::revoke_tokens(&options, gateway, args.keep_newest);
        let revoked = runtime.block_on(revoking)?;
        let revoked = count(usize::try_from(revoked).unwrap_or(usize::MAX), "token");
        print(&format!("revoked {revoked} of gateway {gateway}\n"))?;
        return Ok(Exit::Success);
    }
    // The command line requires both.
    let (Some(gateway), Some(role)) = (&args.gateway, &args.role) else { return Ok(Exit::Usage) };
    if !args.yes.yes {
        let taken_from = runtime.block_on(store::bound_elsewhere(&options, gateway, role))?;
        taken_from.map_or(Ok(()), |other| ask_to_rebind(&other, gateway, role))?;
    }
    let report = runtime.block_on(store::grant(&options, gateway, role, &create))?;
    print(&describe(gateway, role, &report))?;
    if args.enroll {
        runtime.block_on(store::allow_enrollment(&options, role))?;
        print(&format!("role {role} may enroll gateway {gateway} once more\n"))?;
    }
    Ok(Exit::Success)
}

fn ask_to_rebind(other: &str, gateway: &str, role: &str) -> Result<(), CommandError> {
    eprintln!("{}", taken_from(other, gateway, role));
    match ask::yes_or_no("grant", &format!("Bind role {role} to {gateway}?"))? {
        true => Ok(()),
        false => Err(CommandError::NotRebound),
    }
}

/// Tells before the question, or without a terminal instead of it, which gateway loses the role.
fn taken_from(other: &str, gateway: &str, role: &str) -> String {
    format!(
        "role {role} acts for gateway {other}. Bound to {gateway}, it acts for {other} no more: agents of \
         {other} that log in as {role} are refused, and no revocation reaches their peers"
    )
}

fn new_token() -> Result<Token, CommandError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(KeyFileError::Random)?;
    let token = Token::from_random(&random);
    random.fill(0);
    Ok(token)
}

/// For standard error: standard output has the token alone, so that it can be written to a file.
fn describe_token(gateway: &str, role: Option<&str>, granted: &GrantedToken) -> String {
    let mut text = String::new();
    if let (Some(role), true) = (role, granted.role_created) {
        text.push_str(&format!("created role {role}\n"));
    }
    text.push_str(&format!(
        "this token acts for gateway {gateway}; put it into database.token_file there. It is shown once\n"
    ));
    if granted.others > 0 {
        text.push_str(&format!(
            "earlier tokens of {gateway} that are valid: {}; once the agent has the new one, run \
             `gatepost grant --revoke-tokens {gateway} --keep-newest`\n",
            granted.others
        ));
    }
    text
}

fn describe_bell(role: &str, created: bool) -> String {
    let made = if created { format!("created role {role}\n") } else { String::new() };
    made + &format!("role {role} may ring: name it in database.url of `gatepost bell`\n")
}

fn describe(gateway: &str, role: &str, report: &Granted) -> String {
    let mut text = String::new();
    if report.role_created {
        text.push_str(&format!("created role {role}\n"));
    }
    text.push_str(&format!("role {role} is bound to gateway {gateway}"));
    match &report.formerly {
        Some(other) => text.push_str(&format!(" (before: {other})\n")),
        None => text.push('\n'),
    }
    if !report.gateway_exists {
        text.push_str(&format!(
            "gateway {gateway} has no row yet; create it with `gatepost enroll`\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_names_from_which_gateway_to_which_the_role_goes() {
        let told = taken_from("ber-1", "fra-1", "gw");
        assert!(told.starts_with("role gw acts for gateway ber-1. Bound to fra-1, it"), "{told}");
    }

    #[test]
    fn output_says_what_was_done() {
        let report =
            Granted { role_created: true, formerly: Some("ber-1".into()), gateway_exists: false };
        assert_eq!(
            describe("fra-1", "gw", &report),
            "created role gw\n\
             role gw is bound to gateway fra-1 (before: ber-1)\n\
             gateway fra-1 has no row yet; create it with `gatepost enroll`\n"
        );
    }
}
