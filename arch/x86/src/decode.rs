//! From instruction bytes to operations that are ready to run.

use alloc::boxed::Box;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

use crate::cpu::Cpu;
use crate::cpuid::CpuidResult;
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::insn;
use crate::paging::Access;
use crate::state::SegReg;

/// An instruction is at most this long (SDM Vol. 2, 2.3.11).
pub(crate) const MAX_LEN: usize = 15;

/// Set in an operand number that stands for AH, CH, DH or BH.
pub(crate) const HIGH_BYTE: u8 = 0x10;

/// Executes one operation. On entry `state.rip` is already that of the next instruction.
pub(crate) type Handler<E> = fn(&mut Cpu<E>, &Op<E>) -> Exec;

/// A decoded instruction: what runs it, and its operands in a form that needs no more thought.
pub(crate) struct Op<E: Env> {
    pub run: Handler<E>,
    /// Added to base and index.
    displacement: u64,
    /// Wraps the effective address.
    pub address_mask: u64,
    /// The immediate operand, sign-extended to the operand size by the decoder; of a near branch,
    /// the distance from the next instruction.
    pub imm: u64,
    /// General-purpose register numbers of operands 0 to 2 (see [`gpr_number`]).
    pub regs: [u8; 3],
    pub len: u8,
    base: u8,
    index: u8,
    scale: u8,
    /// All ones where the memory operand has a base, an index, is relative to RIP.
    has_base: i8,
    has_index: i8,
    has_rip: i8,
    /// The memory operand's segment.
    pub seg: SegReg,
    /// The segment needs no look: 64-bit mode, and neither FS nor GS nor SS.
    flat: bool,
    /// LOCK was given.
    pub locked: bool,
    /// The decoder's view, for what is not said above. Boxed, since most handlers never look at
    /// it, and operations should lie close together.
    pub insn: Box<Instruction>,
}

/// The number of a general-purpose register as [`Cpu::reg`] takes it: 0 to 15, with
/// [`HIGH_BYTE`] for AH, CH, DH and BH.
pub(crate) fn gpr_number(reg: Register) -> u8 {
    match reg {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        _ => (reg.full_register() as u32).wrapping_sub(Register::RAX as u32) as u8 & 15,
    }
}

/// The segment register that iced names.
pub(crate) fn seg_reg(reg: Register) -> SegReg {
    match reg {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => SegReg::Ds,
    }
}

/// Why bytes could not be decoded.
pub(crate) enum Undecodable {
    /// There are too few of them.
    Incomplete,
    /// They are no instruction, or one longer than 15 bytes.
    Fault(Exception),
}

/// The decoder's options for a processor of this vendor: AMD's obey an operand-size prefix before
/// near branches in 64-bit mode (APM Vol. 3, 1.2.7), Intel's do not.
pub(crate) fn options(cpuid: CpuidResult) -> u32 {
    if cpuid.names_amd() { DecoderOptions::AMD } else { DecoderOptions::NONE }
}

/// Decodes the first instruction of `bytes`, which lies at `ip`, whether there is a handler for
/// it or not.
pub(crate) fn decode_instruction(
    bits: u32,
    bytes: &[u8],
    ip: u64,
    options: u32,
) -> Result<Instruction, Undecodable> {
    let window = &bytes[..bytes.len().min(MAX_LEN)];
    let mut decoder = Decoder::with_ip(bits, window, ip, options);
    let mut insn = decoder.decode();
    if insn.code() == Code::Pause && bits == 64 && has_rex_b(window, insn.len()) {
        // F3 41 90 exchanges R8 and RAX, which the decoder does not see.
        decoder = Decoder::with_ip(bits, window, ip, options | DecoderOptions::NO_PAUSE);
        insn = decoder.decode();
    }
    match decoder.last_error() {
        DecoderError::None => Ok(insn),
        DecoderError::NoMoreBytes if window.len() < MAX_LEN => Err(Undecodable::Incomplete),
        // The decoder takes what goes on behind 15 bytes for an invalid instruction.
        _ if decoder.position() == MAX_LEN => Err(Undecodable::Fault(Exception::GP0)),
        _ => Err(Undecodable::Fault(Exception::UD)),
    }
}

/// Decodes the first instruction of `bytes`, which lies at `ip`.
pub(crate) fn decode<E: Env>(
    bits: u32,
    bytes: &[u8],
    ip: u64,
    options: u32,
) -> Result<Op<E>, Undecodable> {
    let insn = decode_instruction(bits, bytes, ip, options)?;
    let Some(run) = insn::select::<E>(&insn) else {
        return Err(Undecodable::Fault(Exception::UD));
    };

    let mut regs = [0; 3];
    let mut imm = 0;
    for i in 0..insn.op_count().min(3) {
        match insn.op_kind(i) {
            OpKind::Register => regs[i as usize] = gpr_number(insn.op_register(i)),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                imm = insn.near_branch_target().wrapping_sub(insn.next_ip());
            }
            // ENTER and EXTRQ have two immediates; the first is the one kept here.
            OpKind::Immediate8_2nd => {}
            _ => imm = insn.try_immediate(i).unwrap_or(imm),
        }
    }

    let has = |present: bool| if present { -1 } else { 0 };
    let base = insn.memory_base();
    let is_rip_relative = matches!(base, Register::RIP | Register::EIP);
    let index = insn.memory_index();
    // VSIB indexes are vector registers, which the vector unit looks at itself.
    let has_index = index != Register::None && index.is_gpr();
    let address_register = if base != Register::None { base } else { index };
    let address_bytes = match address_register.size() {
        // A displacement alone: its size tells the address size.
        _ if address_register == Register::None => match insn.memory_displ_size() {
            2 => 2,
            4 if bits == 32 || bits == 16 => 4,
            _ => 8,
        },
        size if size <= 8 => size,
        // A VSIB address without a base.
        _ => insn.memory_displ_size() as usize,
    };
    let seg = segment_of(&insn, bits);
    Ok(Op {
        run,
        displacement: if is_rip_relative {
            insn.memory_displacement64().wrapping_sub(insn.next_ip())
        } else {
            insn.memory_displacement64()
        },
        address_mask: match address_bytes {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        },
        imm,
        regs,
        len: insn.len() as u8,
        base: gpr_number(base),
        index: gpr_number(index),
        scale: insn.memory_index_scale().trailing_zeros() as u8,
        has_base: has(base != Register::None && !is_rip_relative),
        has_index: has(has_index),
        has_rip: has(is_rip_relative),
        seg,
        flat: bits == 64 && !matches!(seg, SegReg::Fs | SegReg::Gs | SegReg::Ss),
        locked: insn.has_lock_prefix(),
        insn: Box::new(insn),
    })
}

/// Whether the byte before the opcode, the last of `len`, is a REX prefix with B set.
fn has_rex_b(bytes: &[u8], len: usize) -> bool {
    len.checked_sub(2).and_then(|i| bytes.get(i)).is_some_and(|byte| byte & 0xf1 == 0x41)
}

/// The memory operand's segment. In 64-bit mode, prefixes other than FS and GS mean nothing
/// (SDM Vol. 1, 3.4.2.1).
fn segment_of(insn: &Instruction, bits: u32) -> SegReg {
    let base = insn.memory_base();
    match seg_reg(insn.memory_segment()) {
        seg @ (SegReg::Fs | SegReg::Gs) => seg,
        seg if bits != 64 => seg,
        _ if matches!(base, Register::RSP | Register::RBP | Register::ESP | Register::EBP) => {
            SegReg::Ss
        }
        _ => SegReg::Ds,
    }
}

impl<E: Env> Op<E> {
    /// Wraps an offset to the address size.
    pub fn wrap_address(&self, offset: u64) -> u64 {
        offset & self.address_mask
    }

    /// Straight-line execution ends after this instruction.
    pub fn ends_block(&self) -> bool {
        self.insn.flow_control() != iced_x86::FlowControl::Next
    }
}

impl<E: Env> Cpu<E> {
    /// The effective address of the memory operand: its offset in the segment.
    #[inline(always)]
    pub(crate) fn effective_address(&self, op: &Op<E>) -> u64 {
        let gpr = &self.state.gpr;
        let base = gpr[usize::from(op.base & 15)] & op.has_base as i64 as u64;
        let index =
            (gpr[usize::from(op.index & 15)] & op.has_index as i64 as u64) << (op.scale & 3);
        let rip = self.state.rip & op.has_rip as i64 as u64;
        op.displacement.wrapping_add(base).wrapping_add(index).wrapping_add(rip) & op.address_mask
    }

    /// The linear address of the memory operand, `len` bytes long, checked against its segment.
    #[inline(always)]
    pub(crate) fn operand_address(&mut self, op: &Op<E>, len: usize, access: Access) -> Exec<u64> {
        let offset = self.effective_address(op);
        if op.flat { Ok(offset) } else { self.linear(op.seg, offset, len, access) }
    }

    /// The same for a memory operand that must be aligned; else #GP(0), also where the address
    /// alone would raise #SS(0).
    #[inline(always)]
    pub(crate) fn aligned_address(
        &mut self,
        op: &Op<E>,
        len: usize,
        alignment: usize,
        access: Access,
    ) -> Exec<u64> {
        let result = self.operand_address(op, len, access);
        let address = result.unwrap_or_else(|_| self.effective_address(op));
        if address & (alignment as u64 - 1) != 0 {
            return Err(self.raise(Exception::GP0));
        }
        result
    }
}
