//! FXSAVE and the XSAVE family.

use x86::state::{Cr4, VectorState, gpr};
use x86::vector;

use super::guest::{DATA, Fault, Guest};

const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x07]; // fxsave64 [rdi]
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0f];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x37];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x27];
const XSAVES64: &[u8] = &[0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const XRSTORS64: &[u8] = &[0x48, 0x0f, 0xc7, 0x1f];
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];

fn filled(guest: &mut Guest) -> VectorState {
    let avx512 = guest.state().xcr0 & 0xe0 != 0;
    let avx = guest.state().xcr0 & 4 != 0;
    let vector = &mut guest.state().vector;
    for (i, zmm) in vector.zmm.iter_mut().enumerate() {
        let width = if avx512 {
            8
        } else if avx {
            4
        } else {
            2
        };
        if i < 16 || avx512 {
            for (j, q) in zmm[..width].iter_mut().enumerate() {
                *q = (i * 8 + j) as u64 + 1;
            }
        }
    }
    if avx512 {
        vector.k = std::array::from_fn(|i| 100 + i as u64);
    }
    vector.x87.mxcsr = 0x3f80;
    vector.x87.fsw = 2 << 11;
    vector.x87.ftw = 0x0c;
    vector.x87.st[0] = [1 << 63, 0x3fff];
    vector.clone()
}

/// A guest that can save, with everything asked for.
fn guest() -> Option<Guest> {
    let mut guest = Guest::new();
    if x86::Env::cpuid(&guest.cpu.env, 1, 0).ecx >> 26 & 1 == 0 {
        eprintln!("SKIPPED: this host has no XSAVE");
        return None;
    }
    guest.state().gpr[gpr::RDI] = DATA;
    guest.state().gpr[gpr::RAX] = 0xffff_ffff;
    guest.state().gpr[gpr::RDX] = 0xffff_ffff;
    Some(guest)
}

fn has_compaction(guest: &Guest) -> bool {
    let has = x86::Env::cpuid(&guest.cpu.env, 0xd, 1).eax & 0xa == 0xa;
    if !has {
        eprintln!("SKIPPED in part: this host has no XSAVEC and XSAVES");
    }
    has
}

fn header(guest: &Guest) -> (u64, u64) {
    let bytes: [u8; 16] = guest.read(DATA + 512);
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

#[test]
fn every_save_is_undone_by_its_restore() {
    let Some(mut g) = guest() else { return };
    let xcr0 = g.state().xcr0;
    let saved = filled(&mut g);
    let mut pairs = vec![(XSAVE64, XRSTOR64), (XSAVEOPT64, XRSTOR64)];
    if has_compaction(&g) {
        pairs.extend([(XSAVEC64, XRSTOR64), (XSAVES64, XRSTORS64)]);
    }
    for (save, restore) in pairs {
        g.write(DATA, &[0; 4096]);
        g.state().vector = saved.clone();
        g.run(save);
        assert_eq!(header(&g).0, xcr0);
        let is_compacted = restore == XRSTORS64 || save == XSAVEC64;
        assert_eq!(header(&g).1, if is_compacted { 1 << 63 | xcr0 } else { 0 });
        g.state().vector = VectorState::default();
        g.run(restore);
        assert!(g.state().vector == saved, "{save:02x?}");
    }
}

#[test]
fn the_standard_format_is_that_of_the_host() {
    let Some(mut g) = guest() else { return };
    let saved = filled(&mut g);
    g.run(XSAVE64);
    if g.state().xcr0 & 4 != 0 {
        let at = DATA + u64::from(x86::Env::cpuid(&g.cpu.env, 0xd, 2).ebx);
        let ymm1: [u8; 16] = g.read(at + 16);
        assert_eq!(ymm1[..8], saved.zmm[1][2].to_le_bytes());
        assert_eq!(ymm1[8..], saved.zmm[1][3].to_le_bytes());
    }
    assert_eq!(g.read::<8>(DATA + 160 + 15 * 16), saved.zmm[15][0].to_le_bytes());
    assert_eq!(g.read::<4>(DATA + 24), 0x3f80_u32.to_le_bytes());
    assert_eq!(g.read::<10>(DATA + 32), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
}

#[test]
fn what_is_not_asked_for_stays() {
    let Some(mut g) = guest() else { return };
    let saved = filled(&mut g);
    g.run(XSAVE64);
    g.state().gpr[gpr::RAX] = 1; // x87 alone
    g.state().vector = VectorState::default();
    g.run(XRSTOR64);
    assert_eq!(g.state().vector.x87.st, saved.x87.st);
    assert_eq!(g.state().vector.x87.mxcsr, 0x1f80);
    assert_eq!(g.state().vector.zmm, [[0; 8]; 32]);
    // A save of SSE alone keeps the other bits of XSTATE_BV and the other components.
    g.state().gpr[gpr::RAX] = 2;
    g.run(XSAVE64);
    assert_eq!(header(&g).0, g.state().xcr0 & !2);
    assert_eq!(g.read::<8>(DATA + 160), [0; 8]);
    assert_eq!(g.read::<2>(DATA + 40), [0xff, 0x3f]);
}

#[test]
fn components_that_are_absent_are_initialized() {
    let Some(mut g) = guest() else { return };
    filled(&mut g);
    g.run(XRSTOR64); // from zeroes
    let mut expected = VectorState::default();
    expected.x87.fcw = 0x037f;
    expected.x87.ftw = 0;
    expected.x87.mxcsr = 0; // standard format loads it whatever XSTATE_BV says
    assert!(g.state().vector == expected, "{:?}", g.state().vector);
}

#[test]
fn damaged_headers_are_refused() {
    let Some(mut g) = guest() else { return };
    let gp = || Err(Fault::of(vector::GP));
    let saved = filled(&mut g);
    let compacts = has_compaction(&g);
    let xcr0 = g.state().xcr0;
    for (at, value) in [
        (512, 1_u64 << 62),                                      // XSTATE_BV beyond XCR0
        (520, 1),                                                // XCOMP_BV without bit 63
        (528, 1),                                                // reserved
        (24, 1 << 16),                                           // MXCSR
        (520, if compacts { 1_u64 << 63 | 1 << 62 } else { 1 }), // compacted, beyond XCR0
    ] {
        g.write(DATA, &[0; 1024]);
        g.write(DATA + at, &value.to_le_bytes());
        assert_eq!(g.try_run(XRSTOR64), gp(), "{at}");
        assert!(g.state().vector == saved);
    }
    if compacts {
        g.write(DATA, &[0; 1024]);
        assert_eq!(g.try_run(XRSTORS64), gp(), "the standard format is not for XRSTORS");
        g.write(DATA + 512, &3_u64.to_le_bytes());
        g.write(DATA + 520, &(1_u64 << 63 | 1).to_le_bytes());
        assert_eq!(g.try_run(XRSTOR64), gp(), "XSTATE_BV beyond XCOMP_BV");
        g.write(DATA + 520, &(1_u64 << 63 | xcr0).to_le_bytes());
        g.write(DATA + 575, &[1]);
        assert_eq!(g.try_run(XRSTOR64), gp(), "reserved bytes in compacted format");
    }
    g.state().gpr[gpr::RDI] = DATA + 32;
    assert_eq!(g.try_run(XSAVE64), gp(), "alignment");
    assert_eq!(g.try_run(XRSTOR64), gp(), "alignment");
}

#[test]
fn saves_that_cross_into_a_hole_write_nothing() {
    let Some(mut g) = guest() else { return };
    filled(&mut g);
    let start = super::guest::HOLE - 576;
    if g.state().xcr0 & 4 == 0 {
        return eprintln!("SKIPPED: this host has no AVX");
    }
    g.state().gpr[gpr::RDI] = start;
    let fault = Fault { vector: vector::PF, address: super::guest::HOLE };
    assert_eq!(g.try_run(XSAVE64), Err(fault));
    assert_eq!(g.read::<576>(start), [0; 576]);
    // Without extended components the area ends at the hole.
    g.state().gpr[gpr::RAX] = 3;
    g.state().gpr[gpr::RDX] = 0;
    g.run(XSAVE64);
    g.run(XRSTOR64);
}

#[test]
fn fxsave_holds_what_it_should() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RDI] = DATA;
    let saved = filled(&mut g);
    g.write(DATA, &[0xcc; 512]);
    g.run(FXSAVE64);
    assert_eq!(g.read::<5>(DATA), [0x7f, 3, 0, 0x10, 0x0c]);
    assert_eq!(g.read::<96>(DATA + 416), [0xcc; 96]);
    g.state().vector = VectorState::default();
    g.run(FXRSTOR64);
    for i in 0..16 {
        assert_eq!(g.state().vector.zmm[i][..2], saved.zmm[i][..2]);
        assert_eq!(g.state().vector.zmm[i][2..], [0; 6]);
    }
    assert_eq!(g.state().vector.x87, saved.x87);
    g.write(DATA + 24, &0xffff_ffff_u32.to_le_bytes());
    assert_eq!(g.try_run(FXRSTOR64), Err(Fault::of(vector::GP)));
    g.state().gpr[gpr::RDI] = DATA + 8;
    assert_eq!(g.try_run(FXSAVE64), Err(Fault::of(vector::GP)));
}

#[test]
fn fewer_registers_are_saved_outside_64_bit_mode() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RDI] = DATA;
    filled(&mut g);
    g.leave_long_mode();
    g.write(DATA, &[0xcc; 512]);
    g.run(&[0x0f, 0xae, 0x07]); // fxsave [edi]
    assert_eq!(g.read::<8>(DATA + 160 + 7 * 16), g.state().vector.zmm[7][0].to_le_bytes());
    assert_eq!(g.read::<8>(DATA + 160 + 8 * 16), [0xcc; 8]);
    g.state().vector.zmm[8] = [9; 8];
    g.run(&[0x0f, 0xae, 0x0f]); // fxrstor [edi]
    assert_eq!(g.state().vector.zmm[8], [9; 8]);
}

#[test]
fn xcr0_is_guarded() {
    let Some(mut g) = guest() else { return };
    let xcr0 = g.state().xcr0;
    let set = |g: &mut Guest, index: u64, value: u64| {
        g.state().gpr[gpr::RCX] = index;
        g.state().gpr[gpr::RAX] = value & 0xffff_ffff;
        g.state().gpr[gpr::RDX] = value >> 32;
        g.try_run(XSETBV)
    };
    for bad in [0, 2, 5, 1 << 40 | 7, 0x27] {
        assert_eq!(set(&mut g, 0, bad), Err(Fault::of(vector::GP)), "{bad:#x}");
    }
    assert_eq!(set(&mut g, 1, 1), Err(Fault::of(vector::GP)));
    assert_eq!(g.state().xcr0, xcr0);
    set(&mut g, 0, 3).unwrap();
    g.state().gpr[gpr::RCX] = 0;
    g.state().gpr[gpr::RAX] = u64::MAX;
    g.run(XGETBV);
    assert_eq!((g.state().gpr[gpr::RAX], g.state().gpr[gpr::RDX]), (3, 0));
    set(&mut g, 0, xcr0).unwrap();
    if x86::Env::cpuid(&g.cpu.env, 0xd, 1).eax & 4 != 0 {
        g.state().gpr[gpr::RCX] = 1;
        g.state().vector.zmm[3] = [1, 0, 0, 0, 0, 0, 0, 0];
        g.run(XGETBV);
        assert_eq!(g.state().gpr[gpr::RAX], 2);
    }
    g.state().gpr[gpr::RCX] = 2;
    assert_eq!(g.try_run(XGETBV), Err(Fault::of(vector::GP)));
    g.state().cr4 &= !Cr4::OSXSAVE;
    assert_eq!(g.try_run(XGETBV), Err(Fault::of(vector::UD)));
}
