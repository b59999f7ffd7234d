//! A processor of KVM's, as the VMM drives it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::{
    CpuBus, CpuState, CpuidTable, DebugControl, DebugStop, Exit, Fault, Kicker, PvClockState,
    Sections, Statistics, Vcpu, VcpuState,
};
use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_MP_STATE_INIT_RECEIVED, KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use mem::GuestAddress;
use mem::vm_memory::Bytes;
use x86::state::{Activity, gpr};
use x86::{Cpu, Exception, vector};

use crate::apic_page;
use crate::assist::{self, Around, AssistEnv, Assistant, NoBus};
use crate::cpuid;
use crate::debug;
use crate::host::failed;
use crate::kick::{Entered, Kick};
use crate::probe::hardware;
use crate::run_page::RunPage;
use crate::scaling::Scaling;
use crate::state::{self, Abilities, InFlight};
use crate::statistics::Counters;
use crate::vm::Shared;

// KVM's paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst).
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// Bytes of `pvclock_wall_clock`.
const WALL_CLOCK_LEN: usize = 12;

/// Reasons for which a guest is not entered that its own state gives: VMX's basic exit reason 33
/// with bit 31 (SDM Vol. 3, 27.8), and SVM's VMEXIT_INVALID (APM Vol. 2, 15.5.1), of 32 or 64 bits.
const INVALID_STATE: [u64; 3] = [1 << 31 | 33, 0xffff_ffff, u64::MAX];

/// A processor.
pub struct KvmVcpu {
    fd: VcpuFd,
    page: RunPage,
    shared: Arc<Shared>,
    index: u32,
    cpuid: CpuidTable,
    abilities: Abilities,
    kick: Arc<Kick>,
    /// What was loaded last.
    state: Box<CpuState>,
    /// Ended by a triple fault. KVM would go on.
    shut_down: bool,
    assistant: Assistant,
    /// What a debugger wants.
    control: DebugControl,
    counters: Counters,
}

/// What the run loop does after an exit.
enum Next {
    Enter,
    Assist,
    /// Hand the guest a debug exception of its own, with these bits of DR6.
    Trap(u64),
    /// A debug exception without a cause, at this address.
    Int1(u64),
    /// The guest's state is one that no processor can be in.
    Impossible(u64),
    /// What was noted of stores is taken away.
    MakeRoom,
    Leave(Exit),
}

impl KvmVcpu {
    /// Brings a new processor into the state in which firmware would leave it.
    pub fn new(
        mut fd: VcpuFd,
        shared: Arc<Shared>,
        index: u32,
        cpuid: CpuidTable,
        abilities: Abilities,
    ) -> Result<Self, Fault> {
        let table = cpuid::to_kvm(&cpuid)
            .ok_or_else(|| Fault::Wrong("CPUID has too many leaves for KVM".to_owned()))?;
        fd.set_cpuid2(&table).map_err(|e| failed("KVM refuses the processor model", e))?;
        virtual_wire(&fd, index == 0)?;
        if index != 0 {
            // Without firmware, a processor waits for the start-up IPI alone.
            state::set_activity(&fd, KVM_MP_STATE_INIT_RECEIVED)?;
        }
        let page = RunPage::of(&mut fd);
        let signature = cpuid.get(1, 0).unwrap_or_default().eax;
        let mut vcpu = Self {
            fd,
            page,
            shared,
            index,
            cpuid,
            abilities,
            kick: Arc::default(),
            state: Box::new(CpuState::reset(signature)),
            shut_down: false,
            assistant: Assistant::default(),
            control: DebugControl::default(),
            counters: Counters::default(),
        };
        // RESET leaves the signature in EDX; KVM knows it only now.
        vcpu.load(Sections::GENERAL)?.gpr[gpr::RDX] = signature.into();
        vcpu.store(Sections::GENERAL)?;
        Ok(vcpu)
    }

    fn run_until_exit(&mut self, entered: &Entered<'_>, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        if self.shut_down {
            return Ok(if entered.take() { Exit::Kicked } else { Exit::TripleFault });
        }
        loop {
            self.counters.entries += 1;
            let next = match self.fd.run() {
                Ok(exit) => handle(exit, self.page, &self.control, &mut self.counters, bus)?,
                Err(error) if error.errno() == libc::EINTR => {
                    self.counters.interrupted += 1;
                    if entered.take() { Next::Leave(Exit::Kicked) } else { Next::Enter }
                }
                // A processor that waited for its start-up IPI has got something.
                Err(error) if error.errno() == libc::EAGAIN => Next::Enter,
                Err(error) => return Err(failed("KVM cannot run a processor", error)),
            };
            match next {
                Next::Enter => {}
                Next::MakeRoom => self.shared.stores.make_room()?,
                Next::Assist => {
                    if let Some(exit) = self.assist(bus)? {
                        return Ok(exit);
                    }
                }
                Next::Trap(dr6) => {
                    self.trap(dr6)?;
                    if let Some(end) = self.end() {
                        return Ok(end);
                    }
                }
                Next::Int1(pc) => {
                    if let Some(exit) = self.int1(pc)? {
                        return Ok(exit);
                    }
                }
                Next::Impossible(reason) => {
                    tracing::warn!(
                        "the guest brought processor {} into a state that no processor can be in \
                         (failed entry, reason {reason:#x}): it shuts down, as after a triple fault",
                        self.index
                    );
                    self.shut_down = true;
                    return Ok(Exit::TripleFault);
                }
                Next::Leave(exit) => {
                    self.shut_down = exit == Exit::TripleFault;
                    return Ok(exit);
                }
            }
        }
    }

    /// Executes one instruction in KVM's stead.
    fn assist(&mut self, bus: &dyn CpuBus) -> Result<Option<Exit>, Fault> {
        self.counters.assisted += 1;
        // SAFETY: the processor is here, and nobody uses its page.
        let error = unsafe { self.page.internal_error() };
        self.refresh(Sections::all())?;
        assist::say_once(&self.state, &error);
        let control = self.control;
        let stop = self.interpret(bus, |cpu| {
            cpu.set_debug(&control);
            cpu.step();
            cpu.take_debug_stop()
        })?;
        Ok(self.end().or(stop.map(Exit::Debug)))
    }

    /// The end, if what the interpreter did led to one.
    fn end(&mut self) -> Option<Exit> {
        self.shut_down.then(|| {
            self.counters.shutdowns += 1;
            Exit::TripleFault
        })
    }

    /// Delivers a #DB that KVM took from the guest, since a debugger has points or steps.
    fn trap(&mut self, dr6: u64) -> Result<(), Fault> {
        self.refresh(Sections::all())?;
        self.interpret(&NoBus, |cpu| {
            cpu.state.dr6 |= dr6;
            cpu.exception(Exception::new(vector::DB));
        })
    }

    /// A #DB at `pc` that KVM took from the guest and gives no cause of: INT1 has none (SDM Vol. 3,
    /// 17.3.1). On Intel's processors it is yet to be executed, on AMD's it was. Without either,
    /// KVM may just not say what it was.
    fn int1(&mut self, pc: u64) -> Result<Option<Exit>, Fault> {
        match hardware() {
            Some("svm") => self.trap(0)?,
            Some(_) => self.step()?,
            None if self.is_int1(pc) => self.step()?,
            None => {}
        }
        Ok(self.end().or(self.control.step.then_some(Exit::Debug(DebugStop::Step))))
    }

    fn is_int1(&self, pc: u64) -> bool {
        const INT1: u8 = 0xf1;
        let place = self.fd.translate_gva(pc).ok().filter(|place| place.valid != 0);
        let byte = place.and_then(|place| {
            self.shared.stores.memory().read_obj(GuestAddress(place.physical_address)).ok()
        });
        byte == Some(INT1)
    }

    /// Has the interpreter execute an instruction that is no business of the debugger's.
    fn step(&mut self) -> Result<(), Fault> {
        self.refresh(Sections::all())?;
        self.interpret(&NoBus, |cpu| cpu.step())
    }

    /// Has the interpreter do something with the state that was loaded.
    fn interpret<T>(
        &mut self,
        bus: &dyn CpuBus,
        f: impl FnOnce(&mut Cpu<AssistEnv<'_>>) -> T,
    ) -> Result<T, Fault> {
        let before = self.state.clone();
        let around = Around { vcpu: &self.fd, cpuid: &self.cpuid, stores: &self.shared.stores };
        let result = self.assistant.with(&mut self.state, &around, bus, f)?;
        self.store(state::changed(&before, &self.state))?;
        Ok(result)
    }

    fn refresh(&mut self, want: Sections) -> Result<(), Fault> {
        if want.contains(Sections::EVENTS)
            && let Some(event) = state::take_in_flight(&self.fd)?
        {
            self.settle(event)?;
        }
        state::load(&self.fd, &self.abilities, want, &mut self.state)?;
        if want.contains(Sections::EVENTS) && self.shut_down {
            self.state.activity = Activity::Shutdown;
        }
        Ok(())
    }

    /// Tells KVM where the guest keeps its paravirtual clock. It refuses an address that is none.
    fn restore_clock(&self, clock: PvClockState) -> Result<(), Fault> {
        // It is published anew.
        if clock.system_time != 0 {
            state::write_msr(&self.fd, MSR_KVM_SYSTEM_TIME_NEW, clock.system_time)?;
        }
        if clock.wall_clock != 0 {
            // The guest asked for the time of day once, and may have something else there by now.
            let (memory, place) = (self.shared.stores.memory(), GuestAddress(clock.wall_clock));
            let mut there = [0; WALL_CLOCK_LEN];
            let is_ram = memory.read_slice(&mut there, place).is_ok();
            state::write_msr(&self.fd, MSR_KVM_WALL_CLOCK_NEW, clock.wall_clock)?;
            if is_ram {
                let written = memory.write_slice(&there, place);
                written.map_err(|e| Fault::Wrong(format!("the wall clock was RAM: {e}")))?;
            }
        }
        Ok(())
    }

    /// The TSC's scaling, if KVM takes and gives offsets to what is scaled. Where it does not, the TSC
    /// itself is read and set.
    fn scaling(&self) -> Option<Scaling> {
        self.abilities.scaling.filter(|_| self.abilities.tsc_offset)
    }

    /// What the host's TSC showed when time was stopped, which is when saved offsets are counted.
    fn stopped_at(&self) -> u64 {
        match self.shared.stopped_at.load(Ordering::Relaxed) {
            0 => runtime::tsc::read(),
            host_tsc => host_tsc,
        }
    }

    /// For those who have no access to processor 0.
    fn note_tsc_offset(&self) {
        if self.index == 0 {
            self.shared.tsc_offset.store(self.state.msrs.tsc_offset, Ordering::Relaxed);
        }
    }

    /// Delivers what KVM was about to deliver: the state has no place for what is in between.
    fn settle(&mut self, event: InFlight) -> Result<(), Fault> {
        state::load(&self.fd, &self.abilities, Sections::all(), &mut self.state)?;
        self.interpret(&NoBus, |cpu| match event {
            InFlight::Interrupt(vector) => cpu.interrupt(vector),
            InFlight::Nmi => cpu.nmi(),
            InFlight::DebugTrap => cpu.exception(Exception::new(vector::DB)),
            InFlight::PageFault(code) => {
                cpu.exception(Exception::page_fault(cpu.state.cr2, code));
            }
        })
    }
}

/// Does what an exit asks for.
fn handle(
    exit: VcpuExit<'_>,
    page: RunPage,
    control: &DebugControl,
    counters: &mut Counters,
    bus: &dyn CpuBus,
) -> Result<Next, Fault> {
    match exit {
        VcpuExit::IoIn(port, data) => {
            counters.port_reads += 1;
            // SAFETY: the processor is here, and `data` is not the part of its page that is read.
            let size = unsafe { page.io_size() };
            for item in data.chunks_mut(size.max(1)) {
                bus.port_read(port, item);
            }
        }
        VcpuExit::IoOut(port, data) => {
            counters.port_writes += 1;
            // SAFETY: as above.
            let size = unsafe { page.io_size() };
            for item in data.chunks(size.max(1)) {
                bus.port_write(port, item);
            }
        }
        VcpuExit::MmioRead(address, data) => {
            counters.mmio_reads += 1;
            bus.mmio_read(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            counters.mmio_writes += 1;
            bus.mmio_write(address, data);
        }
        VcpuExit::Debug(exit) => {
            counters.debug += 1;
            return Ok(match debug::reason(&exit, control) {
                Some(stop) => Next::Leave(Exit::Debug(stop)),
                None if debug::has_no_cause(&exit) => Next::Int1(exit.pc),
                None => debug::guests_own(&exit).map_or(Next::Enter, Next::Trap),
            });
        }
        VcpuExit::Shutdown => {
            counters.shutdowns += 1;
            return Ok(Next::Leave(Exit::TripleFault));
        }
        VcpuExit::InternalError => {
            // SAFETY: as above.
            let error = unsafe { page.internal_error() };
            // The latter are events that the guest has delivered to where there is no RAM.
            if let KVM_INTERNAL_ERROR_EMULATION
            | KVM_INTERNAL_ERROR_SIMUL_EX
            | KVM_INTERNAL_ERROR_DELIVERY_EV = error.suberror
            {
                return Ok(Next::Assist);
            }
            let data = &error.data[..error.count as usize];
            return Err(stuck(format!("internal error {}, {data:x?}", error.suberror)));
        }
        VcpuExit::Hyperv => {
            counters.other += 1;
            // SAFETY: as above.
            unsafe { page.refuse_hypercall() };
        }
        // A guest asks for that by an MSR of Hyper-V.
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH, _) => {
            counters.shutdowns += 1;
            return Ok(Next::Leave(Exit::TripleFault));
        }
        VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => {
            counters.other += 1;
            return Ok(Next::MakeRoom);
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => counters.other += 1,
        VcpuExit::FailEntry(reason, _) if INVALID_STATE.contains(&reason) => {
            counters.shutdowns += 1;
            return Ok(Next::Impossible(reason));
        }
        VcpuExit::FailEntry(reason, cpu) => {
            return Err(stuck(format!(
                "the host's processor {cpu} refuses the guest's state, reason {reason:#x}"
            )));
        }
        other => return Err(stuck(format!("{other:?}"))),
    }
    Ok(Next::Enter)
}

fn stuck(why: String) -> Fault {
    Fault::Host {
        what: "KVM cannot go on with a processor".to_owned(),
        source: io::Error::other(why),
        remedy: "dmesg may say more; the accelerator \"soft\" needs no KVM".to_owned(),
    }
}

/// Sets a local APIC up as firmware does.
fn virtual_wire(fd: &VcpuFd, bootstrap: bool) -> Result<(), Fault> {
    let mut page = fd.get_lapic().map_err(|e| failed("cannot read a local APIC", e))?;
    apic_page::set_virtual_wire(&mut page, bootstrap);
    fd.set_lapic(&page).map_err(|e| failed("cannot set up a local APIC", e))
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        let kick = self.kick.clone();
        // SAFETY: the page stays as long as this processor, which `entered` does not outlive.
        let entered = unsafe { kick.enter(self.page.immediate_exit()) };
        let entered = entered.map_err(|source| Fault::Host {
            what: "cannot let a signal through".to_owned(),
            source,
            remedy: "this is a mistake in Lodge; please report it".to_owned(),
        })?;
        self.run_until_exit(&entered, bus)
    }

    fn kicker(&self) -> Kicker {
        let kick = self.kick.clone();
        Kicker::new(move || kick.kick())
    }

    fn load(&mut self, want: Sections) -> Result<&mut CpuState, Fault> {
        self.refresh(want)?;
        Ok(&mut self.state)
    }

    fn store(&mut self, changed: Sections) -> Result<(), Fault> {
        if changed.contains(Sections::EVENTS) {
            self.shut_down = self.state.activity == Activity::Shutdown;
        }
        state::store(&self.fd, &self.abilities, changed, &self.state)
    }

    fn save(&mut self) -> Result<VcpuState, Fault> {
        self.refresh(Sections::all())?;
        self.note_tsc_offset();
        let msr = |index| Ok::<_, Fault>(state::read_msr(&self.fd, index)?.unwrap_or_default());
        let (hyperv, first) = (self.abilities.hyperv, self.index == 0);
        let mut cpu = (*self.state).clone();
        if let Some(scaling) = self.scaling() {
            cpu.msrs.tsc_offset = scaling.ahead(cpu.msrs.tsc_offset, self.stopped_at());
        }
        Ok(VcpuState {
            cpu,
            lapic: state::lapic::load(&self.fd, self.shared.clock.now())?,
            pv_clock: PvClockState {
                system_time: msr(MSR_KVM_SYSTEM_TIME_NEW)?,
                wall_clock: msr(MSR_KVM_WALL_CLOCK_NEW)?,
            },
            hypervisor_msrs: state::hypervisor::load(&self.fd, hyperv, first)?,
        })
    }

    fn restore(&mut self, saved: &VcpuState) -> Result<(), Fault> {
        let bad = |what: &dyn std::fmt::Display| {
            Fault::BadState(format!("processor {} has {what}", self.index))
        };
        saved.cpu.check().map_err(|what| bad(&what))?;
        *self.state = saved.cpu.clone();
        if let Some(scaling) = self.scaling() {
            let ahead = saved.cpu.msrs.tsc_offset;
            self.state.msrs.tsc_offset = scaling.offset(ahead, self.stopped_at());
        }
        self.store(Sections::all())?;
        self.note_tsc_offset();
        // Its timer may go by the TSC.
        state::lapic::store(&self.fd, &saved.lapic, self.shared.clock.now())?;
        let (hyperv, first) = (self.abilities.hyperv, self.index == 0);
        state::hypervisor::store(&self.fd, hyperv, first, &saved.hypervisor_msrs)?;
        self.restore_clock(saved.pv_clock)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Fault> {
        debug::set(&self.fd, control, self.abilities.blocks_interrupts)?;
        self.control = *control;
        Ok(())
    }

    /// The interpreter executes it: if KVM did, it would stop there again.
    fn pass_int3(&mut self) -> Result<(), Fault> {
        self.step()
    }

    fn statistics(&self) -> Statistics {
        self.counters.statistics()
    }
}

#[cfg(test)]
mod tests;
