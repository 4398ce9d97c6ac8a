//! Man pages of section 8, one for each command.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

use super::roff::{FILES, entry, heading};

/// The meaning of each exit code.
const EXIT_STATUS: [(&str, &str); 8] = [
    ("0", "Done; allowed; nothing to change; ready."),
    ("1", "Failed. check: there are warnings. run --once: the kernel is not proven equal."),
    ("2", "plan: there are changes. explain: denied."),
    ("3", "status: the agent is not ready."),
    ("4", "No agent answers on the control socket."),
    ("64", "The command line is wrong."),
    ("75", "run: another agent runs in this network namespace."),
    ("78", "The configuration is wrong. check: something keeps the gateway from working."),
];

const EXAMPLES: [(&str, &str); 5] = [
    ("gatepost check", "Find what keeps this gateway from working."),
    ("gatepost plan", "Show what a pass would change."),
    ("gatepost explain alice/laptop 10.20.0.10", "Say why a device may reach an address or not."),
    ("gatepost block alice", "Cut off a user on this host, whatever the database says."),
    ("gatepost import wg0 >import.sql", "Print the SQL that takes over a running gateway."),
];

/// Writes the pages of a command and of its subcommands.
pub fn write(command: &Command, folder: &Path) -> io::Result<()> {
    write_of(command, folder, true)
}

fn write_of(command: &Command, folder: &Path, is_first: bool) -> io::Result<()> {
    let children: Vec<&Command> =
        command.get_subcommands().filter(|child| child.get_name() != "help").collect();
    children.iter().try_for_each(|child| write_of(child, folder, false))?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        .source(format!("gatepost {}", env!("CARGO_PKG_VERSION")))
        .manual("Gatepost");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !children.is_empty() {
        page.write_all(heading("COMMANDS").as_bytes())?;
        for child in children {
            let about = child.get_about().map(ToString::to_string).unwrap_or_default();
            let child = format!("{name}-{}", child.get_name());
            page.write_all(entry(&format!("{child}(8)"), &about).as_bytes())?;
        }
    }
    let sections = [("EXIT STATUS", &EXIT_STATUS[..]), ("FILES", &FILES), ("EXAMPLES", &EXAMPLES)];
    for (title, entries) in sections.iter().take(if is_first { 3 } else { 1 }) {
        page.write_all(heading(title).as_bytes())?;
        for (term, text) in *entries {
            page.write_all(entry(term, text).as_bytes())?;
        }
    }
    let others = if is_first { "" } else { "\\fBgatepost\\fR(8), " };
    let others = format!(
        "{}{others}\\fBgatepost.toml\\fR(5), \\fBwg\\fR(8), \\fBnft\\fR(8)\n",
        heading("SEE ALSO")
    );
    page.write_all(others.as_bytes())?;
    std::fs::write(folder.join(format!("{name}.8")), page)
}
