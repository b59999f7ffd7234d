//! IA32_ARCH_CAPABILITIES: what a guest was told of its processor's flaws (SDM Vol. 4, table 2-2). It
//! looks once, when it starts, and does without workarounds for the flaws that there are not.

use accel::Fault;
use kvm_ioctls::VcpuFd;
use x86::state::HardwareMsrs;

use super::{Abilities, msrs};

const INDEX: u32 = 0x10a;
/// Bits that tell of a flaw: RSBA and RRSBA, returns are predicted by what other branches left. All
/// others deny one, or promise a way around one.
const FLAWS: u64 = 1 << 2 | 1 << 19;

/// What the guest is told.
pub fn load(vcpu: &VcpuFd, abilities: &Abilities, msrs: &mut HardwareMsrs) -> Result<(), Fault> {
    msrs.arch_capabilities = if abilities.arch_capabilities { here(vcpu)? } else { 0 };
    Ok(())
}

/// Has a guest that was told `told` be told that again, or refuses it.
pub fn store(vcpu: &VcpuFd, abilities: &Abilities, told: u64) -> Result<(), Fault> {
    if !abilities.arch_capabilities {
        return Ok(());
    }
    let here = here(vcpu)?;
    if told == here {
        return Ok(());
    }
    if let Some(wrong) = broken(told, here) {
        return Err(Fault::Unsupported(format!(
            "the guest does without workarounds for flaws that the processor has here (bits {wrong:#x} \
             of IA32_ARCH_CAPABILITIES, which was {told:#x} and is {here:#x}), so that its programs could \
             read its kernel: let it go on where it comes from, or start it anew here"
        )));
    }
    // If KVM refuses, the guest is told of more than it asked for.
    msrs::write(vcpu, INDEX, told)?;
    Ok(())
}

fn here(vcpu: &VcpuFd) -> Result<u64, Fault> {
    Ok(msrs::read(vcpu, INDEX)?.unwrap_or(0))
}

/// The bits of what a guest was told that do not hold where it is told `here`; `None` if all do.
fn broken(told: u64, here: u64) -> Option<u64> {
    let wrong = (told & !here & !FLAWS) | (here & !told & FLAWS);
    (wrong != 0).then_some(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_kept() {
        let (rdcl_no, ibrs_all, rsba) = (1, 2, 4);
        assert_eq!(broken(rdcl_no, rdcl_no | ibrs_all), None, "a better processor");
        assert_eq!(broken(rsba, 0), None, "a better processor");
        assert_eq!(broken(rdcl_no | ibrs_all, ibrs_all), Some(rdcl_no));
        assert_eq!(broken(rdcl_no, rdcl_no | rsba), Some(rsba));
        assert_eq!(broken(0, 0), None);
    }
}
