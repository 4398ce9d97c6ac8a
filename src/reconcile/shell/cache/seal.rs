//! Checksums that only the holder of the gateway's private key can make.
//!
//! Each line's checksum covers the one before it, so that no line can be altered, added, moved or left
//! out. Lines at the end can be cut off: nothing on this host would know of them.

use std::io::{self, Write};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::model::PrivateKey;

/// The file's first line: what the rest is, and the version of its form. A version that adds what an
/// earlier one must not miss raises it: that one then does not use the file.
pub(super) const HEADING: &str = "gatepost-last-good 2";

/// In hexadecimal.
const CHECKSUM_DIGITS: usize = 64;

/// The key of the checksums. Unprintable.
#[derive(Clone)]
pub(in crate::reconcile::shell) struct Sealer(Zeroizing<[u8; 32]>);

/// The lines so far.
#[derive(Clone)]
pub(super) struct Chain {
    sealer: Sealer,
    /// The checksum of the last line; before the first, the heading's.
    last: [u8; 32],
}

/// One line as it is written.
pub(super) struct Sealed<'a, W> {
    out: W,
    chain: &'a mut Chain,
    mac: Hmac<Sha256>,
}

/// Whether this is the first line of some version.
pub(super) fn is_heading(line: &str) -> bool {
    let version = line.strip_prefix("gatepost-last-good ");
    version.is_some_and(|version| version.parse::<u16>().is_ok())
}

impl Sealer {
    pub fn new(private_key: &PrivateKey) -> Self {
        // A key of its own: the private key itself is for WireGuard alone.
        let mut mac = mac(private_key.expose_bytes());
        mac.update(HEADING.as_bytes());
        Self(Zeroizing::new(mac.finalize().into_bytes().into()))
    }

    /// A sealer for another purpose.
    pub fn of(&self, purpose: &str) -> Self {
        let mut mac = mac(&self.0);
        mac.update(purpose.as_bytes());
        Self(Zeroizing::new(mac.finalize().into_bytes().into()))
    }

    /// The checksum of a whole text.
    pub fn checksum(&self, text: &[u8]) -> String {
        let mut mac = mac(&self.0);
        mac.update(text);
        hex(&mac.finalize().into_bytes().into())
    }

    pub(super) fn begin(&self) -> Chain {
        let mut mac = mac(&self.0);
        mac.update(HEADING.as_bytes());
        Chain { sealer: self.clone(), last: mac.finalize().into_bytes().into() }
    }
}

impl Chain {
    /// The text of the next line without its checksum; `None`: the checksum is wrong.
    pub fn open<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let (text, checksum) =
            line.split_at_checked(line.len().checked_sub(CHECKSUM_DIGITS + 1)?)?;
        let mut mac = self.next();
        mac.update(text.as_bytes());
        let wanted: [u8; 32] = mac.finalize().into_bytes().into();
        // A program that may write the file may also read it: the comparison's time tells it nothing.
        if checksum.strip_prefix(' ')? != hex(&wanted) {
            return None;
        }
        self.last = wanted;
        Some(text)
    }

    fn next(&self) -> Hmac<Sha256> {
        let mut mac = mac(&self.sealer.0);
        mac.update(&self.last);
        mac
    }
}

impl<'a, W: Write> Sealed<'a, W> {
    pub fn new(out: W, chain: &'a mut Chain) -> Self {
        let mac = chain.next();
        Self { out, chain, mac }
    }

    /// Ends the line with its checksum.
    pub fn end(mut self) -> io::Result<()> {
        let checksum: [u8; 32] = self.mac.finalize().into_bytes().into();
        writeln!(self.out, " {}", hex(&checksum))?;
        self.out.flush()?;
        self.chain.last = checksum;
        Ok(())
    }
}

impl<W: Write> Write for Sealed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.mac.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(secret)")
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chain(secret)")
    }
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
