//! Decompression of a bzImage's payload, with every compressor that Linux offers but LZO.
//!
//! The kernel's build appends the decompressed size to the payload, 32 bits little-endian; for
//! gzip that is the format's own last field (Linux, `scripts/Makefile.lib`, "size_append"). It
//! bounds what is decompressed.

use std::io::{self, Read};

/// No kernel decompresses to more than this.
const MAX_LEN: u32 = 512 << 20;
/// What a decompressor's dictionary may take, in KiB.
const DICTIONARY_LIMIT_KIB: u32 = 256 << 10;
/// Block size of the LZ4 legacy format (LZ4 Frame Format Description, "Legacy frame").
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lz4Legacy,
    Zstd,
}

/// The first bytes of each format (Linux, `lib/decompress.c`).
const MAGICS: [(&[u8], Format); 6] = [
    (&[0x1f, 0x8b], Format::Gzip),
    (b"BZh", Format::Bzip2),
    (&[0x5d, 0x00, 0x00], Format::Lzma),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0x00], Format::Xz),
    (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4Legacy),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
];

/// Decompresses a kernel's payload. `None` if it is in no format known here; an error says what
/// is wrong with it.
pub(super) fn decompress(payload: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let Some((_, format)) = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        return Ok(None);
    };
    let Some((body, size)) = payload.split_last_chunk::<4>() else {
        return Err("its payload is truncated".to_owned());
    };
    let size = u32::from_le_bytes(*size);
    if size > MAX_LEN {
        return Err(format!("its payload claims to decompress to {size} bytes"));
    }
    let kib = DICTIONARY_LIMIT_KIB;
    let out = match format {
        Format::Gzip => read(flate2::bufread::GzDecoder::new(payload), size),
        Format::Bzip2 => read(bzip2::bufread::BzDecoder::new(body), size),
        Format::Lzma => lzma_rust2::LzmaReader::new_mem_limit(body, kib, None)
            .and_then(|reader| read(reader, size)),
        Format::Xz => read(lzma_rust2::XzReader::new_mem_limit(body, false, kib), size),
        Format::Lz4Legacy => lz4_legacy(body, size),
        Format::Zstd => ruzstd::decoding::StreamingDecoder::new(body)
            .map_err(io::Error::other)
            .and_then(|reader| read(reader, size)),
    };
    let out = out.map_err(|e| format!("its payload ({format:?}) does not decompress: {e}"))?;
    if out.len() as u64 != u64::from(size) {
        return Err(format!("its payload does not decompress to the {size} bytes that it should"));
    }
    Ok(Some(out))
}

/// Reads all of `reader`, but no more than one byte beyond `size`.
fn read(reader: impl Read, size: u32) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size as usize + 1);
    reader.take(u64::from(size) + 1).read_to_end(&mut out)?;
    Ok(out)
}

/// Decompresses an LZ4 legacy frame to at most `size` bytes: after the magic number, blocks with a 32-bit length
/// each, which go where they belong at once.
fn lz4_legacy(body: &[u8], size: u32) -> io::Result<Vec<u8>> {
    let truncated = || io::Error::new(io::ErrorKind::UnexpectedEof, "a block is truncated");
    let mut out = vec![0; size as usize];
    let mut used = 0;
    let mut input = body.get(4..).unwrap_or_default();
    while !input.is_empty() {
        let (len, rest) = input.split_first_chunk().ok_or_else(truncated)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (block, rest) = rest.split_at_checked(len).ok_or_else(truncated)?;
        let room = &mut out[used..];
        let room_of_block = room.len().min(LZ4_LEGACY_BLOCK);
        used += lz4_flex::block::decompress_into(block, &mut room[..room_of_block])
            .map_err(io::Error::other)?;
        input = rest;
    }
    out.truncate(used);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the files in `testdata` hold: made so that xz's x86 filter has something to do.
    fn expected() -> Vec<u8> {
        (0..6000u32).flat_map(|i| [0xe8, i as u8, (i >> 8) as u8, 0, 0, 0x90, 0xc3, 7]).collect()
    }

    /// `testdata/*` were made by the command-line tools, with the options that Linux uses
    /// (`scripts/Makefile.lib`, `scripts/xz_wrap.sh`).
    const FILES: [(&str, &[u8]); 6] = [
        ("gz", include_bytes!("../../testdata/calls.gz")),
        ("bz2", include_bytes!("../../testdata/calls.bz2")),
        ("lzma", include_bytes!("../../testdata/calls.lzma")),
        ("xz", include_bytes!("../../testdata/calls.xz")),
        ("lz4", include_bytes!("../../testdata/calls.lz4")),
        ("zst", include_bytes!("../../testdata/calls.zst")),
    ];

    fn payload(name: &str, file: &[u8], size: u32) -> Vec<u8> {
        let mut payload = file.to_vec();
        if name == "gz" {
            payload.truncate(file.len() - 4);
        }
        payload.extend(size.to_le_bytes());
        payload
    }

    #[test]
    fn every_format_gives_the_same_bytes() {
        let expected = expected();
        for (name, file) in FILES {
            let payload = payload(name, file, expected.len() as u32);
            assert_eq!(decompress(&payload).unwrap().unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn more_or_less_than_promised_is_refused() {
        for (name, file) in FILES {
            for size in [0, 47_999, 48_001, u32::MAX] {
                assert!(decompress(&payload(name, file, size)).is_err(), "{name} {size}");
            }
            let whole = payload(name, file, 48_000);
            for len in [12, whole.len() / 2] {
                let cut = payload(name, &whole[..len], 48_000);
                assert!(decompress(&cut).is_err(), "{name} cut to {len}");
            }
        }
    }

    #[test]
    fn other_bytes_are_not_a_known_format() {
        assert_eq!(decompress(b""), Ok(None));
        assert_eq!(decompress(b"\x89LZO\0\r\n\x1a\n and so on"), Ok(None));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_harmless(
            which in 0..FILES.len(),
            at in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 1..8),
        ) {
            let (name, file) = FILES[which];
            let mut payload = payload(name, file, 48_000);
            let at = at.index(payload.len() - bytes.len());
            payload[at..at + bytes.len()].copy_from_slice(&bytes);
            if let Ok(Some(out)) = decompress(&payload) {
                prop_assert!(out.len() <= MAX_LEN as usize);
            }
        }

        #[test]
        fn foreign_bytes_behind_a_magic_are_refused_in_order(
            which in 0..MAGICS.len(),
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut payload = MAGICS[which].0.to_vec();
            payload.extend(bytes);
            payload.extend(1_000_000u32.to_le_bytes());
            let _ = decompress(&payload);
        }
    }
}
