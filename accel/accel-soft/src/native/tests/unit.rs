//! The unit against the host: the same instruction, once through a stub on saved registers and
//! once in this process, written in assembly.

use std::arch::asm;

use iced_x86::{Decoder, DecoderOptions};
use x86::state::{Rflags, gpr};
use x86::{CpuState, Exception, NativeOperand, vector};

use super::components;
use crate::native::NativeUnit;

struct Bench {
    unit: NativeUnit,
    state: CpuState,
    memory: NativeOperand,
}

impl Bench {
    fn new() -> Self {
        let mut state = CpuState::reset(0);
        for (i, zmm) in state.vector.zmm.iter_mut().enumerate() {
            *zmm = std::array::from_fn(|j| (0x0101_0101_0101_0101 * i as u64) ^ (j as u64) << 17);
        }
        state.vector.k = [0, 0x5555, 0xff, 0xf0f0_f0f0, 1, 2, 3, u64::MAX];
        state.vector.keep_components(components());
        state.vector.x87.fcw = 0x037f;
        state.vector.x87.ftw = 0;
        let memory = NativeOperand(std::array::from_fn(|i| i as u8));
        Self { unit: NativeUnit::new().expect("executable memory"), state, memory }
    }

    fn try_run(&mut self, bits: u32, bytes: &[u8]) -> Result<(), Exception> {
        let insn = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
        assert!(!insn.is_invalid(), "{bytes:02x?}");
        self.unit.execute(&insn, &mut self.state, &mut self.memory)
    }

    fn run(&mut self, bytes: &[u8]) {
        self.try_run(64, bytes).expect("no exception");
    }

    fn set_f32(&mut self, reg: usize, values: [f32; 4]) {
        let bits = values.map(|v| u64::from(v.to_bits()));
        self.state.vector.zmm[reg][0] = bits[0] | bits[1] << 32;
        self.state.vector.zmm[reg][1] = bits[2] | bits[3] << 32;
    }

    fn set_f64(&mut self, reg: usize, value: f64) {
        self.state.vector.zmm[reg][0] = value.to_bits();
    }

    fn mxcsr(&self) -> u32 {
        self.state.vector.x87.mxcsr
    }
}

/// Whether the host can run AVX-512; says so if not.
fn has_avx512() -> bool {
    let has = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
    if !has {
        eprintln!("SKIPPED: this host has no AVX-512");
    }
    has
}

#[test]
fn legacy_sse_keeps_what_lies_above_bit_127() {
    let mut b = Bench::new();
    let before = b.state.vector.zmm;
    b.run(&[0x66, 0x0f, 0xfe, 0xca]); // paddd xmm1, xmm2
    let pack = |z: [u64; 8]| u128::from(z[0]) | u128::from(z[1]) << 64;
    let (x, y) = (pack(before[1]), pack(before[2]));
    let mut expected = 0_u128;
    // SAFETY: loads from and stores to variables of this function.
    unsafe {
        asm!(
            "movdqu {a}, [{x}]",
            "movdqu {b}, [{y}]",
            "paddd {a}, {b}",
            "movdqu [{out}], {a}",
            x = in(reg) &x,
            y = in(reg) &y,
            out = in(reg) &mut expected,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
        );
    }
    let after = b.state.vector.zmm[1];
    assert_eq!(pack(after), expected);
    assert_eq!(after[2..], before[1][2..]);
    assert_eq!(b.state.vector.zmm[0], before[0]);
    assert_eq!(b.state.vector.zmm[2..], before[2..]);
}

#[test]
fn vex_clears_what_lies_above_its_width() {
    if !is_x86_feature_detected!("avx2") {
        return eprintln!("SKIPPED: this host has no AVX2");
    }
    let mut b = Bench::new();
    let z = b.state.vector.zmm;
    b.run(&[0xc5, 0xe9, 0xef, 0xcb]); // vpxor xmm1, xmm2, xmm3
    let low = [z[2][0] ^ z[3][0], z[2][1] ^ z[3][1]];
    assert_eq!(b.state.vector.zmm[1], [low[0], low[1], 0, 0, 0, 0, 0, 0]);
    b.run(&[0xc5, 0xed, 0xef, 0x0e]); // vpxor ymm1, ymm2, [rsi]
    let m: [u64; 4] =
        std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| (i * 8 + j) as u8)));
    let expected = std::array::from_fn(|i| if i < 4 { z[2][i] ^ m[i] } else { 0 });
    assert_eq!(b.state.vector.zmm[1], expected);
}

#[test]
fn evex_reaches_all_registers_and_obeys_masks() {
    if !has_avx512() {
        return;
    }
    let mut b = Bench::new();
    let z = b.state.vector.zmm;
    // vpaddq zmm17{k4}, zmm30, zmm31; k4 = 1
    b.run(&[0x62, 0x81, 0x8d, 0x44, 0xd4, 0xcf]);
    let mut expected = z[17];
    expected[0] = z[30][0].wrapping_add(z[31][0]);
    assert_eq!(b.state.vector.zmm[17], expected);
    // vpcmpeqd k3, zmm1, zmm1
    b.run(&[0x62, 0xf1, 0x75, 0x48, 0x76, 0xd9]);
    assert_eq!(b.state.vector.k[3], 0xffff);
    // vpaddd zmm1, zmm2, [rax]{1to16}
    b.run(&[0x62, 0xf1, 0x6d, 0x58, 0xfe, 0x08]);
    let splat = 0x0302_0100_u32;
    for (i, &q) in z[2].iter().enumerate() {
        let add = |half: u32| u64::from(half.wrapping_add(splat));
        assert_eq!(b.state.vector.zmm[1][i], add(q as u32) | add((q >> 32) as u32) << 32);
    }
}

#[test]
fn general_registers_are_found_wherever_they_are() {
    let mut b = Bench::new();
    for (i, gpr) in b.state.gpr.iter_mut().enumerate() {
        *gpr = 0xaaaa_bbbb_0000_0000 | i as u64;
    }
    let before = b.state.gpr;
    b.run(&[0x66, 0x48, 0x0f, 0x6e, 0xc4]); // movq xmm0, rsp
    assert_eq!(b.state.vector.zmm[0][..2], [before[4], 0]);
    b.run(&[0x66, 0x0f, 0x7e, 0xc7]); // movd edi, xmm0
    let mut expected = before;
    expected[gpr::RDI] = 4;
    assert_eq!(b.state.gpr, expected);
    b.set_f64(3, -2.75);
    b.run(&[0xf2, 0x4c, 0x0f, 0x2c, 0xdb]); // cvttsd2si r11, xmm3
    expected[gpr::R11] = -2_i64 as u64;
    assert_eq!(b.state.gpr, expected);
    b.run(&[0x66, 0x0f, 0xc5, 0xf0, 0x00]); // pextrw esi, xmm0, 0
    expected[gpr::RSI] = 4;
    assert_eq!(b.state.gpr, expected);
}

#[test]
fn comparisons_set_the_status_flags_only() {
    let mut b = Bench::new();
    let other = (Rflags::IF | Rflags::DF | Rflags::FIXED).bits();
    b.state.rflags = other | Rflags::OF.bits() | Rflags::ZF.bits();
    b.set_f64(0, 1.0);
    b.set_f64(1, 2.0);
    b.run(&[0x66, 0x0f, 0x2f, 0xc1]); // comisd xmm0, xmm1
    assert_eq!(b.state.rflags, other | Rflags::CF.bits());
    b.run(&[0x66, 0x0f, 0x2f, 0xc0]);
    assert_eq!(b.state.rflags, other | Rflags::ZF.bits());
    b.set_f64(1, f64::NAN);
    b.run(&[0x66, 0x0f, 0x2e, 0xc1]); // ucomisd xmm0, xmm1
    assert_eq!(b.state.rflags, other | (Rflags::ZF | Rflags::PF | Rflags::CF).bits());
    b.state.vector.zmm[5] = [0; 8];
    b.run(&[0x66, 0x0f, 0x38, 0x17, 0xed]); // ptest xmm5, xmm5
    assert_eq!(b.state.rflags, other | (Rflags::ZF | Rflags::CF).bits());
}

#[test]
fn string_comparisons_use_their_implicit_registers() {
    let mut b = Bench::new();
    b.state.vector.zmm[1][..2].copy_from_slice(&[0x6867_6665_6463_6261, 0]);
    b.memory.0[..16].copy_from_slice(b"xxxxcdexxxxxxxxx");
    b.state.gpr[gpr::RAX] = 3; // of xmm1: "abc"
    b.state.gpr[gpr::RDX] = 16;
    b.state.gpr[gpr::RCX] = 0xdead_beef_0000_0000;
    b.run(&[0x66, 0x0f, 0x3a, 0x61, 0x0f, 0x00]); // pcmpestri xmm1, [rdi], equal any
    assert_eq!(b.state.gpr[gpr::RCX], 4);
    assert_eq!(b.state.gpr[gpr::RAX], 3);
    assert!(b.state.rflags & Rflags::CF.bits() != 0);
    b.run(&[0x66, 0x0f, 0x3a, 0x60, 0x0f, 0x00]); // pcmpestrm xmm1, [rdi]: mask to xmm0
    assert_eq!(b.state.vector.zmm[0][..2], [0x10, 0]);
}

#[test]
fn blends_take_their_selector_from_xmm0() {
    let mut b = Bench::new();
    let z = b.state.vector.zmm;
    b.state.vector.zmm[0][..2].copy_from_slice(&[u64::MAX, 0]);
    b.run(&[0x66, 0x0f, 0x38, 0x10, 0xca]); // pblendvb xmm1, xmm2, xmm0
    assert_eq!(b.state.vector.zmm[1][..2], [z[2][0], z[1][1]]);
}

#[test]
fn stores_go_to_the_buffer() {
    let mut b = Bench::new();
    let z = b.state.vector.zmm;
    b.run(&[0x0f, 0x11, 0x3c, 0x24]); // movups [rsp], xmm7
    assert_eq!(b.memory.0[..8], z[7][0].to_le_bytes());
    assert_eq!(b.memory.0[8..16], z[7][1].to_le_bytes());
    assert_eq!(b.memory.0[16], 16);
    if has_avx512() {
        // vmovdqu64 [rsp]{k4}, zmm6: one qword
        b.run(&[0x62, 0xf1, 0xfe, 0x4c, 0x7f, 0x34, 0x24]);
        assert_eq!(b.memory.0[..8], z[6][0].to_le_bytes());
        assert_eq!(b.memory.0[8..16], z[7][1].to_le_bytes());
    }
}

#[test]
fn other_modes_run_the_same_instructions() {
    let mut b = Bench::new();
    let z = b.state.vector.zmm;
    b.try_run(32, &[0x66, 0x0f, 0xef, 0x0d, 0, 0, 0, 0x80]).unwrap(); // pxor xmm1, [0x80000000]
    assert_eq!(b.state.vector.zmm[1][0], z[1][0] ^ 0x0706_0504_0302_0100);
    b.try_run(16, &[0x66, 0x0f, 0xef, 0x53, 0x10]).unwrap(); // pxor xmm2, [bp+di+0x10]
    assert_eq!(b.state.vector.zmm[2][0], z[2][0] ^ 0x0706_0504_0302_0100);
    b.state.gpr[gpr::RBX] = 77;
    b.try_run(32, &[0xf2, 0x0f, 0x2a, 0xdb]).unwrap(); // cvtsi2sd xmm3, ebx
    assert_eq!(b.state.vector.zmm[3][0], 77f64.to_bits());
}

#[test]
fn the_guests_rounding_counts() {
    for (rounding, expected) in [(0, 3), (1, 2), (2, 3), (3, 2)] {
        let mut b = Bench::new();
        b.state.vector.x87.mxcsr = 0x1f80 | rounding << 13;
        b.set_f64(1, 2.5000001);
        b.run(&[0xf2, 0x0f, 0x2d, 0xc1]); // cvtsd2si eax, xmm1
        assert_eq!(b.state.gpr[gpr::RAX], expected);
        assert_eq!(b.mxcsr(), 0x1fa0 | rounding << 13);
    }
    let mut now = 0_u32;
    // SAFETY: stores to a variable of this function.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut now) };
    assert_eq!(now & !0x3f, 0x1f80);
}

#[test]
fn masked_exceptions_leave_flags_that_stay() {
    let mut b = Bench::new();
    b.set_f32(0, [1.0, 1e38, 0.0, f32::from_bits(1)]);
    b.set_f32(1, [0.0, 1e-38, 0.0, 1.0]);
    b.run(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1: ZE, OE, IE, DE
    assert_eq!(b.mxcsr() & 0x3f, 0x2f);
    b.set_f32(0, [1.0; 4]);
    b.set_f32(1, [1.0; 4]);
    b.run(&[0x0f, 0x5e, 0xc1]);
    assert_eq!(b.mxcsr() & 0x3f, 0x2f);
}

#[test]
fn unmasked_exceptions_change_nothing_but_flags() {
    let mut b = Bench::new();
    b.state.vector.x87.mxcsr = 0x1f80 & !(1 << 9); // ZM clear
    b.set_f32(0, [1.0, 3.0, 5.0, 7.0]);
    b.set_f32(1, [0.0, 7.0, 3.0, 9.0]);
    let before = b.state.clone();
    let raised = b.try_run(64, &[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1
    assert_eq!(raised, Err(Exception::new(vector::XM)));
    // Post-computation exceptions (PE of the other quotients) are not looked for.
    assert_eq!(b.mxcsr(), before.vector.x87.mxcsr | 4);
    assert_eq!(b.state.vector.zmm, before.vector.zmm);

    // The same unmasked, without an exception: goes through, and other flags are collected.
    b.set_f32(1, [3.0; 4]);
    b.run(&[0x0f, 0x5e, 0xc1]);
    assert_eq!(b.mxcsr() & 0x3f, 0x24);
    assert_eq!(b.state.vector.zmm[0][0] as u32, (1.0_f32 / 3.0).to_bits());
}

#[test]
fn an_exact_tiny_result_is_an_underflow_only_if_unmasked() {
    let smallest = f64::MIN_POSITIVE;
    let mut b = Bench::new();
    b.set_f64(0, smallest);
    b.set_f64(1, 0.5);
    b.run(&[0xf2, 0x0f, 0x59, 0xc1]); // mulsd xmm0, xmm1
    assert_eq!((b.state.vector.zmm[0][0], b.mxcsr()), ((smallest / 2.0).to_bits(), 0x1f80));
    b.set_f64(0, smallest);
    b.state.vector.x87.mxcsr = 0x1f80 & !(1 << 11);
    assert_eq!(b.try_run(64, &[0xf2, 0x0f, 0x59, 0xc1]), Err(Exception::new(vector::XM)));
    assert_eq!(b.state.vector.zmm[0][0], smallest.to_bits());
    assert_eq!(b.mxcsr() & 0x3f, 0x10);
}

#[test]
fn mmx_lives_in_the_x87_registers() {
    let mut b = Bench::new();
    b.state.vector.x87.st[1] = [0x0001_0002_0003_0004, 0x3fff];
    b.state.vector.x87.st[2] = [0x0010_0020_0030_0040, 0x3fff];
    b.run(&[0x0f, 0xfd, 0xca]); // paddw mm1, mm2
    assert_eq!(b.state.vector.x87.st[1], [0x0011_0022_0033_0044, 0xffff]);
    assert_eq!(b.state.vector.x87.st[2], [0x0010_0020_0030_0040, 0x3fff]);
    b.run(&[0xf3, 0x0f, 0xd6, 0xc1]); // movq2dq xmm0, mm1
    assert_eq!(b.state.vector.zmm[0][..2], [0x0011_0022_0033_0044, 0]);
    let mut tags = [0_u8; 28];
    // SAFETY: stores 28 bytes to a variable of this function, and undoes the masking.
    unsafe { asm!("fnstenv [{0}]", "fldenv [{0}]", in(reg) &mut tags) };
    assert_eq!(tags[8..10], [0xff, 0xff], "the host's x87 stack is empty");
}

/// Pushes an extended-precision number in the guest's x87 unit.
fn push(b: &mut Bench, value: f64) {
    b.memory.0[..8].copy_from_slice(&value.to_bits().to_le_bytes());
    b.run(&[0xdd, 0x00]); // fld qword [rax]
}

fn pop(b: &mut Bench) -> f64 {
    b.run(&[0xdd, 0x18]); // fstp qword [rax]
    f64::from_le_bytes(b.memory.0[..8].try_into().unwrap())
}

#[test]
fn x87_computes_with_a_stack() {
    let mut b = Bench::new();
    push(&mut b, 3.0);
    push(&mut b, 4.0);
    assert_eq!(b.state.vector.x87.fsw >> 11 & 7, 6);
    assert_eq!(b.state.vector.x87.ftw, 0xc0);
    b.run(&[0xd8, 0xc8]); // fmul st0, st0
    b.run(&[0xd9, 0xc9]); // fxch
    b.run(&[0xd8, 0xc8]);
    b.run(&[0xde, 0xc1]); // faddp
    b.run(&[0xd9, 0xfa]); // fsqrt
    assert_eq!(pop(&mut b), 5.0);
    assert_eq!(b.state.vector.x87.ftw, 0);
    b.run(&[0xd9, 0xeb]); // fldpi
    b.run(&[0xd9, 0xfe]); // fsin
    let mut out = 0.0_f64;
    // SAFETY: leaves the x87 stack as it was.
    unsafe { asm!("fldpi", "fsin", "fstp qword ptr [{}]", in(reg) &mut out) };
    assert_eq!(pop(&mut b).to_bits(), out.to_bits());
}

#[test]
fn x87_comparisons_and_conditional_moves_use_the_flags() {
    let mut b = Bench::new();
    push(&mut b, 1.0);
    push(&mut b, 2.0);
    b.state.rflags = (Rflags::FIXED | Rflags::CF | Rflags::IF).bits();
    b.run(&[0xdb, 0xf1]); // fcomi st0, st1
    assert_eq!(b.state.rflags, (Rflags::FIXED | Rflags::IF).bits());
    b.run(&[0xdb, 0xf0]); // fcomi st0, st0
    assert_eq!(b.state.rflags, (Rflags::FIXED | Rflags::IF | Rflags::ZF).bits());
    b.run(&[0xdb, 0xc1]); // fcmovnb st0, st1: CF is clear
    assert_eq!(pop(&mut b), 1.0);
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    let mut b = Bench::new();
    b.state.vector.x87.fcw = 0x037b; // ZM clear
    push(&mut b, 0.0);
    push(&mut b, 1.0);
    b.run(&[0xd8, 0xf1]); // fdiv st0, st1
    assert_eq!(b.state.vector.x87.fsw & 0x80ff, 0x8084);
    let before = b.state.clone();
    assert_eq!(b.try_run(64, &[0xd8, 0xf1]), Err(Exception::new(vector::MF)));
    assert_eq!(b.state, before);
    // Nothing is pending on the host.
    // SAFETY: FWAIT touches no registers.
    unsafe { asm!("fwait") };
}

#[test]
fn what_is_no_plain_vector_instruction_is_refused() {
    let mut b = Bench::new();
    let refused: [&[u8]; 16] = [
        &[0x90],                               // nop
        &[0xc3],                               // ret
        &[0xeb, 0x00],                         // jmp
        &[0x0f, 0x05],                         // syscall
        &[0x0f, 0x01, 0xd1],                   // xsetbv
        &[0x48, 0x01, 0xd8],                   // add rax, rbx
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],       // wrfsbase rax
        &[0x0f, 0xae, 0x10],                   // ldmxcsr [rax]
        &[0x0f, 0xae, 0x08],                   // fxrstor [rax]
        &[0x0f, 0xae, 0x20],                   // xsave [rax]
        &[0xa4],                               // movsb
        &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu xmm0, xmm1
        &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08], // vpgatherdd xmm0, [rax+xmm1], xmm2
        &[0x9d],                               // popf
        &[0x0f, 0x0f, 0xc1, 0x9e],             // pfadd mm0, mm1
        &[0x8f, 0xe9, 0x78, 0x80, 0xc1],       // vfrczps xmm0, xmm1
    ];
    let before = b.state.clone();
    for bytes in refused {
        assert_eq!(b.try_run(64, bytes), Err(Exception::UD), "{bytes:02x?}");
        assert_eq!(b.state, before);
    }
}

#[test]
fn the_table_survives_more_instructions_than_it_holds() {
    if !has_avx512() {
        return;
    }
    let mut b = Bench::new();
    // vpternlogd xmmA, xmmB, xmmC, imm8: far more than there are slots or room for code.
    let mut count = 0;
    for imm in 0..=255_u8 {
        for regs in 0..128_u8 {
            let (a, c) = (regs & 7, regs >> 3 & 7);
            let vvvv = !(regs >> 6) & 0xf;
            let bytes = [0x62, 0xf3, 0x05 | vvvv << 3, 0x08, 0x25, 0xc0 | a << 3 | c, imm];
            let z = b.state.vector.zmm;
            b.run(&bytes);
            let lane = |i: usize, j: usize| z[i][j];
            let (x, y, w) = (lane(a.into(), 1), lane((!vvvv & 0xf).into(), 1), lane(c.into(), 1));
            let expected = (0..8).filter(|i| imm >> i & 1 != 0).fold(0, |r, i| {
                let pick = |v: u64, bit: u32| if i >> bit & 1 != 0 { v } else { !v };
                r | pick(x, 2) & pick(y, 1) & pick(w, 0)
            });
            assert_eq!(b.state.vector.zmm[usize::from(a)][1], expected);
            count += 1;
        }
    }
    assert_eq!(count, 256 * 128);
}
