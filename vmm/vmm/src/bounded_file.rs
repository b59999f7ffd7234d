//! A file that is written at its end and does not grow for ever.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The newest of what was appended to a file. Only one process at a time may write to it.
#[derive(Debug)]
pub struct BoundedFile {
    file: File,
    len: u64,
    limit: u64,
}

impl BoundedFile {
    /// Goes on writing at the end of `file`, which is kept at no more than `limit` bytes.
    pub fn new(file: File, limit: u64) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len, limit })
    }

    /// A file in memory, which goes with this process.
    pub fn in_memory(limit: u64) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC)?;
        Self::new(fd.into(), limit)
    }

    /// Appends `bytes`. If the file becomes too long, its older half is given up, up to the end of
    /// a line.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len.saturating_add(bytes.len() as u64) > self.limit {
            let kept = self.tail(self.limit / 2)?;
            let line = kept.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            let kept = kept.get(line..).unwrap_or_default();
            // A crash in between leaves some of it twice, which a log can bear.
            self.file.write_all_at(kept, 0)?;
            self.len = kept.len() as u64;
            self.file.set_len(self.len)?;
        }
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The last lines, at most so many; what follows the last end of a line counts as one.
    pub fn last_lines(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = self.tail(u64::MAX)?;
        let whole = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let mut ends = whole.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'\n');
        let start = match most.checked_sub(1).map(usize::try_from) {
            None => bytes.len(),
            Some(Ok(before)) => ends.nth(before).map_or(0, |(end, _)| end + 1),
            Some(Err(_)) => 0,
        };
        bytes.drain(..start);
        Ok(bytes)
    }

    /// The last bytes, at most so many.
    pub fn tail(&self, most: u64) -> io::Result<Vec<u8>> {
        let count = self.len.min(most).min(self.limit);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, self.len - count)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_newest_lines_stay() {
        let mut log = BoundedFile::in_memory(100).unwrap();
        for number in 0..1000 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
            let text = String::from_utf8(log.tail(u64::MAX).unwrap()).unwrap();
            assert!(text.len() <= 100 && text.starts_with("line "), "{text}");
            assert!(text.ends_with(&format!("line {number}\n")), "{text}");
            assert!(number < 20 || text.len() >= 40, "{text}");
        }
        assert_eq!(log.tail(9).unwrap(), b"line 999\n");
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        let mut log = BoundedFile::in_memory(100).unwrap();
        assert_eq!(log.last_lines(1).unwrap(), b"");
        log.append(b"one\n\nthree\n").unwrap();
        for (most, lines) in [(0, ""), (1, "three\n"), (2, "\nthree\n"), (3, "one\n\nthree\n")] {
            assert_eq!(log.last_lines(most).unwrap(), lines.as_bytes(), "{most}");
        }
        log.append(b"login: ").unwrap();
        assert_eq!(log.last_lines(1).unwrap(), b"login: ");
        assert_eq!(log.last_lines(2).unwrap(), b"three\nlogin: ");
        assert_eq!(log.last_lines(u64::MAX).unwrap(), b"one\n\nthree\nlogin: ");
    }

    #[test]
    fn what_was_there_before_is_continued() {
        let mut file = tempfile::tempfile().unwrap();
        BoundedFile::new(file.try_clone().unwrap(), 100).unwrap().append(b"one\n").unwrap();
        let mut log = BoundedFile::new(file.try_clone().unwrap(), 100).unwrap();
        log.append(b"two\n").unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
        // One that is too long already is cut.
        let mut short = BoundedFile::new(file, 6).unwrap();
        short.append(b"x").unwrap();
        assert_eq!(short.tail(u64::MAX).unwrap(), b"x");
    }
}
