//! Memory operands under masks, gathers and scatters.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, OpKind, Register,
};
use x86::state::gpr;
use x86::{CpuState, vector};

use super::components;
use super::guest::{DATA, Fault, Guest, HOLE};
use super::random::Random;
use crate::native::NativeUnit;
use crate::native::stub::{Frame, HOST_MXCSR};

fn has(feature: bool, name: &str) -> bool {
    if !feature {
        eprintln!("SKIPPED: this host has no {name}");
    }
    feature
}

fn has_avx2() -> bool {
    has(is_x86_feature_detected!("avx2"), "AVX2")
}

fn has_avx512() -> bool {
    let is_there = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
    has(is_there, "AVX-512")
}

/// Every EVEX instruction that the host has with a memory operand at [rax] under mask K1, found
/// by decoding all combinations of the prefix's fields: encodings and instructions.
fn masked_instructions(unit: &mut NativeUnit) -> Vec<(Vec<u8>, Instruction)> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let fields = |i: usize, radix: usize| (i % radix, i / radix);
    for i in 0..7 * 4 * 2 * 3 * 2 * 2 * 256 * 8 {
        let (map, i) = fields(i, 7);
        let (pp, i) = fields(i, 4);
        let (w, i) = fields(i, 2);
        let (length, i) = fields(i, 3);
        let (broadcast, i) = fields(i, 2);
        let (zeroing, i) = fields(i, 2);
        let (opcode, digit) = fields(i, 256);
        // Register 3 is operand 0, register 2 is operand 1; groups take the digit.
        let p = |n: usize| n as u8;
        let p0 = 0xf0 | p(map);
        let p2 = p(zeroing) << 7 | p(length) << 5 | p(broadcast) << 4 | 1;
        for vvvv in [0x68, 0x78] {
            let p1 = p(w) << 7 | vvvv | 4 | p(pp);
            let bytes = [0x62, p0, p1, p2 | 8, p(opcode), p(digit) << 3, 0x2d];
            let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let is_at_rax = insn.memory_base() == Register::RAX
                && insn.memory_index() == Register::None
                && (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
            // Half-precision arithmetic is offered to no guest.
            if insn.is_invalid()
                || insn.cpuid_features().contains(&CpuidFeature::AVX512_FP16)
                || insn.code().encoding() != EncodingKind::EVEX
                || insn.op_mask() != Register::K1
                || !is_at_rax
                || !seen.insert((insn.code(), broadcast, zeroing))
                || unit.find(&insn).entry.is_none()
            {
                continue;
            }
            found.push((bytes[..insn.len()].to_vec(), insn));
        }
    }
    found
}

fn fill(state: &mut CpuState, random: &mut Random) {
    for q in state.vector.zmm.as_flattened_mut() {
        // Small exponents among the numbers, so that arithmetic is not all infinities.
        *q = random.next() & 0x3fff_ffff_3fff_ffff;
    }
    for k in &mut state.vector.k {
        *k = random.next();
    }
}

/// A stub in `host_faults`' child has faulted.
static FAULTED: AtomicBool = AtomicBool::new(false);

/// Makes a stub that faulted return to its caller. Stubs keep nothing on the stack.
extern "C" fn leave_stub(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    FAULTED.store(true, Ordering::Relaxed);
    // SAFETY: the kernel passes the context of what was interrupted, which was a stub: its return
    // address is on top of the stack.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rsp = registers[libc::REG_RSP as usize];
        registers[libc::REG_RIP as usize] = *(rsp as *const i64);
        registers[libc::REG_RSP as usize] = rsp + 8;
    }
}

/// Whether the host faults when it runs each instruction with an operand of which only the given
/// number of bytes lie in a page that is there. Runs in a child process, for its signal handler.
fn host_faults(unit: &mut NativeUnit, cases: &[(Instruction, CpuState, usize)]) -> Vec<bool> {
    let len = 0x2000 + cases.len();
    // SAFETY: a new mapping; the checks below make sure that it is there.
    let map = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    let map = map.cast::<u8>();
    // SAFETY: the second page of the mapping, of which no reference exists.
    assert_eq!(unsafe { libc::mprotect(map.add(0x1000).cast(), 0x1000, libc::PROT_NONE) }, 0);
    // SAFETY: the rest of the mapping begins here and is `cases.len()` bytes long at least.
    let results = unsafe { map.add(0x2000) };
    let entries: Vec<_> =
        cases.iter().map(|(insn, ..)| unit.find(insn).entry.expect("a stub")).collect();
    let mut states: Vec<CpuState> = cases.iter().map(|(_, state, _)| state.clone()).collect();
    // SAFETY: the child calls nothing that needs locks: it runs stubs and stores bytes.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: a structure of integers and an optional function pointer.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = leave_stub as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: installs a handler that is made for what runs from here on.
        unsafe { libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()) };
        for (i, entry) in entries.iter().enumerate() {
            let mut frame = Frame { mxcsr: HOST_MXCSR, host_mxcsr: HOST_MXCSR, rflags: 2 };
            FAULTED.store(false, Ordering::Relaxed);
            // SAFETY: the operand lies in the mapping, or the handler makes the stub return; that
            // it reaches no further is what this test is about.
            unsafe {
                let operand = map.add(0x1000 - cases[i].2);
                entry(std::ptr::from_mut(&mut states[i]).cast(), operand.cast(), &mut frame);
                results.add(i).write_volatile(if FAULTED.load(Ordering::Relaxed) { 2 } else { 1 });
            }
        }
        // SAFETY: ends the child without running anything of the test harness.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child ended in a way it should not have");
    // SAFETY: in the mapping, which nobody else uses any more.
    let results: Vec<u8> = (0..cases.len()).map(|i| unsafe { results.add(i).read() }).collect();
    // SAFETY: the mapping made above; no pointer into it is used after this.
    unsafe { libc::munmap(map.cast(), len) };
    assert!(results.iter().all(|r| matches!(r, 1 | 2)));
    results.into_iter().map(|r| r == 2).collect()
}

#[test]
fn masked_lanes_fault_as_on_the_host() {
    if !has_avx512() {
        return;
    }
    let mut unit = NativeUnit::new().expect("executable memory");
    let mut random = Random(1);
    let mut cases = Vec::new();
    for (bytes, insn) in masked_instructions(&mut unit) {
        let size = insn.memory_size().size();
        for round in 0..8 {
            let mut guest = CpuState::reset(0);
            fill(&mut guest, &mut random);
            // Few bits among the first lanes, or none; what lies above means nothing.
            guest.vector.k[1] = match round {
                0 => 0,
                1 => 1 << (random.next() % 64),
                _ => random.next() & random.next() & random.next(),
            };
            let split = random.next() as usize % (size + 1);
            cases.push((bytes.clone(), insn, guest, split));
        }
    }
    assert!(cases.len() > 8000, "{}", cases.len());
    let for_host: Vec<_> = cases.iter().map(|(_, i, s, split)| (*i, s.clone(), *split)).collect();
    let faults = host_faults(&mut unit, &for_host);
    assert!(faults.iter().any(|&f| f) && faults.iter().any(|&f| !f));

    let mut guest = Guest::new();
    let mut wrong = std::collections::BTreeMap::new();
    for ((bytes, insn, state, split), host_faults) in cases.into_iter().zip(faults) {
        let at = HOLE - split as u64;
        let attempt = |guest: &mut Guest, present: bool| {
            guest.set_hole(present);
            for page in [HOLE - 0x1000, HOLE] {
                let bytes: Vec<u8> =
                    (0..0x1000_u64).map(|i| (i * 37 + (page >> 12)) as u8 & 0x3f).collect();
                guest.write(page, &bytes);
            }
            guest.state().vector = state.vector.clone();
            guest.state().gpr[gpr::RAX] = at;
            let result = guest.try_run(&bytes);
            (result, guest.state().vector.clone(), guest.read::<128>(HOLE - 64))
        };
        let whole = attempt(&mut guest, true);
        let cut = attempt(&mut guest, false);
        let faults = cut.0.is_err();
        if faults != host_faults {
            *wrong.entry(format!("{:?}", insn.code())).or_insert(0) += if faults { 1 } else { 100 };
            continue;
        }
        if faults {
            assert!(cut.1 == state.vector, "{insn:?}: registers changed");
        } else {
            assert!(cut == whole, "{:?}: the hole makes a difference", insn.code());
        }
    }
    assert!(wrong.is_empty(), "{} {wrong:#?}", wrong.len());
}

/// What lies at `at` in the pattern that `pattern` writes.
fn word(at: u64) -> u32 {
    (at as u32).wrapping_mul(0x9e37_79b9) | 1
}

/// Fills the data pages and the hole with words that tell their addresses.
fn write_pattern(guest: &mut Guest) {
    for at in (DATA..HOLE + 0x1000).step_by(4) {
        guest.write(at, &word(at).to_le_bytes());
    }
}

fn dwords(zmm: &[u64; 8]) -> [u32; 16] {
    std::array::from_fn(|i| (zmm[i / 2] >> (i % 2 * 32)) as u32)
}

fn from_dwords(dwords: [u32; 16]) -> [u64; 8] {
    std::array::from_fn(|i| u64::from(dwords[i * 2]) | u64::from(dwords[i * 2 + 1]) << 32)
}

#[test]
fn a_vex_gather_resumes_where_it_faulted() {
    if !has_avx2() {
        return;
    }
    let mut g = Guest::new();
    write_pattern(&mut g);
    g.state().gpr[gpr::RAX] = DATA + 0x1000;
    let mut indices = [0; 16];
    // Before, behind and in the hole; lane 2 is not selected.
    let offsets: [i32; 8] = [-0x400, 3, 0x100, 0x3ff, 0x400, -1, 0x404, 0];
    for (index, offset) in indices.iter_mut().zip(offsets) {
        *index = offset as u32;
    }
    g.state().vector.zmm[2] = from_dwords(indices);
    let mut mask = [0x8000_0000; 16];
    mask[2] = 0x7fff_ffff;
    g.state().vector.zmm[3] = from_dwords(mask);
    g.state().vector.zmm[1] = from_dwords([0xabab_abab; 16]);
    let gather = [0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x90]; // vpgatherdd ymm1, [rax+ymm2*4], ymm3
    let fault = Fault { vector: vector::PF, address: HOLE };
    assert_eq!(g.try_run(&gather), Err(fault));
    let at = |i: usize| word((DATA + 0x1000).wrapping_add_signed(i64::from(offsets[i]) * 4));
    assert_eq!(
        dwords(&g.state().vector.zmm[1])[..5],
        [at(0), at(1), 0xabab_abab, at(3), 0xabab_abab]
    );
    assert_eq!(dwords(&g.state().vector.zmm[3])[3..6], [0, 0x8000_0000, 0x8000_0000]);
    g.set_hole(true);
    g.run(&gather);
    let gathered = dwords(&g.state().vector.zmm[1]);
    let expected: Vec<u32> = (0..8).map(|i| if i == 2 { 0xabab_abab } else { at(i) }).collect();
    assert_eq!(gathered[..8], expected);
    assert_eq!(gathered[8..], [0; 8]);
    assert_eq!(g.state().vector.zmm[3], [0; 8]);
    let same = [0xc4, 0xe2, 0x75, 0x90, 0x0c, 0x90]; // the mask is the destination
    assert!(Decoder::new(64, &same, 0).decode().is_invalid() || g.try_run(&same).is_err());
}

#[test]
fn gathers_of_each_shape_find_their_lanes() {
    if !has_avx2() {
        return;
    }
    // vgatherdpd, vgatherqps, vgatherqpd with ymm indices or data as they have them.
    for (w, opcode, data, index) in [(1, 0x92, 8, 4), (0, 0x93, 4, 8), (1, 0x93, 8, 8)] {
        let mut g = Guest::new();
        write_pattern(&mut g);
        g.state().gpr[gpr::RAX] = DATA;
        g.state().vector.zmm[3] = [u64::MAX; 8];
        g.state().vector.zmm[1] = [5; 8];
        for i in 0..4_u64 {
            let value = 64 + i * 24;
            if index == 8 {
                g.state().vector.zmm[2][i as usize] = value;
            } else {
                g.state().vector.zmm[2][i as usize / 2] |= value << (i % 2 * 32);
            }
        }
        g.run(&[0xc4, 0xe2, w << 7 | 0x65, opcode, 0x4c, 0x10, 0x10]); // [rax+2*1+16]
        let result = g.state().vector.zmm[1];
        for i in 0..4 {
            let at = DATA + 16 + 64 + i as u64 * 24;
            if data == 8 {
                assert_eq!(result[i], u64::from(word(at)) | u64::from(word(at + 4)) << 32);
            } else {
                assert_eq!(dwords(&result)[i], word(at));
            }
        }
        assert_eq!(result[data / 2..], vec![0; 8 - data / 2]);
    }
}

#[test]
fn scatters_and_evex_gathers_strike_off_what_is_done() {
    if !has_avx512() {
        return;
    }
    let mut g = Guest::new();
    g.state().gpr[gpr::RAX] = HOLE - 16;
    g.state().vector.zmm[2] = from_dwords(std::array::from_fn(|i| i as u32));
    g.state().vector.zmm[1] = from_dwords(std::array::from_fn(|i| 0x100 + i as u32));
    g.state().vector.k[1] = 0xffff_00fd;
    let scatter = [0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x0c, 0x90]; // vpscatterdd [rax+zmm2*4]{k1}, zmm1
    assert_eq!(g.try_run(&scatter), Err(Fault { vector: vector::PF, address: HOLE }));
    assert_eq!(g.state().vector.k[1] & 0xffff, 0x00f0);
    let stored: [u8; 16] = g.read(HOLE - 16);
    assert_eq!(stored[..8], [0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(stored[8..], [2, 1, 0, 0, 3, 1, 0, 0]);
    g.set_hole(true);
    g.run(&scatter);
    assert_eq!(g.state().vector.k[1], 0);
    let stored: [u8; 20] = g.read(HOLE);
    assert_eq!(stored, [4, 1, 0, 0, 5, 1, 0, 0, 6, 1, 0, 0, 7, 1, 0, 0, 0, 0, 0, 0]);
    // vpgatherdd zmm5{k2}, [rax+zmm2*4]
    g.state().vector.k[2] = 0x0092;
    g.state().vector.zmm[5] = [0; 8];
    g.run(&[0x62, 0xf2, 0x7d, 0x4a, 0x90, 0x2c, 0x90]);
    let mut expected = [0; 16];
    for i in [4, 7] {
        expected[i] = 0x100 + i as u32;
    }
    assert_eq!(dwords(&g.state().vector.zmm[5]), expected);
    assert_eq!(g.state().vector.k[2], 0);
}

#[test]
fn vmaskmov_touches_selected_lanes_only() {
    if !has_avx2() {
        return;
    }
    let mut g = Guest::new();
    write_pattern(&mut g);
    g.state().gpr[gpr::RAX] = HOLE - 8;
    g.state().vector.zmm[2] = from_dwords(std::array::from_fn(|i| if i < 2 { 1 << 31 } else { 0 }));
    g.state().vector.zmm[1] = [u64::MAX; 8];
    g.state().vector.keep_components(components());
    g.run(&[0xc4, 0xe2, 0x6d, 0x2c, 0x08]); // vmaskmovps ymm1, ymm2, [rax]
    let expected = u64::from(word(HOLE - 8)) | u64::from(word(HOLE - 4)) << 32;
    assert_eq!(g.state().vector.zmm[1], [expected, 0, 0, 0, 0, 0, 0, 0]);
    g.state().vector.zmm[1] = [u64::MAX; 8];
    g.state().vector.zmm[2][0] = 1 << 63;
    g.run(&[0xc4, 0xe2, 0x6d, 0x8e, 0x08]); // vpmaskmovd [rax], ymm2, ymm1
    assert_eq!(g.read::<4>(HOLE - 8), word(HOLE - 8).to_le_bytes());
    assert_eq!(g.read::<4>(HOLE - 4), [0xff; 4]);
    g.state().vector.zmm[2][1] = 1 << 63;
    g.write(HOLE - 4, &[0; 4]);
    let fault = Fault { vector: vector::PF, address: HOLE + 4 };
    assert_eq!(g.try_run(&[0xc4, 0xe2, 0x6d, 0x8e, 0x08]), Err(fault));
    assert_eq!(g.read::<4>(HOLE - 4), [0; 4]);
    // By qwords: vpmaskmovq xmm1, xmm2, [rax]
    g.state().vector.zmm[2] = [1 << 63, 1, 0, 0, 0, 0, 0, 0];
    g.write(HOLE - 8, &[7; 8]);
    g.run(&[0xc4, 0xe2, 0xe9, 0x8c, 0x08]);
    assert_eq!(g.state().vector.zmm[1][..2], [0x0707_0707_0707_0707, 0]);
}

#[test]
fn maskmov_stores_bytes_at_rdi() {
    let mut g = Guest::new();
    g.state().gpr[gpr::RDI] = HOLE - 3;
    g.state().vector.zmm[1][..2].copy_from_slice(&[0x0807_0605_0403_0201, 0]);
    g.state().vector.zmm[2][..2].copy_from_slice(&[0x7f7f_7f7f_7f80_00ff, 0]);
    g.run(&[0x66, 0x0f, 0xf7, 0xca]); // maskmovdqu xmm1, xmm2
    assert_eq!(g.read::<3>(HOLE - 3), [1, 0, 3]);
    g.state().vector.x87.fsw = 1 << 11;
    // Physical registers 1 and 2 are ST(0) and ST(1).
    g.state().vector.x87.st[0] = [0x1111_1111_1122_3344, 0x3fff];
    g.state().vector.x87.st[1] = [0x0000_0000_0080_8000, 0x3fff];
    g.run(&[0x0f, 0xf7, 0xca]); // maskmovq mm1, mm2
    assert_eq!(g.read::<3>(HOLE - 3), [1, 0x33, 0x22]);
    assert_eq!(g.state().vector.x87.fsw, 0);
    g.state().vector.zmm[2][0] = 1 << 31;
    let fault = Fault { vector: vector::PF, address: HOLE };
    assert_eq!(g.try_run(&[0x66, 0x0f, 0xf7, 0xca]), Err(fault));
}
