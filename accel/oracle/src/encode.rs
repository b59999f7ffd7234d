//! Random bytes that decode to a wanted instruction.

use std::sync::LazyLock;

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix,
    OpCodeOperandKind as Kind, OpCodeTableKind as Table,
};

use crate::random::Rng;

/// An instruction is at most this long.
pub const MAX_LEN: usize = 15;
/// After so many attempts, something else is tried.
const ATTEMPTS: u32 = 40;

/// Bytes and what they decode to.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// The bytes; those behind the instruction mean nothing.
    pub bytes: [u8; MAX_LEN],
    /// The instruction, as if it lay where it was said to.
    pub insn: Instruction,
}

/// A decoder that sees what this host does.
pub fn decoder(bits: u32, bytes: &[u8], ip: u64) -> Decoder<'_> {
    static OPTIONS: LazyLock<u32> = LazyLock::new(|| {
        let vendor = crate::engine::host_cpuid(0, 0);
        if vendor.names_amd() { DecoderOptions::AMD } else { DecoderOptions::NONE }
    });
    Decoder::with_ip(bits, bytes, ip, *OPTIONS)
}

/// Decodes the first instruction of `bytes`.
pub fn decode(bits: u32, bytes: &[u8], ip: u64) -> Instruction {
    decoder(bits, bytes, ip).decode()
}

/// A random encoding of `code` with random operands at `ip`. `None` if none was found.
pub fn encode(rng: &mut Rng, code: Code, bits: u32, ip: u64) -> Option<Encoded> {
    for attempt in 0..ATTEMPTS {
        let mut out = Writer::default();
        match code.encoding() {
            EncodingKind::Legacy => legacy(rng, code, bits, &mut out),
            EncodingKind::VEX | EncodingKind::XOP => vex(rng, code, bits, attempt, &mut out),
            EncodingKind::EVEX => evex(rng, code, bits, attempt, &mut out),
            _ => return None,
        }
        operands(rng, code, &mut out);
        let insn = decode(bits, &out.bytes, ip);
        if insn.code() == code {
            return Some(Encoded { bytes: out.bytes, insn });
        }
    }
    None
}

#[derive(Default)]
struct Writer {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Writer {
    fn put(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }
}

/// Prefixes, REX, escape bytes.
fn legacy(rng: &mut Rng, code: Code, bits: u32, out: &mut Writer) {
    let op = code.op_code();
    let mut prefixes = Vec::with_capacity(4);
    let mut prefix = |rng: &mut Rng, byte: u8| {
        let at = rng.below(prefixes.len() as u64 + 1) as usize;
        prefixes.insert(at, byte);
    };
    let operand_size = op.operand_size();
    match op.mandatory_prefix() {
        MandatoryPrefix::P66 => prefix(rng, 0x66),
        MandatoryPrefix::PF3 => prefix(rng, 0xf3),
        MandatoryPrefix::PF2 => prefix(rng, 0xf2),
        MandatoryPrefix::PNP => {}
        _ => {
            if operand_size == 16 {
                prefix(rng, 0x66);
            }
            if rng.one_in(40) {
                prefix(rng, 0x66);
            }
            if op.can_use_rep_prefix() && rng.one_in(2) {
                prefix(rng, 0xf3);
            } else if op.can_use_repne_prefix() && rng.one_in(2) {
                prefix(rng, 0xf2);
            } else if rng.one_in(50) {
                let byte = rng.pick(&[0xf2, 0xf3]);
                prefix(rng, byte);
            }
        }
    }
    let natural_address = if bits == 64 { 64 } else { 32 };
    if op.address_size() != 0 && op.address_size() != natural_address || rng.one_in(12) {
        prefix(rng, 0x67);
    }
    if op.can_use_lock_prefix() && rng.one_in(3) || rng.one_in(200) {
        prefix(rng, 0xf0);
    }
    if rng.one_in(8) {
        let byte = rng.pick(&[0x64, 0x65, 0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e]);
        prefix(rng, byte);
    }
    for byte in prefixes {
        out.put(byte);
    }
    if bits == 64 {
        let wide = operand_size == 64 && !op.default_op_size64() && !op.force_op_size64();
        let any_wide = rng.one_in(16);
        if wide || any_wide || rng.one_in(2) {
            let registers = if rng.one_in(4) { 0 } else { rng.below(8) as u8 };
            out.put(0x40 | u8::from(wide || any_wide) << 3 | registers);
        }
    }
    match op.table() {
        Table::T0F => out.put(0x0f),
        Table::T0F38 => {
            out.put(0x0f);
            out.put(0x38);
        }
        Table::T0F3A => {
            out.put(0x0f);
            out.put(0x3a);
        }
        _ => {}
    }
}

fn map(table: Table) -> u8 {
    match table {
        Table::T0F => 1,
        Table::T0F38 => 2,
        Table::T0F3A => 3,
        Table::MAP5 => 5,
        Table::MAP6 => 6,
        Table::MAP8 => 8,
        Table::MAP9 => 9,
        Table::MAP10 => 10,
        _ => 0,
    }
}

fn pp(prefix: MandatoryPrefix) -> u8 {
    match prefix {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    }
}

/// The field `vvvv`, inverted; all ones if the instruction has no use for it.
fn vvvv(rng: &mut Rng, code: Code, bits: u32) -> u8 {
    let is_used = code.op_code().op_kinds().iter().any(|kind| {
        matches!(
            kind,
            Kind::r32_vvvv
                | Kind::r64_vvvv
                | Kind::k_vvvv
                | Kind::xmm_vvvv
                | Kind::xmmp3_vvvv
                | Kind::ymm_vvvv
                | Kind::zmm_vvvv
                | Kind::zmmp3_vvvv
        )
    });
    match is_used {
        true if bits == 64 => rng.below(16) as u8,
        true => 8 | rng.below(8) as u8,
        // A register where none belongs is #UD, now and then.
        false if rng.one_in(64) => rng.below(16) as u8,
        false => 15,
    }
}

fn segment_prefix(rng: &mut Rng, out: &mut Writer) {
    if rng.one_in(12) {
        let byte = rng.pick(&[0x64, 0x65]);
        out.put(byte);
    }
    if rng.one_in(12) {
        out.put(0x67);
    }
}

fn vex(rng: &mut Rng, code: Code, bits: u32, attempt: u32, out: &mut Writer) {
    let op = code.op_code();
    segment_prefix(rng, out);
    let vvvv = vvvv(rng, code, bits);
    let wide = if op.is_wig() { rng.below(2) as u8 } else { op.w() as u8 };
    let long = if op.is_lig() { rng.below(2) as u8 } else { op.l() as u8 & 1 };
    let map = map(op.table());
    let is_xop = code.encoding() == EncodingKind::XOP;
    let r = if bits == 64 { rng.below(2) as u8 } else { 1 };
    let tail = vvvv << 3 | long << 2 | pp(op.mandatory_prefix());
    if map == 1 && wide == 0 && !is_xop && attempt.is_multiple_of(2) && rng.one_in(2) {
        out.put(0xc5);
        out.put(r << 7 | tail);
        return;
    }
    let x = if bits == 64 { rng.below(2) as u8 } else { 1 };
    let b = rng.below(2) as u8;
    out.put(if is_xop { 0x8f } else { 0xc4 });
    out.put(r << 7 | x << 6 | b << 5 | map);
    out.put(wide << 7 | tail);
}

fn evex(rng: &mut Rng, code: Code, bits: u32, attempt: u32, out: &mut Writer) {
    let op = code.op_code();
    segment_prefix(rng, out);
    let wide = if op.is_wig() { rng.below(2) as u8 } else { op.w() as u8 };
    let extensions = if bits == 64 { rng.below(16) as u8 } else { 0b1100 | rng.below(4) as u8 };
    out.put(0x62);
    out.put(extensions << 4 | map(op.table()));
    out.put(wide << 7 | vvvv(rng, code, bits) << 3 | 1 << 2 | pp(op.mandatory_prefix()));
    let can_b =
        op.can_broadcast() || op.can_use_rounding_control() || op.can_suppress_all_exceptions();
    let b = can_b && rng.one_in(3) || rng.one_in(200);
    let length = if op.is_lig() || (b && op.can_use_rounding_control()) {
        rng.below(3) as u8
    } else {
        op.l() as u8
    };
    let mask = if op.require_op_mask_register() || op.can_use_op_mask_register() && rng.one_in(2) {
        1 + rng.below(7) as u8
    } else {
        0
    };
    let zero = op.can_use_zeroing_masking() && mask != 0 && rng.one_in(2) || rng.one_in(200);
    let v = u8::from(bits != 64 || attempt.is_multiple_of(2) || rng.one_in(2));
    out.put(u8::from(zero) << 7 | length << 5 | u8::from(b) << 4 | v << 3 | mask);
}

/// The opcode, and random bytes for all that follows.
fn operands(rng: &mut Rng, code: Code, out: &mut Writer) {
    let op = code.op_code();
    let in_opcode = op.op_kinds().iter().any(|kind| {
        matches!(
            kind,
            Kind::r8_opcode
                | Kind::r16_opcode
                | Kind::r32_opcode
                | Kind::r64_opcode
                | Kind::sti_opcode
        )
    });
    let opcode = op.op_code() | if in_opcode { rng.below(8) as u32 } else { 0 };
    for i in (0..op.op_code_len()).rev() {
        out.put((opcode >> (8 * i)) as u8);
    }
    let mut modrm = rng.next() as u8;
    if rng.one_in(4) {
        modrm |= 0xc0;
    }
    if op.is_group() {
        modrm = modrm & !0x38 | (op.group_index() as u8 & 7) << 3;
    }
    if op.is_rm_group() {
        modrm = modrm & !7 | op.rm_group_index() as u8 & 7;
    }
    out.put(modrm);
    while out.len < MAX_LEN {
        // Small numbers make good immediates.
        let byte = if rng.one_in(4) { rng.below(16) as u8 } else { rng.next() as u8 };
        out.put(byte);
    }
}
