//! Every decoder of bytes that come from outside: the kernel, a userspace device, the database, files.
//! `make fuzz` calls them with inputs that reach new code; the test here calls them with all that is kept.

use crate::decoder::Decoder;

/// All decoders of the library.
pub fn all() -> impl Iterator<Item = &'static Decoder> {
    [&crate::dataplane::DECODERS[..], &crate::reconcile::DECODERS, &crate::store::DECODERS]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::decoder::Outcome;

    fn corpus() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
    }

    /// The kept inputs of a decoder, by file name.
    fn inputs(decoder: &Decoder) -> BTreeMap<String, Vec<u8>> {
        let folder = corpus().join(decoder.name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let file = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        };
        files.map(file).collect()
    }

    #[test]
    fn decoders_survive_every_kept_input() {
        for decoder in all() {
            let outcomes: BTreeSet<Outcome> = inputs(decoder)
                .iter()
                .map(|(file, bytes)| {
                    let outcome = std::panic::catch_unwind(|| decoder.decode(bytes));
                    outcome.unwrap_or_else(|_| panic!("{} panics: {file}", decoder.name))
                })
                .collect();
            let both = [Outcome::Read, Outcome::Refused].into();
            assert_eq!(outcomes, both, "{} reads some inputs and refuses others", decoder.name);
        }
    }

    #[test]
    fn every_kept_input_belongs_to_a_decoder() {
        // The agent's own decoders, which its tests call.
        let agents = ["configuration", "control-request"].map(str::to_owned);
        let known: BTreeSet<String> =
            all().map(|decoder| decoder.name.to_owned()).chain(agents).collect();
        let folder = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let kept: BTreeSet<String> = fs::read_dir(corpus()).unwrap().map(folder).collect();
        assert_eq!(kept, known);
    }
}
