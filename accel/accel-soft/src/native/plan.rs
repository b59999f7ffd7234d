//! What it takes to run one instruction on the host: which registers it uses, and the same
//! instruction with its operands renamed.

use iced_x86::{
    Code, CodeSize, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits, RoundingControl,
};

/// Host registers that explicit general-purpose operands are renamed to. None of them is used
/// implicitly by an instruction that has such an operand, nor by the stub itself.
const RENAMED: [Register; 3] = [Register::R8, Register::R9, Register::R10];
/// The host register that holds the address of the memory operand.
pub(super) const OPERAND: Register = Register::RSI;

/// The six status flags as iced numbers them.
const STATUS_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// The condition codes of the x87 status word, which iced numbers after the flags.
const CONDITION_CODES: u32 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;

/// A set of registers of one kind, by number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct RegSet(u32);

impl RegSet {
    fn insert(&mut self, number: usize) {
        self.0 |= 1 << (number & 31);
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..32).filter(move |i| self.0 >> i & 1 != 0)
    }
}

/// A guest's general-purpose register and the host's that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GprBinding {
    pub guest: usize,
    pub host: Register,
    pub is_written: bool,
}

/// Which registers hold the instruction's floating-point environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Environment {
    /// None: integers, moves, logic.
    None,
    /// MXCSR.
    Mxcsr,
    /// MXCSR, of which the rounding and flushing counts, but neither masks nor flags.
    QuietMxcsr,
    /// The x87 unit.
    X87,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// The instruction as the host will run it.
    pub insn: Instruction,
    pub environment: Environment,
    /// Legacy encoding: only the low 128 bits of vector registers matter, and the rest stays.
    pub is_legacy: bool,
    pub vectors_read: RegSet,
    pub vectors_written: RegSet,
    pub masks_read: RegSet,
    pub masks_written: RegSet,
    pub mmx_read: RegSet,
    pub mmx_written: RegSet,
    pub gprs: Vec<GprBinding>,
    pub reads_flags: bool,
    pub writes_flags: bool,
}

/// The number of a general-purpose register, and its counterpart in `host` of the same size.
/// `None` for AH, BH, CH and DH.
fn rename(reg: Register, host: Register) -> Option<(usize, Register)> {
    let base = match reg.size() {
        _ if matches!(reg, Register::AH | Register::BH | Register::CH | Register::DH) => None,
        8 => Some(Register::RAX),
        4 => Some(Register::EAX),
        2 => Some(Register::AX),
        _ => None,
    }?;
    Some((reg.full_register().number(), base + host.number() as u32))
}

/// Registers of PCMPESTRI and its kin that no operand names: both lengths, and the index.
fn implicit_gprs(mnemonic: Mnemonic) -> &'static [(usize, Register, bool)] {
    const LENGTHS: [(usize, Register, bool); 2] =
        [(0, Register::RAX, false), (2, Register::RDX, false)];
    const INDEX: (usize, Register, bool) = (1, Register::RCX, true);
    match mnemonic {
        Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestri64
        | Mnemonic::Vpcmpestri
        | Mnemonic::Vpcmpestri64 => const { &[LENGTHS[0], LENGTHS[1], INDEX] },
        Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpestrm64
        | Mnemonic::Vpcmpestrm
        | Mnemonic::Vpcmpestrm64 => const { &LENGTHS },
        Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri => const { &[INDEX] },
        _ => &[],
    }
}

impl Plan {
    /// Plans how to run `insn`. `None` if it is not an instruction on vector or x87 registers
    /// that does nothing else but read and write these, general-purpose registers, status flags
    /// and one plain memory operand. This is what makes running it safe, whoever chose it.
    pub fn new(insn: &Instruction) -> Option<Self> {
        let environment = environment(insn);
        let mut host = *insn;
        host.set_code_size(CodeSize::Code64);
        let mut gprs = Vec::new();
        let mut has_memory = false;
        for i in 0..insn.op_count() {
            match insn.op_kind(i) {
                OpKind::Register => {
                    let reg = insn.op_register(i);
                    if reg.is_gpr() {
                        let free = *RENAMED.get(gprs.len())?;
                        let (guest, renamed) = rename(reg, free)?;
                        host.set_op_register(i, renamed);
                        gprs.push(GprBinding { guest, host: free, is_written: false });
                    } else if !(reg.is_vector_register()
                        || reg.is_k()
                        || reg.is_mm()
                        || reg.is_st())
                    {
                        return None;
                    }
                }
                OpKind::Memory => {
                    if insn.memory_index().is_vector_register()
                        || !(1..=512).contains(&insn.memory_size().size())
                    {
                        return None;
                    }
                    has_memory = true;
                }
                OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
                _ => return None,
            }
        }
        if has_memory {
            host.set_segment_prefix(Register::None);
            host.set_memory_base(OPERAND);
            host.set_memory_index(Register::None);
            host.set_memory_index_scale(1);
            host.set_memory_displ_size(0);
            host.set_memory_displacement64(0);
        }
        let implicit = implicit_gprs(insn.mnemonic());
        gprs.extend(implicit.iter().map(|&(guest, host, is_written)| GprBinding {
            guest,
            host,
            is_written,
        }));

        let mut plan = Self {
            insn: host,
            environment,
            is_legacy: insn.code().encoding() == EncodingKind::Legacy,
            vectors_read: RegSet::default(),
            vectors_written: RegSet::default(),
            masks_read: RegSet::default(),
            masks_written: RegSet::default(),
            mmx_read: RegSet::default(),
            mmx_written: RegSet::default(),
            gprs,
            // iced counts the x87 condition codes among the flags.
            reads_flags: host.rflags_read() & STATUS_FLAGS != 0,
            writes_flags: host.rflags_modified() & STATUS_FLAGS != 0,
        };
        plan.note_usage(has_memory)?;
        let has_state = environment == Environment::X87
            || is_conversion(insn.mnemonic())
            || ![plan.vectors_read, plan.vectors_written, plan.masks_read, plan.masks_written]
                .into_iter()
                .chain([plan.mmx_read, plan.mmx_written])
                .all(RegSet::is_empty);
        has_state.then_some(plan)
    }

    /// Finds out which registers the instruction reads and writes, and refuses what it should
    /// not touch.
    fn note_usage(&mut self, has_memory: bool) -> Option<()> {
        let insn = self.insn;
        let is_status = |bits: u32| bits & !(STATUS_FLAGS | CONDITION_CODES) == 0;
        if insn.flow_control() != FlowControl::Next
            || insn.is_privileged()
            || insn.is_stack_instruction()
            || insn.code() == Code::INVALID
            || !is_status(insn.rflags_read())
            || !is_status(insn.rflags_modified())
        {
            return None;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&insn);
        let is_operand =
            |base: Register, index: Register| base == OPERAND && index == Register::None;
        if info.used_memory().len() > usize::from(has_memory)
            || !info.used_memory().iter().all(|m| is_operand(m.base(), m.index()))
        {
            return None;
        }
        for used in info.used_registers() {
            let reg = used.register();
            let (reads, writes) = match used.access() {
                OpAccess::None | OpAccess::NoMemAccess => continue,
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write => (false, true),
                // What is written under a condition or in part keeps the rest.
                OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite => (true, true),
            };
            let (read, written) = if reg.is_vector_register() {
                (&mut self.vectors_read, &mut self.vectors_written)
            } else if reg.is_k() {
                (&mut self.masks_read, &mut self.masks_written)
            } else if reg.is_mm() {
                (&mut self.mmx_read, &mut self.mmx_written)
            } else if reg.is_st() {
                continue;
            } else if reg.is_gpr() {
                let full = reg.full_register();
                match self.gprs.iter_mut().find(|binding| binding.host == full) {
                    Some(binding) => binding.is_written |= writes,
                    None if has_memory && full == OPERAND => {}
                    None => return None,
                }
                continue;
            } else {
                return None;
            };
            if reads || self.is_legacy {
                read.insert(reg.number());
            }
            if writes {
                written.insert(reg.number());
            }
        }
        if matches!(insn.mnemonic(), Mnemonic::Vp2intersectd | Mnemonic::Vp2intersectq) {
            // It writes a pair of mask registers and names one.
            let first = insn.op0_register().number() & !1;
            self.masks_written.insert(first);
            self.masks_written.insert(first + 1);
        }
        Some(())
    }
}

fn environment(insn: &Instruction) -> Environment {
    let is_x87 = insn.cpuid_features().iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    });
    if is_x87 {
        Environment::X87
    } else if ignores_mxcsr(insn.mnemonic()) {
        Environment::None
    } else if is_approximation(insn.mnemonic())
        || insn.suppress_all_exceptions()
        || insn.rounding_control() != RoundingControl::None
    {
        // {sae}, which embedded rounding implies, masks everything and leaves no flags.
        Environment::QuietMxcsr
    } else {
        Environment::Mxcsr
    }
}

/// Whether an instruction converts numbers, if need be from memory to a general-purpose register,
/// with no vector register taking part.
fn is_conversion(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}");
    name.starts_with("Cvt") || name.starts_with("Vcvt")
}

/// Approximations flush denormals even where an unmasked underflow would forbid that, and raise
/// nothing (SDM Vol. 2, VRCP14PS).
fn is_approximation(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vrcp14pd
            | Mnemonic::Vrcp14ps
            | Mnemonic::Vrcp14sd
            | Mnemonic::Vrcp14ss
            | Mnemonic::Vrsqrt14pd
            | Mnemonic::Vrsqrt14ps
            | Mnemonic::Vrsqrt14sd
            | Mnemonic::Vrsqrt14ss
    )
}

/// Whether an instruction neither depends on MXCSR nor sets its flags. The names of integer
/// instructions start with (V)P, those of moves, shuffles and logic with what they do; all that
/// is not recognized is taken to do floating-point arithmetic, which is merely slower.
fn ignores_mxcsr(mnemonic: Mnemonic) -> bool {
    const QUIET: [&str; 21] = [
        "p",
        "mov",
        "and",
        "or",
        "xor",
        "unpck",
        "shuf",
        "blend",
        "insert",
        "extr",
        "broadcast",
        "aes",
        "sha",
        "gf2p8",
        "lddqu",
        "align",
        "compress",
        "expand",
        "maskmov",
        "perm",
        "k",
    ];
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let stem = name.strip_prefix('v').unwrap_or(&name);
    QUIET.iter().any(|prefix| stem.starts_with(prefix))
}
