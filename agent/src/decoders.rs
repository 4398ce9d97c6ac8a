//! The decoders of what an administrator writes and of what a program asks the control socket. `tests/fuzz` reaches only
//! those of the library, so these are called with changed inputs here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Source, load};
use crate::control::Request;

/// Changed copies of each kept input.
const COPIES: usize = 500;

fn inputs(decoder: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(decoder);
    let files = fs::read_dir(corpus).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes, removes and repeats a few bytes.
fn changed(random: &mut fastrand::Rng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..=bytes.len());
        let part = at..(at + random.usize(..16)).min(bytes.len());
        match random.u8(..4) {
            0 => drop(bytes.drain(part)),
            1 => bytes.insert(at, random.u8(..)),
            2 => bytes.splice(at..at, bytes[part].to_vec()).for_each(drop),
            _ => bytes[part].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
        }
    }
    bytes
}

/// Decodes the kept inputs, then changed ones: whatever these are, they are read or refused.
fn survives(decoder: &str, mut is_read: impl FnMut(&[u8]) -> bool) {
    let inputs = inputs(decoder);
    let outcomes: BTreeSet<bool> = inputs.iter().map(|input| is_read(input)).collect();
    assert_eq!(outcomes, [false, true].into(), "some are read, others refused");
    let mut random = fastrand::Rng::with_seed(1);
    for input in &inputs {
        for _ in 0..COPIES {
            is_read(&changed(&mut random, input));
        }
    }
}

#[test]
fn configuration_survives_every_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gatepost.toml");
    survives("configuration", |bytes| {
        fs::write(&file, bytes).unwrap();
        load(Source { file: Some(file.clone()), ..Source::default() }).is_ok()
    });
}

#[test]
fn control_requests_survive_every_input() {
    survives("control-request", |bytes| {
        serde_json::from_slice::<Request>(bytes).is_ok_and(|request| {
            // The journal says who asked for what.
            !request.to_string().is_empty()
        })
    });
}
