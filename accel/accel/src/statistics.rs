//! What an accelerator counts.

/// What was counted about one processor since its machine was made: plain numbers, each with a
/// name that stays the same from version to version. Which there are is up to the accelerator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Numbers that only grow: how often something happened.
    pub counts: Vec<(&'static str, u64)>,
    /// Numbers that grow and shrink: how much there is of something, or may be.
    pub levels: Vec<(&'static str, u64)>,
}
