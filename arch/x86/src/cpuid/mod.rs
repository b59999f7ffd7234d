//! What CPUID tells a guest.

mod model;
mod speculation;

use alloc::vec::Vec;

pub use model::{
    KVM_FEATURES, KVM_TIMING, MissingFeature, Model, PARAVIRTUAL, PARAVIRTUAL_CLOCK, build,
};
pub use speculation::{VIRT_SSBD, add_speculation_controls};

/// Banks of machine checks that processors have (IA32_MCG_CAP): as many on each accelerator, since
/// Linux counts them once and takes it for a broken processor if one cannot be read later. KVM has at
/// least one.
pub const MACHINE_CHECK_BANKS: u8 = 1;

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A processor model: CPUID's answer to each leaf and subleaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable {
    /// Leaf, subleaf (`None` where the leaf ignores ECX) and answer, sorted.
    entries: Vec<(u32, Option<u32>, CpuidResult)>,
}

impl CpuidResult {
    /// Whether this is AMD's answer to leaf 0, or Hygon's, whose processors are AMD's.
    pub fn names_amd(self) -> bool {
        [*b"Auth", *b"Hygo"].contains(&self.ebx.to_le_bytes())
    }
}

impl CpuidTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the answer to `leaf` and, where the leaf looks at ECX, `subleaf`.
    pub fn set(&mut self, leaf: u32, subleaf: Option<u32>, result: CpuidResult) {
        match self.entries.binary_search_by_key(&(leaf, subleaf), |e| (e.0, e.1)) {
            Ok(at) => self.entries[at].2 = result,
            Err(at) => self.entries.insert(at, (leaf, subleaf, result)),
        }
    }

    /// All answers: leaf, subleaf (`None` where the leaf ignores ECX), registers; in this order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Option<u32>, CpuidResult)> {
        self.entries.iter().copied()
    }

    /// The answer to exactly this leaf and subleaf, or `None` if the table has none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidResult> {
        [None, Some(subleaf)].into_iter().find_map(|sub| {
            let at = self.entries.binary_search_by_key(&(leaf, sub), |e| (e.0, e.1)).ok()?;
            Some(self.entries[at].2)
        })
    }
}
