//! Cases from numbers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::state::gpr::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};

use crate::case::{Case, PATCHES};
use crate::encode::{Encoded, MAX_LEN, decode, decoder, encode};
use crate::excuse;
use crate::host::{IMAGES, components};
use crate::layout::{ALIAS, CODE, CODE_SIZE, DATA_SIZE, PAGE, data_linear, data_offset};
use crate::random::{Flavour, Rng, extended, integer};
use crate::skip;

const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const AC: u64 = 1 << 18;
const STATUS: u64 = 0x8d5;

/// A case, and the instructions that it consists of.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What is run.
    pub case: Case,
    /// Its instructions, in order.
    pub insns: Vec<Instruction>,
}

/// Makes cases.
pub struct Generator {
    /// What the host has, in 64-bit and 32-bit mode.
    available: [Vec<Code>; 2],
    /// What it has not: guests should have it neither.
    missing: [Vec<Code>; 2],
}

/// Codes that may be run in a mode at all.
pub fn candidates(bits: u32) -> impl Iterator<Item = Code> {
    Code::values().filter(move |&code| {
        code.op_code().is_available_in_mode(bits) && skip::reason(code).is_none()
    })
}

/// The images that data pages start from: image by image, another kind of number prevails.
pub fn images(seed: u64) -> Vec<[u8; DATA_SIZE]> {
    (0..IMAGES)
        .map(|i| {
            let mut rng = Rng::new(seed ^ 0x1a6e, i as u64);
            let main = Flavour::ALL[i % Flavour::ALL.len()];
            let mut image = [0; DATA_SIZE];
            for line in image.chunks_exact_mut(64) {
                let flavour = if rng.one_in(3) { rng.pick(&Flavour::ALL) } else { main };
                let mut lanes = [[0; 2]; 4];
                flavour.fill(&mut rng, &mut lanes);
                for (slot, q) in line.chunks_exact_mut(8).zip(lanes.iter().flatten()) {
                    slot.copy_from_slice(&q.to_le_bytes());
                }
            }
            image
        })
        .collect()
}

impl Generator {
    /// A generator for a host that has just what `has` says, by code and mode (64 or 32). Codes of
    /// which it says nothing are left out.
    pub fn new(has: impl Fn(Code, u32) -> Option<bool>) -> Self {
        let those = |wanted| {
            [64, 32]
                .map(|bits| candidates(bits).filter(|&c| has(c, bits) == Some(wanted)).collect())
        };
        Self { available: those(true), missing: those(false) }
    }

    /// Case `number` of `seed`.
    pub fn generate(&self, seed: u64, number: u64) -> Sample {
        let mut rng = Rng::new(seed, number);
        let mode = usize::from(rng.one_in(6));
        let codes = match rng.one_in(64) {
            true if !self.missing[mode].is_empty() => &self.missing[mode],
            _ => &self.available[mode],
        };
        loop {
            let code = rng.pick(codes);
            if let Some(sample) = sample(&mut rng, code, [64, 32][mode], Some(codes)) {
                return sample;
            }
        }
    }
}

/// A case of one instruction `code`, or if there are `others`, maybe several.
pub fn sample(rng: &mut Rng, code: Code, bits: u32, others: Option<&[Code]>) -> Option<Sample> {
    let mut builder = Builder::new(rng, bits);
    builder.add(code)?;
    let is_branch = builder.insns[0].flow_control() != iced_x86::FlowControl::Next;
    if let Some(others) = others
        && !is_branch
        && !builder.ends_vaguely()
        && builder.rng.one_in(5)
    {
        for _ in 0..builder.rng.below(4) {
            let other = builder.rng.pick(others);
            let length = builder.code_len;
            if builder.add(other).is_none() || !builder.may_follow() {
                // A branch would need TF, which ends a case after the first instruction.
                builder.truncate(length);
            }
        }
    }
    Some(builder.finish(is_branch))
}

pub(crate) struct Builder<'a> {
    pub rng: &'a mut Rng,
    pub bits: u32,
    pub case: Case,
    pub insns: Vec<Instruction>,
    pub code_len: usize,
    /// General-purpose registers that hold something meant.
    pub assigned: u16,
    pub patches: usize,
}

impl<'a> Builder<'a> {
    pub fn new(rng: &'a mut Rng, bits: u32) -> Self {
        let mut case = Case::empty();
        case.is_32bit = u32::from(bits == 32);
        case.start = match rng.below(32) {
            // Around the end of the first page, and of the second, behind which lies nothing.
            0 => CODE + PAGE as u64 - 1 - rng.below(16),
            1 => CODE + CODE_SIZE as u64 - 1 - rng.below(20),
            _ => CODE + 0x100 + rng.below(64),
        };
        for reg in &mut case.gpr {
            *reg = if rng.one_in(8) { target(rng, bits, 8) } else { integer(rng) };
        }
        case.rflags = 2 | rng.next() & STATUS;
        if rng.one_in(4) {
            case.rflags |= DF;
        }
        if rng.one_in(24) {
            case.rflags |= AC;
        }
        if rng.one_in(24) {
            case.rflags |= TF;
        }
        case.fs_base = rng.pick(&[0, 0x10, 0x3000_1000, 0x1_0000_0000]);
        case.gs_base = rng.pick(&[0, 0x20, 0x3000_2000, ALIAS]);
        if bits == 32 {
            // The guest's segments are truncated to 32 bits; Linux sets bases of 64.
            case.fs_base &= 0xffff_ffff;
            case.gs_base &= 0xffff_ffff;
        }
        case.image = rng.below(IMAGES as u64) as u32;
        vector_state(rng, bits, &mut case);
        let mut builder =
            Self { rng, bits, case, insns: Vec::new(), code_len: 0, assigned: 0, patches: 0 };
        builder.case.gpr[RSP] = target(builder.rng, bits, 8);
        if bits == 32 {
            // What lies above 32 bits is undefined after a change of modes (SDM Vol. 1, 3.4.1.1).
            for reg in &mut builder.case.gpr[8..] {
                *reg = 0;
            }
        }
        builder
    }

    fn ends_in_branch(&self) -> bool {
        self.insns.last().is_some_and(|i| i.flow_control() != iced_x86::FlowControl::Next)
    }

    /// The last instruction leaves flags that the next ones should not depend on.
    fn ends_vaguely(&self) -> bool {
        self.insns.last().is_some_and(|insn| excuse::undefined_flags(insn) != 0)
    }

    /// The last instruction may come after others.
    fn may_follow(&self) -> bool {
        !self.ends_in_branch()
            && !self.ends_vaguely()
            && !self.insns.last().is_some_and(excuse::stores_selectors)
    }

    fn truncate(&mut self, length: usize) {
        if self.code_len > length {
            self.insns.pop();
            self.case.code[length..].fill(crate::layout::FILL);
            self.code_len = length;
        }
    }

    fn add(&mut self, code: Code) -> Option<()> {
        let ip = self.case.start + self.code_len as u64;
        let mut encoded = encode(self.rng, code, self.bits, ip)?;
        if self.code_len + MAX_LEN > self.case.code.len() {
            return None;
        }
        self.place(&mut encoded);
        self.shape(&encoded.insn);
        let len = encoded.insn.len();
        self.case.code[self.code_len..self.code_len + len].copy_from_slice(&encoded.bytes[..len]);
        self.code_len += len;
        self.insns.push(encoded.insn);
        Some(())
    }

    /// The case; a branch needs TF, so that it ends.
    pub fn finish(mut self, is_branch: bool) -> Sample {
        if is_branch {
            self.case.rflags |= TF;
        }
        if self.bits == 32 {
            for reg in &mut self.case.gpr {
                *reg &= 0xffff_ffff;
            }
        }
        self.case.vector.keep_components(components());
        Sample { case: self.case, insns: self.insns }
    }

    /// Sets a register unless an instruction before relies on it.
    pub fn set(&mut self, reg: usize, value: u64) {
        if self.assigned >> reg & 1 == 0 {
            self.case.gpr[reg] = value;
            self.assigned |= 1 << reg;
        }
    }

    /// Puts `bytes` at `linear`, if that is data.
    pub fn patch(&mut self, linear: u64, bytes: &[u8]) {
        if let Some(offset) = data_offset(linear)
            && self.patches < PATCHES
        {
            let patch = &mut self.case.patches[self.patches];
            patch.offset = offset as u32;
            patch.len = bytes.len() as u32;
            patch.bytes[..bytes.len()].copy_from_slice(bytes);
            self.patches += 1;
        }
    }

    pub fn segment_base(&self, insn: &Instruction) -> u64 {
        match insn.memory_segment() {
            Register::FS => self.case.fs_base,
            Register::GS => self.case.gs_base,
            _ => 0,
        }
    }

    /// Makes the memory operand fall on data, most of the time.
    pub fn place(&mut self, encoded: &mut Encoded) {
        let insn = encoded.insn;
        if self.rng.one_in(40) {
            return;
        }
        for i in 0..insn.op_count() {
            let size = insn.memory_size().size() as u64;
            match insn.op_kind(i) {
                OpKind::Memory => {
                    self.place_operand(encoded);
                }
                OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
                    self.place_string(&insn, RSI, size);
                }
                OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI => self.place_string(&insn, RDI, size),
                _ => {}
            }
        }
    }

    fn place_string(&mut self, insn: &Instruction, reg: usize, size: u64) {
        let base = if reg == RSI || insn.op0_kind() == OpKind::MemorySegRDI {
            self.segment_base(insn)
        } else {
            0
        };
        let at = target(self.rng, self.bits, size.max(1)).wrapping_sub(base);
        self.set(reg, at);
    }

    fn place_operand(&mut self, encoded: &mut Encoded) {
        let insn = encoded.insn;
        let size = (insn.memory_size().size() as u64).clamp(1, 2048);
        let goal = target(self.rng, self.bits, size).wrapping_sub(self.segment_base(&insn));
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64();
        let scale = u64::from(insn.memory_index_scale());
        if base == Register::RIP || base == Register::EIP || (base, index) == NO_REGISTERS {
            let relative =
                if base == Register::RIP || base == Register::EIP { insn.next_ip() } else { 0 };
            return self.move_displacement(encoded, goal.wrapping_sub(relative));
        }
        let mut rest = goal.wrapping_sub(displacement);
        if index.is_vector_register() {
            self.small_indexes(index);
        } else if index != Register::None {
            let reg = index.full_register().number();
            if base.full_register() == index.full_register() {
                let divisor = scale + 1;
                return self.set(reg, rest / divisor);
            }
            if base == Register::None {
                return self.set(reg, rest / scale);
            }
            if self.rng.one_in(2) {
                let value = self.rng.around_zero(64);
                self.set(reg, value);
            }
            rest = rest.wrapping_sub(self.case.gpr[reg].wrapping_mul(scale));
        }
        if base != Register::None {
            let reg = base.full_register().number();
            if base.size() == 4 && self.rng.one_in(2) {
                // Nobody may look at the upper half.
                rest = rest & 0xffff_ffff | self.rng.next() << 32;
            }
            self.set(reg, rest);
        }
    }

    /// Rewrites the displacement, where it is wide enough.
    pub fn move_displacement(&mut self, encoded: &mut Encoded, to: u64) {
        let ip = encoded.insn.ip();
        let mut decoder = decoder(self.bits, &encoded.bytes, ip);
        let insn = decoder.decode();
        let constants = decoder.get_constant_offsets(&insn);
        let (at, len) = (constants.displacement_offset(), constants.displacement_size());
        if len >= 4
            && let Some(slot) = encoded.bytes.get_mut(at..at + len)
        {
            slot.copy_from_slice(&to.to_le_bytes()[..len]);
            encoded.insn = decode(self.bits, &encoded.bytes, ip);
        }
    }

    /// Indexes of a gather or scatter.
    fn small_indexes(&mut self, index: Register) {
        let wild = self.rng.one_in(16);
        let zmm = &mut self.case.vector.zmm[index.number() & 31];
        for q in zmm {
            let mut number = || if wild { self.rng.next() } else { self.rng.around_zero(48) };
            let (low, high) = (number(), number());
            *q = if self.rng.one_in(2) { low } else { low & 0xffff_ffff | high << 32 };
        }
    }

    /// Gives operands values that the instruction can do something with.
    #[allow(clippy::too_many_lines)]
    pub fn shape(&mut self, insn: &Instruction) {
        let operand = self.operand_address(insn);
        if insn.is_stack_instruction() && self.rng.percent(90) {
            let at = target(self.rng, self.bits, 8);
            self.set(RSP, at);
        }
        if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
            let count = match self.rng.below(10) {
                0 => self.rng.next(),
                1 | 2 => self.rng.below(6000),
                _ => self.rng.below(40),
            };
            let garbage = if self.rng.one_in(4) { self.rng.next() << 32 } else { 0 };
            self.set(RCX, count | garbage);
        }
        match insn.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv if self.rng.percent(80) => {
                let rax = self.case.gpr[RAX];
                let sign = (rax as i64 >> 63) as u64;
                let rdx = if insn.mnemonic() == Mnemonic::Div { self.rng.below(4) } else { sign };
                self.set(RDX, rdx);
            }
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b
                if self.rng.one_in(2) =>
            {
                let gpr = &self.case.gpr;
                let mut bytes = [0; 16];
                let half = if insn.mnemonic() == Mnemonic::Cmpxchg16b { 8 } else { 4 };
                bytes[..8].copy_from_slice(&gpr[RAX].to_le_bytes());
                if insn.mnemonic() != Mnemonic::Cmpxchg {
                    bytes[half..half + 8].copy_from_slice(&gpr[RDX].to_le_bytes());
                }
                self.patch(operand, &bytes);
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if insn.op0_kind() == OpKind::Memory
                    && insn.op1_kind() == OpKind::Register
                    && self.rng.percent(80) =>
            {
                let number = self.rng.around_zero(4000);
                self.set(insn.op1_register().full_register().number(), number);
            }
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
                let count = self.rng.pick(&[0, 1, 2, 0x1_0000_0000, 0x1_0000_0001, 0x1_0000]);
                self.set(RCX, count);
            }
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
                let count = self.rng.pick(&[0, 0, 1, 0x1_0000_0000, 0x1_0000]);
                self.set(RCX, count);
            }
            Mnemonic::Ret => {
                let to = self.branch_target();
                self.patch(self.case.gpr[RSP], &to.to_le_bytes());
            }
            Mnemonic::Jmp | Mnemonic::Call if self.rng.percent(80) => {
                let to = self.branch_target();
                match insn.op0_kind() {
                    OpKind::Memory => self.patch(operand, &to.to_le_bytes()),
                    OpKind::Register => {
                        self.set(insn.op0_register().full_register().number(), to);
                    }
                    _ => {}
                }
            }
            Mnemonic::Enter | Mnemonic::Leave if self.rng.percent(90) => {
                let at = target(self.rng, self.bits, 8);
                self.set(RBP, at);
            }
            Mnemonic::Xlatb => {
                let at = target(self.rng, self.bits, 1).wrapping_sub(self.segment_base(insn));
                self.set(RBX, at);
            }
            Mnemonic::Clzero => {
                let at = target(self.rng, self.bits, 64);
                self.set(RAX, at);
            }
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if self.rng.percent(80) => {
                let value = mxcsr(self.rng);
                self.patch(operand, &value.to_le_bytes());
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 if self.rng.percent(90) => {
                let value = mxcsr(self.rng);
                self.patch(operand.wrapping_add(24), &value.to_le_bytes());
            }
            Mnemonic::Xrstor | Mnemonic::Xrstor64 if self.rng.percent(90) => {
                let value = mxcsr(self.rng);
                self.patch(operand.wrapping_add(24), &value.to_le_bytes());
                let mut header = [0; 64];
                header[0] = self.rng.next() as u8 & 0xe7;
                if self.rng.one_in(2) {
                    header[15] = 0x80;
                    header[8] = header[0] | self.rng.next() as u8 & 0xe7;
                }
                self.patch(operand.wrapping_add(512), &header);
            }
            Mnemonic::Xgetbv => {
                let ecx = self.rng.below(3);
                self.set(RCX, ecx);
            }
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
                // Bases that Linux can live with come back as they went.
                let base = self.rng.next() >> 20;
                self.set(insn.op0_register().full_register().number(), base);
            }
            _ => {}
        }
    }

    fn branch_target(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => integer(self.rng),
            1 => target(self.rng, self.bits, 8),
            2 => self.rng.next() >> 17,
            _ => CODE + self.rng.below(CODE_SIZE as u64),
        }
    }

    /// Where the memory operand falls now.
    pub fn operand_address(&self, insn: &Instruction) -> u64 {
        let reg = |reg: Register| match reg {
            Register::None | Register::RIP | Register::EIP => 0,
            reg if reg.is_gpr() => self.case.gpr[reg.full_register().number()],
            _ => 0,
        };
        let offset = insn
            .memory_displacement64()
            .wrapping_add(reg(insn.memory_base()))
            .wrapping_add(reg(insn.memory_index()).wrapping_mul(insn.memory_index_scale().into()));
        let is_short = insn.memory_base().size() == 4 || insn.memory_index().size() == 4;
        let offset = if is_short { offset & 0xffff_ffff } else { offset };
        offset.wrapping_add(self.segment_base(insn))
    }
}

const NO_REGISTERS: (Register, Register) = (Register::None, Register::None);

/// An address for `size` bytes: mostly good, often at a page's end, now and then bad.
pub(crate) fn target(rng: &mut Rng, bits: u32, size: u64) -> u64 {
    let page = PAGE as u64;
    let align = |at: u64, rng: &mut Rng| {
        if rng.percent(70) { at & !(size.next_power_of_two().min(64) - 1) } else { at }
    };
    let start = data_linear(0);
    let low = match rng.below(64) {
        0..=39 => {
            let at = start + rng.below((2 * page).saturating_sub(size).max(1));
            align(at, rng)
        }
        // Between two pages that may be written.
        40..=47 => start + page - rng.below(size + 1),
        // Into the read-only page, and inside it.
        48..=51 => start + 2 * page - rng.below(size + 1),
        52..=54 => {
            let at = start + 2 * page + rng.below(page);
            align(at, rng)
        }
        // Out of the read-only page, and into the first one.
        55 | 56 => start + 3 * page - rng.below(size + 1),
        57 => start - rng.below(size + 1),
        58 | 59 => {
            let at = start + 4 * page + rng.below(page);
            align(at, rng)
        }
        60 => start + 5 * page - rng.below(size + 1),
        61 => 0x4000_0000 + rng.below(page),
        62 if bits == 64 => rng.next() >> 1 & 0x7fff_ffff_ffff | 1 << rng.pick(&[47, 62, 63]),
        63 if bits == 64 => 0xffff_9000_0000_0000 | rng.next() >> 20,
        _ => start,
    };
    let has_alias = (start - page..start + 6 * page).contains(&low);
    if bits == 64 && has_alias && rng.one_in(3) { low + ALIAS } else { low }
}

/// A valid MXCSR.
fn mxcsr(rng: &mut Rng) -> u32 {
    let mut value = 0x1f80;
    if rng.one_in(3) {
        value &= !((rng.next() & rng.next()) as u32 & 0x1f80);
    }
    if rng.one_in(2) {
        value |= (rng.below(4) as u32) << 13;
    }
    if rng.one_in(4) {
        value |= rng.next() as u32 & 0x8040;
    }
    if rng.one_in(4) {
        value |= rng.next() as u32 & 0x3f;
    }
    value
}

fn vector_state(rng: &mut Rng, bits: u32, case: &mut Case) {
    let main = rng.pick(&Flavour::ALL);
    let vector = &mut case.vector;
    for zmm in &mut vector.zmm[..if bits == 64 { 32 } else { 8 }] {
        let flavour = if rng.one_in(5) { rng.pick(&Flavour::ALL) } else { main };
        let mut lanes = [[0; 2]; 4];
        flavour.fill(rng, &mut lanes);
        for (slot, value) in zmm.iter_mut().zip(lanes.iter().flatten()) {
            *slot = *value;
        }
    }
    for k in &mut vector.k {
        *k = match rng.below(6) {
            0 => 0,
            1 => u64::MAX,
            _ => rng.next(),
        };
    }
    let x87 = &mut vector.x87;
    x87.mxcsr = mxcsr(rng);
    x87.fcw = 0x40 | 0x3f | (rng.below(4) as u16) << 10 | rng.pick(&[0x300, 0x300, 0x200, 0]);
    if rng.one_in(4) {
        x87.fcw &= !(rng.next() as u16 & rng.next() as u16 & 0x3f);
    }
    let mut flags = if rng.one_in(4) { rng.next() as u16 & 0x3f } else { 0 };
    if !rng.one_in(8) {
        flags &= x87.fcw;
    }
    let top = if rng.one_in(2) { 0 } else { rng.below(8) as u16 };
    x87.fsw = flags & 0x3f | top << 11 | rng.next() as u16 & 0x4700;
    if flags & 0x40 != 0 || flags & !x87.fcw & 0x3f != 0 {
        x87.fsw |= 0x8080;
    }
    x87.ftw = match rng.below(4) {
        0 => rng.next() as u8,
        1 => 0,
        _ => 0xff,
    };
    for st in &mut x87.st {
        *st = extended(rng);
        if main == Flavour::Zero && rng.one_in(2) {
            *st = [rng.next(), 0xffff];
        }
    }
}
