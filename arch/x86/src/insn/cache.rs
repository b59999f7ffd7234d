//! Prefetches, cache-line flushes and direct stores. Caches are the host's, so all that is left
//! of the first two is their faults.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::insn::operand::{Reg, Source, sized};
use crate::paging::Access;
use crate::state::gpr;

/// A cache line, as CPUID.1:EBX[15:8] says.
const LINE: u64 = 64;

/// The handler for an instruction that manages caches.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        // Hints: they never fault, and processors without them execute them as NOP.
        Mnemonic::Prefetch
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote => Some(hint),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Some(flush_line),
        Mnemonic::Movdiri => {
            let size = insn.op1_register().size();
            sized!(size, W => store_direct::<E, W>)
        }
        Mnemonic::Movdir64b => Some(movdir64b),
        Mnemonic::Clzero => Some(clzero),
        _ => None,
    }
}

fn hint<E: Env>(_: &mut Cpu<E>, _: &Op<E>) -> Exec {
    Ok(())
}

/// The line need only be readable (SDM Vol. 2, CLFLUSH).
fn flush_line<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    let linear = cpu.operand_address(op, 1, Access::Read)?;
    cpu.span(linear, 1, Access::Read, cpu.mode.view)?;
    Ok(())
}

fn store_direct<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    let value: W = Reg::<1>::get(cpu, op)?;
    let linear = cpu.operand_address(op, W::SIZE, Access::Write)?;
    cpu.write(linear, value)
}

/// MOVDIR64B: 64 bytes from the memory operand to the address in a register, in ES.
fn movdir64b<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    let source = cpu.operand_address(op, 64, Access::Read)?;
    let offset: u64 = match op.insn.op0_register().size() {
        2 => u64::from(cpu.reg::<u16>(op.regs[0])),
        4 => u64::from(cpu.reg::<u32>(op.regs[0])),
        _ => cpu.reg(op.regs[0]),
    };
    let target = cpu.linear(crate::state::SegReg::Es, offset, 64, Access::Write)?;
    if target & (LINE - 1) != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    let mut data = [0; 64];
    cpu.read_bytes(source, &mut data)?;
    cpu.write_bytes(target, &data)
}

/// AMD's CLZERO: clears the cache line at rAX.
fn clzero<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    if op.insn.has_rep_prefix() || op.insn.has_repne_prefix() {
        return Err(cpu.raise(Exception::UD));
    }
    let address_mask = match op.insn.code() {
        Code::Clzerow => 0xffff,
        Code::Clzerod => 0xffff_ffff,
        _ => u64::MAX,
    };
    let offset = cpu.state.gpr[gpr::RAX] & address_mask;
    let linear = cpu.linear(op.seg, offset, 1, Access::Write)?;
    cpu.write_bytes(linear & !(LINE - 1), &[0; LINE as usize])
}
