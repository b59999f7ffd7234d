//! What is said of bytes that are not as they were written.

/// Where a saved state is damaged, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}, at byte {offset}{}", .section.as_ref().map(|s| format!(" in the section {s:?}")).unwrap_or_default())]
pub struct Damage {
    /// The section, if it is known in which.
    pub section: Option<String>,
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

impl Damage {
    pub(crate) fn at(offset: usize, what: impl Into<String>) -> Self {
        Self { section: None, offset: offset as u64, what: what.into() }
    }

    pub(crate) fn of(self, section: &str) -> Self {
        Self { section: Some(section.to_owned()), ..self }
    }
}
