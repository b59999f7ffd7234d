//! Requests as they are read, and replies as they are written.

use std::ffi::CStr;

use rustix::io::{Errno, Result};

/// The longest name of a file (limits.h, NAME_MAX).
const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, with its end (PATH_MAX).
const PATH_MAX: usize = 4096;

/// The fields of a request, one after the other. One that is not there makes the request invalid.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*field)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Passes over fields that mean nothing here.
    pub fn skip(&mut self, len: usize) -> Result<()> {
        self.0 = self.0.get(len..).ok_or(Errno::INVAL)?;
        Ok(())
    }

    /// A text that ends with a zero.
    fn text(&mut self) -> Result<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(text.count_bytes() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// The name of a file in a directory: one that leads nowhere else.
    pub fn name(&mut self) -> Result<&'a CStr> {
        let name = self.text()?;
        is_name(name).then_some(name).ok_or(Errno::INVAL)
    }

    /// What a symbolic link is to say. That is the client's business.
    pub fn target(&mut self) -> Result<&'a CStr> {
        let target = self.text()?;
        let fits = (1..PATH_MAX).contains(&target.count_bytes());
        fits.then_some(target).ok_or(Errno::NAMETOOLONG)
    }

    /// The name of an extended attribute.
    pub fn attribute(&mut self) -> Result<&'a CStr> {
        let name = self.text()?;
        let fits = (1..=NAME_MAX).contains(&name.count_bytes());
        fits.then_some(name).ok_or(Errno::RANGE)
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Whether this is one component of a path that leads down.
pub fn is_name(name: &CStr) -> bool {
    let bytes = name.to_bytes();
    (1..=NAME_MAX).contains(&bytes.len())
        && !bytes.contains(&b'/')
        && bytes != b"."
        && bytes != b".."
}

/// A reply that is being written, no longer than the client has room for.
pub struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
}

impl<'a> Reply<'a> {
    /// Goes on where `bytes` ends, as long as it gets no longer than `room`.
    pub fn new(bytes: &'a mut Vec<u8>, room: usize) -> Self {
        Self { bytes, room }
    }

    /// How much there is room for yet.
    pub fn left(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.left() {
            return Err(Errno::INVAL);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub fn u32(&mut self, value: u32) -> Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    /// Has `fill` write up to `len` bytes, less if there is no room; it says how many these are.
    pub fn fill(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<usize> {
        let start = self.bytes.len();
        self.bytes.resize(start + len.min(self.left()), 0);
        let filled = fill(self.bytes.get_mut(start..).unwrap_or_default())?;
        self.bytes.truncate(start + filled);
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_down_only() {
        let name = |bytes: &[u8]| Fields::new(bytes).name().map(|name| name.to_bytes().to_vec());
        for good in [&b"a\0"[..], b"...\0", b"a b\0", b"\xff\0", b"..a\0"] {
            assert_eq!(name(good).unwrap(), good.strip_suffix(b"\0").unwrap());
        }
        let long = [&[b'x'; 256][..], b"\0"].concat();
        let bad: [&[u8]; 9] =
            [b"", b"\0", b"a", b".\0", b"..\0", b"/\0", b"a/b\0", b"../a\0", &long];
        for bad in bad {
            assert_eq!(name(bad), Err(Errno::INVAL), "{bad:?}");
        }
        // Two after each other.
        let mut fields = Fields::new(b"a\0b\0c");
        assert_eq!((fields.name().unwrap(), fields.name().unwrap()), (c"a", c"b"));
        assert_eq!(fields.rest(), b"c");
    }

    #[test]
    fn nothing_is_read_or_written_beyond_the_end() {
        let mut fields = Fields::new(&[1, 0, 0, 0, 2]);
        assert_eq!(fields.u32(), Ok(1));
        assert_eq!(fields.u32(), Err(Errno::INVAL));
        assert_eq!(fields.skip(2), Err(Errno::INVAL));
        let mut bytes = vec![9];
        let mut reply = Reply::new(&mut bytes, 6);
        assert_eq!(reply.u32(1), Ok(()));
        assert_eq!(reply.u32(1), Err(Errno::INVAL));
        assert_eq!(reply.fill(100, |room| Ok(room.len())), Ok(1));
        assert_eq!(bytes.len(), 6);
    }
}
