//! Operands in registers that live in the context, left there.

use iced_x86::Code;

use super::*;

/// Lets one register operand that lives in the context stay there, where the instruction has a
/// form with a memory operand in its place, as `has_form` knows; returns which.
pub(super) fn leave_operand(
    host: &mut Instruction,
    fact: &Fact,
    mut has_form: impl FnMut(&Instruction) -> bool,
) -> Option<u32> {
    let candidate = |host: &Instruction, i: u32| {
        let reg = (host.op_kind(i) == OpKind::Register).then(|| host.op_register(i))?;
        if !reg.is_gpr() || is_high_byte(reg) {
            return None;
        }
        let n = number(reg);
        let times = (0..host.op_count())
            .filter(|&j| host.op_kind(j) == OpKind::Register && host.op_register(j).is_gpr())
            .filter(|&j| number(host.op_register(j)) == n)
            .count();
        // A write of 32 bits clears those above, and a shorter one delays who reads all of them.
        let fits = times == 1 && (reg.size() == 8 || !fact.uses[n].1);
        match home(n) {
            Home::Memory(n) if fits => Some(n),
            _ => None,
        }
    };
    if !means_the_same(host.mnemonic()) {
        return None;
    }
    for i in 0..host.op_count() {
        let Some(n) = candidate(host, i) else { continue };
        let mut left = *host;
        left.set_op_kind(i, OpKind::Memory);
        point_at(&mut left, Register::RSP, offset::gpr(n));
        if !has_form(&left) {
            match with_memory_last(host.code()) {
                Some(code) if i == 1 => left.set_code(code),
                _ => continue,
            }
        }
        *host = left;
        return Some(i);
    }
    None
}

/// Whether an instruction does to memory just what it does to a register. XCHG locks it, bit tests
/// reach beyond it, and moves out of vector registers write less of it.
fn means_the_same(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Imul
            | M::Mul
            | M::Mulx
            | M::Adcx
            | M::Adox
            | M::Cmove
            | M::Cmovne
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovs
            | M::Cmovns
    )
}

/// The form with the last operand in memory, of one that has only registers there.
fn with_memory_last(code: Code) -> Option<Code> {
    use Code as C;
    Some(match code {
        C::Mov_rm32_r32 => C::Mov_r32_rm32,
        C::Mov_rm64_r64 => C::Mov_r64_rm64,
        C::Add_rm32_r32 => C::Add_r32_rm32,
        C::Add_rm64_r64 => C::Add_r64_rm64,
        C::Or_rm32_r32 => C::Or_r32_rm32,
        C::Or_rm64_r64 => C::Or_r64_rm64,
        C::Adc_rm32_r32 => C::Adc_r32_rm32,
        C::Adc_rm64_r64 => C::Adc_r64_rm64,
        C::Sbb_rm32_r32 => C::Sbb_r32_rm32,
        C::Sbb_rm64_r64 => C::Sbb_r64_rm64,
        C::And_rm32_r32 => C::And_r32_rm32,
        C::And_rm64_r64 => C::And_r64_rm64,
        C::Sub_rm32_r32 => C::Sub_r32_rm32,
        C::Sub_rm64_r64 => C::Sub_r64_rm64,
        C::Xor_rm32_r32 => C::Xor_r32_rm32,
        C::Xor_rm64_r64 => C::Xor_r64_rm64,
        C::Cmp_rm32_r32 => C::Cmp_r32_rm32,
        C::Cmp_rm64_r64 => C::Cmp_r64_rm64,
        _ => return None,
    })
}
