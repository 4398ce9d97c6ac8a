//! gatepost.toml(5), from the table of the reference.

use super::roff::{FILES, entry, escaped, heading};

const REFERENCE: &str = include_str!("../../../../docs/reference.md");
const EXAMPLE: &str = include_str!("../../../../systemd/gatepost.toml");

/// The page.
pub fn page() -> String {
    let mut page = format!(
        ".TH \"GATEPOST.TOML\" \"5\" \"\" \"gatepost {}\" \"Gatepost\"\n",
        env!("CARGO_PKG_VERSION")
    );
    page += &heading("NAME");
    page += "gatepost.toml \\- configuration of a Gatepost gateway\n";
    page += &heading("SYNOPSIS");
    page += "/etc/gatepost/gatepost.toml\n";
    page += &heading("DESCRIPTION");
    page += &escaped(
        "One TOML file. A variable of the environment, GATEPOST_ and the section and key in capitals, \
         overrides a key: GATEPOST_SYNC_MODE is sync.mode. An unknown key is an error that names the \
         nearest known key. Durations have units; paths are relative to the file's folder.",
    );
    page += "\n";
    page += &heading("OPTIONS");
    for row in rows() {
        let [key, kind, default, meaning] = row;
        page += &format!(
            ".TP\n\\fB{}\\fR (\\fI{}\\fR, default: {})\n{}\n",
            escaped(&plain(key)),
            escaped(&plain(kind)),
            escaped(&plain(default)),
            escaped(&plain(meaning))
        );
    }
    page += &heading("FILES");
    page.extend(FILES.iter().map(|(term, text)| entry(term, text)));
    page += &heading("EXAMPLES");
    page += ".nf\n";
    page.extend(EXAMPLE.lines().map(|line| escaped(line) + "\n"));
    page += ".fi\n";
    page += &heading("SEE ALSO");
    page + "\\fBgatepost\\fR(8)\n"
}

fn rows() -> impl Iterator<Item = [&'static str; 4]> {
    let (_, table) = REFERENCE.split_once("| key | type | default | meaning |").unwrap_or_default();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| {
        let row = row.trim_start_matches("| ").trim_end_matches(" |");
        row.splitn(4, " | ").collect::<Vec<_>>().try_into().ok()
    })
}

/// Without the marks of Markdown.
fn plain(cell: &str) -> String {
    let mut text = cell.replace('`', "").replace("\\|", "|");
    // [psk-envelope.md](psk-envelope.md)
    while let Some((before, (name, rest))) = text.split_once('[').and_then(|(before, rest)| {
        let (name, rest) = rest.split_once("](")?;
        Some((before, (name, rest.split_once(')')?.1)))
    }) {
        text = format!("{before}{name}{rest}");
    }
    text
}
