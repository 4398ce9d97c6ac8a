//! Gives inputs that reach new code to the decoder that `GATEPOST_DECODER` names. See `run`.
#![no_main]

use std::sync::LazyLock;

use gatepost::decoder::Decoder;
use gatepost::decoders;
use libfuzzer_sys::fuzz_target;

static DECODER: LazyLock<&Decoder> = LazyLock::new(|| {
    let name = std::env::var("GATEPOST_DECODER").expect("GATEPOST_DECODER names a decoder");
    decoders::all().find(|decoder| decoder.name == name).expect("a decoder has this name")
});

fuzz_target!(|bytes: &[u8]| {
    let _ = DECODER.decode(bytes);
});
