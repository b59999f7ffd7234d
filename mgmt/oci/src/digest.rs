//! Digests, by which blobs are named, and readers that compute them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::Error;

/// A SHA-256 digest (image-spec, descriptor.md): `sha256:` and 64 hexadecimal digits. The other
/// registered algorithm, SHA-512, is optional to understand, and nobody uses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest, Error> {
        let damaged = || Error::damaged(format!("the digest {text:?}"), "it is none");
        let Some(hex) = text.strip_prefix("sha256:") else {
            if text.starts_with("sha512:") {
                return Err(Error::Unsupported {
                    what: format!("{text} is a SHA-512 digest"),
                    hint: "make the image with SHA-256 digests, as all tools do",
                });
            }
            return Err(damaged());
        };
        let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if hex.len() != 64 || !hex.as_bytes().iter().all(is_hex) {
            return Err(damaged());
        }
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(from).map_err(|_| damaged())?;
            *to = u8::from_str_radix(digits, 16).map_err(|_| damaged())?;
        }
        Ok(Digest(bytes))
    }
}

/// A reader that computes the digest of what is read through it.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    length: u64,
    /// Why it could not be read on.
    error: Option<io::Error>,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, hasher: Sha256::new(), length: 0, error: None }
    }

    /// Why it could not be read on, whatever those made of it who read.
    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// The digest of what has been read, and its length.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.hasher.finalize().into()), self.length)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.error = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.length = self.length.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_read_and_written() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        for bad in ["", "sha256:", "md5:00", &EMPTY[..70], &EMPTY.to_uppercase(), "sha256:../../x"]
        {
            assert!(matches!(bad.parse::<Digest>(), Err(Error::Damaged { .. })), "{bad}");
        }
        let sha512 = "sha512:00".parse::<Digest>();
        assert!(matches!(sha512, Err(Error::Unsupported { .. })));
    }

    #[test]
    fn what_is_read_is_hashed() {
        let mut hashed = Hashed::new(&b"abc"[..]);
        let mut text = String::new();
        hashed.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), hashed.finish()), ("abc", (Digest::of(b"abc"), 3)));
    }
}
