//! Every vector and x87 instruction that the host has, through the unit and as it stands.
//!
//! Encodings are enumerated, not listed: what decodes and is not refused is tested. The other side
//! is a trampoline that loads all registers, runs the guest's very bytes and stores all registers,
//! so that what the unit believes about an instruction (which registers it reads and writes, where
//! its implicit operands are, whether it looks at flags or MXCSR) is put to the test.

use std::collections::HashSet;

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, MemoryOperand, OpKind, Register,
};
use x86::state::{Rflags, VectorState, gpr};
use x86::{CpuState, NativeOperand};

use super::random::Random;
use crate::code_memory::CodeMemory;
use crate::native::NativeUnit;
use crate::native::plan::{Environment, Plan};
use crate::native::stub::HOST_MXCSR;

/// What the trampoline exchanges with the test. It lies below 2 GiB, where instructions can name
/// it without a register.
#[repr(C, align(64))]
struct Context {
    fxsave: [u8; 512],
    vector: VectorState,
    gpr: [u64; 16],
    rflags: u64,
    host_rsp: u64,
    host_mxcsr: u32,
    operand: NativeOperand,
}

struct Oracle {
    context: *mut Context,
    code: CodeMemory,
    prologue: Vec<u8>,
    epilogue: Vec<u8>,
}

fn emit(encoder: &mut Encoder, insn: Instruction) {
    encoder.encode(&insn, 0).expect("an instruction");
}

impl Oracle {
    fn new() -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
            libc::mmap(std::ptr::null_mut(), 0x4000, protection, flags, -1, 0)
        };
        assert_ne!(map, libc::MAP_FAILED);
        let context = map.cast::<Context>();
        // SAFETY: the mapping is large enough, and all zeroes is a context.
        unsafe { (*context).host_mxcsr = HOST_MXCSR };
        let at = |offset: usize| MemoryOperand::with_displ(map as u64 + offset as u64, 8);
        let vector = std::mem::offset_of!(Context, vector);
        let zmm = |i: usize| at(vector + std::mem::offset_of!(VectorState, zmm) + i * 64);
        let k = |i: usize| at(vector + std::mem::offset_of!(VectorState, k) + i * 8);
        let gpr_at = |i: usize| at(std::mem::offset_of!(Context, gpr) + i * 8);
        let rflags = at(std::mem::offset_of!(Context, rflags));
        let rsp = at(std::mem::offset_of!(Context, host_rsp));
        let fxsave = at(std::mem::offset_of!(Context, fxsave));
        let gprs = (0..16_usize).filter(|&i| i != gpr::RSP);
        let callee_saved = [
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];

        let with1 = |code, m| Instruction::with1::<MemoryOperand>(code, m).expect("encodable");
        let load = |code, r: Register, m: MemoryOperand| {
            Instruction::with2(code, r, m).expect("encodable")
        };
        let store = |code, m: MemoryOperand, r: Register| {
            Instruction::with2(code, m, r).expect("encodable")
        };
        let mut e = Encoder::new(64);
        for reg in callee_saved {
            emit(&mut e, Instruction::with1(Code::Push_r64, reg).expect("encodable"));
        }
        emit(&mut e, store(Code::Mov_rm64_r64, rsp, Register::RSP));
        emit(&mut e, with1(Code::Fxrstor64_m512byte, fxsave));
        for i in 0..32 {
            emit(
                &mut e,
                load(Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512, Register::ZMM0 + i as u32, zmm(i)),
            );
        }
        for i in 0..8 {
            emit(&mut e, load(Code::VEX_Kmovq_kr_km64, Register::K0 + i as u32, k(i)));
        }
        emit(&mut e, with1(Code::Push_rm64, rflags));
        emit(&mut e, Instruction::with(Code::Popfq));
        for i in gprs.clone() {
            emit(&mut e, load(Code::Mov_r64_rm64, Register::RAX + i as u32, gpr_at(i)));
        }
        let prologue = e.take_buffer();

        let mut e = Encoder::new(64);
        for i in gprs {
            emit(&mut e, store(Code::Mov_rm64_r64, gpr_at(i), Register::RAX + i as u32));
        }
        emit(&mut e, load(Code::Mov_r64_rm64, Register::RSP, rsp));
        emit(&mut e, Instruction::with(Code::Pushfq));
        emit(&mut e, with1(Code::Pop_rm64, rflags));
        for i in 0..32 {
            emit(
                &mut e,
                store(Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm, zmm(i), Register::ZMM0 + i as u32),
            );
        }
        for i in 0..8 {
            emit(&mut e, store(Code::VEX_Kmovq_m64_kr, k(i), Register::K0 + i as u32));
        }
        emit(&mut e, with1(Code::Fxsave64_m512byte, fxsave));
        emit(&mut e, Instruction::with(Code::Fninit));
        emit(&mut e, with1(Code::Ldmxcsr_m32, at(std::mem::offset_of!(Context, host_mxcsr))));
        emit(&mut e, Instruction::with(Code::VEX_Vzeroupper));
        for reg in callee_saved.into_iter().rev() {
            emit(&mut e, Instruction::with1(Code::Pop_r64, reg).expect("encodable"));
        }
        emit(&mut e, Instruction::with(Code::Retnq));
        let epilogue = e.take_buffer();
        let code = CodeMemory::new(1 << 14).expect("executable memory");
        Self { context, code, prologue, epilogue }
    }

    /// Where an instruction finds its memory operand.
    fn operand_address(&self) -> u64 {
        self.context as u64 + std::mem::offset_of!(Context, operand) as u64
    }

    /// Takes an instruction that changes nothing but registers and the operand.
    fn load(&mut self, bytes: &[u8]) -> unsafe extern "sysv64" fn() {
        self.code.clear();
        let code = [&self.prologue, bytes, &self.epilogue].concat();
        let entry = self.code.add(&code).expect("room for one trampoline");
        // SAFETY: the code was emitted as a function without arguments.
        unsafe { std::mem::transmute::<*mut u8, unsafe extern "sysv64" fn()>(entry.as_ptr()) }
    }

    fn run(
        &mut self,
        entry: unsafe extern "sysv64" fn(),
        state: &mut CpuState,
        operand: &mut NativeOperand,
    ) {
        // SAFETY: the context is mapped and used by this thread alone; the trampoline keeps to
        // the calling convention, and the instruction in it is one that `Plan` has found to touch
        // nothing but registers and its operand, which is at RAX in the context.
        unsafe {
            let context = &mut *self.context;
            context.vector = state.vector.clone();
            context.gpr = state.gpr;
            context.rflags = state.rflags & Rflags::STATUS.bits() | 2;
            context.operand = *operand;
            let x87: *mut x86::state::X87State = (&raw mut context.fxsave).cast();
            *x87 = state.vector.x87;
            entry();
            let context = &mut *self.context;
            state.gpr = context.gpr;
            state.vector.zmm = context.vector.zmm;
            state.vector.k = context.vector.k;
            state.vector.x87 = *x87;
            let status = Rflags::STATUS.bits();
            state.rflags = state.rflags & !status | context.rflags & status;
            *operand = context.operand;
        }
    }
}

/// All encodings to try: legacy, VEX, EVEX and x87, with register operands and with [rax].
fn encodings() -> impl Iterator<Item = Vec<u8>> {
    // Registers 3 and 6 (or [rax]), and what group instructions take for an opcode.
    let modrms = || (0..8_u8).flat_map(|digit| [0xc6 | digit << 3, digit << 3]);
    let opcodes = || 0..=255_u8;
    let legacy = [0, 0x66, 0xf3, 0xf2].into_iter().flat_map(move |prefix| {
        [0, 0x48, 0x4d].into_iter().flat_map(move |rex| {
            [&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]].into_iter().flat_map(move |map| {
                opcodes().flat_map(move |opcode| {
                    modrms().map(move |modrm| {
                        // With REX.B, memory is at r8.
                        let mut bytes: Vec<u8> =
                            [prefix, rex].into_iter().filter(|&b| b != 0).collect();
                        bytes.extend(map);
                        bytes.extend([opcode, modrm, 0x1d, 0x05]);
                        bytes
                    })
                })
            })
        })
    });
    let vex = (1..=3_u8).flat_map(move |map| {
        (0..16_u8).flat_map(move |pp_l_w| {
            opcodes().flat_map(move |opcode| {
                modrms().flat_map(move |modrm| {
                    [5_u8, 0].into_iter().map(move |v| {
                        let second = (pp_l_w >> 3) << 7
                            | (!v & 0xf) << 3
                            | (pp_l_w >> 2 & 1) << 2
                            | pp_l_w & 3;
                        vec![0xc4, 0xe0 | map, second, opcode, modrm, 0x2d]
                    })
                })
            })
        })
    });
    let evex = [1, 2, 3, 5, 6_u8].into_iter().flat_map(move |map| {
        (0..8_u8).flat_map(move |pp_w| {
            (0..32_u8).flat_map(move |rest| {
                opcodes().flat_map(move |opcode| {
                    modrms().flat_map(move |modrm| {
                        [21_u8, 0].into_iter().map(move |v| {
                            // Length, broadcast or rounding, zeroing, mask K1 or none.
                            let (length, b, z, aaa) =
                                (rest & 3, rest >> 2 & 1, rest >> 3 & 1, rest >> 4);
                            let p1 = (pp_w >> 2) << 7 | (!v & 0xf) << 3 | 4 | pp_w & 3;
                            let p2 = z << 7 | length << 5 | b << 4 | (!v >> 4 & 1) << 3 | aaa;
                            vec![0x62, 0xf0 | map, p1, p2, opcode, modrm, 0x2d]
                        })
                    })
                })
            })
        })
    });
    let x87 = (0xd8..=0xdf_u8).flat_map(|opcode| {
        (0..8_u8).map(|digit| digit << 3).chain(0xc0..=0xff).map(move |modrm| vec![opcode, modrm])
    });
    legacy.chain(vex).chain(evex).chain(x87)
}

/// Numbers of all kinds: small, large, special, as integers, singles and doubles.
fn number(random: &mut Random) -> u64 {
    let single = |random: &mut Random| match random.next() % 8 {
        0 => random.next() as u32,
        1 => 0,
        2 => 0x7f80_0000 | random.next() as u32 & 0x8040_0001,
        3 => random.next() as u32 & 0x807f_ffff,
        _ => (random.next() as i32 as f32 / 65536.0).to_bits(),
    };
    match random.next() % 4 {
        0 => random.next(),
        1 => (random.next() as i64 as f64 / 1e15).to_bits(),
        _ => u64::from(single(random)) << 32 | u64::from(single(random)),
    }
}

fn fill(state: &mut CpuState, operand: &mut NativeOperand, random: &mut Random) {
    for q in state.vector.zmm.as_flattened_mut() {
        *q = number(random);
    }
    for q in state.vector.k.iter_mut().chain(&mut state.gpr) {
        *q = random.next();
    }
    for chunk in operand.0[..64].as_chunks_mut::<8>().0 {
        *chunk = number(random).to_le_bytes();
    }
    state.rflags = random.next() & Rflags::STATUS.bits() | Rflags::FIXED.bits();
    let x87 = &mut state.vector.x87;
    x87.mxcsr = 0x1f80 | random.next() as u32 & 0xe040;
    x87.fcw = 0x037f & !0x0f00 | random.next() as u16 & 0x0f00;
    if x87.fcw & 0x300 == 0x100 {
        x87.fcw |= 0x200; // that precision is reserved
    }
    x87.fsw = random.next() as u16 & 0x7f00;
    x87.ftw = random.next() as u8 | random.next() as u8;
    for st in &mut x87.st {
        // Normal numbers near one, zeroes, and others.
        *st = match random.next() % 8 {
            0 => [0, random.next() & 0x8000],
            1 => [random.next(), random.next() & 0xffff],
            _ => [random.next() | 1 << 63, 0x3ff0 + random.next() % 0x20],
        };
    }
}

#[test]
fn every_instruction_does_what_the_host_does() {
    if !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl")) {
        return eprintln!("SKIPPED: the trampoline is for hosts with AVX-512");
    }
    let mut unit = NativeUnit::new().expect("executable memory");
    let mut oracle = Oracle::new();
    let mut random = Random(7);
    let mut seen = HashSet::new();
    let (mut accepted, mut refused) = (HashSet::new(), HashSet::new());
    let (mut vectors, mut x87) = (0, 0);
    for bytes in encodings() {
        let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        if insn.is_invalid() || insn.len() > bytes.len() {
            continue;
        }
        let has_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let base = insn.memory_base();
        if has_memory && !matches!(base, Register::RAX | Register::R8) {
            continue;
        }
        let bytes = &bytes[..insn.len()];
        let is_new = seen.insert((
            insn.code(),
            has_memory,
            // Stack registers make an x87 instruction what it is.
            [insn.op0_register(), insn.op1_register()].map(|r| r.is_st().then_some(r)),
            (insn.op_mask(), insn.zeroing_masking(), insn.is_broadcast()),
            (insn.rounding_control() as u8, insn.suppress_all_exceptions()),
        ));
        if !is_new {
            continue;
        }
        if unit.find(&insn).entry.is_none() {
            refused.insert(insn.code());
            continue;
        }
        accepted.insert(insn.code());
        let plan = Plan::new(&insn).expect("a plan, since there is a stub");
        let is_x87 = plan.environment == Environment::X87;
        // These hold addresses of the host, or the environment that the unit replaces.
        if is_x87 && is_control(&insn) {
            continue;
        }
        *(if is_x87 { &mut x87 } else { &mut vectors }) += 1;
        let entry = oracle.load(bytes);
        for round in 0..12 {
            let mut state = CpuState::reset(0);
            let mut operand = NativeOperand([0; 512]);
            fill(&mut state, &mut operand, &mut random);
            if !is_x87 {
                // MMX registers are physical ones.
                state.vector.x87.fsw = 0;
                state.vector.x87.ftw = 0xff;
            }
            if has_memory {
                state.gpr[base.number()] = oracle.operand_address();
            }
            let (mut expected, mut expected_operand) = (state.clone(), operand);
            oracle.run(entry, &mut expected, &mut expected_operand);
            unit.execute(&insn, &mut state, &mut operand).expect("no exception");
            for s in [&mut state, &mut expected] {
                let x87 = &mut s.vector.x87;
                (x87.fip, x87.fdp, x87.fop, x87.reserved, x87.mxcsr_mask) = (0, 0, 0, 0, 0);
                if !is_x87 {
                    // The interpreter sets these, whoever executes.
                    (x87.fsw, x87.ftw) = (0, 0);
                }
                s.gpr[gpr::RSP] = 0;
            }
            let what = || format!("{:?} {bytes:02x?} round {round}", insn.code());
            for (i, (got, wanted)) in state.vector.zmm.iter().zip(&expected.vector.zmm).enumerate()
            {
                assert!(got == wanted, "{}: zmm{i} is {got:x?}, not {wanted:x?}", what());
            }
            assert_eq!(state.vector.x87, expected.vector.x87, "{}", what());
            assert!(state == expected, "{}: general or mask registers, flags", what());
            assert!(operand.0 == expected_operand.0, "{}: memory", what());
        }
    }
    // What is accepted with a register is accepted with memory in its place.
    let in_part: Vec<Code> = accepted.intersection(&refused).copied().collect();
    assert!(in_part.is_empty(), "refused with some operands: {in_part:?}");
    println!("{vectors} vector and {x87} x87 instructions");
    assert!(vectors > 8000 && x87 > 150, "{vectors} {x87}");
}

fn is_control(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic;
    matches!(
        insn.mnemonic(),
        Mnemonic::Fnstenv
            | Mnemonic::Fldenv
            | Mnemonic::Fnsave
            | Mnemonic::Frstor
            | Mnemonic::Fldcw
            | Mnemonic::Fnstcw
    )
}
