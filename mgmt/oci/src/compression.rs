//! How layers are compressed.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::Error;

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// What layers' media types begin with (image-spec, layer.md; docker's image manifest v2).
const LAYERS: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// Whether layers of that media type are read. Which compression it is, is told by its first bytes:
/// some programs say gzip of what is not compressed.
pub(crate) fn check_media_type(media_type: &str) -> Result<(), Error> {
    let unsupported = |what: String, hint| Err(Error::Unsupported { what, hint });
    let Some(rest) = LAYERS.iter().find_map(|layer| media_type.strip_prefix(layer)) else {
        return unsupported(
            format!("it has a layer of type {media_type}"),
            "images of programs for Linux have layers that are tar archives",
        );
    };
    match rest {
        "" | "+gzip" | "+zstd" | ".gzip" | ".zstd" => Ok(()),
        _ => unsupported(
            format!("it has a layer of type {media_type}"),
            "have it compressed with gzip or zstd, or not at all",
        ),
    }
}

/// A layer's archive.
pub(crate) fn decompress<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = Source { inner: Box::new(blob), first: [0; 4], next: 4 };
    let first = source.look_ahead()?;
    Ok(if first.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(source))
    } else if first.starts_with(ZSTD) || is_skippable(&first) {
        Box::new(Frames { state: State::Between(source) })
    } else {
        Box::new(source)
    })
}

/// A stream, of which the next four bytes may have been looked at.
struct Source<'a> {
    inner: Box<dyn Read + 'a>,
    first: [u8; 4],
    /// Which of these is the next.
    next: usize,
}

impl Source<'_> {
    /// The next bytes, fewer than four at the end of the stream. Nothing may be looked at when this is
    /// called.
    fn look_ahead(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(4);
        self.by_ref().take(4).read_to_end(&mut bytes)?;
        self.next = 4_usize.saturating_sub(bytes.len());
        for (to, from) in self.first.iter_mut().skip(self.next).zip(&bytes) {
            *to = *from;
        }
        Ok(bytes)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut waiting = self.first.get(self.next..).unwrap_or_default();
        if waiting.is_empty() {
            return self.inner.read(buffer);
        }
        let count = waiting.read(buffer)?;
        self.next += count;
        Ok(count)
    }
}

/// Whether a frame is one of those that hold something else than contents, such as an index (RFC 8878,
/// section 3.1.2).
fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// The contents of zstd frames, one after the other.
struct Frames<'a> {
    state: State<'a>,
}

enum State<'a> {
    Between(Source<'a>),
    In(Box<StreamingDecoder<Source<'a>, FrameDecoder>>),
    /// Or after an error.
    End,
}

impl Read for Frames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::End) {
                State::End => return Ok(0),
                State::Between(mut source) => {
                    let magic = source.look_ahead()?;
                    if magic.is_empty() {
                        return Ok(0);
                    }
                    self.state = if is_skippable(&magic) {
                        let mut header = [0; 8];
                        source.read_exact(&mut header)?;
                        let [.., a, b, c, d] = header;
                        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
                        if io::copy(&mut source.by_ref().take(length), &mut io::sink())? < length {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        State::Between(source)
                    } else {
                        State::In(Box::new(StreamingDecoder::new(source).map_err(broken)?))
                    };
                }
                State::In(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    self.state = match count {
                        0 => State::Between(decoder.into_inner()),
                        _ => State::In(decoder),
                    };
                    if count > 0 {
                        return Ok(count);
                    }
                }
            }
        }
    }
}

fn broken(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut contents = Vec::new();
        decompress(bytes)?.read_to_end(&mut contents)?;
        Ok(contents)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    }

    #[test]
    fn layers_are_decompressed_by_what_they_are() {
        let text = b"a layer ".repeat(10_000);
        assert_eq!(read(&text).unwrap(), text);
        assert_eq!(read(b"ab").unwrap(), b"ab");
        assert_eq!(read(&gzip(&text)).unwrap(), text);
        assert_eq!(read(&zstd(&text)).unwrap(), text);
        // Programs that compress in parallel write several pieces.
        let twice = [&text[..], &text].concat();
        assert_eq!(read(&[gzip(&text), gzip(&text)].concat()).unwrap(), twice);
        assert_eq!(read(&[zstd(&text), zstd(&text)].concat()).unwrap(), twice);
        // And some put an index between them.
        let index = b"\x5a\x2a\x4d\x18\x05\0\0\0index".to_vec();
        let indexed = [&index[..], &zstd(&text), &index, &zstd(&text), &index].concat();
        assert_eq!(read(&indexed).unwrap(), twice);
        for whole in [gzip(&text), zstd(&text)] {
            assert!(read(&whole[..whole.len() / 2]).is_err());
            assert!(read(&whole[..10]).is_err());
        }
    }

    #[test]
    fn other_types_are_refused() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        for good in
            [oci, &format!("{oci}+zstd"), "application/vnd.docker.image.rootfs.diff.tar.gzip"]
        {
            check_media_type(good).unwrap();
        }
        for bad in [
            "",
            &format!("{oci}+bzip2"),
            &format!("{oci}+gzip+encrypted"),
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.wasm.content.layer.v1+wasm",
        ] {
            assert!(matches!(check_media_type(bad), Err(Error::Unsupported { .. })), "{bad}");
        }
    }
}
