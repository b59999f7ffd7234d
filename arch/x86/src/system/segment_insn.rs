//! Instructions that load, store and examine segment registers and descriptor tables.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, is_canonical};
use crate::decode::{Handler, Op, seg_reg};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec, vector};
use crate::insn::operand::{Source, Target, one_operand, sized_wide, source_operand};
use crate::paging::Access;
use crate::segment::{Descriptor, is_null, system_type};
use crate::state::{Cr4, DescriptorTable, Rflags, SegReg};

/// The handler for a segment instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let is_segment =
        |i: u32| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_segment_register();
    match insn.mnemonic() {
        Mnemonic::Mov if is_segment(0) && insn.op0_register() != Register::CS => {
            source_operand!(insn, 1, S => Some(mov_to_segment::<E, S> as Handler<E>))
        }
        Mnemonic::Mov if is_segment(1) => Some(mov_from_segment),
        Mnemonic::Pop if is_segment(0) => {
            let size = insn.stack_pointer_increment() as usize;
            sized_wide!(size, W => pop_segment::<E, W>)
        }
        Mnemonic::Les => Some(|cpu, op| load_far_pointer(cpu, op, SegReg::Es)),
        Mnemonic::Lds => Some(|cpu, op| load_far_pointer(cpu, op, SegReg::Ds)),
        Mnemonic::Lss => Some(|cpu, op| load_far_pointer(cpu, op, SegReg::Ss)),
        Mnemonic::Lfs => Some(|cpu, op| load_far_pointer(cpu, op, SegReg::Fs)),
        Mnemonic::Lgs => Some(|cpu, op| load_far_pointer(cpu, op, SegReg::Gs)),
        Mnemonic::Lgdt => Some(|cpu, op| {
            cpu.state.gdtr = load_table(cpu, op)?;
            Ok(())
        }),
        Mnemonic::Lidt => Some(|cpu, op| {
            cpu.state.idtr = load_table(cpu, op)?;
            Ok(())
        }),
        Mnemonic::Sgdt => Some(|cpu, op| store_table(cpu, op, cpu.state.gdtr)),
        Mnemonic::Sidt => Some(|cpu, op| store_table(cpu, op, cpu.state.idtr)),
        Mnemonic::Lldt => {
            one_operand!(insn, S => Some(lldt::<E, S> as Handler<E>))
        }
        Mnemonic::Ltr => one_operand!(insn, S => Some(ltr::<E, S> as Handler<E>)),
        Mnemonic::Sldt => Some(|cpu, op| {
            check_umip(cpu)?;
            check_protected(cpu)?;
            store_selector(cpu, op, cpu.state.ldtr.selector)
        }),
        Mnemonic::Str => Some(|cpu, op| {
            check_umip(cpu)?;
            check_protected(cpu)?;
            store_selector(cpu, op, cpu.state.tr.selector)
        }),
        Mnemonic::Lar => source_operand!(insn, 1, S => Some(lar::<E, S> as Handler<E>)),
        Mnemonic::Lsl => source_operand!(insn, 1, S => Some(lsl::<E, S> as Handler<E>)),
        Mnemonic::Verr => {
            one_operand!(insn, S => Some(verify::<E, S, false> as Handler<E>))
        }
        Mnemonic::Verw => {
            one_operand!(insn, S => Some(verify::<E, S, true> as Handler<E>))
        }
        Mnemonic::Arpl => one_operand!(insn, D => Some(arpl::<E, D> as Handler<E>)),
        _ => None,
    }
}

/// UMIP: these instructions are for CPL 0 (SDM Vol. 3, 2.5).
pub(crate) fn check_umip<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if cpu.state.cr4.contains(Cr4::UMIP) && cpu.mode.cpl != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    Ok(())
}

/// These instructions are unknown outside protected mode.
fn check_protected<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if !cpu.state.is_protected() || cpu.state.is_v8086() {
        return Err(cpu.raise(Exception::UD));
    }
    Ok(())
}

fn check_cpl0<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if cpu.mode.cpl != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    Ok(())
}

/// Loads a segment register; SS shields the next instruction from interrupts.
fn load<E: Env>(cpu: &mut Cpu<E>, reg: SegReg, selector: u16) -> Exec {
    cpu.load_segment(reg, selector)?;
    if reg == SegReg::Ss {
        cpu.state.interrupt_shadow = true;
        cpu.stack_loaded = true;
        cpu.update_mode();
    }
    Ok(())
}

fn mov_to_segment<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let selector = S::get(cpu, op)?;
    load(cpu, seg_reg(op.insn.op0_register()), selector)
}

/// To a register with its operand size, to memory always 16 bits.
fn mov_from_segment<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let selector = cpu.state.segment(seg_reg(op.insn.op1_register())).selector;
    store_selector(cpu, op, selector)
}

fn store_selector<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, selector: u16) -> Exec {
    if op.insn.op0_kind() == OpKind::Memory {
        let linear = cpu.operand_address(op, 2, Access::Write)?;
        return cpu.write(linear, selector);
    }
    match op.insn.op0_register().size() {
        2 => cpu.set_reg(op.regs[0], selector),
        4 => cpu.set_reg(op.regs[0], u32::from(selector)),
        _ => cpu.set_reg(op.regs[0], u64::from(selector)),
    }
    Ok(())
}

fn pop_segment<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let selector: W = cpu.peek(0)?;
    let selector: u64 = selector.into();
    let sp = cpu.state.gpr[crate::state::gpr::RSP].wrapping_add(W::SIZE as u64);
    let mask = cpu.mode.stack_mask;
    load(cpu, seg_reg(op.insn.op0_register()), selector as u16)?;
    // POP SS moves the old stack's pointer.
    let keep = if mask == 0xffff { !0xffff } else { 0 };
    let rsp = &mut cpu.state.gpr[crate::state::gpr::RSP];
    *rsp = *rsp & keep | sp & mask;
    Ok(())
}

fn load_far_pointer<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, reg: SegReg) -> Exec {
    let size = op.insn.op0_register().size();
    let (selector, offset) = cpu.far_pointer(op, size)?;
    cpu.load_segment(reg, selector)?;
    match size {
        2 => cpu.set_reg(op.regs[0], offset as u16),
        4 => cpu.set_reg(op.regs[0], offset as u32),
        _ => cpu.set_reg(op.regs[0], offset),
    }
    Ok(())
}

/// LGDT and LIDT. With a 16-bit operand size only 24 bits of the base are loaded.
fn load_table<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec<DescriptorTable> {
    check_cpl0(cpu)?;
    let is_64bit = cpu.mode.code_bits == 64;
    let linear = cpu.operand_address(op, if is_64bit { 10 } else { 6 }, Access::Read)?;
    let limit = cpu.read(linear)?;
    let at = linear.wrapping_add(2);
    let base = if is_64bit { cpu.read(at)? } else { cpu.read::<u32>(at)?.into() };
    let is_short = matches!(op.insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    let base = if is_short { base & 0xff_ffff } else { base };
    if is_64bit && !is_canonical(base) {
        return Err(cpu.raise(Exception::GP0));
    }
    Ok(DescriptorTable { base, limit })
}

fn store_table<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, table: DescriptorTable) -> Exec {
    check_umip(cpu)?;
    let size = if cpu.mode.code_bits == 64 { 10 } else { 6 };
    let linear = cpu.operand_address(op, size, Access::Write)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &bytes[..size])
}

fn lldt<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    check_cpl0(cpu)?;
    let selector = S::get(cpu, op)?;
    cpu.load_ldtr(selector, vector::GP)
}

fn ltr<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    check_cpl0(cpu)?;
    let selector = S::get(cpu, op)?;
    cpu.load_tr(selector)
}

/// The descriptor that LAR, LSL, VERR and VERW look at, if it can be seen at all.
fn visible<E: Env>(cpu: &mut Cpu<E>, selector: u16) -> Exec<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let cpl = cpu.mode.cpl;
    Ok(cpu.find_descriptor(selector)?.filter(|d| {
        let attributes = d.attributes();
        (attributes.is_code_or_data() && attributes.is_conforming())
            || attributes.dpl() >= cpl.max(d.rpl())
    }))
}

fn set_result<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, value: Option<u32>) {
    cpu.set_flag(Rflags::ZF, value.is_some());
    if let Some(value) = value {
        match op.insn.op0_register().size() {
            2 => cpu.set_reg(op.regs[0], value as u16),
            4 => cpu.set_reg(op.regs[0], value),
            _ => cpu.set_reg(op.regs[0], u64::from(value)),
        }
    }
}

fn lar<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    let selector = S::get(cpu, op)?;
    let is_long = cpu.state.is_long_mode();
    let seen = visible(cpu, selector)?.filter(|d| match d.system_type() {
        None => true,
        Some(
            system_type::LDT | system_type::TSS | system_type::TSS_BUSY | system_type::CALL_GATE,
        ) => true,
        Some(
            system_type::TSS16
            | system_type::TSS16_BUSY
            | system_type::CALL_GATE16
            | system_type::TASK_GATE,
        ) => !is_long,
        Some(_) => false,
    });
    set_result(cpu, op, seen.map(|d| (d.raw >> 32) as u32 & 0x00f0_ff00));
    Ok(())
}

fn lsl<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    let selector = S::get(cpu, op)?;
    let is_long = cpu.state.is_long_mode();
    let seen = visible(cpu, selector)?.filter(|d| match d.system_type() {
        None => true,
        Some(system_type::LDT | system_type::TSS | system_type::TSS_BUSY) => true,
        Some(system_type::TSS16 | system_type::TSS16_BUSY) => !is_long,
        Some(_) => false,
    });
    set_result(cpu, op, seen.map(|d| d.limit()));
    Ok(())
}

fn verify<E: Env, S: Source, const WRITE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    let selector = S::get(cpu, op)?;
    let ok = visible(cpu, selector)?.is_some_and(|d| {
        let attributes = d.attributes();
        attributes.is_code_or_data()
            && if WRITE { attributes.is_writable() } else { attributes.is_readable() }
    });
    cpu.set_flag(Rflags::ZF, ok);
    Ok(())
}

fn arpl<E: Env, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_protected(cpu)?;
    let source: u16 = cpu.reg(op.regs[1]);
    let old: u16 = D::get(cpu, op)?;
    let raises = old & 3 < source & 3;
    if raises {
        D::set(cpu, op, old & !3 | source & 3)?;
    }
    cpu.set_flag(Rflags::ZF, raises);
    Ok(())
}
