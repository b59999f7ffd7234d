//! HLT, MSR access, time, identification and other instructions without a family.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, is_canonical};
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::insn::operand::sized_wide;
use crate::state::gpr::{RAX, RBX, RCX, RDX};
use crate::state::{Activity, Cr4, Rflags, SegReg};

/// The handler for such an instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = insn.op0_register().size();
    match insn.mnemonic() {
        Mnemonic::Hlt => Some(|cpu, _| {
            cpu.require_cpl0()?;
            cpu.state.activity = Activity::Halted;
            cpu.leave_block = true;
            Ok(())
        }),
        // Memory is coherent, and nothing is cached that could be stale.
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Invd => Some(|cpu, _| cpu.require_cpl0()),
        Mnemonic::Rdmsr => Some(rdmsr),
        Mnemonic::Wrmsr => Some(wrmsr),
        Mnemonic::Rdtsc => Some(rdtsc),
        Mnemonic::Rdtscp => Some(|cpu, op| {
            rdtsc(cpu, op)?;
            cpu.set_reg(RCX as u8, cpu.state.msrs.tsc_aux as u32);
            Ok(())
        }),
        // There are no performance counters.
        Mnemonic::Rdpmc => Some(|cpu, _| Err(cpu.raise(Exception::GP0))),
        Mnemonic::Rdpid => Some(|cpu, op| {
            cpu.set_reg(op.regs[0], cpu.state.msrs.tsc_aux);
            Ok(())
        }),
        Mnemonic::Cpuid => Some(cpuid),
        Mnemonic::Rdrand | Mnemonic::Rdseed => sized_wide!(size, W => random::<E, W>),
        Mnemonic::Rdfsbase => sized_wide!(size, W =>
            |cpu, op| read_base::<E, W>(cpu, op, SegReg::Fs)),
        Mnemonic::Rdgsbase => sized_wide!(size, W =>
            |cpu, op| read_base::<E, W>(cpu, op, SegReg::Gs)),
        Mnemonic::Wrfsbase => sized_wide!(size, W =>
            |cpu, op| write_base::<E, W>(cpu, op, SegReg::Fs)),
        Mnemonic::Wrgsbase => sized_wide!(size, W =>
            |cpu, op| write_base::<E, W>(cpu, op, SegReg::Gs)),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => Some(hypercall),
        _ => None,
    }
}

impl<E: Env> Cpu<E> {
    /// Writes EDX:EAX.
    fn set_pair(&mut self, value: u64) {
        self.set_reg(RAX as u8, value as u32);
        self.set_reg(RDX as u8, (value >> 32) as u32);
    }
}

fn rdmsr<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    let index: u32 = cpu.reg(RCX as u8);
    match cpu.read_msr(index) {
        Some(value) => {
            cpu.set_pair(value);
            Ok(())
        }
        None => Err(cpu.raise(Exception::GP0)),
    }
}

fn wrmsr<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    let index: u32 = cpu.reg(RCX as u8);
    let (low, high): (u32, u32) = (cpu.reg(RAX as u8), cpu.reg(RDX as u8));
    match cpu.write_msr(index, u64::from(high) << 32 | u64::from(low)) {
        Some(()) => {
            // An interrupt may have become pending in the local APIC.
            cpu.leave_block = true;
            Ok(())
        }
        None => Err(cpu.raise(Exception::GP0)),
    }
}

fn rdtsc<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.state.cr4.contains(Cr4::TSD) && cpu.mode.cpl != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    let tsc = cpu.tsc();
    cpu.set_pair(tsc);
    Ok(())
}

/// CPUID; some answers depend on CR4 and XCR0.
fn cpuid<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let (leaf, subleaf): (u32, u32) = (cpu.reg(RAX as u8), cpu.reg(RCX as u8));
    let mut result = cpu.env.cpuid(leaf, subleaf);
    match (leaf, subleaf) {
        (1, _) if cpu.state.cr4.contains(Cr4::OSXSAVE) => result.ecx |= 1 << 27,
        (0xd, 0) => result.ebx = xsave_size(cpu, cpu.state.xcr0, false),
        (0xd, 1) if result.eax & 2 != 0 => {
            result.ebx = xsave_size(cpu, cpu.state.xcr0 | cpu.state.msrs.xss, true);
        }
        _ => {}
    }
    cpu.set_reg(RAX as u8, result.eax);
    cpu.set_reg(RBX as u8, result.ebx);
    cpu.set_reg(RCX as u8, result.ecx);
    cpu.set_reg(RDX as u8, result.edx);
    Ok(())
}

/// How large the XSAVE area of `components` is (SDM Vol. 1, 13.4.2 and 13.4.3).
fn xsave_size<E: Env>(cpu: &Cpu<E>, components: u64, compacted: bool) -> u32 {
    const LEGACY_AND_HEADER: u32 = 576;
    let mut end = LEGACY_AND_HEADER;
    for i in (2..63).filter(|i| components >> i & 1 != 0) {
        let component = cpu.env.cpuid(0xd, i);
        let start = match compacted {
            true if component.ecx & 2 != 0 => end.next_multiple_of(64),
            true => end,
            false => component.ebx,
        };
        end = end.max(start + component.eax);
    }
    end
}

fn random<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value = cpu.env.random();
    cpu.set_reg(op.regs[0], W::truncate(value));
    cpu.set_status(Rflags::CF.bits());
    Ok(())
}

fn check_fsgsbase<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if cpu.mode.code_bits != 64 || !cpu.state.cr4.contains(Cr4::FSGSBASE) {
        return Err(cpu.raise(Exception::UD));
    }
    Ok(())
}

fn read_base<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>, seg: SegReg) -> Exec {
    check_fsgsbase(cpu)?;
    let base = cpu.state.segment(seg).base;
    cpu.set_reg(op.regs[0], W::truncate(base));
    Ok(())
}

fn write_base<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>, seg: SegReg) -> Exec {
    check_fsgsbase(cpu)?;
    let base: W = cpu.reg(op.regs[0]);
    let base = base.into();
    if !is_canonical(base) {
        return Err(cpu.raise(Exception::GP0));
    }
    cpu.state.seg[seg as usize].base = base;
    Ok(())
}

/// KVM's hypercalls: none is offered, which the answer says (Linux,
/// Documentation/virt/kvm/x86/hypercalls.rst).
fn hypercall<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    const KVM_ENOSYS: i64 = -1000;
    cpu.state.gpr[RAX] = KVM_ENOSYS as u64;
    Ok(())
}
