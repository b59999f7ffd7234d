//! A processor of this engine, as the VMM drives it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::{CpuBus, DebugControl, Exit, Fault, Kicker, Statistics, Vcpu, VcpuState};
use irqchip::Attention;
use x86::state::{Activity, Cr0, SegReg, Segment, SegmentAttributes};
use x86::{Cpu, CpuState, state::Sections};

use crate::env::{Shared, SoftEnv};
use crate::statistics;
use crate::transcode::engine::Transcoder;

/// A processor.
pub(crate) struct SoftVcpu {
    pub cpu: Cpu<SoftEnv>,
    /// `None` if the interpreter executes everything.
    pub transcoder: Option<Transcoder>,
    pub processor_signature: u32,
    /// The part of [`Shared::skipped`] that this processor's TSC knows of.
    pub skipped: u64,
}

impl SoftVcpu {
    fn shared(&self) -> Arc<Shared> {
        self.cpu.env.shared.clone()
    }

    /// Takes what waits in the local APIC and can be taken now.
    fn take_events(&mut self) {
        let shared = self.shared();
        let chips = &shared.chips;
        let index = self.cpu.env.index;
        let pending = self.cpu.env.slot().pending();
        if pending.contains(Attention::INIT) && chips.take_init(index) {
            self.init();
            if !chips.is_waiting(index) {
                self.cpu.state.activity = Activity::Active;
            }
        }
        if pending.contains(Attention::STARTUP)
            && let Some(vector) = chips.take_startup(index)
        {
            self.start_up(vector);
        }
        if self.cpu.state.activity == Activity::WaitForSipi
            || self.cpu.state.activity == Activity::Shutdown
        {
            return;
        }
        if pending.contains(Attention::NMI) && self.cpu.accepts_nmi() && chips.take_nmi(index) {
            self.cpu.nmi();
        } else if pending.intersects(Attention::INTERRUPT | Attention::EXT_INT)
            && self.cpu.accepts_interrupt()
            && let Some(vector) = chips.acknowledge(index)
        {
            self.cpu.interrupt(vector);
        }
    }

    /// INIT: like RESET, but caches, vector registers, MSRs and the TSC stay
    /// (SDM Vol. 3, table 10-1).
    fn init(&mut self) {
        let old = &self.cpu.state;
        let mut new = CpuState::reset(self.processor_signature);
        new.cr0 |= old.cr0 & (Cr0::CD | Cr0::NW);
        new.msrs = old.msrs.clone();
        new.vector = old.vector.clone();
        new.xcr0 = old.xcr0;
        new.activity = Activity::WaitForSipi;
        self.cpu.state = new;
        self.cpu.state_changed();
    }

    /// A start-up IPI: real mode at `vector << 12` (SDM Vol. 3, 9.4.4.1).
    fn start_up(&mut self, vector: u8) {
        let state = &mut self.cpu.state;
        state.seg[SegReg::Cs as usize] = Segment {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            limit: 0xffff,
            attributes: SegmentAttributes::CODE16,
        };
        state.rip = 0;
        state.activity = Activity::Active;
        self.cpu.state_changed();
    }

    /// Sets the TSC back by what the machine was paused for since this was called last.
    fn skip_time(&mut self) {
        let skipped = self.cpu.env.shared.skipped.load(Ordering::Relaxed);
        let ticks = skipped.wrapping_sub(std::mem::replace(&mut self.skipped, skipped));
        if ticks != 0 {
            let offset = self.cpu.state.msrs.tsc_offset.wrapping_sub(ticks);
            self.cpu.state.msrs.tsc_offset = offset;
            x86::Env::tsc_offset_changed(&mut self.cpu.env, offset);
            self.cpu.state_changed();
        }
    }

    /// Nothing is executed for a while.
    fn leave(&self) {
        self.cpu.env.shared.watch.leave(self.cpu.env.index);
    }

    fn run_until_exit(&mut self) -> Result<Exit, Fault> {
        loop {
            if self.cpu.env.slot().take_kick() {
                return Ok(Exit::Kicked);
            }
            if let Some(stop) = self.cpu.take_debug_stop() {
                return Ok(Exit::Debug(stop));
            }
            self.take_events();
            match self.cpu.state.activity {
                Activity::Active => match &mut self.transcoder {
                    Some(transcoder) => {
                        transcoder.run(&mut self.cpu);
                        if let Some(difference) = transcoder.take_difference() {
                            return Err(Fault::Wrong(difference));
                        }
                    }
                    None => {
                        self.cpu.run();
                    }
                },
                Activity::Shutdown => return Ok(Exit::TripleFault),
                Activity::Halted => {
                    self.leave();
                    let cpu = &self.cpu;
                    cpu.env.slot().wait(cpu.accepts_interrupt(), cpu.accepts_nmi());
                }
                Activity::WaitForSipi => {
                    self.leave();
                    self.cpu.env.slot().wait(false, false);
                }
            }
        }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        /// Takes the bus away however the run ends.
        struct Entered<'a>(&'a mut SoftVcpu);
        impl Drop for Entered<'_> {
            fn drop(&mut self) {
                self.0.leave();
                self.0.cpu.env.leave();
            }
        }
        self.skip_time();
        self.cpu.env.enter(bus);
        let entered = Entered(self);
        entered.0.run_until_exit()
    }

    fn kicker(&self) -> Kicker {
        let shared = self.shared();
        let index = self.cpu.env.index;
        Kicker::new(move || shared.chips.slot(index).kick())
    }

    fn load(&mut self, _: Sections) -> Result<&mut CpuState, Fault> {
        Ok(&mut self.cpu.state)
    }

    fn store(&mut self, changed: Sections) -> Result<(), Fault> {
        if changed.contains(Sections::MSRS) {
            let offset = self.cpu.state.msrs.tsc_offset;
            x86::Env::tsc_offset_changed(&mut self.cpu.env, offset);
        }
        self.cpu.state_changed();
        Ok(())
    }

    fn save(&mut self) -> Result<VcpuState, Fault> {
        // A pause of which this processor has not run since.
        self.skip_time();
        let env = &self.cpu.env;
        Ok(VcpuState {
            cpu: self.cpu.state.clone(),
            lapic: env.shared.chips.save_lapic(env.index),
            pv_clock: env.pv_clock.save(),
            hypervisor_msrs: BTreeMap::new(),
        })
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Fault> {
        state.cpu.check().map_err(|what| {
            Fault::BadState(format!("processor {} has {what}", self.cpu.env.index))
        })?;
        if let Some(index) = state.hypervisor_msrs.keys().next() {
            return Err(Fault::Unsupported(format!(
                "the guest makes use of more of KVM or Hyper-V (MSR {index:#x}) than Lodge's own engine \
                 has: let it go on with --accel kvm; guests with --cpu x86-64 and without --hyperv go \
                 on anywhere"
            )));
        }
        self.cpu.state = state.cpu.clone();
        self.store(Sections::all())?;
        let env = &mut self.cpu.env;
        env.pv_clock.restore(state.pv_clock);
        env.shared
            .chips
            .restore_lapic(env.index, &state.lapic)
            .map_err(|e| Fault::BadState(format!("processor {}: {e}", env.index)))
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Fault> {
        self.cpu.set_debug(control);
        Ok(())
    }

    fn pass_int3(&mut self) -> Result<(), Fault> {
        self.cpu.pass_int3();
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        let transcoder = self.transcoder.as_ref();
        let counters = transcoder.map(|t| t.counters).unwrap_or_default();
        let fill = transcoder.map(|t| t.cache_fill()).unwrap_or_default();
        statistics::of(&self.cpu.stats, &counters, &fill)
    }
}
