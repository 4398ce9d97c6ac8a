//! `gatepost migrate`: creates or updates the database's schema.

use gatepost::store::{self, Migration};

use crate::config::Config;
use crate::database;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{count, print, printable};
use crate::runtime;

/// Applies the pending migrations, or only prints them.
///
/// # Errors
/// The database cannot be reached or refuses.
pub fn migrate(config: &Config, dry_run: bool) -> Result<Exit, CommandError> {
    let options = database::options(config)?;
    let runtime = runtime::on_this_thread()?;
    for publication in runtime.block_on(store::publications_of_all_tables(&options))? {
        tracing::warn!(
            "publication {} publishes all tables, those of Gatepost too, and a subscriber without these stops: publish \
             the tables of the control plane by name",
            printable(&publication)
        );
    }
    if dry_run {
        let pending = runtime.block_on(store::pending(&options))?;
        print(&script(&pending))?;
        return Ok(Exit::Success);
    }
    // Beside the output, which scripts read.
    let tells = |doing: &str| eprintln!("{}", printable(doing));
    let applied = runtime.block_on(store::migrate_telling(&options, &tells))?;
    for refusal in runtime.block_on(store::try_reports(&options))? {
        tracing::warn!("the database will refuse reports of gateways: {refusal}");
    }
    for misfit in runtime.block_on(store::misfits(&options))? {
        tracing::warn!("gateways may be unable to read the tables: {misfit}");
    }
    for row in runtime.block_on(store::ineffective_rows(&options))? {
        tracing::warn!("{row}");
    }
    print(&describe(&applied))?;
    Ok(Exit::Success)
}

fn script(pending: &[Migration]) -> String {
    match pending {
        [] => "-- the schema is up to date\n".to_owned(),
        some => some.iter().map(section).collect(),
    }
}

fn section(migration: &Migration) -> String {
    format!("-- {}\n{}\n\n", migration.name, migration.sql.trim_end())
}

fn describe(applied: &[Migration]) -> String {
    match applied.len() as u64 {
        0 => "the schema is up to date\n".to_owned(),
        number => {
            let names = applied.iter().map(|migration| format!("applied {}\n", migration.name));
            format!("{}{}\n", names.collect::<String>(), count(number, "migration"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dry_run_prints_a_script() {
        let migration = Migration { name: "V1 schema".into(), sql: "select 1;\n".into() };
        let pending = [migration.clone(), migration.clone()];
        assert_eq!(script(&pending), "-- V1 schema\nselect 1;\n\n".repeat(2));
        assert_eq!(script(&[]), "-- the schema is up to date\n");
        assert_eq!(describe(&[migration]), "applied V1 schema\n1 migration\n");
        assert_eq!(describe(&[]), "the schema is up to date\n");
    }
}
