//! Stubs: a few host instructions around one of the guest's.
//!
//! A stub is a function of the System V ABI. Its arguments are the guest's state (for x87, an
//! FXSAVE area), the stand-in for the memory operand, and a [`Frame`]. It loads what the
//! instruction reads, runs it, and stores what it wrote. All vector, mask and x87 registers and
//! those general-purpose registers that it uses are the caller's to lose; MXCSR and the x87
//! control word it leaves as every Rust function expects them.

use std::mem::offset_of;

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};
use x86::CpuState;
use x86::state::{VectorState, X87State};

use super::plan::{Environment, Plan};

/// MXCSR as Rust code expects it: everything masked, round to nearest.
pub(super) const HOST_MXCSR: u32 = 0x1f80;

/// What a stub exchanges with its caller besides the guest's registers.
#[repr(C)]
pub(super) struct Frame {
    /// In: MXCSR to run with. Out: MXCSR afterwards.
    pub mxcsr: u32,
    /// MXCSR to go back to.
    pub host_mxcsr: u32,
    /// In and out: the status flags.
    pub rflags: u64,
}

/// The widest vector registers that the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Xmm,
    Ymm,
    Zmm,
}

impl Width {
    pub fn of_host() -> Self {
        if is_x86_feature_detected!("avx512f") {
            Self::Zmm
        } else if is_x86_feature_detected!("avx") {
            Self::Ymm
        } else {
            Self::Xmm
        }
    }

    /// Load, store and first register.
    fn codes(self) -> (Code, Code, Register) {
        match self {
            Self::Xmm => (Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm, Register::XMM0),
            Self::Ymm => {
                (Code::VEX_Vmovdqu_ymm_ymmm256, Code::VEX_Vmovdqu_ymmm256_ymm, Register::YMM0)
            }
            Self::Zmm => (
                Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512,
                Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm,
                Register::ZMM0,
            ),
        }
    }
}

const STATE: Register = Register::RDI;
const FRAME: Register = Register::R11;

fn state(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(STATE, offset as i64)
}

fn frame(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(FRAME, offset as i64)
}

fn gpr(number: usize) -> MemoryOperand {
    state(offset_of!(CpuState, gpr) + number * 8)
}

fn vector(number: usize) -> MemoryOperand {
    state(offset_of!(CpuState, vector) + offset_of!(VectorState, zmm) + number * 64)
}

fn mask(number: usize) -> MemoryOperand {
    state(offset_of!(CpuState, vector) + offset_of!(VectorState, k) + number * 8)
}

/// The significand of an x87 register, which is the MMX register of the same number while TOP
/// is 0; `part` 8 is sign and exponent.
fn mmx(number: usize, part: usize) -> MemoryOperand {
    let x87 = offset_of!(CpuState, vector) + offset_of!(VectorState, x87);
    state(x87 + offset_of!(X87State, st) + number * 16 + part)
}

struct Emitter {
    encoder: Encoder,
}

impl Emitter {
    fn emit(&mut self, insn: &Instruction) -> Result<(), IcedError> {
        // No stub has a branch or an address relative to RIP, so where it lies does not matter.
        self.encoder.encode(insn, 0).map(|_| ())
    }

    fn load(&mut self, code: Code, to: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(code, to, from)?)
    }

    fn store(&mut self, code: Code, to: MemoryOperand, from: Register) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(code, to, from)?)
    }

    fn memory(&mut self, code: Code, operand: MemoryOperand) -> Result<(), IcedError> {
        self.emit(&Instruction::with1(code, operand)?)
    }

    fn plain(&mut self, code: Code) -> Result<(), IcedError> {
        self.emit(&Instruction::with(code))
    }
}

/// Emits the stub for a planned instruction.
pub(super) fn emit(plan: &Plan, host: Width) -> Result<Vec<u8>, IcedError> {
    let mut e = Emitter { encoder: Encoder::new(64) };
    e.emit(&Instruction::with2(Code::Mov_r64_rm64, FRAME, Register::RDX)?)?;
    if plan.reads_flags {
        e.memory(Code::Push_rm64, frame(offset_of!(Frame, rflags)))?;
        e.plain(Code::Popfq)?;
    }
    match plan.environment {
        Environment::X87 => emit_x87(&mut e, plan)?,
        _ => emit_vector(&mut e, plan, host)?,
    }
    e.plain(Code::Retnq)?;
    Ok(e.encoder.take_buffer())
}

fn emit_flags(e: &mut Emitter, plan: &Plan) -> Result<(), IcedError> {
    if plan.writes_flags {
        e.plain(Code::Pushfq)?;
        e.memory(Code::Pop_rm64, frame(offset_of!(Frame, rflags)))?;
    }
    Ok(())
}

/// The state argument is an FXSAVE area here.
fn emit_x87(e: &mut Emitter, plan: &Plan) -> Result<(), IcedError> {
    e.memory(Code::Fxrstor64_m512byte, state(0))?;
    e.emit(&plan.insn)?;
    emit_flags(e, plan)?;
    e.memory(Code::Fxsave64_m512byte, state(0))?;
    // Leaves nothing pending, the stack empty and the control word as Rust expects it.
    e.plain(Code::Fninit)
}

fn emit_vector(e: &mut Emitter, plan: &Plan, host: Width) -> Result<(), IcedError> {
    let width = if plan.is_legacy { Width::Xmm } else { host };
    let (load, store, first) = width.codes();
    for i in plan.vectors_read.iter() {
        e.load(load, first + i as u32, vector(i))?;
    }
    for i in plan.masks_read.iter() {
        e.load(Code::VEX_Kmovq_kr_km64, Register::K0 + i as u32, mask(i))?;
    }
    for i in plan.mmx_read.iter() {
        e.load(Code::Movq_mm_mmm64, Register::MM0 + i as u32, mmx(i, 0))?;
    }
    // Last, since RDX was an argument.
    for binding in &plan.gprs {
        e.load(Code::Mov_r64_rm64, binding.host, gpr(binding.guest))?;
    }
    let has_mxcsr = matches!(plan.environment, Environment::Mxcsr | Environment::QuietMxcsr);
    if has_mxcsr {
        e.memory(Code::Ldmxcsr_m32, frame(offset_of!(Frame, mxcsr)))?;
    }
    e.emit(&plan.insn)?;
    if has_mxcsr {
        e.memory(Code::Stmxcsr_m32, frame(offset_of!(Frame, mxcsr)))?;
        e.memory(Code::Ldmxcsr_m32, frame(offset_of!(Frame, host_mxcsr)))?;
    }
    emit_flags(e, plan)?;
    for binding in plan.gprs.iter().filter(|binding| binding.is_written) {
        e.store(Code::Mov_rm64_r64, gpr(binding.guest), binding.host)?;
    }
    for i in plan.vectors_written.iter() {
        e.store(store, vector(i), first + i as u32)?;
    }
    for i in plan.masks_written.iter() {
        e.store(Code::VEX_Kmovq_m64_kr, mask(i), Register::K0 + i as u32)?;
    }
    for i in plan.mmx_written.iter() {
        e.store(Code::Movq_mmm64_mm, mmx(i, 0), Register::MM0 + i as u32)?;
        // Writing an MMX register sets the x87 register's sign and exponent to ones.
        e.emit(&Instruction::with2(Code::Mov_rm64_imm32, mmx(i, 8), 0xffff)?)?;
    }
    if !plan.mmx_read.is_empty() || !plan.mmx_written.is_empty() {
        e.plain(Code::Emms)?;
    }
    if !plan.is_legacy {
        // Dirty upper halves would slow down the SSE code that Rust is compiled to.
        e.plain(Code::VEX_Vzeroupper)?;
    }
    Ok(())
}
