//! Which instructions sequences are made of.

use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, Mnemonic};

use crate::generate::candidates;

/// Makes sequences.
pub struct Sequences {
    /// Of 64-bit or 32-bit code.
    pub(crate) bits: u32,
    /// On general-purpose registers.
    pub(crate) integer: Vec<Code>,
    /// Those that compilers use for most of a program.
    pub(crate) common: Vec<Code>,
    /// On vector and mask registers.
    pub(crate) vector: Vec<Code>,
    /// x87, state management and the rest.
    pub(crate) odd: Vec<Code>,
    /// Conditional and direct branches.
    pub(crate) direct: Vec<Code>,
    /// Indirect branches and returns.
    pub(crate) indirect: Vec<Code>,
}

impl Sequences {
    /// Of 64-bit or 32-bit code, for a host that has what `has` says, without what `without` lists.
    pub fn new(bits: u32, has: impl Fn(Code) -> bool, without: &[Code]) -> Self {
        let mut new = Self {
            bits,
            integer: Vec::new(),
            common: Vec::new(),
            vector: Vec::new(),
            odd: Vec::new(),
            direct: Vec::new(),
            indirect: Vec::new(),
        };
        for code in candidates(bits).filter(|&c| has(c) && !without.contains(&c) && !is_vague(c)) {
            new.list(code).push(code);
            if is_common(code.mnemonic()) && code.op_code().cpl3() {
                new.common.push(code);
            }
        }
        new
    }

    fn list(&mut self, code: Code) -> &mut Vec<Code> {
        use CpuidFeature as F;
        let mut insn = Instruction::default();
        insn.set_code(code);
        match insn.flow_control() {
            FlowControl::Next => {}
            FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => {
                return &mut self.indirect;
            }
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Call => return &mut self.direct,
            _ => return &mut self.odd,
        }
        let is_integer = code.cpuid_features().iter().all(|f| {
            matches!(
                f,
                F::INTEL8086
                    | F::INTEL186
                    | F::INTEL286
                    | F::INTEL386
                    | F::INTEL486
                    | F::X64
                    | F::CMOV
                    | F::BMI1
                    | F::BMI2
                    | F::ADX
                    | F::LZCNT
                    | F::POPCNT
                    | F::MOVBE
                    | F::CX8
                    | F::CMPXCHG16B
            )
        });
        let is_odd = code.mnemonic() == Mnemonic::Reservednop
            || !code.op_code().cpl3()
            || code.op_code().is_save_restore()
            || code
                .cpuid_features()
                .iter()
                .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::FXSR | F::XSAVE));
        match (is_odd, is_integer) {
            (true, _) => &mut self.odd,
            (_, true) => &mut self.integer,
            _ => &mut self.vector,
        }
    }
}

/// Whether what an instruction stores is the processor's own business: of a selector pushed as 32
/// bits, some leave the upper half of the slot alone (SDM Vol. 2, PUSH).
pub(crate) fn is_vague(code: Code) -> bool {
    matches!(
        code,
        Code::Pushd_ES
            | Code::Pushd_CS
            | Code::Pushd_SS
            | Code::Pushd_DS
            | Code::Pushd_FS
            | Code::Pushd_GS
    )
}

fn is_common(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::Cmp
            | M::And
            | M::Or
            | M::Xor
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Push
            | M::Pop
            | M::Imul
            | M::Mul
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Rcl
            | M::Shld
            | M::Bt
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cdq
            | M::Cqo
            | M::Cdqe
            | M::Setb
            | M::Sete
            | M::Setl
            | M::Seta
            | M::Seto
            | M::Setp
            | M::Cmovb
            | M::Cmove
            | M::Cmovl
            | M::Cmova
            | M::Cmovo
            | M::Lahf
            | M::Sahf
            | M::Pushfq
            | M::Pushfd
            | M::Adcx
            | M::Adox
            | M::Mulx
    )
}
