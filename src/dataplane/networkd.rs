//! The effect of systemd-networkd on routes and rules that it did not make.

use std::path::{Path, PathBuf};

/// The settings of networkd.conf(5) that are yes unless a file says no.
pub const FOREIGN_ROUTES: &str = "ManageForeignRoutes";
pub const FOREIGN_RULES: &str = "ManageForeignRoutingPolicyRules";

/// Whether networkd runs on the host whose files lie below `root`, and removes what this setting is
/// about.
#[must_use]
pub fn removes(root: &Path, setting: &str) -> bool {
    // The folder exists without networkd, too.
    root.join("run/systemd/netif/state").exists() && is_yes(&settings(root), setting)
}

/// The texts of its settings files, the highest priority last.
fn settings(root: &Path) -> Vec<String> {
    let folders = ["usr/lib/systemd", "run/systemd", "etc/systemd"];
    let main = folders.map(|folder| root.join(folder).join("networkd.conf"));
    let mut dropins: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| root.join(folder).join("networkd.conf.d").read_dir().ok())
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    dropins.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    let files = main.into_iter().chain(dropins);
    files.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn is_yes(settings: &[String], setting: &str) -> bool {
    let mut values = settings.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == setting).then(|| value.trim().to_ascii_lowercase())
    });
    !values.next_back().is_some_and(|value| matches!(value.as_str(), "no" | "false" | "off" | "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networkd_removes_what_others_made_unless_its_last_file_says_no() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let removes = |setting| removes(root, setting);
        std::fs::create_dir_all(root.join("run/systemd/netif/links")).unwrap();
        assert!(!removes(FOREIGN_ROUTES) && !removes(FOREIGN_RULES), "it does not run");
        write("run/systemd/netif/state", "");
        assert!(removes(FOREIGN_ROUTES) && removes(FOREIGN_RULES));
        write("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=yes\n");
        write("etc/systemd/networkd.conf.d/x.conf", "[Network]\nManageForeignRoutes=no\n");
        assert!(!removes(FOREIGN_ROUTES) && removes(FOREIGN_RULES));
    }
}
