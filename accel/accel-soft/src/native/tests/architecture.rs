//! What the architecture checks before a vector or x87 instruction runs, and how its memory
//! operand behaves.

use x86::cpuid::CpuidResult;
use x86::state::{Cr0, Cr4, Rflags, SegReg, SegmentAttributes, gpr};
use x86::vector;

use super::components;
use super::guest::{DATA, Fault, Guest, HOLE};

const PADDD: &[u8] = &[0x66, 0x0f, 0xfe, 0xca]; // paddd xmm1, xmm2
const VPADDD: &[u8] = &[0xc5, 0xe9, 0xfe, 0xcb]; // vpaddd xmm1, xmm2, xmm3
const EVEX_VPADDD: &[u8] = &[0x62, 0xf1, 0x6d, 0x48, 0xfe, 0xcb]; // vpaddd zmm1, zmm2, zmm3
const KMOVW: &[u8] = &[0xc5, 0xf8, 0x90, 0xca]; // kmovw k1, k2
const PADDW_MM: &[u8] = &[0x0f, 0xfd, 0xca]; // paddw mm1, mm2
const FADD: &[u8] = &[0xd8, 0xc1]; // fadd st0, st1
const FWAIT: &[u8] = &[0x9b];

fn has(leaf: u32, word: fn(&CpuidResult) -> u32, bit: u32) -> bool {
    let guest = Guest::new();
    let has = word(&x86::Env::cpuid(&guest.cpu.env, leaf, 0)) >> bit & 1 != 0;
    if !has {
        eprintln!("SKIPPED in part: the host lacks CPUID.{leaf:x} bit {bit}");
    }
    has
}

fn has_avx() -> bool {
    has(7, |r| r.ebx, 5)
}

fn has_avx512() -> bool {
    has(7, |r| r.ebx, 30)
}

#[test]
fn control_registers_enable_each_family() {
    let ud = Err(Fault::of(vector::UD));
    let nm = Err(Fault::of(vector::NM));
    let mut insns = vec![PADDD];
    if has_avx() {
        insns.push(VPADDD);
    }
    if has_avx512() {
        insns.extend([EVEX_VPADDD, KMOVW]);
    }
    for insn in insns.into_iter().chain([PADDW_MM]) {
        let mut g = Guest::new();
        g.run(insn);
        g.state().cr0 |= Cr0::TS;
        assert_eq!(g.try_run(insn), nm, "{insn:02x?}");
    }
    let mut g = Guest::new();
    g.state().cr0 |= Cr0::EM;
    assert_eq!(g.try_run(PADDD), ud);
    assert_eq!(g.try_run(PADDW_MM), ud);
    assert_eq!(g.try_run(FADD), nm);
    g.run(FWAIT);
    g.state().cr0 = g.state().cr0 & !Cr0::EM | Cr0::TS;
    assert_eq!(g.try_run(FWAIT), nm);
    g.state().cr0 &= !Cr0::MP;
    g.run(FWAIT);

    let mut g = Guest::new();
    g.state().cr4 &= !Cr4::OSFXSR;
    assert_eq!(g.try_run(PADDD), ud);
    g.run(PADDW_MM);
    let mut g = Guest::new();
    g.state().cr4 &= !Cr4::OSXSAVE;
    assert_eq!(g.try_run(VPADDD), ud);
    g.run(PADDD);
    let mut g = Guest::new();
    g.state().xcr0 = 3;
    assert_eq!(g.try_run(VPADDD), ud);
    g.state().xcr0 = 7;
    assert_eq!(g.try_run(EVEX_VPADDD), ud);
    assert_eq!(g.try_run(KMOVW), ud);
    if has_avx() {
        g.run(VPADDD);
    }
}

#[test]
fn what_cpuid_does_not_offer_is_undefined() {
    let mut g = Guest::new();
    let mut leaf = x86::Env::cpuid(&g.cpu.env, 1, 0);
    leaf.ecx &= !(1 << 25 | 1 << 28); // AES, AVX
    g.cpu.env.cpuid.insert((1, 0), leaf);
    let aesenc = [0x66, 0x0f, 0x38, 0xdc, 0xca];
    assert_eq!(g.try_run(&aesenc), Err(Fault::of(vector::UD)));
    assert_eq!(g.try_run(VPADDD), Err(Fault::of(vector::UD)));
    g.run(PADDD);
}

#[test]
fn legacy_sse_operands_are_aligned() {
    let gp = || Err(Fault::of(vector::GP));
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = DATA + 8;
    assert_eq!(g.try_run(&[0x66, 0x0f, 0xfe, 0x08]), gp()); // paddd xmm1, [rax]
    assert_eq!(g.try_run(&[0x0f, 0x28, 0x08]), gp()); // movaps xmm1, [rax]
    assert_eq!(g.try_run(&[0x0f, 0x29, 0x08]), gp()); // movaps [rax], xmm1
    assert_eq!(g.try_run(&[0x66, 0x0f, 0xe7, 0x08]), gp()); // movntdq [rax], xmm1
    g.run(&[0x0f, 0x10, 0x08]); // movups xmm1, [rax]
    g.run(&[0x0f, 0x11, 0x08]); // movups [rax], xmm1
    g.run(&[0xf2, 0x0f, 0xf0, 0x08]); // lddqu xmm1, [rax]
    g.run(&[0x66, 0x0f, 0x3a, 0x63, 0x08, 0x00]); // pcmpistri xmm1, [rax]
    g.run(&[0xf2, 0x0f, 0x58, 0x08]); // addsd xmm1, [rax]
    g.state().gpr[gpr::RAX] = DATA + 1;
    g.run(&[0xf2, 0x0f, 0x58, 0x08]);
    g.run(&[0x0f, 0xfd, 0x08]); // paddw mm1, [rax]
    if has_avx() {
        g.run(&[0xc5, 0xed, 0xfe, 0x08]); // vpaddd ymm1, ymm2, [rax]
        g.run(&[0xc5, 0xfc, 0x10, 0x08]); // vmovups ymm1, [rax]
        g.state().gpr[gpr::RAX] = DATA + 16;
        g.run(&[0xc5, 0xf8, 0x28, 0x08]); // vmovaps xmm1, [rax]
        assert_eq!(g.try_run(&[0xc5, 0xfc, 0x28, 0x08]), gp()); // vmovaps ymm1, [rax]
        assert_eq!(g.try_run(&[0xc5, 0xfd, 0xe7, 0x08]), gp()); // vmovntdq [rax], ymm1
    }
}

#[test]
fn a_store_across_pages_is_all_or_nothing() {
    let mut g = Guest::new();
    g.state().vector.zmm[1] = [0x1111_1111_1111_1111; 8];
    g.state().gpr[gpr::RAX] = HOLE - 5;
    let pf = || Err(Fault { vector: vector::PF, address: HOLE });
    assert_eq!(g.try_run(&[0x0f, 0x11, 0x08]), pf()); // movups [rax], xmm1
    assert_eq!(g.read::<5>(HOLE - 5), [0; 5]);
    g.set_hole_read_only();
    assert_eq!(g.try_run(&[0x0f, 0x11, 0x08]), pf());
    assert_eq!(g.read::<5>(HOLE - 5), [0; 5]);
    g.run(&[0x0f, 0x10, 0x10]); // movups xmm2, [rax]
    g.set_hole(true);
    g.run(&[0x0f, 0x11, 0x08]);
    assert_eq!(g.read::<17>(HOLE - 6)[..], [&[0], &[0x11; 16][..]].concat());
}

#[test]
fn a_load_that_faults_changes_nothing() {
    let mut g = Guest::new();
    g.state().vector.x87.fsw = 3 << 11;
    g.state().gpr[gpr::RAX] = HOLE - 4;
    let before = g.state().vector.clone();
    for insn in [
        &[0x0f, 0x10, 0x08][..], // movups xmm1, [rax]
        &[0x0f, 0xfd, 0x08],     // paddw mm1, [rax]
        &[0xdd, 0x00],           // fld qword [rax]
        &[0xdd, 0x18],           // fstp qword [rax]
        &[0x0f, 0xe7, 0x08],     // movntq [rax], mm1
        &[0x0f, 0x13, 0x08],     // movlps [rax], xmm1
    ] {
        let fault = Fault { vector: vector::PF, address: HOLE };
        assert_eq!(g.try_run(insn), Err(fault), "{insn:02x?}");
        assert_eq!(g.state().vector, before);
    }
}

#[test]
fn mmx_resets_the_top_of_stack_but_moves_no_register() {
    let mut g = Guest::new();
    let x87 = &mut g.state().vector.x87;
    x87.fsw = 6 << 11;
    // Physical register 1 is ST(3) now.
    x87.st[3] = [0x0001_0002_0003_0004, 0x4000];
    x87.st[4] = [0x0001_0001_0001_0001, 0x4000];
    g.run(PADDW_MM); // mm1 += mm2
    let x87 = &g.state().vector.x87;
    assert_eq!((x87.fsw, x87.ftw), (0, 0xff));
    assert_eq!(x87.st[1], [0x0002_0003_0004_0005, 0xffff]);
    assert_eq!(x87.st[2], [0x0001_0001_0001_0001, 0x4000]);
    g.run(&[0x0f, 0x77]); // emms
    assert_eq!(g.state().vector.x87.ftw, 0);
}

#[test]
fn pending_x87_exceptions_are_raised_by_what_waits() {
    let mut g = Guest::new();
    g.state().vector.x87.fcw = 0x037b;
    g.state().vector.x87.fsw = 0x8084; // ZE, unmasked
    let mf = || Err(Fault::of(vector::MF));
    g.state().gpr[gpr::RAX] = DATA;
    assert_eq!(g.try_run(FADD), mf());
    assert_eq!(g.try_run(FWAIT), mf());
    assert_eq!(g.try_run(PADDW_MM), mf());
    assert_eq!(g.try_run(&[0xd9, 0x28]), mf()); // fldcw [rax]
    g.run(PADDD);
    g.run(&[0xdf, 0xe0]); // fnstsw ax
    assert_eq!(g.state().gpr[gpr::RAX] as u16, 0x8084);
    g.state().gpr[gpr::RAX] = DATA;
    g.run(&[0xd9, 0x30]); // fnstenv [rax]: masks everything
    assert_eq!(g.state().vector.x87.fcw, 0x037f);
    g.run(FADD);
    assert_eq!(g.read::<8>(DATA), [0x7b, 3, 0xff, 0xff, 0x84, 0x80, 0xff, 0xff]);
    g.run(&[0xd9, 0x20]); // fldenv [rax]: the exception is back
    assert_eq!(g.try_run(FADD), mf());
    g.run(&[0xdb, 0xe2]); // fnclex
    g.run(FADD);
    g.run(&[0xdb, 0xe3]); // fninit
    assert_eq!(g.state().vector.x87.fcw, 0x037f);
}

#[test]
fn a_wait_prefix_is_an_instruction_of_its_own() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = DATA;
    g.run(FWAIT);
    let fstcw = [0x9b, 0xd9, 0x38];
    let insn = iced_x86::Decoder::new(64, &fstcw, 0).decode();
    assert_eq!(insn.len(), 1);
    g.run(&fstcw[1..]);
    assert_eq!(g.read::<2>(DATA), [0x7f, 3]);
}

#[test]
fn an_unmasked_invalid_operation_stores_nothing() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = DATA;
    g.run(&[0xdb, 0xe3]); // fninit
    g.write(DATA, &1e300_f64.to_le_bytes());
    g.run(&[0xdd, 0x00]); // fld qword [rax]
    g.state().vector.x87.fcw = 0x037e; // IM clear
    g.run(&[0xdf, 0x38]); // fistp qword [rax]: does not fit
    assert_eq!(g.read::<8>(DATA), 1e300_f64.to_le_bytes());
    assert_eq!(g.state().vector.x87.fsw & 0x80ff, 0x8081);
    g.state().vector.x87.fcw = 0x037f;
    g.run(&[0xdb, 0xe2]); // fnclex
    g.run(&[0xdf, 0x38]);
    assert_eq!(g.read::<8>(DATA), i64::MIN.to_le_bytes());
}

#[test]
fn the_whole_x87_state_survives_fnsave() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = DATA + 3;
    for insn in [[0xd9, 0xe8], [0xd9, 0xeb], [0xd9, 0xee]] {
        g.run(&insn); // fld1, fldpi, fldz
    }
    let before = g.state().vector.x87;
    assert_eq!(before.fsw >> 11 & 7, 5);
    g.run(&[0xdd, 0x30]); // fnsave [rax]
    assert_eq!((g.state().vector.x87.fsw, g.state().vector.x87.ftw), (0, 0));
    // R7 and R6 valid, R5 zero, the rest empty.
    assert_eq!(g.read::<2>(DATA + 3 + 8), 0b00_00_01_11_11_11_11_11_u16.to_le_bytes());
    g.run(&[0xdd, 0x20]); // frstor [rax]
    let after = g.state().vector.x87;
    assert_eq!(
        (after.st, after.fsw, after.ftw, after.fcw),
        (before.st, before.fsw, before.ftw, before.fcw)
    );
    g.run(&[0xde, 0xc1]); // faddp
    g.run(&[0xdd, 0x18]); // fstp qword [rax]
    assert_eq!(g.read::<8>(DATA + 3), std::f64::consts::PI.to_le_bytes());
}

#[test]
fn simd_exceptions_are_delivered() {
    let mut g = Guest::new();
    g.state().vector.x87.mxcsr = 0x1f80 & !(1 << 9);
    g.state().vector.zmm[1][0] = 1.0_f64.to_bits();
    let divsd = [0xf2, 0x0f, 0x5e, 0xca]; // divsd xmm1, xmm2
    assert_eq!(g.try_run(&divsd), Err(Fault::of(vector::XM)));
    assert_eq!(g.state().vector.zmm[1][0], 1.0_f64.to_bits());
    assert_eq!(g.state().vector.x87.mxcsr & 0x3f, 4);
    g.state().cr4 &= !Cr4::OSXMMEXCPT;
    assert_eq!(g.try_run(&divsd), Err(Fault::of(vector::UD)));
    g.state().vector.x87.mxcsr = 0x1f80;
    g.run(&divsd);
    assert_eq!(g.state().vector.zmm[1][0], f64::INFINITY.to_bits());
}

#[test]
fn mxcsr_has_reserved_bits() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = DATA;
    g.write(DATA, &0x0001_1f80_u32.to_le_bytes());
    assert_eq!(g.try_run(&[0x0f, 0xae, 0x10]), Err(Fault::of(vector::GP))); // ldmxcsr [rax]
    assert_eq!(g.state().vector.x87.mxcsr, 0x1f80);
    g.write(DATA, &0x9fc0_u32.to_le_bytes());
    g.run(&[0x0f, 0xae, 0x10]);
    g.run(&[0x0f, 0xae, 0x58, 0x08]); // stmxcsr [rax+8]
    assert_eq!(g.read::<4>(DATA + 8), 0x9fc0_u32.to_le_bytes());
}

#[test]
fn vex_does_not_exist_outside_protected_mode() {
    if !has_avx() {
        return;
    }
    let mut g = Guest::new();
    g.leave_long_mode();
    g.run(PADDD);
    g.run(VPADDD);
    g.state().vector.zmm[9] = [7; 8];
    g.run(&[0xc5, 0xfc, 0x77]); // vzeroall: eight registers
    assert_eq!(g.state().vector.zmm[7], [0; 8]);
    assert_eq!(g.state().vector.zmm[9], [7; 8]);
    g.state().rflags |= Rflags::VM.bits();
    for seg in SegReg::ALL {
        g.state().seg[seg as usize].attributes = SegmentAttributes(0xf3);
    }
    g.cpu.state_changed();
    // There is no task to deliver an exception with, so what counts is what did not happen.
    let before = g.state().vector.zmm[1];
    g.state().vector.zmm[2] = [1; 8];
    g.write(0x1_0000, VPADDD);
    g.state().rip = 0x1_0000;
    g.cpu.step();
    assert_eq!(g.state().vector.zmm[1], before);
}

#[test]
fn vzeroupper_keeps_the_low_halves() {
    if !has_avx() {
        return;
    }
    let mut g = Guest::new();
    for zmm in &mut g.state().vector.zmm {
        *zmm = [5; 8];
    }
    g.run(&[0xc5, 0xf8, 0x77]);
    assert_eq!(g.state().vector.zmm[15], [5, 5, 0, 0, 0, 0, 0, 0]);
    assert_eq!(g.state().vector.zmm[16], [5; 8]);
    g.run(&[0xc5, 0xfc, 0x77]);
    assert_eq!(g.state().vector.zmm[15], [0; 8]);
    assert_eq!(g.state().vector.zmm[16], [5; 8]);
}

#[test]
fn whole_moves_do_what_the_native_unit_does() {
    let mut guest = Guest::new();
    let value: [u8; 64] = std::array::from_fn(|i| i as u8 + 1);
    let mut moves: Vec<(&[u8], usize, bool)> = vec![
        (&[0x0f, 0x28, 0x08], 16, false),       // movaps xmm1, [rax]
        (&[0x66, 0x0f, 0x6f, 0x08], 16, false), // movdqa
        (&[0xf3, 0x0f, 0x6f, 0x08], 16, false), // movdqu
        (&[0x0f, 0x29, 0x08], 16, true),        // movaps [rax], xmm1
        (&[0x0f, 0x2b, 0x08], 16, true),        // movntps
        (&[0x0f, 0x28, 0xca], 16, false),       // movaps xmm1, xmm2
        (&[0x0f, 0x29, 0xd1], 16, false),       // the same, encoded the other way
    ];
    if has_avx() {
        moves.push((&[0xc5, 0xf8, 0x10, 0x08], 16, false)); // vmovups xmm1, [rax]
        moves.push((&[0xc5, 0xfe, 0x6f, 0x08], 32, false)); // vmovdqu ymm1, [rax]
        moves.push((&[0xc5, 0xfd, 0xe7, 0x08], 32, true)); // vmovntdq [rax], ymm1
        moves.push((&[0xc5, 0xfc, 0x28, 0xca], 32, false)); // vmovaps ymm1, ymm2
    }
    if has_avx512() {
        moves.push((&[0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x08], 64, false)); // vmovdqu64 zmm1, [rax]
        moves.push((&[0x62, 0xf1, 0x7f, 0x48, 0x7f, 0x08], 64, true)); // vmovdqu8 [rax], zmm1
        moves.push((&[0x62, 0xf1, 0x7c, 0x28, 0x28, 0xca], 32, false)); // vmovaps ymm1, ymm2
    }
    for (bytes, len, is_store) in moves {
        for at in [DATA, HOLE - 64] {
            guest.write(at, &value);
            for (i, zmm) in guest.state().vector.zmm.iter_mut().enumerate() {
                *zmm = std::array::from_fn(|j| (i * 8 + j) as u64 * 0x1234_5678_9abc);
            }
            guest.state().vector.keep_components(components());
            guest.state().gpr[gpr::RAX] = at;
            let mut expected = guest.state().clone();
            let mut operand = x86::NativeOperand([0; 512]);
            operand.0[..64].copy_from_slice(&value);
            let insn = iced_x86::Decoder::new(64, bytes, 0).decode();
            guest.cpu.env.unit.execute(&insn, &mut expected, &mut operand).expect("no exception");
            guest.run(bytes);
            assert_eq!(guest.state().vector.zmm, expected.vector.zmm, "{bytes:02x?}");
            assert_eq!(guest.read::<64>(at), operand.0[..64], "{bytes:02x?}");
            if is_store {
                assert_ne!(guest.read::<64>(at)[..len], value[..len]);
            }
        }
    }
}
