//! Gathers and scatters: an address for each lane, out of a vector register.
//!
//! They go lane by lane from the lowest. A lane that is done is struck off the mask, so that
//! after a fault the instruction starts again with the lanes that are left (SDM Vol. 2,
//! VPGATHERDD, VPSCATTERDD).

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::{Avx, Avx512, Class};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;

/// The handler for a gather or scatter.
pub(super) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    if !insn.memory_index().is_vector_register() {
        return None;
    }
    let is_store = insn.op0_kind() == OpKind::Memory;
    match (insn.code().encoding(), insn.mnemonic()) {
        (EncodingKind::VEX, _) => Some(gather_vex),
        (EncodingKind::EVEX, _) if is_store => Some(scatter),
        (
            EncodingKind::EVEX,
            Mnemonic::Vgatherdps
            | Mnemonic::Vgatherdpd
            | Mnemonic::Vgatherqps
            | Mnemonic::Vgatherqpd
            | Mnemonic::Vpgatherdd
            | Mnemonic::Vpgatherdq
            | Mnemonic::Vpgatherqd
            | Mnemonic::Vpgatherqq,
        ) => Some(gather_evex),
        _ => None,
    }
}

/// A lane of 4 or 8 bytes.
fn lane(register: &[u64; 8], size: usize, i: usize) -> u64 {
    if size == 8 { register[i & 7] } else { register[(i / 2) & 7] >> (i % 2 * 32) & 0xffff_ffff }
}

fn set_lane(register: &mut [u64; 8], size: usize, i: usize, value: u64) {
    if size == 8 {
        register[i & 7] = value;
    } else {
        let shift = i % 2 * 32;
        let slot = &mut register[(i / 2) & 7];
        *slot = *slot & !(0xffff_ffff << shift) | value << shift;
    }
}

/// Clears all bytes of a register from `from` on; `from` is a multiple of 4.
fn clear_above(register: &mut [u64; 8], from: usize) {
    for i in from / 4..16 {
        set_lane(register, 4, i, 0);
    }
}

/// How an instruction's lanes are laid out.
struct Shape {
    /// Bytes of a lane of data, and of one of the index register.
    data: usize,
    index: usize,
    count: usize,
    index_register: usize,
    scale: u32,
}

impl Shape {
    /// `data` is the register with the data.
    fn of(insn: &Instruction, data: Register) -> Self {
        let index = if insn.is_vsib64() { 8 } else { 4 };
        let data_size = if insn.memory_size().size() == 8 { 8 } else { 4 };
        Self {
            data: data_size,
            index,
            count: (data.size() / data_size).min(insn.memory_index().size() / index),
            index_register: insn.memory_index().number() & 31,
            scale: insn.memory_index_scale(),
        }
    }

    /// The linear address of lane `i`.
    fn address<E: Env>(&self, cpu: &mut Cpu<E>, op: &Op<E>, i: usize, access: Access) -> Exec<u64> {
        let raw = lane(&cpu.state.vector.zmm[self.index_register], self.index, i);
        let index = if self.index == 8 { raw } else { raw as i32 as u64 };
        let offset = cpu.effective_address(op).wrapping_add(index.wrapping_mul(self.scale.into()))
            & op.address_mask;
        cpu.linear(op.seg, offset, self.data, access)
    }

    fn read<E: Env>(&self, cpu: &mut Cpu<E>, op: &Op<E>, i: usize) -> Exec<u64> {
        let linear = self.address(cpu, op, i, Access::Read)?;
        // Alignment is never checked.
        cpu.check_breakpoints(linear, self.data, Access::Read);
        let mut value = [0; 8];
        cpu.read_bytes(linear, &mut value[..self.data])?;
        Ok(u64::from_le_bytes(value))
    }
}

fn gather_vex<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx::check(cpu, op)?;
    let shape = Shape::of(&op.insn, op.insn.op0_register());
    let target = op.insn.op0_register().number() & 31;
    let mask = op.insn.op2_register().number() & 31;
    if target == mask || target == shape.index_register || mask == shape.index_register {
        return Err(cpu.raise(Exception::UD));
    }
    for i in 0..shape.count {
        let selector = lane(&cpu.state.vector.zmm[mask], shape.data, i);
        if selector >> (shape.data * 8 - 1) & 1 != 0 {
            let value = shape.read(cpu, op, i)?;
            set_lane(&mut cpu.state.vector.zmm[target], shape.data, i, value);
        }
        set_lane(&mut cpu.state.vector.zmm[mask], shape.data, i, 0);
    }
    clear_above(&mut cpu.state.vector.zmm[target], shape.count * shape.data);
    clear_above(&mut cpu.state.vector.zmm[mask], 0);
    Ok(())
}

fn gather_evex<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let shape = Shape::of(&op.insn, op.insn.op0_register());
    let target = op.insn.op0_register().number() & 31;
    let mask = op.insn.op_mask().number() & 7;
    if mask == 0 || target == shape.index_register {
        return Err(cpu.raise(Exception::UD));
    }
    for i in 0..shape.count {
        if cpu.state.vector.k[mask] >> i & 1 != 0 {
            let value = shape.read(cpu, op, i)?;
            set_lane(&mut cpu.state.vector.zmm[target], shape.data, i, value);
            cpu.state.vector.k[mask] &= !(1 << i);
        }
    }
    clear_above(&mut cpu.state.vector.zmm[target], shape.count * shape.data);
    cpu.state.vector.k[mask] = 0;
    Ok(())
}

fn scatter<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let shape = Shape::of(&op.insn, op.insn.op1_register());
    let source = op.insn.op1_register().number() & 31;
    let mask = op.insn.op_mask().number() & 7;
    if mask == 0 {
        return Err(cpu.raise(Exception::UD));
    }
    for i in 0..shape.count {
        if cpu.state.vector.k[mask] >> i & 1 != 0 {
            let value = lane(&cpu.state.vector.zmm[source], shape.data, i);
            let linear = shape.address(cpu, op, i, Access::Write)?;
            cpu.check_breakpoints(linear, shape.data, Access::Write);
            cpu.write_bytes(linear, &value.to_le_bytes()[..shape.data])?;
            cpu.state.vector.k[mask] &= !(1 << i);
        }
    }
    cpu.state.vector.k[mask] = 0;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_set_one_by_one() {
        let mut register = [u64::MAX; 8];
        set_lane(&mut register, 4, 3, 0x1234_5678);
        assert_eq!(register[1], 0x1234_5678_ffff_ffff);
        assert_eq!(lane(&register, 4, 3), 0x1234_5678);
        assert_eq!(lane(&register, 4, 2), 0xffff_ffff);
        set_lane(&mut register, 8, 7, 5);
        assert_eq!(lane(&register, 8, 7), 5);
        clear_above(&mut register, 12);
        assert_eq!(register, [u64::MAX, 0xffff_ffff, 0, 0, 0, 0, 0, 0]);
    }
}
