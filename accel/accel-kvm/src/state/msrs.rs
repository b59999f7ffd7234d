//! Model-specific registers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use accel::{CpuState, Fault};
use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use x86::state::Msrs;

use super::{Abilities, arch_capabilities, refused};
use crate::host::failed;
use crate::sys;

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

/// IA32_SPEC_CTRL, and what hypervisors made of it for AMD's older processors.
const SPEC_CTRL: u32 = 0x48;
const VIRT_SPEC_CTRL: u32 = 0xc001_011f;

/// The registers of `msrs`, with their numbers (SDM Vol. 4; APM Vol. 2, appendix A), other than the
/// TSC's offset and IA32_ARCH_CAPABILITIES.
///
/// Others that KVM lists are no state of a guest's: constants (MSR_PLATFORM_INFO, PERF_CAPABILITIES),
/// counts (SMI_COUNT), records of branches that it does not offer, and other names of the paravirtual
/// clock's. IA32_MCG_CTL does not exist for a guest with one bank of machine checks.
fn registers(msrs: &mut Msrs) -> Vec<(u32, &mut u64)> {
    let mut list = vec![
        (0x3b, &mut msrs.tsc_adjust),
        (SPEC_CTRL, &mut msrs.spec_ctrl),
        (0x174, &mut msrs.sysenter_cs),
        (0x175, &mut msrs.sysenter_esp),
        (0x176, &mut msrs.sysenter_eip),
        (0x1a0, &mut msrs.misc_enable),
        (0x1d9, &mut msrs.debugctl),
        (0x277, &mut msrs.pat),
        (0x2ff, &mut msrs.mtrr_def_type),
        (0x122, &mut msrs.hardware.tsx_ctrl),
        (0x140, &mut msrs.hardware.misc_features_enables),
        (0x17a, &mut msrs.mcg_status),
        (0xda0, &mut msrs.xss),
        (0xc000_0081, &mut msrs.star),
        (0xc000_0082, &mut msrs.lstar),
        (0xc000_0083, &mut msrs.cstar),
        (0xc000_0084, &mut msrs.sfmask),
        (0xc000_0102, &mut msrs.kernel_gs_base),
        (0xc000_0103, &mut msrs.tsc_aux),
        // Before the machine checks that it lets software write.
        (0xc001_0015, &mut msrs.hwcr),
        (VIRT_SPEC_CTRL, &mut msrs.hardware.virt_spec_ctrl),
    ];
    list.extend((0x400..).zip(&mut msrs.mc0));
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
    list.extend(fixed.zip(&mut msrs.mtrr_fixed));
    for (at, (base, mask)) in (0x200..).step_by(2).zip(&mut msrs.mtrr_var) {
        list.extend([(at, base), (at + 1, mask)]);
    }
    list
}

/// Those that the host's KVM has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownMsrs(Vec<u32>);

impl KnownMsrs {
    /// Finds out which of the registers of [`CpuState`] a processor has, by reading them. The others
    /// are told, once in the life of this process.
    pub fn of(vcpu: &VcpuFd) -> Result<Self, Fault> {
        let mut msrs = CpuState::reset(0).msrs;
        let mut wanted: Vec<u32> = registers(&mut msrs).into_iter().map(|(i, _)| i).collect();
        let mut known = Vec::new();
        let mut refused = Vec::new();
        while !wanted.is_empty() {
            let mut entries = entries(wanted.iter().map(|&index| (index, 0)))?;
            let done = vcpu.get_msrs(&mut entries).map_err(cannot_read)?;
            known.extend(wanted.drain(..done.min(wanted.len())));
            // KVM stops at the first that it does not have.
            if !wanted.is_empty() {
                refused.push(wanted.remove(0));
            }
        }
        for index in refused {
            say_once(index, "does not exist for this host's KVM: guests do without");
        }
        Ok(Self(known))
    }

    /// Whether it is one of them.
    pub fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }
}

/// Tells something about a register, once in the life of this process.
fn say_once(index: u32, what: &str) {
    static TOLD: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(index) {
        tracing::info!("MSR {index:#x} {what}");
    }
}

fn entries(list: impl IntoIterator<Item = (u32, u64)>) -> Result<KvmMsrs, Fault> {
    let list: Vec<kvm_msr_entry> = list
        .into_iter()
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    KvmMsrs::from_entries(&list).map_err(|e| Fault::Wrong(format!("a list of MSRs: {e:?}")))
}

fn cannot_read(error: kvm_ioctls::Error) -> Fault {
    failed("cannot read a processor's MSRs", error)
}

fn cannot_write(error: kvm_ioctls::Error) -> Fault {
    failed("cannot set a processor's MSRs", error)
}

pub fn load(vcpu: &VcpuFd, abilities: &Abilities, state: &mut CpuState) -> Result<(), Fault> {
    let known = &abilities.msrs.0;
    let mut entries = entries(known.iter().map(|&index| (index, 0)))?;
    vcpu.get_msrs(&mut entries).map_err(cannot_read)?;
    let mut registers = registers(&mut state.msrs);
    for entry in entries.as_slice() {
        if let Some((_, value)) = registers.iter_mut().find(|(index, _)| *index == entry.index) {
            **value = entry.data;
        }
    }
    state.msrs.tsc_offset = tsc_offset(vcpu, abilities)?;
    arch_capabilities::load(vcpu, abilities, &mut state.msrs.hardware)
}

pub fn store(vcpu: &VcpuFd, abilities: &Abilities, state: &CpuState) -> Result<(), Fault> {
    if tsc_offset(vcpu, abilities)? != state.msrs.tsc_offset {
        set_tsc_offset(vcpu, abilities, state.msrs.tsc_offset)?;
    }
    arch_capabilities::store(vcpu, abilities, state.msrs.hardware.arch_capabilities)?;
    let mut msrs = state.msrs.clone();
    let mut left: Vec<(u32, u64)> = registers(&mut msrs)
        .into_iter()
        .filter(|(index, _)| abilities.msrs.contains(*index))
        .map(|(index, value)| (index, *value))
        .collect();
    while !left.is_empty() {
        let done = vcpu.set_msrs(&entries(left.iter().copied())?).map_err(cannot_write)?;
        left.drain(..done.min(left.len()));
        if !left.is_empty() {
            let (index, value) = left.remove(0);
            if read(vcpu, index)? != Some(value) {
                if let SPEC_CTRL | VIRT_SPEC_CTRL = index {
                    // Without it, programs that rely on it would not be protected any more.
                    return Err(refused(
                        "controls over speculation",
                        kvm_ioctls::Error::new(libc::EINVAL),
                    ));
                }
                say_once(index, "keeps its value, since this host's KVM refuses another");
            }
        }
    }
    Ok(())
}

/// One register, as the VMM may read it; `None` if KVM has none.
pub fn read(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, Fault> {
    let mut entry = entries([(index, 0)])?;
    let done = vcpu.get_msrs(&mut entry).map_err(cannot_read)?;
    Ok(entry.as_slice().first().filter(|_| done == 1).map(|entry| entry.data))
}

/// Sets one register; `false` if KVM refuses.
pub fn write(vcpu: &VcpuFd, index: u32, value: u64) -> Result<bool, Fault> {
    Ok(vcpu.set_msrs(&entries([(index, value)])?).map_err(cannot_write)? == 1)
}

/// The guest's TSC less the host's.
pub fn tsc_offset(vcpu: &VcpuFd, abilities: &Abilities) -> Result<u64, Fault> {
    if !abilities.tsc_offset {
        let tsc = read(vcpu, TSC)?.unwrap_or_default();
        return Ok(tsc.wrapping_sub(runtime::tsc::read()));
    }
    sys::tsc_offset(vcpu).map_err(cannot_read)
}

/// Sets it.
pub fn set_tsc_offset(vcpu: &VcpuFd, abilities: &Abilities, offset: u64) -> Result<(), Fault> {
    if !abilities.tsc_offset {
        write(vcpu, TSC, runtime::tsc::read().wrapping_add(offset))?;
        return Ok(());
    }
    sys::set_tsc_offset(vcpu, offset).map_err(cannot_write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_there_once() {
        let mut msrs = CpuState::reset(0).msrs;
        let list = registers(&mut msrs);
        let numbers: BTreeSet<u32> = list.iter().map(|(index, _)| *index).collect();
        assert_eq!(numbers.len(), list.len());
        assert_eq!(list.len(), 21 + 4 + 11 + 16);
    }
}
