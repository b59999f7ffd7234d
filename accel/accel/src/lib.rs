//! The traits between a VMM and what runs its guest processors.
//!
//! Hot events call down: while a processor runs, the guest's accesses to devices go straight to
//! [`CpuBus`]. Rare ones come back up as an [`Exit`]. Interrupt controllers live with the
//! accelerator, so HLT, INIT and start-up IPIs never leave [`Vcpu::run`].

#![forbid(unsafe_code)]

mod state;
mod statistics;

use std::sync::Arc;

use irqchip::IrqSink;
use mem::GuestMemory;
use runtime::{Clock, Doorbells, Timers};
pub use state::{PvClockState, PvEpoch, VcpuState, VmState};
pub use statistics::Statistics;
pub use x86::cpuid::CpuidTable;
pub use x86::state::{CpuState, Sections};
pub use x86::{DEBUG_POINTS, DebugControl, DebugPoint, DebugStop, PointKind};

/// A host that can make virtual machines.
pub trait Accelerator {
    /// The name that a person chooses it by: `soft`, `kvm`.
    fn name(&self) -> &'static str;

    /// What of a processor model guests are told of here: the model, less what this host or this
    /// accelerator does not offer.
    ///
    /// # Errors
    ///
    /// If the host does not say.
    fn offered(&self, model: &CpuidTable) -> Result<CpuidTable, Fault> {
        Ok(model.clone())
    }

    /// Whether a guest's TSC can run at another rate than the host's: the one that CPUID tells.
    fn scales_tsc(&self) -> bool {
        false
    }

    /// Makes a machine's processors and interrupt controllers, in reset state.
    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault>;
}

/// What a machine brings for its processors.
pub struct VmResources {
    /// All of the guest's RAM.
    pub memory: GuestMemory,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// The VM's timer thread.
    pub timers: Arc<Timers>,
    /// How many processors; their local APIC IDs are 0 to `cpus - 1`.
    pub cpus: u32,
    /// What CPUID tells them. Per-processor leaves (APIC ID, topology) are filled in by the
    /// accelerator.
    pub cpuid: CpuidTable,
    /// Serve Hyper-V's enlightenments besides, and declare them through CPUID.
    pub hyperv: bool,
}

/// One virtual machine's processors and interrupt controllers.
pub trait Vm: Send + Sync {
    /// Where devices send their interrupts.
    fn irq_sink(&self) -> Arc<dyn IrqSink>;

    /// Who raises events for stores to doorbells without a processor leaving the guest, if the
    /// accelerator can.
    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        None
    }

    /// Begins, or ends, to note which pages of RAM the processors store to. What devices store is
    /// not noted.
    ///
    /// # Errors
    ///
    /// [`Fault::Unsupported`] if the accelerator does not do that.
    fn log_stores(&self, on: bool) -> Result<(), Fault> {
        let _ = on;
        Err(Fault::Unsupported("this accelerator does not note which pages are stored to".into()))
    }

    /// The pages that were stored to since this was asked last, or since it is noted: for each region
    /// of RAM, in their order. They may be more than were stored to, never less; what a processor
    /// stores that is in [`Vcpu::run`] meanwhile may come with the next answer instead.
    ///
    /// # Errors
    ///
    /// [`Fault::Unsupported`] if they are not [noted](Self::log_stores).
    fn take_stores(&self) -> Result<Vec<StoredPages>, Fault> {
        Err(Fault::Unsupported("it is not noted which pages are stored to".into()))
    }

    /// How fast the processors' TSCs run, in Hz.
    fn tsc_hz(&self) -> u64 {
        runtime::tsc::frequency_hz()
    }

    /// Takes processor `index`; each can be taken once. Processor 0 is the bootstrap processor
    /// and starts at its reset vector unless its state is stored first; the others wait for a
    /// start-up IPI.
    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault>;

    /// The state of what processors share, while none is in [`Vcpu::run`] and guest time stands
    /// still.
    ///
    /// # Errors
    ///
    /// [`Fault::Unsupported`] if the accelerator cannot do that.
    fn save(&self) -> Result<VmState, Fault> {
        Err(Fault::Unsupported("this accelerator does not save interrupt controllers".to_owned()))
    }

    /// Takes over a state, after the processors took over theirs and before any of them runs.
    /// Devices have set their interrupt lines already. If time was [stopped](Self::stop_time), it will
    /// go on from where it stands in the state.
    ///
    /// # Errors
    ///
    /// [`Fault::BadState`] if no machine can have such a state.
    fn restore(&self, state: &VmState) -> Result<(), Fault> {
        let _ = state;
        Err(Fault::Unsupported("this accelerator takes over no interrupt controllers".to_owned()))
    }

    /// Has the time stand still that processors read themselves, by their TSCs and paravirtual
    /// clocks, and their timers with it. The machine's clock ([`VmResources::clock`]) must stand still,
    /// before and until time goes on. To be called while no processor is in [`Vcpu::run`]; none
    /// runs until [`resume_time`](Self::resume_time). An accelerator that cannot do so says it in
    /// its log, and lets time jump.
    fn stop_time(&self);

    /// Has that time go on from where it stood, before any processor runs again. Without
    /// [`stop_time`](Self::stop_time) before, nothing happens.
    fn resume_time(&self);
}

/// The pages of a region of RAM that were stored to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPages {
    /// The guest physical address of the region.
    pub start: u64,
    /// A bit for each page of 4 KiB, from the lowest bit of the first word on.
    pub pages: Vec<u64>,
}

impl StoredPages {
    /// No page of a region that begins at `start` and has `len` bytes.
    pub fn none(start: u64, len: u64) -> Self {
        let words = (len >> 12).div_ceil(64);
        Self { start, pages: vec![0; usize::try_from(words).unwrap_or(usize::MAX)] }
    }

    /// Adds the page with this index, if there is one.
    pub fn add(&mut self, page: u64) {
        let word = usize::try_from(page / 64).ok().and_then(|word| self.pages.get_mut(word));
        if let Some(word) = word {
            *word |= 1 << (page % 64);
        }
    }

    /// The addresses of the pages.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        (0..).zip(&self.pages).flat_map(move |(at, &word)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 != 0);
            bits.map(move |bit| self.start + ((at * 64 + bit) << 12))
        })
    }

    /// Whether the page at `address` was stored to.
    pub fn contains(&self, address: u64) -> bool {
        let Some(page) = address.checked_sub(self.start).map(|offset| offset >> 12) else {
            return false;
        };
        let word = usize::try_from(page / 64).ok().and_then(|word| self.pages.get(word));
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }
}

/// One virtual processor. It runs on the thread that calls [`run`](Self::run).
pub trait Vcpu: Send {
    /// Runs the guest until something needs the VMM. Halting, waiting for a start-up IPI and
    /// everything about interrupts happens inside.
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault>;

    /// A handle by which any thread makes `run` return soon.
    fn kicker(&self) -> Kicker;

    /// Brings at least the sections `want` of the state up to date and shows it.
    fn load(&mut self, want: Sections) -> Result<&mut CpuState, Fault>;

    /// Makes changes to the sections `changed` of what [`load`](Self::load) showed take effect.
    fn store(&mut self, changed: Sections) -> Result<(), Fault>;

    /// All of the processor's state.
    ///
    /// # Errors
    ///
    /// [`Fault::Unsupported`] if the accelerator cannot do that.
    fn save(&mut self) -> Result<VcpuState, Fault> {
        Err(Fault::Unsupported("this accelerator does not save processors".to_owned()))
    }

    /// Takes over a state. The processor has not run yet.
    ///
    /// # Errors
    ///
    /// [`Fault::BadState`] if no processor can have such a state; [`Fault::Unsupported`] if the guest
    /// makes use of something that there is not here.
    fn restore(&mut self, state: &VcpuState) -> Result<(), Fault> {
        let _ = state;
        Err(Fault::Unsupported("this accelerator takes over no processors".to_owned()))
    }

    /// Has `run` return with [`Exit::Debug`] where a debugger wants it, until this is called again.
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Fault>;

    /// After [`DebugStop::Int3`]: the guest has this INT3 of its own, and goes on with its #BP.
    fn pass_int3(&mut self) -> Result<(), Fault>;

    /// What was counted until now. Counting costs translated code nothing, because nobody can look
    /// while [`run`](Self::run) does its work: who wants to know kicks the processor first.
    fn statistics(&self) -> Statistics;
}

/// Why a processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody used the [`Kicker`].
    Kicked,
    /// The guest ended in a triple fault, which resets a PC.
    TripleFault,
    /// What [`Vcpu::set_debug`] asked for.
    Debug(DebugStop),
}

/// The devices of a machine, as its processors see them. Every call may come from any vCPU
/// thread.
pub trait CpuBus: Sync {
    /// A load from an address that is not RAM; 1 to 8 bytes.
    fn mmio_read(&self, addr: u64, data: &mut [u8]);
    /// A store to an address that is not RAM; 1 to 8 bytes.
    fn mmio_write(&self, addr: u64, data: &[u8]);
    /// IN; 1, 2 or 4 bytes.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// OUT; 1, 2 or 4 bytes.
    fn port_write(&self, port: u16, data: &[u8]);
}

/// Makes a processor's `run` return soon with [`Exit::Kicked`], also if it is about to be called.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// Wraps the accelerator's own way to interrupt a processor.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Kicks the processor.
    pub fn kick(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Kicker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kicker")
    }
}

/// The accelerator cannot go on, or cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The host refuses something that the accelerator needs.
    #[error("{what}: {source}; {remedy}")]
    Host {
        /// What was being done.
        what: String,
        /// What the host said.
        source: std::io::Error,
        /// What to do next.
        remedy: String,
    },
    /// The configuration asks for something that this accelerator does not have.
    #[error("{0}")]
    Unsupported(String),
    /// A saved state is one that there cannot be.
    #[error("{0}; it was damaged or made up")]
    BadState(String),
    /// The accelerator executed guest code wrongly, and noticed.
    #[error("{0}")]
    Wrong(String),
}
