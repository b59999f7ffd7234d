//! The transcoder's side: a guest like the interpreter's ([`crate::engine`]), run through the
//! accelerator's public interface by translated code.
//!
//! Code that is changed often is no longer translated, so each case gets pages of its own, one
//! pair after the other, and now and then the machine is made anew.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use accel::{Accelerator, CpuBus, Exit, Kicker, Sections, Vcpu, Vm, VmResources};
use accel_soft::{Execution, SoftAccelerator};
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory, RamRange};
use runtime::{Clock, Timers};
use x86::CpuState;
use x86::cpuid::{CpuidTable, Model};

use crate::case::{Case, Outcome};
use crate::engine::{
    HANDLER_SIZE, KERNEL, base_state, build_tables, collect, frame, host_cpuid, load_case,
};
use crate::layout::{CODE, CODE_SIZE, DATA_SIZE, FILL, PAGE};

/// How a handler ends a case: OUT 0xf4, AL; JMP $.
const LEAVE: [u8; 4] = [0xe6, 0xf4, 0xeb, 0xfe];
/// Length of the OUT, behind which the processor stops.
const LEAVE_LEN: u64 = 2;
/// How many pairs of code pages there are.
const PAIRS: usize = 1024;
/// How many cases each pair is used for, below the changes that the transcoder bears.
const USES: usize = 24;
const RAM: usize = frame::END + PAIRS * CODE_SIZE;
const DATA_AT: GuestAddress = GuestAddress(frame::DATA as u64);
/// A case that runs through so many looks of the watchdog hangs.
const PATIENCE: u32 = 200;
const LOOK: Duration = Duration::from_millis(100);

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// Any OUT ends a case.
struct Stopper(Kicker);

impl CpuBus for Stopper {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {
        self.0.kick();
    }
}

/// Ends cases that hang.
struct Watchdog {
    /// The case that runs; 0 while none does.
    current: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn new(kicker: Kicker) -> Self {
        let (current, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, over) = (current.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            let (mut last, mut looks) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                let now = seen.load(Ordering::Relaxed);
                looks = if now == last && now != 0 { looks + 1 } else { 0 };
                last = now;
                if looks >= PATIENCE {
                    kicker.kick();
                }
            }
        });
        Self { current, is_over, thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot have panicked, and if so, nothing is lost.
            let _ = thread.join();
        }
    }
}

/// One machine, good for a number of cases.
struct Machine {
    vcpu: Box<dyn Vcpu>,
    memory: GuestMemory,
    bus: Stopper,
    watchdog: Watchdog,
    runs: usize,
    _vm: Arc<dyn Vm>,
}

impl Machine {
    fn new(execution: Execution, cpuid: &CpuidTable) -> io::Result<Self> {
        let memory = mem::allocate(&[RamRange { start: 0, len: RAM as u64 }]).map_err(other)?;
        let mut ram = vec![0; frame::END];
        build_tables(&mut ram, LEAVE);
        memory.write_slice(&ram, GuestAddress(0)).map_err(other)?;
        let fill = vec![FILL; PAIRS * CODE_SIZE];
        memory.write_slice(&fill, GuestAddress(frame::END as u64)).map_err(other)?;
        let clock = Arc::new(Clock::new());
        let timers = Arc::new(Timers::new(clock.clone()).map_err(other)?);
        let vm = SoftAccelerator { execution }
            .create_vm(VmResources {
                memory: memory.clone(),
                clock,
                timers,
                cpus: 1,
                cpuid: cpuid.clone(),
                hyperv: false,
            })
            .map_err(other)?;
        let vcpu = vm.take_vcpu(0).map_err(other)?;
        let kicker = vcpu.kicker();
        let watchdog = Watchdog::new(kicker.clone());
        Ok(Self { vcpu, memory, bus: Stopper(kicker), watchdog, runs: 0, _vm: vm })
    }

    fn run(
        &mut self,
        case: &Case,
        image: &[u8; DATA_SIZE],
        passes: u32,
        base: &CpuState,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        let pair = frame::END + self.runs % PAIRS * CODE_SIZE;
        self.runs += 1;
        let start = (case.start - CODE) as usize;
        let code = &case.code[..case.code.len().min(CODE_SIZE - start)];
        let code_at = GuestAddress((pair + start) as u64);
        self.memory.write_slice(code, code_at).map_err(other)?;
        for i in 0..CODE_SIZE / PAGE {
            // Present, for the user, as `build_tables` has it.
            let entry = (pair + i * PAGE) as u64 | 0x5;
            let index = (CODE as usize / PAGE + i) % 512;
            let at = GuestAddress((frame::PT_CODE + index * 8) as u64);
            self.memory.write_slice(&entry.to_le_bytes(), at).map_err(other)?;
        }
        let mut exit = Exit::Kicked;
        for _ in 0..passes {
            exit = self.pass(case, image, base, outcome)?;
        }

        let mut stack = [0; PAGE];
        self.memory.read_slice(&mut stack, GuestAddress(frame::STACK as u64)).map_err(other)?;
        self.memory.read_slice(&mut outcome.data, DATA_AT).map_err(other)?;
        let state = self.vcpu.load(Sections::all()).map_err(other)?;
        let in_handlers = state.rip.wrapping_sub(KERNEL + frame::HANDLERS as u64);
        let has_ended = in_handlers < PAGE as u64 && in_handlers % HANDLER_SIZE == LEAVE_LEN;
        collect(state, has_ended && exit == Exit::Kicked, &stack, outcome);
        if exit == Exit::Kicked && !has_ended {
            outcome.trap = Outcome::ENDLESS;
        }
        let fill = [FILL; crate::case::MAX_CODE];
        self.memory.write_slice(&fill[..code.len()], code_at).map_err(other)?;
        Ok(())
    }

    /// Sets up data and registers and runs the code that is there.
    fn pass(
        &mut self,
        case: &Case,
        image: &[u8; DATA_SIZE],
        base: &CpuState,
        outcome: &mut Outcome,
    ) -> io::Result<Exit> {
        let data = &mut outcome.data;
        *data = *image;
        case.patches.iter().for_each(|patch| patch.apply(data));
        self.memory.write_slice(data, DATA_AT).map_err(other)?;

        let state = self.vcpu.load(Sections::all()).map_err(other)?;
        let offset = state.msrs.tsc_offset;
        state.clone_from(base);
        state.msrs.tsc_offset = offset;
        load_case(state, case);
        self.vcpu.store(Sections::all()).map_err(other)?;
        self.watchdog.current.store(self.runs as u64, Ordering::Relaxed);
        let exit = self.vcpu.run(&self.bus);
        self.watchdog.current.store(0, Ordering::Relaxed);
        exit.map_err(other)
    }
}

/// The guest.
pub struct Transcoder {
    execution: Execution,
    cpuid: CpuidTable,
    base: CpuState,
    machine: Machine,
    /// Blocks that earlier machines translated.
    translated: u64,
}

impl Transcoder {
    /// Makes the guest. Its processor is the one that guests get on this host.
    pub fn new(execution: Execution) -> io::Result<Self> {
        let cpuid = x86::cpuid::build(Model::Host, host_cpuid, runtime::tsc::frequency_hz())
            .map_err(|_| io::Error::other("this host lacks what every guest gets"))?
            .for_processor(0, 1);
        let machine = Machine::new(execution, &cpuid)?;
        Ok(Self { execution, base: base_state(&cpuid), cpuid, machine, translated: 0 })
    }

    /// Runs `case`, whose data pages start as `image`, patched, `passes` times over; the last one
    /// counts. In a second pass, blocks are there already and lead to each other.
    pub fn run(
        &mut self,
        case: &Case,
        image: &[u8; DATA_SIZE],
        passes: u32,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        if self.machine.runs == PAIRS * USES {
            self.renew()?;
        }
        self.machine.run(case, image, passes, &self.base, outcome)?;
        if matches!(outcome.trap, Outcome::ENDLESS | Outcome::SHUTDOWN) {
            self.renew()?;
        }
        Ok(())
    }

    /// How many blocks were translated.
    pub fn translations(&self) -> u64 {
        let statistics = self.machine.vcpu.statistics();
        let count = statistics.counts.iter().find(|(name, _)| *name == "translations");
        self.translated + count.map_or(0, |&(_, count)| count)
    }

    fn renew(&mut self) -> io::Result<()> {
        self.translated = self.translations();
        self.machine = Machine::new(self.execution, &self.cpuid)?;
        Ok(())
    }
}
