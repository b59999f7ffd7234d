//! A snapshot that a machine is restored from.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use accel::{CpuidTable, VcpuState, VmState};
use mem::{GuestMemory, Patch, RamRange};
use runtime::thread::{Role, spawn};
use rustix::fs::{Mode, OFlags, openat};
use state::memory::{self, Base, Contents, PAGE, Part};
use state::{MAX_FILE, Sections};
use vmm_api::Failure;
use x86::cpuid::KVM_TIMING;

use super::contents::{ClockState, Cpuid, Disks, get, section};
use super::rate::Rate;
use super::{MEMORY, Parent, STATE};

/// A snapshot, read and found whole but for its memory.
pub struct Opened {
    sections: Sections,
    directory: OwnedFd,
    memory: Arc<Base>,
    /// Reads the memory to compare its checksums, while the guest goes on.
    verification: Mutex<Option<JoinHandle<Result<(), memory::Error>>>>,
}

/// CPUID leaves that tell of the TSC's frequency, which is measured anew each time, and compared by
/// itself: time stamp counter and core crystal clock, processor frequency, KVM's timing.
const FREQUENCIES: [u32; 3] = [0x15, 0x16, KVM_TIMING];

impl Opened {
    /// Opens the snapshot in a directory.
    pub fn new(directory: OwnedFd) -> Result<Self, Failure> {
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            openat(directory.as_fd(), name, flags, Mode::empty()).map(File::from).map_err(|error| {
                Failure::artifact(format!("the snapshot's {name} file cannot be opened: {error}"))
            })
        };
        let mut bytes = Vec::new();
        open(STATE)?
            .take(MAX_FILE as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::host(format!("cannot read the snapshot's state file: {e}")))?;
        let sections = Sections::from_bytes(&bytes).map_err(|damage| {
            Failure::artifact(format!("the snapshot's state file is damaged: {damage}"))
        })?;
        let contents: Contents = get(&sections, section::MEMORY)?;
        let own = open(MEMORY)?;
        let older =
            contents.older.iter().map(|it| open(&it.name())).collect::<Result<Vec<_>, _>>()?;
        let memory = Arc::new(Base::new(contents, own, older).map_err(unusable)?);
        let verified = memory.clone();
        let verification = spawn(Role::Verification, "verification", move || verified.verify())
            .map_err(crate::assembly::no_thread)?;
        let verification = Mutex::new(Some(verification));
        Ok(Self { sections, directory, memory, verification })
    }

    /// All sections.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The processor that the guest had, if this host and configuration offer it the same, and
    /// Hyper-V's enlightenments if it had these. `scales_tsc`: its TSC can have a rate of its own here.
    pub fn cpuid(
        &self,
        offered: &CpuidTable,
        hyperv: bool,
        scales_tsc: bool,
    ) -> Result<CpuidTable, Failure> {
        let saved: Cpuid = get(&self.sections, section::CPUID)?;
        if saved.hyperv != hyperv {
            let had = if saved.hyperv { "with" } else { "without" };
            return Err(Failure::configuration(format!(
                "the guest ran {had} --hyperv when the snapshot was made: restore it {had} that"
            )));
        }
        let mut saved = saved.table();
        let is_fixed = |leaf: &u32| !FREQUENCIES.contains(leaf);
        let differs = saved
            .iter()
            .map(|(leaf, subleaf, _)| (leaf, subleaf.unwrap_or(0)))
            .chain(offered.iter().map(|(leaf, subleaf, _)| (leaf, subleaf.unwrap_or(0))))
            .find(|&(leaf, sub)| is_fixed(&leaf) && saved.get(leaf, sub) != offered.get(leaf, sub));
        if let Some((leaf, subleaf)) = differs {
            return Err(Failure::configuration(format!(
                "the guest had another processor when the snapshot was made: CPUID leaf {leaf:#x}, \
                 subleaf {subleaf}, was {}, and is {} here; restore it on a host with the same \
                 processor and the same accelerator, or make guests that move with --cpu x86-64",
                show(&saved, leaf, subleaf),
                show(offered, leaf, subleaf)
            )));
        }
        match Rate::of(self.clock()?.tsc_hz, runtime::tsc::frequency_hz(), scales_tsc)? {
            Rate::Same => {}
            Rate::Scaled(khz) => {
                let mut timing = saved.get(KVM_TIMING, 0).unwrap_or_default();
                timing.eax = khz;
                saved.set(KVM_TIMING, None, timing);
            }
            Rate::Tolerated(apart) => tracing::warn!(
                "the processor's time stamp counter runs at another rate here, by {apart} millionths: \
                 so much the guest's clocks will be wrong, unless NTP corrects them"
            ),
        }
        Ok(saved)
    }

    /// The guest's memory, for these ranges.
    pub fn map_memory(&self, ranges: &[RamRange]) -> Result<GuestMemory, Failure> {
        let regions = &self.memory.contents().regions;
        let same = ranges.len() == regions.len()
            && ranges.iter().zip(regions).all(|(a, b)| (a.start, a.len) == (b.start, b.len));
        if !same {
            let mib = regions.iter().map(|r| r.len).sum::<u64>().div_ceil(1 << 20);
            return Err(Failure::configuration(format!(
                "the guest had another amount of memory when the snapshot was made, {mib} MiB: \
                 restore it with as much"
            )));
        }
        let patch = |part: Part| -> io::Result<Patch> {
            let places = part.pages.runs().map(|run| run.start * PAGE..run.end * PAGE).collect();
            Ok(Patch { file: part.file.try_clone()?, places })
        };
        let parts: io::Result<Vec<Patch>> = self.memory.parts().map(patch).collect();
        let mut older = parts.map_err(no_descriptor)?;
        // The snapshot's own file is first, and has all that is in no other.
        let own = older.remove(0).file;
        mem::copy_on_write(ranges, own, &older).map_err(Failure::host)
    }

    /// When it was.
    pub fn clock(&self) -> Result<ClockState, Failure> {
        get(&self.sections, section::CLOCK)
    }

    /// The layers of so many disks.
    pub fn disks(&self, count: usize) -> Result<Disks, Failure> {
        let disks: Disks = get(&self.sections, section::DISKS)?;
        if disks.layers.len() != count {
            return Err(Failure::configuration(format!(
                "the guest had {} disks when the snapshot was made, not {count}",
                disks.layers.len()
            )));
        }
        if disks.layers.iter().flatten().any(|name| !machine::is_layer_name(name)) {
            return Err(Failure::artifact(
                "the snapshot names a layer of a disk that is no file of the guest's",
            ));
        }
        Ok(disks)
    }

    /// Refuses another number of processors than there were.
    pub fn check_processors(&self, count: u32) -> Result<(), Failure> {
        let had =
            (0..).take_while(|&n| self.sections.get(&section::processor(n)).is_some()).count();
        if had != count as usize {
            return Err(Failure::configuration(format!(
                "the guest had {had} processors when the snapshot was made, not {count}: restore it \
                 with as many"
            )));
        }
        Ok(())
    }

    /// A processor's state.
    pub fn processor(&self, index: usize) -> Result<VcpuState, Failure> {
        get(&self.sections, &section::processor(index))
    }

    /// The state of what processors share.
    pub fn shared_chips(&self) -> Result<VmState, Failure> {
        get(&self.sections, section::CHIPS)
    }

    /// What the guest stands on from now on.
    pub fn into_parent(self) -> Parent {
        Parent::new(self.directory, self.memory)
    }

    /// Waits until the memory has been read and found as it was written.
    pub fn finish_verification(&self) -> Result<(), Failure> {
        let thread = self.verification.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(unusable(error)),
            Some(Err(_)) => Err(Failure::internal("the verification of the memory panicked")),
        }
    }
}

pub fn unusable(error: memory::Error) -> Failure {
    match error {
        memory::Error::Host(error) => {
            Failure::host(format!("cannot read the snapshot's memory file: {error}"))
        }
        damage => Failure::artifact(format!("the snapshot's memory is damaged: {damage}")),
    }
}

fn no_descriptor(error: io::Error) -> Failure {
    Failure::host(format!("cannot use the snapshot: {error}; raise the limit on open files"))
}

fn show(table: &CpuidTable, leaf: u32, subleaf: u32) -> String {
    match table.get(leaf, subleaf) {
        Some(r) => format!("{:08x} {:08x} {:08x} {:08x}", r.eax, r.ebx, r.ecx, r.edx),
        None => "not there".to_owned(),
    }
}
