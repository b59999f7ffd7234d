//! LDMXCSR and STMXCSR.

use iced_x86::{Instruction, Mnemonic};

use super::vector::{Avx, Class, Sse};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;

/// The handler for an instruction that loads or stores MXCSR.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Ldmxcsr => Some(load::<E, Sse>),
        Mnemonic::Vldmxcsr => Some(load::<E, Avx>),
        Mnemonic::Stmxcsr => Some(store::<E, Sse>),
        Mnemonic::Vstmxcsr => Some(store::<E, Avx>),
        _ => None,
    }
}

fn load<E: Env, C: Class>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let linear = cpu.operand_address(op, 4, Access::Read)?;
    let value: u32 = cpu.read(linear)?;
    if value & !cpu.state.vector.x87.mxcsr_mask != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    cpu.state.vector.x87.mxcsr = value;
    Ok(())
}

fn store<E: Env, C: Class>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let linear = cpu.operand_address(op, 4, Access::Write)?;
    cpu.write(linear, cpu.state.vector.x87.mxcsr)
}
