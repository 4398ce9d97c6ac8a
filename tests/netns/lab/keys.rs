//! Keys, and files of secrets.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use gatepost::model::PrivateKey;

/// A new private key and its public key.
pub fn new_keys() -> (String, String) {
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    let private_key = PrivateKey::from_random(random);
    (private_key.expose_text(), private_key.public_key().to_string())
}

/// What `wg pubkey` makes of a private key.
pub fn public_key_of(private_key: &str) -> String {
    let mut child = Command::new("wg")
        .arg("pubkey")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(private_key.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

pub(super) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, format!("{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
