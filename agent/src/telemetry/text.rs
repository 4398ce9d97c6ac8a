//! Prometheus's text format, for what the recorder of the crate `metrics` cannot hold. Pure.

use std::fmt::{Display, Write};

/// A family's name, type and meaning, as they are listed in the reference.
pub type Family = (&'static str, &'static str, &'static str);

/// Appends the head of a family.
pub fn head(out: &mut String, (name, kind, meaning): Family) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
}

/// Appends a sample of a family or, with a `suffix`, of a part of it.
pub fn sample(
    out: &mut String,
    (name, ..): Family,
    suffix: &str,
    labels: &[(&str, &str)],
    value: impl Display,
) {
    let written = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
    let labels = match written.collect::<Vec<_>>().join(",") {
        none if none.is_empty() => none,
        labels => format!("{{{labels}}}"),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{name}{suffix}{labels} {value}");
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_cannot_break_out_of_its_quotes() {
        let family = ("bytes", "counter", "Bytes");
        let mut text = String::new();
        head(&mut text, family);
        sample(&mut text, family, "_total", &[("user", "a\"b\\c\nd")], 7);
        sample(&mut text, family, "", &[], 0.25);
        let help = "# HELP bytes Bytes\n# TYPE bytes counter\n";
        assert_eq!(text, format!("{help}bytes_total{{user=\"a\\\"b\\\\c\\nd\"}} 7\nbytes 0.25\n"));
    }
}
