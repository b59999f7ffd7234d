//! Takes the kernel out of a bzImage, for a machine that decompresses nothing.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Compressions, by their first bytes, and what undoes them. The kernel's build appends the
/// length to all but gzip, which ends with it anyway.
const COMPRESSIONS: &[(&[u8], &[&str], usize)] = &[
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"], 4),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"], 4),
    (b"\x02\x21\x4c\x18", &["lz4", "-dcq"], 4),
    (b"\x1f\x8b", &["gzip", "-dc"], 0),
];

/// Writes the ELF kernel in `bzimage` to `vmlinux`.
pub fn extract(bzimage: &Path, vmlinux: &Path) -> anyhow::Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    let payload = payload(&image).with_context(|| format!("in {}", bzimage.display()))?;
    let Some((_, command, appended)) =
        COMPRESSIONS.iter().find(|(magic, ..)| payload.starts_with(magic))
    else {
        bail!("{} is compressed in a way that is not known here", bzimage.display());
    };
    let compressed = vmlinux.with_extension("compressed");
    fs::write(&compressed, &payload[..payload.len().saturating_sub(*appended)])?;
    let status = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::from(File::open(&compressed)?))
        .stdout(Stdio::from(File::create(vmlinux)?))
        .status()
        .with_context(|| format!("cannot run {}", command[0]))?;
    fs::remove_file(&compressed)?;
    if !status.success() || !fs::read(vmlinux)?.starts_with(b"\x7fELF") {
        bail!("{} does not decompress to an ELF kernel", bzimage.display());
    }
    Ok(())
}

/// The compressed kernel (Linux's Documentation/arch/x86/boot.rst: setup_sects, payload_offset
/// and payload_length).
fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let word = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("it is cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("it is no bzImage");
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    image.get(start..start.saturating_add(word(0x24c)?)).context("it is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&3u32.to_le_bytes());
        image[1032..1035].copy_from_slice(b"abc");
        assert_eq!(payload(&image).unwrap(), b"abc");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&image).is_err());
        assert!(payload(&image[..0x300]).is_err());
        image[0x202] = 0;
        assert!(payload(&image).is_err());
    }
}
