//! Port I/O: IN, OUT, INS, OUTS (SDM Vol. 1, chapter 19).

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::debug;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::insn::operand::{operand_size, sized};
use crate::insn::string::{Next, address_mask};
use crate::paging::Access;
use crate::state::SegReg;
use crate::state::gpr::{RAX, RDI, RDX, RSI};

/// The handler for a port instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::In => sized!(operand_size(insn, 0), W => port_in::<E, W>),
        Mnemonic::Out => sized!(operand_size(insn, 1), W => port_out::<E, W>),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            sized!(insn.memory_size().size(), W => ins::<E, W>)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            sized!(insn.memory_size().size(), W => outs::<E, W>)
        }
        _ => None,
    }
}

impl<E: Env> Cpu<E> {
    /// Checks IOPL and the TSS's I/O permission bitmap (SDM Vol. 1, 19.5).
    fn check_port(&mut self, port: u16, size: usize) -> Exec {
        let is_free =
            !self.state.is_protected() || (self.mode.cpl <= self.iopl() && !self.state.is_v8086());
        if is_free {
            return Ok(());
        }
        let tr = self.state.tr;
        let limit = u64::from(tr.limit);
        // Only 32-bit and 64-bit TSSs have a bitmap.
        if tr.attributes.kind() & 8 != 0 && limit >= 0x67 {
            let start: u16 = self.read_system(tr.base.wrapping_add(0x66))?;
            let at = u64::from(start) + u64::from(port) / 8;
            if at < limit {
                let bits: u16 = self.read_system(tr.base.wrapping_add(at))?;
                let mask = (1u16 << size) - 1;
                if bits >> (port % 8) & mask == 0 {
                    return Ok(());
                }
            }
        }
        Err(self.raise(Exception::GP0))
    }

    fn check_port_breakpoints(&mut self, port: u16, len: usize) {
        if self.mode.check_breakpoints {
            self.debug_hits |= debug::port_hits(&self.state, port, len);
        }
    }

    fn port_read<W: Word>(&mut self, port: u16) -> W {
        self.check_port_breakpoints(port, W::SIZE);
        let mut data = [0; 8];
        self.env.port_read(port, &mut data[..W::SIZE]);
        W::truncate(u64::from_le_bytes(data))
    }

    fn port_write<W: Word>(&mut self, port: u16, value: W) {
        self.check_port_breakpoints(port, W::SIZE);
        let value: u64 = value.into();
        self.env.port_write(port, &value.to_le_bytes()[..W::SIZE]);
    }
}

/// The port that operand `i` names: DX or an immediate byte.
fn port<E: Env>(cpu: &Cpu<E>, op: &Op<E>, i: u32) -> u16 {
    if op.insn.op_kind(i) == OpKind::Register {
        cpu.reg(RDX as u8)
    } else {
        op.insn.immediate8().into()
    }
}

fn port_in<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let port = port(cpu, op, 1);
    cpu.check_port(port, W::SIZE)?;
    let value: W = cpu.port_read(port);
    cpu.set_reg(RAX as u8, value);
    cpu.leave_block = true;
    Ok(())
}

fn port_out<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let port = port(cpu, op, 0);
    cpu.check_port(port, W::SIZE)?;
    cpu.port_write(port, cpu.reg::<W>(RAX as u8));
    cpu.leave_block = true;
    Ok(())
}

fn ins<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let port: u16 = cpu.reg(RDX as u8);
    cpu.check_port(port, W::SIZE)?;
    let mask = address_mask(&op.insn);
    cpu.repeat(op, |cpu, _| {
        let to = cpu.state.gpr[RDI] & mask;
        let linear = cpu.linear(SegReg::Es, to, W::SIZE, Access::Write)?;
        // What the port gives up must not be lost to a page fault.
        cpu.probe_write(linear, W::SIZE)?;
        let value: W = cpu.port_read(port);
        cpu.write(linear, value)?;
        cpu.advance(RDI, mask, W::SIZE, 1);
        Ok((1, Next::Go))
    })
}

fn outs<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let port: u16 = cpu.reg(RDX as u8);
    cpu.check_port(port, W::SIZE)?;
    let mask = address_mask(&op.insn);
    cpu.repeat(op, |cpu, _| {
        let from = cpu.state.gpr[RSI] & mask;
        let linear = cpu.linear(op.seg, from, W::SIZE, Access::Read)?;
        let value: W = cpu.read(linear)?;
        cpu.port_write(port, value);
        cpu.advance(RSI, mask, W::SIZE, 1);
        Ok((1, Next::Go))
    })
}
