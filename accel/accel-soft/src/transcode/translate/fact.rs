//! What there is to know of an instruction before it is emitted.

use super::*;

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    Store,
}

/// What there is to know of an instruction.
pub(super) struct Fact {
    pub(super) kind: Kind,
    pub(super) is_vector: bool,
    /// The use of the memory operand, if there is one.
    pub(super) access: Option<Access>,
    /// Of plain instructions, by number of the general-purpose register: read, written.
    pub(super) uses: [(bool, bool); 16],
    /// It writes AH, CH, DH or BH.
    pub(super) writes_high_byte: bool,
    pub(super) flags: FlagUse,
    /// Which flags may be given up before it.
    pub(super) back: Back,
}

impl Translator {
    /// What there is to know of an instruction under the current setting.
    pub(super) fn fact(&mut self, insn: &Instruction, offer: &mut dyn Offer) -> Fact {
        let kind = classify(insn);
        let is_vector = kind == Kind::Plain && uses_vectors(insn);
        let mut fact = Fact {
            kind,
            is_vector,
            access: None,
            uses: [(false, false); 16],
            writes_high_byte: false,
            flags: match kind {
                Kind::Nothing | Kind::Lea | Kind::Push | Kind::Pop | Kind::Leave => FlagUse::None,
                _ => FlagUse::Reads,
            },
            back: 0,
        };
        if !matches!(kind, Kind::Plain | Kind::Lea) {
            return fact;
        }
        // In 32-bit code they clear eight registers, not sixteen.
        let clears_vectors = matches!(insn.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
        if is_vector && self.setting.vectors < vector_level(insn)
            || clears_vectors && self.setting.is_32bit
            || !offer.has(insn, is_vector)
        {
            fact.kind = Kind::Interpret;
            return fact;
        }
        if kind == Kind::Plain {
            fact.flags = match plain::flags(insn) {
                (0, 0) => FlagUse::None,
                (0, ALL) => FlagUse::Overwrites,
                _ => FlagUse::Reads,
            };
        }
        let info = self.info.info(insn);
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register && is_high_byte(insn.op_register(i)) {
                fact.writes_high_byte |= !matches!(
                    info.op_access(i),
                    OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                );
            }
            if insn.op_kind(i) == OpKind::Memory {
                fact.access = match info.op_access(i) {
                    OpAccess::Read | OpAccess::CondRead => Some(Access::Load),
                    OpAccess::NoMemAccess if kind == Kind::Lea => None,
                    OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite => Some(Access::Store),
                    _ => {
                        fact.kind = Kind::Interpret;
                        fact.flags = FlagUse::Reads;
                        None
                    }
                };
            }
        }
        for used in info.used_registers() {
            let reg = used.register();
            if !reg.is_gpr() {
                continue;
            }
            let (read, written) = match used.access() {
                OpAccess::None | OpAccess::NoMemAccess => continue,
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write => (reg.size() < 4, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite => (true, true),
            };
            let slot = &mut fact.uses[number(reg)];
            *slot = (slot.0 || read, slot.1 || written);
        }
        fact
    }
}

/// Whether an instruction uses vector or mask registers or MXCSR.
fn uses_vectors(insn: &Instruction) -> bool {
    use Mnemonic as M;
    // Conversions of a number in memory to an integer name none, but need MXCSR.
    if matches!(
        insn.mnemonic(),
        M::Vzeroupper
            | M::Vzeroall
            | M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
            | M::Vcvtss2usi
            | M::Vcvtsd2usi
            | M::Vcvttss2usi
            | M::Vcvttsd2usi
    ) {
        return true;
    }
    (0..insn.op_count()).any(|i| {
        insn.op_kind(i) == OpKind::Register && {
            let reg = insn.op_register(i);
            reg.is_vector_register() || reg.is_k()
        }
    })
}

/// The least level of vector instructions ([`Setting::vectors`]) that has this one.
fn vector_level(insn: &Instruction) -> u8 {
    use iced_x86::EncodingKind as E;
    let has_mask = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_k());
    match insn.code().encoding() {
        E::Legacy => 1,
        E::VEX if !has_mask => 2,
        _ => 3,
    }
}
