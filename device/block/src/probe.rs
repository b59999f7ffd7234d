//! Telling image formats by their first bytes.

/// How many bytes tell a format.
pub(crate) const PROBE_LEN: usize = 512;

/// What the first bytes of a file say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    /// qcow2, or its forerunner, which has the same magic.
    Qcow2,
    /// An image format that Lodge does not read.
    Foreign(&'static str),
    /// Anything else.
    Raw,
}

/// Magic numbers: where they stand, what they are, whose they are.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
];

/// Looks at the first [`PROBE_LEN`] bytes of a file.
pub(crate) fn probe(first: &[u8]) -> Probed {
    if first.starts_with(b"QFI\xfb") {
        return Probed::Qcow2;
    }
    FOREIGN
        .iter()
        .find(|(at, magic, _)| first.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or(Probed::Raw, |(_, _, name)| Probed::Foreign(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), Probed::Qcow2);
        assert_eq!(probe(b"vhdxfile...."), Probed::Foreign("VHDX"));
        let mut vdi = [0; PROBE_LEN];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(probe(&vdi), Probed::Foreign("VDI"));
        assert_eq!(probe(&[0; PROBE_LEN]), Probed::Raw);
        assert_eq!(probe(b""), Probed::Raw);
        assert_eq!(probe(b"QFI"), Probed::Raw);
    }
}
