//! The elements of both kinds of pages, in roff.

/// The files that pages name.
pub const FILES: [(&str, &str); 7] = [
    ("/etc/gatepost/gatepost.toml", "The configuration, see gatepost.toml(5)."),
    ("/etc/gatepost/private.key", "WireGuard's private key of the gateway."),
    ("/etc/gatepost/psk.keys", "Sealing keys, which open preshared keys."),
    ("/etc/gatepost/db.password", "The password of the gateway's database role."),
    ("/var/lib/gatepost/last-good", "The last good rows, for a start without the database."),
    ("/run/gatepost/control.sock", "The agent's control socket."),
    ("/usr/share/doc/gatepost/", "The documentation, with examples of the configuration."),
];

/// The heading of a section.
pub fn heading(title: &str) -> String {
    format!(".SH \"{title}\"\n")
}

/// A term with its text.
pub fn entry(term: &str, text: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{}\n", escaped(term), escaped(text))
}

/// Text that roff prints as it is.
pub fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
