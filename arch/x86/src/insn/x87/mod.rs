//! The x87 floating-point unit.
//!
//! The host's unit computes, with the guest's control word. An exception that the guest does not
//! mask makes itself felt at the guest's next x87 instruction that looks, as it does on the real
//! thing. Instructions that only move the unit's control state are done here (`control`).

use iced_x86::{CpuidFeature, Instruction};

use super::native::{MemoryUse, memory_use, x87_pending};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;
use crate::state::Cr0;

mod control;

/// FSW: invalid operation, overflow, underflow. Unmasked, they keep a result from being stored.
const STORE_SUPPRESSING: u16 = 0x19;

/// The handler for an x87 instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    control::select(insn).or_else(|| {
        if !is_x87(insn) {
            return None;
        }
        Some(match memory_use(insn)? {
            MemoryUse::None => registers,
            MemoryUse::Load => load,
            MemoryUse::Store => store,
        })
    })
}

fn is_x87(insn: &Instruction) -> bool {
    insn.cpuid_features().iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    })
}

/// What every x87 instruction checks first.
#[inline(always)]
fn check_available<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    if cpu.state.cr0.intersects(Cr0::EM | Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// The same, for those that wait for pending exceptions.
#[inline(always)]
fn check_waiting<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    cpu.check_x87_pending()
}

/// Notes instruction and operand addresses. The host noted its own; the opcode it noted is right
/// but for the addressing form.
fn note_addresses<E: Env>(cpu: &mut Cpu<E>, operand: Option<u64>) {
    let is_64bit = cpu.mode.code_bits == 64;
    let mask = if is_64bit { u64::MAX } else { 0xffff_ffff };
    let x87 = &mut cpu.state.vector.x87;
    x87.fip = cpu.insn_ip & mask;
    if let Some(operand) = operand {
        x87.fdp = operand & mask;
    }
}

fn registers<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let fdp = cpu.state.vector.x87.fdp;
    cpu.execute_native(op)?;
    note_addresses(cpu, Some(fdp));
    Ok(())
}

fn load<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let len = op.insn.memory_size().size();
    let offset = cpu.effective_address(op);
    let linear = cpu.operand_address(op, len, Access::Read)?;
    cpu.load_operand(linear, len)?;
    cpu.execute_native(op)?;
    note_addresses(cpu, Some(offset));
    Ok(())
}

fn store<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let len = op.insn.memory_size().size();
    let offset = cpu.effective_address(op);
    let linear = cpu.operand_address(op, len, Access::Write)?;
    cpu.store_operand(linear, len, |cpu| {
        cpu.execute_native(op)?;
        note_addresses(cpu, Some(offset));
        let x87 = &cpu.state.vector.x87;
        Ok(!(x87_pending(x87) && x87.fsw & !x87.fcw & STORE_SUPPRESSING != 0))
    })
}
