//! Where the lab's processor is none: QEMU's emulation of AMD-V, or of x86 as such, differs from the
//! manuals in the version of Debian 12 (7.2). What a case of the conformance suite fails for here, it
//! does not fail for on a processor.

/// A text that the names of cases contain, and what is the matter.
pub type Deviation = (&'static str, &'static str);

/// Cases that end QEMU itself. They are left out.
pub const FATAL: &[Deviation] =
    &[("#DE for a quotient too large", "QEMU ends by SIGFPE on IDIV of a number too large")];

/// Cases that fail.
pub const KNOWN: &[Deviation] = &[
    ("is reserved", "page faults for reserved bits lack the P bit of the error code"),
    ("reserved bits says so", "page faults for reserved bits lack the P bit of the error code"),
];

/// What is the matter with a case, if it is in the list.
pub fn find(list: &[Deviation], name: &str) -> Option<&'static str> {
    list.iter().find(|(text, _)| name.contains(text)).map(|&(_, why)| why)
}
