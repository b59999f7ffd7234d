//! The bytes of a state file. Numbers are little-endian, checksums CRC-32C.

use crate::Damage;

/// The longest file, in bytes: states have some hundred kilobytes.
pub const MAX_FILE: usize = 64 << 20;
/// The longest payload of a section, in bytes.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// The most sections.
pub const MAX_SECTIONS: usize = 1024;
/// The longest name of a section, in bytes.
pub const MAX_NAME: usize = 64;

const MAGIC: [u8; 8] = *b"LODGEVMS";
const VERSION: u32 = 1;
const SECTION: [u8; 4] = *b"SECT";
/// What headers and payloads are filled up to.
const ALIGNMENT: usize = 8;

/// The beginning of the file.
///
/// | at | bytes | |
/// |---|---|---|
/// | 0 | 8 | `LODGEVMS` |
/// | 8 | 4 | version of the format: 1 |
/// | 12 | 4 | number of sections |
/// | 16 | 8 | length of the file |
/// | 24 | 4 | zero |
/// | 28 | 4 | checksum of bytes 0 to 27 |
pub(crate) struct FileHeader {
    pub sections: usize,
    pub len: usize,
}

impl FileHeader {
    pub const LEN: usize = 32;

    pub fn write(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(self.sections as u32).to_le_bytes());
        out[16..24].copy_from_slice(&(self.len as u64).to_le_bytes());
        out[24..28].fill(0);
        let sum = crc32c::crc32c(&out[..28]);
        out[28..32].copy_from_slice(&sum.to_le_bytes());
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let header = bytes
            .first_chunk::<{ Self::LEN }>()
            .ok_or_else(|| Damage::at(bytes.len(), "the file ends within its header"))?;
        if header[..8] != MAGIC {
            return Err(Damage::at(0, "this is no saved state of a guest"));
        }
        let version = u32_at(header, 8);
        if u32_at(header, 28) != crc32c::crc32c(&header[..28]) {
            return Err(Damage::at(28, "the header's checksum is wrong"));
        }
        if version != VERSION {
            return Err(Damage::at(
                8,
                format!("it is in version {version} of the format, and this Lodge knows {VERSION}"),
            ));
        }
        let sections = u32_at(header, 12) as usize;
        if sections > MAX_SECTIONS {
            return Err(Damage::at(12, format!("{sections} sections are too many")));
        }
        let len = usize::try_from(u64_at(header, 16)).unwrap_or(usize::MAX);
        if len != bytes.len() {
            return Err(Damage::at(
                bytes.len().min(len),
                format!("the file has {} bytes, and was written with {len}", bytes.len()),
            ));
        }
        if header[24..28] != [0; 4] {
            return Err(Damage::at(24, "bytes without a meaning are not zero"));
        }
        Ok(Self { sections, len })
    }
}

/// What comes before the name and the payload of a section.
///
/// | at | bytes | |
/// |---|---|---|
/// | 0 | 4 | `SECT` |
/// | 4 | 4 | version of what the section holds |
/// | 8 | 8 | length of the payload |
/// | 16 | 4 | checksum of the payload |
/// | 20 | 2 | length of the name |
/// | 22 | 2 | zero |
/// | 24 | 4 | checksum of bytes 0 to 23, and of the name |
/// | 28 | | the name, then zeroes up to a multiple of 8; the payload, then zeroes likewise |
pub(crate) struct SectionHeader<'a> {
    pub name: &'a str,
    pub version: u32,
    pub payload: &'a [u8],
}

impl<'a> SectionHeader<'a> {
    const LEN: usize = 28;

    pub fn write(&self, out: &mut Vec<u8>) {
        let mut header = [0; Self::LEN];
        header[..4].copy_from_slice(&SECTION);
        header[4..8].copy_from_slice(&self.version.to_le_bytes());
        header[8..16].copy_from_slice(&(self.payload.len() as u64).to_le_bytes());
        header[16..20].copy_from_slice(&crc32c::crc32c(self.payload).to_le_bytes());
        header[20..22].copy_from_slice(&(self.name.len() as u16).to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..24]), self.name.as_bytes());
        header[24..].copy_from_slice(&sum.to_le_bytes());
        out.extend(header);
        out.extend(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(self.payload);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The section that begins at `at`, which is a multiple of the alignment, and where it ends.
    pub fn read(bytes: &'a [u8], at: usize) -> Result<(Self, usize), Damage> {
        let cut = || Damage::at(bytes.len(), "the file ends within a section");
        let header = bytes
            .get(at..)
            .and_then(<[u8]>::first_chunk::<{ SectionHeader::LEN }>)
            .ok_or_else(cut)?;
        if header[..4] != SECTION {
            return Err(Damage::at(at, "no section begins where one should"));
        }
        let name_len = usize::from(u16::from_le_bytes([header[20], header[21]]));
        if name_len == 0 || name_len > MAX_NAME {
            return Err(Damage::at(at + 20, "a section's name has an impossible length"));
        }
        let name_at = at + Self::LEN;
        let name = bytes.get(name_at..name_at + name_len).ok_or_else(cut)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..24]), name);
        if u32_at(header, 24) != sum {
            return Err(Damage::at(at + 24, "the checksum of a section's header is wrong"));
        }
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| name.bytes().all(|b| b.is_ascii_graphic() || b == b' '))
            .ok_or_else(|| Damage::at(name_at, "a section's name is no text"))?;
        if header[22..24] != [0; 2] {
            return Err(Damage::at(at + 22, "bytes without a meaning are not zero").of(name));
        }
        let payload_at = (name_at + name_len).next_multiple_of(ALIGNMENT);
        zeroes(bytes, name_at + name_len, payload_at).map_err(|damage| damage.of(name))?;
        let len = usize::try_from(u64_at(header, 8)).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD {
            return Err(Damage::at(at + 8, format!("{len} bytes are too many")).of(name));
        }
        let payload = bytes.get(payload_at..payload_at + len).ok_or_else(|| cut().of(name))?;
        if u32_at(header, 16) != crc32c::crc32c(payload) {
            return Err(Damage::at(payload_at, "the checksum of the contents is wrong").of(name));
        }
        let end = (payload_at + len).next_multiple_of(ALIGNMENT);
        zeroes(bytes, payload_at + len, end).map_err(|damage| damage.of(name))?;
        Ok((Self { name, version: u32_at(header, 4), payload }, end))
    }
}

/// Requires zeroes from `from` up to `to`.
fn zeroes(bytes: &[u8], from: usize, to: usize) -> Result<(), Damage> {
    match bytes.get(from..to) {
        None => Err(Damage::at(bytes.len(), "the file ends within a section")),
        Some(filler) if filler.iter().any(|&byte| byte != 0) => {
            Err(Damage::at(from, "bytes without a meaning are not zero"))
        }
        Some(_) => Ok(()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}
