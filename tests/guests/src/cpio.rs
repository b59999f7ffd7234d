//! Initial RAM disks: cpio archives in the "newc" form (Linux's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive that is being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file that may be executed.
    pub fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, PROGRAM, (0, 0), contents);
    }

    /// Adds `/dev/console`, without which the first program has no standard output.
    pub fn console(&mut self) {
        self.directory("dev");
        self.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        // Bounded by what this benchmark puts in, some MB.
        let length = u32::try_from(contents.len()).expect("a file of less than 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("a short name");
        let fields = [
            self.entries,
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            length,
            0, // device of the file itself
            0,
            device.0,
            device.1,
            name_length,
            0, // checksum, unused
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_complete() {
        let mut archive = Archive::default();
        archive.console();
        archive.program("init", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // The header has 110 bytes: "dev" and its zero end at 114, padded to 116.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"dev\0");
        assert_eq!(&bytes[116..122], b"070701");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let init = text.find("init\0").unwrap();
        // Its size is the seventh field, and the contents follow name and padding.
        assert_eq!(&text[init - 110 + 6 + 48..][..8], "00000005");
        assert_eq!(&bytes[(init + 5).next_multiple_of(4)..][..5], b"12345");
        assert!(text.contains("TRAILER!!!"));
    }
}
