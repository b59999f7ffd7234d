//! Status flags that translated code gave up, computed again.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::alu::{Alu, Flags};

use super::registers::{is_high_byte, number};

/// Whether [`recover`] can tell the flags that an instruction left while the registers it names are
/// as it left them.
pub fn is_recoverable(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let is_register = insn.op0_kind() == OpKind::Register
        && insn.op0_register().is_gpr()
        && !is_high_byte(insn.op0_register());
    if !is_register {
        return false;
    }
    let is_number = |i: u32| insn.try_immediate(i).is_ok();
    let other = (insn.op_count() == 2 && insn.op1_kind() == OpKind::Register)
        .then(|| insn.op1_register())
        .filter(|reg| reg.is_gpr() && !is_high_byte(*reg));
    match insn.mnemonic() {
        M::Cmp | M::Test => other.is_some() || is_number(1),
        // The result and one operand give the other.
        M::Add | M::Sub => {
            is_number(1) || other.is_some_and(|reg| number(reg) != number(insn.op0_register()))
        }
        // The result gives them all.
        M::And | M::Or | M::Xor => true,
        M::Neg => true,
        _ => false,
    }
}

/// The flags that an instruction left, if the registers it names still are as it left them.
pub fn recover(insn: &Instruction, gpr: &[u64; 16]) -> Option<Flags> {
    if !is_recoverable(insn) {
        return None;
    }
    let read = |reg: Register| gpr[number(reg)];
    let a = read(insn.op0_register());
    let b = match insn.op_count() {
        2 if insn.op1_kind() == OpKind::Register => read(insn.op1_register()),
        2 => insn.try_immediate(1).unwrap_or(0),
        _ => 0,
    };
    match insn.op0_register().size() {
        1 => of(insn.mnemonic(), a as u8, b as u8, u8::wrapping_add, u8::wrapping_sub),
        2 => of(insn.mnemonic(), a as u16, b as u16, u16::wrapping_add, u16::wrapping_sub),
        4 => of(insn.mnemonic(), a as u32, b as u32, u32::wrapping_add, u32::wrapping_sub),
        _ => of(insn.mnemonic(), a, b, u64::wrapping_add, u64::wrapping_sub),
    }
}

fn of<T: Alu + Copy + Default>(
    mnemonic: Mnemonic,
    a: T,
    b: T,
    add: fn(T, T) -> T,
    sub: fn(T, T) -> T,
) -> Option<Flags> {
    use Mnemonic as M;
    let (_, flags) = match mnemonic {
        M::Cmp => a.sub(b),
        M::Test => a.and(b),
        M::Add => sub(a, b).add(b),
        M::Sub => add(a, b).sub(b),
        M::And | M::Or | M::Xor => a.and(a),
        M::Neg => sub(T::default(), a).neg(),
        _ => return None,
    };
    Some(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;

    /// Flags that the processor leaves and flags computed afterwards.
    #[test]
    fn flags_are_those_of_the_instruction() {
        let numbers = [0u64, 1, 0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63, 0x1234];
        for a in numbers {
            for b in numbers {
                check(a, b, |asm| asm.add(eax, ecx), a as u32, b as u32, Alu::add);
                check(a, b, |asm| asm.sub(rax, rcx), a, b, Alu::sub);
                check(a, b, |asm| asm.cmp(ax, cx), a as u16, b as u16, |a, b| (a, a.sub(b).1));
                check(a, b, |asm| asm.and(al, cl), a as u8, b as u8, Alu::and);
                check(a, b, |asm| asm.xor(eax, ecx), a as u32, b as u32, Alu::xor);
                check(a, b, |asm| asm.neg(eax), a as u32, b as u32, |a, _| a.neg());
            }
        }
    }

    fn check<T: Alu + Copy + Into<u64>>(
        a: u64,
        b: u64,
        emit: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
        x: T,
        y: T,
        run: fn(T, T) -> (T, Flags),
    ) {
        let mut asm = CodeAssembler::new(64).unwrap();
        emit(&mut asm).unwrap();
        let insn = asm.instructions()[0];
        let (result, flags) = run(x, y);
        let mut gpr = [0; 16];
        (gpr[0], gpr[1]) = (a, b);
        let size = insn.op0_register().size();
        let mask = if size == 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        gpr[0] = gpr[0] & !mask | result.into();
        assert_eq!(recover(&insn, &gpr), Some(flags), "{insn} {a:x} {b:x}");
    }
}
