//! Page tables full of nonsense, and fetches and stores through them.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::guest::{
    FIRST_TABLE, Mode, RAM_SIZE, check, code_page, page_walk_state, with_processor,
};
use x86::state::{Cr0, Cr4, Efer};

#[derive(Arbitrary, Debug)]
struct Input {
    mode: u8,
    user: bool,
    /// Changes to CR0.WP, CR4's and EFER's bits about paging.
    wp: bool,
    cr4: u64,
    nxe: bool,
    cr3: u64,
    /// Index in the tables, the page that an entry leads to, its flags and high bits.
    entries: Vec<(u16, u8, u16, u16)>,
    /// Where to fetch from, and where that instruction stores to.
    places: Vec<(u64, u64)>,
}

fuzz_target!(|input: Input| {
    let mode =
        [Mode::Paging32, Mode::Pae, Mode::Long, Mode::Compatibility][usize::from(input.mode & 3)];
    with_processor(|cpu| {
        let mut state = page_walk_state(mode, input.user, &cpu.env.cpuid);
        let mut ram = vec![0; RAM_SIZE];
        code_page(&mut ram);
        let width = if mode == Mode::Paging32 { 4 } else { 8 };
        for (index, page, flags, high) in &input.entries {
            // Tables are the pages from FIRST_TABLE on; the others are code and data.
            let at = FIRST_TABLE as usize + usize::from(*index & 0xfff) * width;
            let page = if page & 0x80 == 0 { u64::from(page & 15) } else { u64::from(*page) << 8 };
            let entry = u64::from(flags & 0xfff) | page << 12 | u64::from(*high) << 48;
            ram[at..at + width].copy_from_slice(&entry.to_le_bytes()[..width]);
        }
        state.cr0.set(Cr0::WP, input.wp);
        let changeable = Cr4::PSE | Cr4::PGE | Cr4::SMEP | Cr4::SMAP;
        state.cr4 = state.cr4 & !changeable | Cr4::from_bits_truncate(input.cr4) & changeable;
        state.efer.set(Efer::NXE, input.nxe);
        state.cr3 = FIRST_TABLE + (input.cr3 & 0x7018);
        if mode == Mode::Pae {
            let table = (state.cr3 & !0x1f) as usize;
            state.pdpte = std::array::from_fn(|i| {
                let entry = &ram[table + 8 * i..][..8];
                // Reserved bits would not have let CR3 be loaded.
                u64::from_le_bytes(entry.try_into().unwrap()) & 0xffff_f001
            });
        }
        cpu.env.reset(&ram);
        cpu.state = state;
        cpu.state_changed();
        for (rip, rax) in &input.places {
            let wide = mode == Mode::Long;
            let canonical = |at: u64| ((at << 16) as i64 >> 16) as u64;
            cpu.state.rip = if wide { canonical(*rip) } else { rip & 0xffff_ffff };
            cpu.state.gpr[0] = *rax;
            cpu.step();
            check(&cpu.state);
        }
    });
});
