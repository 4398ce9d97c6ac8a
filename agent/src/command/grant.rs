//! `gatepost grant`: binds a database role to a gateway.

use gatepost::store::{self, CreateRole, Granted, Password};

use crate::cli::GrantArgs;
use crate::config::{Config, read_secret_file};
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::print;
use crate::runtime;

/// Binds the role to the gateway. Creates the role first, and lets it enroll once more, if asked to.
///
/// # Errors
/// The database cannot be reached or refuses.
pub fn grant(config: &Config, args: &GrantArgs) -> Result<Exit, CommandError> {
    let (gateway, role) = (&*args.gateway, &*args.role);
    let password = args.role_password_file.as_deref();
    let password =
        password.map(|path| read_secret_file(path, "the role's password")).transpose()?;
    let password = password.map(|text| Password::from(text.expose_text().to_owned()));
    let create = if args.create { CreateRole::IfAbsent(password) } else { CreateRole::No };
    let options = database::options(config)?;
    let runtime = runtime::on_this_thread()?;
    let report = runtime.block_on(store::grant(&options, gateway, role, &create))?;
    print(&describe(gateway, role, &report))?;
    if args.enroll {
        runtime.block_on(store::allow_enrollment(&options, role))?;
        print(&format!("role {role} may enroll gateway {gateway} once more\n"))?;
    }
    Ok(Exit::Success)
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
