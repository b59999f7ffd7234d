//! x87 instructions that move control state: no arithmetic, so no need of the host's unit.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{check_available, check_waiting};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::insn::fxsave::qword;
use crate::insn::native::update_x87_summary;
use crate::paging::Access;
use crate::state::{Cr0, X87State, gpr};

/// FCW's exception masks; FSW's flags in the same places.
const EXCEPTIONS: u16 = 0x3f;
/// Bytes of the ten-byte registers in an FSAVE area.
const REGISTERS: usize = 80;

/// The handler for an instruction that moves x87 control state.
pub(super) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    // The environment is 14 bytes long with 16-bit operands, 28 with 32-bit ones; FSAVE's area
    // has 80 more.
    let is_short = matches!(insn.memory_size().size(), 14 | 94);
    match insn.mnemonic() {
        Mnemonic::Wait => Some(fwait),
        Mnemonic::Fnop => Some(|cpu, op| {
            check_waiting(cpu, op)?;
            super::note_addresses(cpu, None);
            Ok(())
        }),
        // What the 8087 and 80287 did is no longer done (SDM Vol. 1, 8.1.11).
        Mnemonic::Fndisi | Mnemonic::Fneni | Mnemonic::Fnsetpm => Some(check_available),
        Mnemonic::Fninit => Some(fninit),
        Mnemonic::Fnclex => Some(fnclex),
        Mnemonic::Fldcw => Some(fldcw),
        Mnemonic::Fnstcw => Some(fnstcw),
        Mnemonic::Fnstsw if insn.op0_kind() == OpKind::Register => Some(fnstsw_ax),
        Mnemonic::Fnstsw => Some(fnstsw),
        Mnemonic::Fnstenv if is_short => Some(fnstenv::<E, 2>),
        Mnemonic::Fnstenv => Some(fnstenv::<E, 4>),
        Mnemonic::Fldenv if is_short => Some(fldenv::<E, 2>),
        Mnemonic::Fldenv => Some(fldenv::<E, 4>),
        Mnemonic::Fnsave if is_short => Some(fnsave::<E, 2>),
        Mnemonic::Fnsave => Some(fnsave::<E, 4>),
        Mnemonic::Frstor if is_short => Some(frstor::<E, 2>),
        Mnemonic::Frstor => Some(frstor::<E, 4>),
        _ => None,
    }
}

fn fwait<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.state.cr0.contains(Cr0::MP | Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    cpu.check_x87_pending()
}

/// The state after FNINIT (SDM Vol. 3, table 10-1).
fn init(x87: &mut X87State) {
    x87.fcw = 0x037f;
    x87.fsw = 0;
    x87.ftw = 0;
    x87.fop = 0;
    x87.fip = 0;
    x87.fdp = 0;
}

fn fninit<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let x87 = &mut cpu.state.vector.x87;
    // Registers keep their contents in their physical places, which the stack order follows.
    x87.st.rotate_right(usize::from(x87.fsw >> 11 & 7));
    init(x87);
    Ok(())
}

fn fnclex<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    // Flags, stack fault, summary and busy.
    cpu.state.vector.x87.fsw &= !0x80ff;
    Ok(())
}

fn set_fcw(x87: &mut X87State, value: u16) {
    x87.fcw = value & 0x1f7f | 0x40;
    update_x87_summary(x87);
}

fn fldcw<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let linear = cpu.operand_address(op, 2, Access::Read)?;
    let value: u16 = cpu.read(linear)?;
    set_fcw(&mut cpu.state.vector.x87, value);
    Ok(())
}

fn fnstcw<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let linear = cpu.operand_address(op, 2, Access::Write)?;
    cpu.write(linear, cpu.state.vector.x87.fcw)
}

fn fnstsw<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let linear = cpu.operand_address(op, 2, Access::Write)?;
    cpu.write(linear, cpu.state.vector.x87.fsw)
}

fn fnstsw_ax<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let fsw = cpu.state.vector.x87.fsw;
    cpu.set_reg(gpr::RAX as u8, fsw);
    Ok(())
}

/// The tag of one register in the full tag word: valid, zero, special, empty (SDM Vol. 1, 8.1.7).
fn tag(st: [u64; 2], is_used: bool) -> u16 {
    let exponent = st[1] & 0x7fff;
    match (is_used, exponent, st[0]) {
        (false, _, _) => 3,
        (_, 0, 0) => 1,
        (_, 1..0x7fff, significand) if significand >> 63 != 0 => 0,
        _ => 2,
    }
}

/// The full tag word: two bits for each physical register.
fn full_tag_word(x87: &X87State) -> u16 {
    let top = usize::from(x87.fsw >> 11 & 7);
    (0..8usize).fold(0, |word, physical| {
        let st = x87.st[physical.wrapping_sub(top) & 7];
        word | tag(st, x87.ftw >> physical & 1 != 0) << (physical * 2)
    })
}

/// The abridged tag word for a full one.
fn abridged_tag_word(full: u16) -> u8 {
    (0..8).fold(0, |word, i| word | u8::from(full >> (i * 2) & 3 != 3) << i)
}

/// The x87 environment in one of its four formats: seven words of `unit` bytes (SDM Vol. 1,
/// figures 8-9 to 8-12). `real` is for real and virtual-8086 mode, where addresses are linear.
/// Selectors are stored as 0 (CPUID.7.0:EBX[13]).
fn environment(x87: &X87State, unit: usize, real: bool) -> [u8; 28] {
    let (fop, fip, fdp) = (u32::from(x87.fop & 0x7ff), x87.fip as u32, x87.fdp as u32);
    let high = |address: u32| {
        if unit == 2 { (address >> 16 & 0xf) << 12 } else { (address >> 16) << 12 }
    };
    let low = |address: u32| if unit == 4 && !real { address } else { address & 0xffff };
    // The upper halves of control, status and tag words, and of selectors, read as ones.
    let ones = if unit == 4 { 0xffff_0000 } else { 0 };
    let words = [
        u32::from(x87.fcw) | ones,
        u32::from(x87.fsw) | ones,
        u32::from(full_tag_word(x87)) | ones,
        low(fip),
        match (real, unit) {
            (true, _) => high(fip) | fop,
            (false, 2) => 0,
            (false, _) => fop << 16,
        },
        low(fdp),
        if real { high(fdp) } else { ones },
    ];
    let mut image = [0; 28];
    for (slot, word) in image.chunks_exact_mut(unit).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes()[..unit]);
    }
    image
}

/// Loads the environment; the inverse of [`environment`].
fn load_environment(x87: &mut X87State, image: &[u8], unit: usize, real: bool) {
    let mut words = [0; 7];
    for (word, bytes) in words.iter_mut().zip(image.chunks_exact(unit)) {
        *word = bytes.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b));
    }
    let word = |i: usize| words[i];
    let address =
        |low: u32, high: u32| u64::from(if real { low & 0xffff | (high >> 12) << 16 } else { low });
    // Physical registers stay where they are while TOP moves.
    let old_top = usize::from(x87.fsw >> 11 & 7);
    x87.fsw = word(1) as u16;
    let top = usize::from(x87.fsw >> 11 & 7);
    x87.st.rotate_left((top + 8 - old_top) & 7);
    x87.ftw = abridged_tag_word(word(2) as u16);
    x87.fip = address(word(3), word(4));
    x87.fdp = address(word(5), word(6));
    x87.fop = match (real, unit) {
        (true, _) => word(4) as u16 & 0x7ff,
        (false, 2) => 0,
        (false, _) => (word(4) >> 16) as u16 & 0x7ff,
    };
    set_fcw(x87, word(0) as u16);
}

fn is_real<E: Env>(cpu: &Cpu<E>) -> bool {
    !cpu.state.is_protected() || cpu.state.is_v8086()
}

fn fnstenv<E: Env, const UNIT: usize>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let len = UNIT * 7;
    let linear = cpu.operand_address(op, len, Access::Write)?;
    let image = environment(&cpu.state.vector.x87, UNIT, is_real(cpu));
    cpu.check_access(linear, UNIT, Access::Write)?;
    cpu.write_bytes(linear, &image[..len])?;
    let x87 = &mut cpu.state.vector.x87;
    set_fcw(x87, x87.fcw | EXCEPTIONS);
    Ok(())
}

fn fldenv<E: Env, const UNIT: usize>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let len = UNIT * 7;
    let linear = cpu.operand_address(op, len, Access::Read)?;
    let mut image = [0; 28];
    cpu.check_access(linear, UNIT, Access::Read)?;
    cpu.read_bytes(linear, &mut image[..len])?;
    let real = is_real(cpu);
    load_environment(&mut cpu.state.vector.x87, &image, UNIT, real);
    Ok(())
}

fn fnsave<E: Env, const UNIT: usize>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_available(cpu, op)?;
    let head = UNIT * 7;
    let linear = cpu.operand_address(op, head + REGISTERS, Access::Write)?;
    let mut image = [0; 28 + REGISTERS];
    let x87 = &cpu.state.vector.x87;
    image[..28].copy_from_slice(&environment(x87, UNIT, is_real(cpu)));
    for (slot, st) in image[head..].chunks_exact_mut(10).zip(&x87.st) {
        slot[..8].copy_from_slice(&st[0].to_le_bytes());
        slot[8..].copy_from_slice(&(st[1] as u16).to_le_bytes());
    }
    cpu.check_access(linear, UNIT, Access::Write)?;
    cpu.write_bytes(linear, &image[..head + REGISTERS])?;
    let x87 = &mut cpu.state.vector.x87;
    x87.st.rotate_right(usize::from(x87.fsw >> 11 & 7));
    init(x87);
    Ok(())
}

fn frstor<E: Env, const UNIT: usize>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_waiting(cpu, op)?;
    let head = UNIT * 7;
    let linear = cpu.operand_address(op, head + REGISTERS, Access::Read)?;
    let mut image = [0; 28 + REGISTERS];
    cpu.check_access(linear, UNIT, Access::Read)?;
    cpu.read_bytes(linear, &mut image[..head + REGISTERS])?;
    let real = is_real(cpu);
    let x87 = &mut cpu.state.vector.x87;
    load_environment(x87, &image, UNIT, real);
    for (slot, st) in image[head..].chunks_exact(10).zip(&mut x87.st) {
        let exponent = slot[8..].iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
        *st = [qword(slot, 0), exponent];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::VectorState;

    fn sample() -> X87State {
        let mut x87 = VectorState::default().x87;
        x87.fcw = 0x037f;
        x87.fsw = 5 << 11 | 0x4700 & !(7 << 11);
        x87.ftw = 0b1110_0000;
        x87.fop = 0x5a5;
        x87.fip = 0x0008_1234;
        x87.fdp = 0x0009_5678;
        // ST0 is 1.0, ST1 is 0.0, ST2 is a NaN.
        x87.st[0] = [1 << 63, 0x3fff];
        x87.st[2] = [3 << 62, 0x7fff];
        x87
    }

    #[test]
    fn tags_follow_the_physical_registers() {
        // R5 valid, R6 zero, R7 special, the rest empty.
        assert_eq!(full_tag_word(&sample()), 0b10_01_00_11_11_11_11_11);
        assert_eq!(abridged_tag_word(0b10_01_00_11_11_11_11_11), 0b1110_0000);
    }

    #[test]
    fn environments_come_back_in_every_format() {
        for (unit, real) in [(2, false), (2, true), (4, false), (4, true)] {
            let x87 = sample();
            let image = environment(&x87, unit, real);
            let mut loaded = VectorState::default().x87;
            load_environment(&mut loaded, &image, unit, real);
            assert_eq!((loaded.fcw, loaded.fsw, loaded.ftw), (x87.fcw, x87.fsw, x87.ftw));
            let mask = if unit == 2 && !real { 0xffff } else { 0xffff_ffff };
            assert_eq!((loaded.fip, loaded.fdp), (x87.fip & mask, x87.fdp & mask));
            assert_eq!(loaded.fop, if unit == 2 && !real { 0 } else { x87.fop });
        }
    }

    #[test]
    fn registers_stay_in_place_when_an_environment_moves_top() {
        let mut x87 = sample();
        let one = x87.st[0];
        let mut other = x87;
        other.fsw = 4 << 11;
        let image = environment(&other, 4, false);
        load_environment(&mut x87, &image, 4, false);
        assert_eq!(x87.st[1], one);
    }
}
