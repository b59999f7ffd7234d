//! The registers that GDB sees: one list, from which follow the target description, the layout of
//! the `g` packet, and how each is read and written.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use accel::CpuState;
use gdbstub::arch::{Arch, RegId, Registers};
use x86::state::{Rflags, SegReg, gpr};

use crate::x87;

/// x86-64 with SSE, segment bases and control registers.
pub enum X86 {}

/// One register, by what it is in [`CpuState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    General(usize),
    Rip,
    Flags,
    Selector(SegReg),
    St(usize),
    X87(x87::Field),
    Xmm(usize),
    Mxcsr,
    Base(SegReg),
    KernelGsBase,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Efer,
    GdtBase,
    IdtBase,
}

/// Why a register cannot be written: from outside, or not with this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A register as the target description has it. GDB's own features have names and an order that
/// it insists on (GDB manual, "i386 Features").
struct Entry {
    register: Register,
    name: &'static str,
    bits: u16,
    kind: &'static str,
    feature: &'static str,
}

const CORE: &str = "org.gnu.gdb.i386.core";
const SSE: &str = "org.gnu.gdb.i386.sse";
const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
const SYSTEM: &str = "org.lodge.system";

/// All of them; a place in the list is the register's number in the protocol.
static LIST: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let mut list = Vec::new();
    let mut add = |register, name, bits, kind, feature| {
        list.push(Entry { register, name, bits, kind, feature });
    };
    const GENERAL: [(&str, usize, &str); 16] = [
        ("rax", gpr::RAX, "int64"),
        ("rbx", gpr::RBX, "int64"),
        ("rcx", gpr::RCX, "int64"),
        ("rdx", gpr::RDX, "int64"),
        ("rsi", gpr::RSI, "int64"),
        ("rdi", gpr::RDI, "int64"),
        ("rbp", gpr::RBP, "data_ptr"),
        ("rsp", gpr::RSP, "data_ptr"),
        ("r8", 8, "int64"),
        ("r9", 9, "int64"),
        ("r10", 10, "int64"),
        ("r11", 11, "int64"),
        ("r12", 12, "int64"),
        ("r13", 13, "int64"),
        ("r14", 14, "int64"),
        ("r15", 15, "int64"),
    ];
    for (name, number, kind) in GENERAL {
        add(Register::General(number), name, 64, kind, CORE);
    }
    add(Register::Rip, "rip", 64, "code_ptr", CORE);
    add(Register::Flags, "eflags", 32, "i386_eflags", CORE);
    const SELECTORS: [(&str, SegReg); 6] = [
        ("cs", SegReg::Cs),
        ("ss", SegReg::Ss),
        ("ds", SegReg::Ds),
        ("es", SegReg::Es),
        ("fs", SegReg::Fs),
        ("gs", SegReg::Gs),
    ];
    for (name, segment) in SELECTORS {
        add(Register::Selector(segment), name, 32, "int32", CORE);
    }
    const ST: [&str; 8] = ["st0", "st1", "st2", "st3", "st4", "st5", "st6", "st7"];
    for (number, name) in ST.into_iter().enumerate() {
        add(Register::St(number), name, 80, "i387_ext", CORE);
    }
    for (name, field) in x87::FIELDS {
        add(Register::X87(field), name, 32, "int", CORE);
    }
    const XMM: [&str; 16] = [
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
    ];
    for (number, name) in XMM.into_iter().enumerate() {
        add(Register::Xmm(number), name, 128, "vec128", SSE);
    }
    add(Register::Mxcsr, "mxcsr", 32, "i386_mxcsr", SSE);
    add(Register::Base(SegReg::Fs), "fs_base", 64, "int", SEGMENTS);
    add(Register::Base(SegReg::Gs), "gs_base", 64, "int", SEGMENTS);
    add(Register::KernelGsBase, "k_gs_base", 64, "int64", SYSTEM);
    add(Register::Cr0, "cr0", 64, "int64", SYSTEM);
    add(Register::Cr2, "cr2", 64, "int64", SYSTEM);
    add(Register::Cr3, "cr3", 64, "int64", SYSTEM);
    add(Register::Cr4, "cr4", 64, "int64", SYSTEM);
    add(Register::Efer, "efer", 64, "int64", SYSTEM);
    add(Register::GdtBase, "gdt_base", 64, "data_ptr", SYSTEM);
    add(Register::IdtBase, "idt_base", 64, "data_ptr", SYSTEM);
    list
});

/// The target description (GDB manual, appendix G).
static DESCRIPTION: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
         <architecture>i386:x86-64</architecture>",
    );
    for group in LIST.chunk_by(|a, b| a.feature == b.feature) {
        let feature = group[0].feature;
        // Writing to a String does not fail.
        let _ = write!(text, "<feature name=\"{feature}\">{}", types(feature));
        for Entry { name, bits, kind, .. } in group {
            let _ = write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>");
        }
        text.push_str("</feature>");
    }
    text.push_str("</target>");
    text
});

/// The types that a feature's registers have besides GDB's own.
fn types(feature: &str) -> String {
    let flags = |id: &str, flags: &[(&str, u32)]| {
        let fields: String = flags
            .iter()
            .map(|(name, bit)| format!("<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>"))
            .collect();
        format!("<flags id=\"{id}\" size=\"4\">{fields}</flags>")
    };
    match feature {
        CORE => flags(
            "i386_eflags",
            &[
                ("CF", 0),
                ("", 1),
                ("PF", 2),
                ("AF", 4),
                ("ZF", 6),
                ("SF", 7),
                ("TF", 8),
                ("IF", 9),
                ("DF", 10),
                ("OF", 11),
                ("NT", 14),
                ("RF", 16),
                ("VM", 17),
                ("AC", 18),
                ("VIF", 19),
                ("VIP", 20),
                ("ID", 21),
            ],
        ),
        SSE => {
            let vectors = [
                ("v4f", "ieee_single", 4),
                ("v2d", "ieee_double", 2),
                ("v16i8", "int8", 16),
                ("v8i16", "int16", 8),
                ("v4i32", "int32", 4),
                ("v2i64", "int64", 2),
            ];
            let declared: String = vectors
                .iter()
                .map(|(id, kind, count)| {
                    format!("<vector id=\"{id}\" type=\"{kind}\" count=\"{count}\"/>")
                })
                .collect();
            let fields = [
                ("v4_float", "v4f"),
                ("v2_double", "v2d"),
                ("v16_int8", "v16i8"),
                ("v8_int16", "v8i16"),
                ("v4_int32", "v4i32"),
                ("v2_int64", "v2i64"),
                ("uint128", "uint128"),
            ];
            let fields: String = fields
                .iter()
                .map(|(name, kind)| format!("<field name=\"{name}\" type=\"{kind}\"/>"))
                .collect();
            let mxcsr = flags(
                "i386_mxcsr",
                &[
                    ("IE", 0),
                    ("DE", 1),
                    ("ZE", 2),
                    ("OE", 3),
                    ("UE", 4),
                    ("PE", 5),
                    ("DAZ", 6),
                    ("IM", 7),
                    ("DM", 8),
                    ("ZM", 9),
                    ("OM", 10),
                    ("UM", 11),
                    ("PM", 12),
                    ("FZ", 15),
                ],
            );
            format!("{declared}<union id=\"vec128\">{fields}</union>{mxcsr}")
        }
        _ => String::new(),
    }
}

impl Arch for X86 {
    type Usize = u64;
    type Registers = RegisterFile;
    type RegId = Register;
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

impl RegId for Register {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let entry = LIST.get(id)?;
        Some((entry.register, NonZeroUsize::new(usize::from(entry.bits) / 8)))
    }
}

/// The contents of all registers, as the `g` packet has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterFile {
    bytes: Vec<u8>,
    rip: u64,
}

impl Registers for RegisterFile {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().copied().map(Some).for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let length: usize = LIST.iter().map(|entry| usize::from(entry.bits) / 8).sum();
        if bytes.len() != length {
            return Err(());
        }
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

impl RegisterFile {
    /// What `state` has.
    pub fn of(state: &CpuState) -> Self {
        let mut bytes = Vec::new();
        for entry in LIST.iter() {
            bytes.extend_from_slice(&entry.register.read(state)[..usize::from(entry.bits) / 8]);
        }
        Self { bytes, rip: state.rip }
    }

    /// Writes what differs from `state` to it. Nothing, if one of that cannot be written.
    pub fn apply(&self, state: &mut CpuState) -> Result<(), Refused> {
        let mut changed = state.clone();
        let mut rest = &self.bytes[..];
        for entry in LIST.iter() {
            let (value, behind) =
                rest.split_at_checked(usize::from(entry.bits) / 8).ok_or(Refused)?;
            rest = behind;
            if entry.register.read(state)[..value.len()] != *value {
                entry.register.write(&mut changed, value)?;
            }
        }
        *state = changed;
        Ok(())
    }
}

impl Register {
    /// Its value; little-endian, and zero beyond its size.
    pub fn read(self, state: &CpuState) -> [u8; 16] {
        let value: u128 = match self {
            Self::General(number) => state.gpr[number].into(),
            Self::Rip => state.rip.into(),
            Self::Flags => state.rflags.into(),
            Self::Selector(segment) => state.segment(segment).selector.into(),
            Self::St(number) => words(state.vector.x87.st[number]) & (u128::MAX >> 48),
            Self::X87(field) => field.read(&state.vector.x87).into(),
            Self::Xmm(number) => {
                let [low, high, ..] = state.vector.zmm[number];
                words([low, high])
            }
            Self::Mxcsr => state.vector.x87.mxcsr.into(),
            Self::Base(segment) => state.segment(segment).base.into(),
            Self::KernelGsBase => state.msrs.kernel_gs_base.into(),
            Self::Cr0 => state.cr0.bits().into(),
            Self::Cr2 => state.cr2.into(),
            Self::Cr3 => state.cr3.into(),
            Self::Cr4 => state.cr4.bits().into(),
            Self::Efer => state.efer.bits().into(),
            Self::GdtBase => state.gdtr.base.into(),
            Self::IdtBase => state.idtr.base.into(),
        };
        value.to_le_bytes()
    }

    /// Writes it. Selectors and control registers are refused: to load one has effects that
    /// only an instruction has.
    pub fn write(self, state: &mut CpuState, value: &[u8]) -> Result<(), Refused> {
        let mut bytes = [0; 16];
        bytes.get_mut(..value.len()).ok_or(Refused)?.copy_from_slice(value);
        let wide = u128::from_le_bytes(bytes);
        let value = wide as u64;
        let canonical = || if is_canonical(value) { Ok(value) } else { Err(Refused) };
        match self {
            Self::General(number) => state.gpr[number] = value,
            Self::Rip => state.rip = canonical()?,
            Self::Flags => {
                // VM changes what segment registers mean.
                let fixed = Rflags::VM.bits() | !FLAGS;
                state.rflags = state.rflags & fixed | value & !fixed;
            }
            Self::St(number) => state.vector.x87.st[number] = halves(wide & (u128::MAX >> 48)),
            Self::X87(field) => field.write(&mut state.vector.x87, value as u32),
            Self::Xmm(number) => state.vector.zmm[number][..2].copy_from_slice(&halves(wide)),
            Self::Mxcsr if value as u32 & !state.vector.x87.mxcsr_mask == 0 => {
                state.vector.x87.mxcsr = value as u32;
            }
            Self::Base(segment) => state.seg[segment as usize].base = canonical()?,
            Self::KernelGsBase => state.msrs.kernel_gs_base = canonical()?,
            Self::Selector(_) | Self::Mxcsr => return Err(Refused),
            Self::Cr0 | Self::Cr2 | Self::Cr3 | Self::Cr4 | Self::Efer => return Err(Refused),
            Self::GdtBase | Self::IdtBase => return Err(Refused),
        }
        Ok(())
    }
}

/// The flags that exist (SDM Vol. 1, 3.4.3).
const FLAGS: u64 = 0x003f_7fd5;

/// Bits 63:47 are all alike.
fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

fn words([low, high]: [u64; 2]) -> u128 {
    u128::from(low) | u128::from(high) << 64
}

fn halves(wide: u128) -> [u64; 2] {
    [wide as u64, (wide >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut state = CpuState::reset(0);
        for (n, entry) in LIST.iter().enumerate() {
            let mut value = [0; 16];
            value[0] = n as u8 | 1;
            let size = usize::from(entry.bits) / 8;
            let before = entry.register.read(&state);
            match entry.register.write(&mut state, &value[..size]) {
                Ok(()) if matches!(entry.register, Register::Flags | Register::X87(_)) => {}
                Ok(()) => assert_eq!(entry.register.read(&state), value, "{}", entry.name),
                Err(Refused) => assert_eq!(entry.register.read(&state), before, "{}", entry.name),
            }
        }
    }

    #[test]
    fn a_file_goes_there_and_back() {
        let mut state = CpuState::reset(0);
        state.gpr[gpr::RBX] = 0x1122_3344_5566_7788;
        state.vector.zmm[15] = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut bytes = Vec::new();
        RegisterFile::of(&state).gdb_serialize(|byte| bytes.extend(byte));
        // RBX is GDB's second register.
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788u64.to_le_bytes());
        let mut file = RegisterFile::default();
        assert!(file.gdb_deserialize(&bytes[1..]).is_err());
        file.gdb_deserialize(&bytes).unwrap();
        let mut same = state.clone();
        file.apply(&mut same).unwrap();
        assert_eq!(same, state);
        file.bytes[8] = 0;
        file.apply(&mut same).unwrap();
        assert_eq!(same.gpr[gpr::RBX], 0x1122_3344_5566_7700);
    }

    #[test]
    fn nothing_is_written_by_halves() {
        let mut state = CpuState::reset(0);
        let before = state.clone();
        let mut file = RegisterFile::of(&state);
        file.bytes[0] ^= 1;
        // The last register is not for writing.
        *file.bytes.last_mut().unwrap() ^= 1;
        assert_eq!(file.apply(&mut state), Err(Refused));
        assert_eq!(state, before);
    }

    #[test]
    fn flags_keep_what_is_not_theirs() {
        let mut state = CpuState::reset(0);
        Register::Flags.write(&mut state, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(state.rflags, FLAGS & !Rflags::VM.bits() | 2);
    }
}
