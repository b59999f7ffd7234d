//! What becomes of an instruction: re-encoded, made from a template, or left to the interpreter.

use iced_x86::{
    Code, CodeSize, CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use super::strings::StringOp;

/// What becomes of an instruction. It is one of 64-bit code, or widened to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Emitted as itself, with its registers renamed and its memory operand checked.
    Plain,
    /// Needs nothing at run time.
    Nothing,
    Lea,
    Push,
    Pop,
    Leave,
    /// Unsigned and signed division.
    Div,
    Idiv,
    CompareExchange16,
    /// A bit test whose bit offset, in a register, reaches beyond its memory operand.
    BitString,
    /// CLI, CLD, STD.
    ClearInterrupt,
    SetInterrupt,
    PushFlags,
    SwapGs,
    /// CLAC.
    ClearAlignmentCheck,
    /// MOV from CR2.
    FaultAddress,
    /// A segment register into a general-purpose one.
    Selector,
    TimeStamp,
    Pause,
    /// REP MOVS and REP STOS.
    Repeat(StringOp),
    Direction {
        down: bool,
    },
    /// Relative jumps and calls.
    Jump,
    JumpIf,
    JumpIfCounterZero,
    Call,
    /// The same through a register or memory.
    JumpIndirect,
    CallIndirect,
    Return,
    /// The interpreter executes it, and translated code goes on behind it.
    Interpret,
    /// The interpreter executes it, and where it goes on is seen then.
    InterpretLast,
}

/// Extensions whose instructions are emitted as themselves, if host and guest have them.
fn is_plain_extension(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::AES
            | F::PCLMULQDQ
            | F::VAES
            | F::VPCLMULQDQ
            | F::GFNI
            | F::SHA
            | F::POPCNT
            | F::LZCNT
            | F::MOVBE
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::AVX512F
            | F::AVX512DQ
            | F::AVX512BW
            | F::AVX512VL
            | F::AVX512CD
            | F::AVX512_IFMA
            | F::AVX512_VBMI
            | F::AVX512_VBMI2
            | F::AVX512_VNNI
            | F::AVX512_BITALG
            | F::AVX512_VPOPCNTDQ
            | F::AVX512_BF16
            | F::AVX_VNNI
    )
}

/// What becomes of `insn`.
pub fn classify(insn: &Instruction) -> Kind {
    use Mnemonic as M;
    match insn.flow_control() {
        FlowControl::Next => {}
        FlowControl::UnconditionalBranch if insn.op0_kind() == OpKind::NearBranch64 => {
            return Kind::Jump;
        }
        FlowControl::ConditionalBranch
            if insn.op0_kind() == OpKind::NearBranch64 && insn.is_jcc_short_or_near() =>
        {
            return Kind::JumpIf;
        }
        FlowControl::ConditionalBranch if insn.code() == Code::Jrcxz_rel8_64 => {
            return Kind::JumpIfCounterZero;
        }
        FlowControl::Call if insn.op0_kind() == OpKind::NearBranch64 => return Kind::Call,
        FlowControl::IndirectBranch if insn.code() == Code::Jmp_rm64 => return Kind::JumpIndirect,
        FlowControl::IndirectCall if insn.code() == Code::Call_rm64 => return Kind::CallIndirect,
        FlowControl::Return if matches!(insn.code(), Code::Retnq | Code::Retnq_imm16) => {
            return Kind::Return;
        }
        _ => return Kind::InterpretLast,
    }
    match insn.mnemonic() {
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetchw
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetch => return Kind::Nothing,
        M::Lfence | M::Mfence | M::Sfence => return Kind::Plain,
        M::Pause => return Kind::Pause,
        M::Lea => return Kind::Lea,
        M::Push if insn.stack_pointer_increment() == -8 => {
            let is_segment =
                insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register();
            return if is_segment { Kind::Interpret } else { Kind::Push };
        }
        M::Pop if insn.code() == Code::Pop_r64 => return Kind::Pop,
        M::Leave if insn.code() == Code::Leaveq => return Kind::Leave,
        M::Div if matches!(insn.code(), Code::Div_rm32 | Code::Div_rm64) => return Kind::Div,
        M::Idiv if matches!(insn.code(), Code::Idiv_rm32 | Code::Idiv_rm64) => return Kind::Idiv,
        // They might fault.
        M::Div | M::Idiv => return Kind::Interpret,
        M::Cmpxchg16b | M::Cmpxchg8b => return Kind::CompareExchange16,
        M::Bt | M::Bts | M::Btr | M::Btc
            if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
        {
            return Kind::BitString;
        }
        M::Cli => return Kind::ClearInterrupt,
        M::Sti => return Kind::SetInterrupt,
        M::Swapgs => return Kind::SwapGs,
        M::Clac => return Kind::ClearAlignmentCheck,
        M::Mov if insn.code() == Code::Mov_r64_cr && insn.op1_register() == Register::CR2 => {
            return Kind::FaultAddress;
        }
        M::Pushfq => return Kind::PushFlags,
        M::Rdtsc | M::Rdtscp => return Kind::TimeStamp,
        M::Mov
            if matches!(insn.code(), Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg)
                && insn.op0_kind() == OpKind::Register =>
        {
            return Kind::Selector;
        }
        M::Cld => return Kind::Direction { down: false },
        M::Std => return Kind::Direction { down: true },
        _ => {}
    }
    if let Some(op) = StringOp::of(insn) {
        return Kind::Repeat(op);
    }
    if insn.is_privileged()
        || insn.is_stack_instruction()
        || insn.is_string_instruction()
        || is_absolute_move(insn.code())
    {
        return Kind::Interpret;
    }
    // Most of what is left of 32-bit code that 64-bit code cannot say: decimal arithmetic, say. To ask takes memory.
    if insn.code_size() != CodeSize::Code64 && !renamable(insn.code()).op_code().mode64() {
        return Kind::Interpret;
    }
    if is_system(insn.mnemonic()) || !insn.cpuid_features().iter().all(|&f| is_plain_extension(f)) {
        return Kind::Interpret;
    }
    for i in 0..insn.op_count() {
        let is_odd = match insn.op_kind(i) {
            OpKind::Register => {
                let r = insn.op_register(i);
                !(r.is_gpr() || r.is_vector_register() || r.is_k())
            }
            OpKind::Memory => {
                insn.memory_index().is_vector_register()
                    || !(1..=64).contains(&insn.memory_size().size())
            }
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => false,
            _ => true,
        };
        if is_odd {
            return Kind::Interpret;
        }
    }
    Kind::Plain
}

/// Moves between the accumulator and an absolute address, which no other form can say.
fn is_absolute_move(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}

/// Instructions that look plain by their operands but are not.
fn is_system(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cpuid
            | M::Rdpmc
            | M::Rdpid
            | M::Rdrand
            | M::Rdseed
            | M::Xgetbv
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Smsw
            | M::Str
            | M::Verr
            | M::Verw
            | M::Lar
            | M::Lsl
            | M::Hlt
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Lds
            | M::Les
            | M::Bound
            | M::Arpl
            | M::Xlatb
            | M::Into
            | M::Wait
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Maskmovq
            | M::Movdiri
            | M::Movdir64b
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::In
            | M::Out
            | M::Salc
    )
}

/// The form of `code` whose register operands can be renamed, for forms that imply the
/// accumulator.
pub fn renamable(code: Code) -> Code {
    use Code as C;
    macro_rules! accumulator {
        ($($al:ident $ax:ident $eax:ident $rax:ident => $r8:ident $r16:ident $r32:ident $r64:ident,)*) => {
            match code {
                $(C::$al => C::$r8, C::$ax => C::$r16, C::$eax => C::$r32, C::$rax => C::$r64,)*
                C::Xchg_r16_AX => C::Xchg_rm16_r16,
                C::Xchg_r32_EAX => C::Xchg_rm32_r32,
                C::Xchg_r64_RAX => C::Xchg_rm64_r64,
                _ => code,
            }
        };
    }
    accumulator! {
        Add_AL_imm8 Add_AX_imm16 Add_EAX_imm32 Add_RAX_imm32 => Add_rm8_imm8 Add_rm16_imm16 Add_rm32_imm32 Add_rm64_imm32,
        Or_AL_imm8 Or_AX_imm16 Or_EAX_imm32 Or_RAX_imm32 => Or_rm8_imm8 Or_rm16_imm16 Or_rm32_imm32 Or_rm64_imm32,
        Adc_AL_imm8 Adc_AX_imm16 Adc_EAX_imm32 Adc_RAX_imm32 => Adc_rm8_imm8 Adc_rm16_imm16 Adc_rm32_imm32 Adc_rm64_imm32,
        Sbb_AL_imm8 Sbb_AX_imm16 Sbb_EAX_imm32 Sbb_RAX_imm32 => Sbb_rm8_imm8 Sbb_rm16_imm16 Sbb_rm32_imm32 Sbb_rm64_imm32,
        And_AL_imm8 And_AX_imm16 And_EAX_imm32 And_RAX_imm32 => And_rm8_imm8 And_rm16_imm16 And_rm32_imm32 And_rm64_imm32,
        Sub_AL_imm8 Sub_AX_imm16 Sub_EAX_imm32 Sub_RAX_imm32 => Sub_rm8_imm8 Sub_rm16_imm16 Sub_rm32_imm32 Sub_rm64_imm32,
        Xor_AL_imm8 Xor_AX_imm16 Xor_EAX_imm32 Xor_RAX_imm32 => Xor_rm8_imm8 Xor_rm16_imm16 Xor_rm32_imm32 Xor_rm64_imm32,
        Cmp_AL_imm8 Cmp_AX_imm16 Cmp_EAX_imm32 Cmp_RAX_imm32 => Cmp_rm8_imm8 Cmp_rm16_imm16 Cmp_rm32_imm32 Cmp_rm64_imm32,
        Test_AL_imm8 Test_AX_imm16 Test_EAX_imm32 Test_RAX_imm32 => Test_rm8_imm8 Test_rm16_imm16 Test_rm32_imm32 Test_rm64_imm32,
    }
}
