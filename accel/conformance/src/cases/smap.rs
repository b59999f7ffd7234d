//! Supervisor-mode execution and access prevention (SDM Vol. 3, 4.6).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::Cr4;

use super::paging::{bad_fetch, bad_load, bad_store, code, everywhere, load, store};
use crate::case::{Case, case};
use crate::expect::out;
use crate::guest::{Guest, SMAP, SMEP};
use crate::layout::{self, DATA, FRAMES, WINDOW};
use crate::start::Start::Long;
use crate::tables::pte::{P, U, W};

type Result = std::result::Result<(), IcedError>;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    supervisor(&mut cases);
    cases
}

fn supervisor(cases: &mut Vec<Case>) {
    everywhere(cases, "SMEP forbids fetches from user pages", |g| {
        g.needs(&SMEP);
        g.map(WINDOW, FRAMES, P | W | U);
        g.change_cr4(Cr4::SMEP.bits() as u32, 0)?;
        bad_fetch(g, WINDOW, code::P | code::I)
    });
    everywhere(cases, "without SMEP the supervisor runs user pages", |g| {
        g.map(WINDOW, FRAMES, P | W | U);
        g.write(FRAMES, &[0xc3]);
        g.a.mov(ebx, WINDOW as u32)?;
        if g.a.bitness() == 64 {
            g.a.call(rbx)?;
        } else {
            g.a.call(ebx)?;
        }
        g.out(1)?;
        g.want(out(1));
        g.exit()
    });
    cases.push(case("paging: setting SMEP takes effect on pages in use", Long, |g| {
        g.needs(&SMEP);
        g.map(WINDOW, FRAMES, P | W | U);
        g.write(FRAMES, &[0xc3]);
        g.a.mov(ebx, WINDOW as u32)?;
        g.a.call(rbx)?;
        g.out(1)?;
        g.want(out(1));
        g.change_cr4(Cr4::SMEP.bits() as u32, 0)?;
        bad_fetch(g, WINDOW, code::P | code::I)
    }));
    cases.push(case("paging: SMEP lets the user run user pages", Long, |g| {
        g.needs(&SMEP);
        g.change_cr4(Cr4::SMEP.bits() as u32, 0)?;
        g.enter_user()?;
        g.out(3)?;
        g.want(out(3));
        g.exit()
    }));
    for (name, write, bad) in [
        ("loads", 0, bad_load as fn(&mut Guest, u64, u32) -> Result),
        ("stores", code::W, bad_store),
    ] {
        everywhere(cases, &format!("SMAP forbids {name} of user pages"), move |g| {
            g.needs(&SMAP);
            g.map(WINDOW, FRAMES, P | W | U);
            g.change_cr4(Cr4::SMAP.bits() as u32, 0)?;
            bad(g, WINDOW, code::P | write)
        });
    }
    everywhere(cases, "AC suspends SMAP", |g| {
        g.needs(&SMAP);
        g.map(WINDOW, FRAMES, P | W | U);
        g.write32(FRAMES, 0x99);
        g.change_cr4(Cr4::SMAP.bits() as u32, 0)?;
        g.a.stac()?;
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(0x99));
        store(g, WINDOW + 4, 0x98)?;
        g.want_memory(FRAMES + 4, 4, 0x98);
        g.a.clac()?;
        bad_load(g, WINDOW, code::P)
    });
    cases.push(case("paging: SMAP does not concern supervisor pages", Long, |g| {
        g.needs(&SMAP);
        g.map(WINDOW, FRAMES, P | W);
        g.write32(FRAMES, 0x97);
        g.change_cr4(Cr4::SMAP.bits() as u32, 0)?;
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(0x97));
        g.exit()
    }));
    cases.push(case("paging: implicit accesses obey SMAP although AC is set", Long, |g| {
        g.needs(&SMAP);
        // The GDT lies in a user page.
        g.map(WINDOW, layout::GDT, P | W | U);
        g.write16(DATA, 0xfff);
        g.write64(DATA + 2, WINDOW);
        g.a.mov(ebx, DATA as u32)?;
        g.a.lgdt(ptr(rbx))?;
        g.change_cr4(Cr4::SMAP.bits() as u32, 0)?;
        g.a.stac()?;
        g.a.mov(ecx, u32::from(layout::sel::KDATA))?;
        // No handler can be reached either: its code segment is in the same page.
        g.a.mov(es, ecx)?;
        g.want_triple_fault();
        Ok(())
    }));
}
