//! Guest time across a pause: what processors read of the TSC and of the paravirtual clock, and
//! their timers, go on from where they stood. So does the PIT, as far as KVM lets it.
//!
//! KVM's clocks go on as the host's do, so all of it is set back when the pause is over, by the same
//! number of ticks for all processors.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use accel::Fault;
use kvm_bindings::{kvm_clock_data, kvm_lapic_state};
use kvm_ioctls::{Error, VcpuFd, VmFd};

use crate::apic_page;
use crate::host::failed;
use crate::pit::Pit;
use crate::state::{self, Abilities};

/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

/// A machine's clocks.
pub struct GuestTime {
    vm: Arc<VmFd>,
    pit: Pit,
    processors: Vec<VcpuFd>,
    abilities: Abilities,
    stopped: Mutex<Option<Stopped>>,
}

/// How things stood when time was stopped.
struct Stopped {
    host_tsc: u64,
    /// The paravirtual clock in nanoseconds; `None` if KVM does not say.
    clock: Option<u64>,
    processors: Vec<Timers>,
}

/// The same for one processor.
struct Timers {
    /// The guest's TSC less the host's.
    tsc_offset: u64,
    /// When the TSC's deadline is; zero if there is none.
    deadline: u64,
    /// What is left for the timer of the local APIC to count down, in its other modes.
    count: u32,
}

/// Another handle of the same processor, for what need not wait for its thread.
pub fn second_handle(vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuFd, Fault> {
    let copy = || -> Result<VcpuFd, Error> {
        // SAFETY: the descriptor is open as long as `vcpu` is there.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let fd = fd.try_clone_to_owned().map_err(|_| Error::last())?;
        // SAFETY: the descriptor is a processor's of this machine, and given away here.
        unsafe { vm.create_vcpu_from_rawfd(fd.into_raw_fd()) }
    };
    copy().map_err(|e| failed("cannot keep a processor's descriptor", e))
}

impl GuestTime {
    /// The clocks of `processors`.
    pub fn new(vm: Arc<VmFd>, processors: Vec<VcpuFd>, abilities: Abilities) -> Self {
        let pit = Pit::new(vm.clone());
        Self { vm, pit, processors, abilities, stopped: Mutex::default() }
    }

    /// The machine's PIT.
    pub fn pit(&self) -> &Pit {
        &self.pit
    }

    /// Notes how things stand, when the host's TSC shows what is returned. No processor runs from now on
    /// until time goes on.
    pub fn stop(&self) -> u64 {
        let clock = self.vm.get_clock().map(|data| data.clock);
        let clock = clock.inspect_err(|e| cannot("read the paravirtual clock", e)).ok();
        let processors = self.all_timers();
        let host_tsc = runtime::tsc::read();
        match processors {
            Ok(processors) => {
                *self.stopped() = Some(Stopped { host_tsc, clock, processors });
            }
            Err(error) => cannot("read the processors' timers", &error),
        }
        if let Err(error) = self.pit.stop() {
            cannot("stop the PIT", &error);
        }
        host_tsc
    }

    /// Has time go on from there.
    pub fn resume(&self) {
        if let Err(error) = self.pit.resume() {
            cannot("have the PIT go on", &error);
        }
        let Some(stopped) = self.stopped().take() else { return };
        let ticks = runtime::tsc::read().wrapping_sub(stopped.host_tsc);
        let ticks = self.abilities.scaling.map_or(ticks, |scaling| scaling.guest_ticks(ticks));
        let processors = self.processors.iter().zip(&stopped.processors);
        let done = processors.enumerate().try_for_each(|(index, (vcpu, timers))| {
            self.set_back(vcpu, index, timers.tsc_offset, ticks)
        });
        if let Err(error) = done {
            cannot("set the TSCs back", &error);
        }
        if let Some(Err(error)) = stopped.clock.map(|clock| self.set_clock(clock)) {
            cannot("set the paravirtual clock back", &error);
        }
        // Now that the TSCs are right: a deadline that has passed by the host's time is to come yet.
        for (vcpu, timers) in self.processors.iter().zip(&stopped.processors) {
            if let Err(error) = arm(vcpu, timers) {
                cannot("arm a processor's timer", &error);
            }
            // Guests' watchdogs shall not bark all the same. Who has no such clock is told nothing.
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// The processors have taken over a saved state: where they stand now is where time will go on
    /// from, with what the paravirtual clock shows then, which `clock` tells by the host's TSC. If time
    /// was not stopped, it goes on at once.
    pub fn restored(&self, clock: impl FnOnce(u64) -> u64) -> Result<(), Fault> {
        match &mut *self.stopped() {
            Some(stopped) => {
                stopped.processors = self.all_timers()?;
                stopped.clock = Some(clock(stopped.host_tsc));
                Ok(())
            }
            None => self
                .set_clock(clock(runtime::tsc::read()))
                .map_err(|e| failed("KVM does not set its clock", e)),
        }
    }

    fn set_clock(&self, clock: u64) -> Result<(), Error> {
        self.vm.set_clock(&kvm_clock_data { clock, ..Default::default() })
    }

    fn all_timers(&self) -> Result<Vec<Timers>, Fault> {
        self.processors.iter().map(|vcpu| self.timers(vcpu)).collect()
    }

    fn timers(&self, vcpu: &VcpuFd) -> Result<Timers, Fault> {
        Ok(Timers {
            tsc_offset: state::tsc_offset(vcpu, &self.abilities)?,
            deadline: state::read_msr(vcpu, TSC_DEADLINE)?.unwrap_or(0),
            count: apic_page::timer_count(&lapic(vcpu)?),
        })
    }

    /// Sets the TSC of processor `index`, which was the host's plus `offset`, back by `ticks`.
    fn set_back(&self, vcpu: &VcpuFd, index: usize, offset: u64, ticks: u64) -> Result<(), Fault> {
        if !self.abilities.tsc_offset && index == 0 {
            // A TSC that is set to less than a second from where it would be is taken for an attempt
            // to have all processors' agree, and stays as it is (Linux, kvm_synchronize_tsc). That
            // is what the others need; the first one makes a detour.
            state::write_msr(vcpu, TSC, u64::MAX / 2)?;
        }
        state::set_tsc_offset(vcpu, &self.abilities, offset.wrapping_sub(ticks))?;
        // Without hardware virtualization, guests read the host's TSC, and KVM says nothing.
        let moved = offset.wrapping_sub(state::tsc_offset(vcpu, &self.abilities)?);
        if moved.abs_diff(ticks) > ticks / 2 {
            return Err(Fault::Unsupported("KVM keeps them as they are".to_owned()));
        }
        Ok(())
    }

    fn stopped(&self) -> std::sync::MutexGuard<'_, Option<Stopped>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lapic(vcpu: &VcpuFd) -> Result<kvm_lapic_state, Fault> {
    vcpu.get_lapic().map_err(|e| failed("cannot read a local APIC", e))
}

/// Has a timer that ran when time was stopped run for the rest of its time.
fn arm(vcpu: &VcpuFd, timers: &Timers) -> Result<(), Fault> {
    if timers.deadline != 0 {
        state::write_msr(vcpu, TSC_DEADLINE, timers.deadline)?;
    }
    if timers.count != 0 {
        let mut page = lapic(vcpu)?;
        apic_page::set_timer_count(&mut page, timers.count);
        vcpu.set_lapic(&page).map_err(|e| failed("cannot set a local APIC", e))?;
    }
    Ok(())
}

fn cannot(what: &str, error: &dyn std::fmt::Display) {
    tracing::warn!("cannot {what}, so that the guest will see that it was paused: {error}");
}
