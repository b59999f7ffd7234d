//! The sections that are not devices'.

use accel::CpuidTable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use state::Sections;
use vmm_api::Failure;
use x86::cpuid::CpuidResult;

/// The names of sections. All are in their first version.
pub mod section {
    /// [`ClockState`](super::ClockState).
    pub const CLOCK: &str = "clock";
    /// [`Cpuid`](super::Cpuid).
    pub const CPUID: &str = "cpuid";
    /// [`Disks`](super::Disks).
    pub const DISKS: &str = "disks";
    /// [`state::memory::Contents`].
    pub const MEMORY: &str = "memory";
    /// [`accel::VmState`].
    pub const CHIPS: &str = "chips";

    /// [`accel::VcpuState`] of a processor.
    pub fn processor(index: usize) -> String {
        format!("processor/{index:02}")
    }
}

const VERSION: u32 = 1;

/// When it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// The host's TSC when guest time stopped.
    pub host_tsc: u64,
    /// The frequency of the guest's TSC.
    pub tsc_hz: u64,
}

/// The layers that disks stood on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// For each disk, the name of its layer; `None` for those that are only read.
    pub layers: Vec<Option<String>>,
}

/// What CPUID told the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpuid {
    /// Leaf, subleaf where the leaf has some, and EAX, EBX, ECX, EDX.
    leaves: Vec<(u32, Option<u32>, [u32; 4])>,
    /// Hyper-V's enlightenments were declared besides.
    #[serde(default)]
    pub hyperv: bool,
}

impl Cpuid {
    /// A table's answers, and whether there were Hyper-V's besides.
    pub fn of(table: &CpuidTable, hyperv: bool) -> Self {
        let leaf =
            |(leaf, subleaf, r): (_, _, CpuidResult)| (leaf, subleaf, [r.eax, r.ebx, r.ecx, r.edx]);
        Self { leaves: table.iter().map(leaf).collect(), hyperv }
    }

    /// The table with these answers.
    pub fn table(&self) -> CpuidTable {
        let mut table = CpuidTable::new();
        for &(leaf, subleaf, [eax, ebx, ecx, edx]) in &self.leaves {
            table.set(leaf, subleaf, CpuidResult { eax, ebx, ecx, edx });
        }
        table
    }
}

/// Adds a section.
pub fn put(state: &mut Sections, name: &str, contents: &impl Serialize) -> Result<(), Failure> {
    let payload = serde_json::to_vec(contents).map_err(Failure::internal)?;
    state.add(name, VERSION, payload).map_err(Failure::internal)
}

/// What a section holds.
pub fn get<T: DeserializeOwned>(state: &Sections, name: &str) -> Result<T, Failure> {
    let section = state.get(name).ok_or_else(|| {
        Failure::artifact(format!("the snapshot lacks {name:?}: it was made with another machine"))
    })?;
    if section.version != VERSION {
        return Err(Failure::artifact(format!(
            "the snapshot holds {name:?} in version {}, and this Lodge knows {VERSION}: restore it \
             with the version of Lodge that made it",
            section.version
        )));
    }
    serde_json::from_slice(&section.payload).map_err(|why| {
        Failure::artifact(format!(
            "the snapshot's section {name:?}, at byte {} of its state file, cannot be used: {why}",
            section.offset
        ))
    })
}
