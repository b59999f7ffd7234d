//! Cases with expectations that are wrong in one point each: they test the runner.

use std::time::Duration;

use iced_x86::code_asm::*;
use x86::state::gpr::RAX;
use x86::vector::{BP, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::layout::{CODE, DATA};
use crate::start::Start::{Long, Real};

pub fn cases() -> Vec<Case> {
    vec![
        case("impossible: another value", Long, |g| {
            g.out(1)?;
            g.want(out(2));
            g.exit()
        }),
        case("impossible: a value that is not written", Long, |g| {
            g.want(out(2));
            g.exit()
        }),
        case("impossible: a value too many", Long, |g| {
            g.out(1)?;
            g.exit()
        }),
        case("impossible: another order", Long, |g| {
            g.out(1)?;
            g.out(2)?;
            g.want(out(2));
            g.want(out(1));
            g.exit()
        }),
        case("impossible: another vector", Long, |g| {
            g.a.ud2()?;
            g.want(fault(BP));
            g.exit()
        }),
        case("impossible: another error code", Long, |g| {
            g.a.ud2()?;
            g.want(fault(UD).code(1));
            g.exit()
        }),
        case("impossible: another address", Long, |g| {
            g.a.nop()?;
            g.a.ud2()?;
            g.want(fault(UD).rip(CODE));
            g.exit()
        }),
        case("impossible: a mark that is not there", Long, |g| {
            g.a.ud2()?;
            g.want(fault(UD).at("nowhere"));
            g.exit()
        }),
        case("impossible: another register", Long, |g| {
            g.a.mov(eax, 5)?;
            g.want_register(RAX, 6);
            g.exit()
        }),
        case("impossible: other memory", Long, |g| {
            g.want_memory(DATA, 1, 1);
            g.exit()
        }),
        case("impossible: a triple fault that does not come", Real, |g| {
            g.want_triple_fault();
            g.exit()
        }),
        case("impossible: a triple fault that nobody expects", Real, |g| {
            g.state(|state| state.idtr.limit = 0);
            g.a.ud2()?;
            g.exit()
        }),
        case("impossible: the end of a loop without end", Long, |g| {
            g.timeout = Duration::from_millis(200);
            let mut here = g.a.create_label();
            g.a.set_label(&mut here)?;
            g.a.jmp(here)
        }),
        case("impossible: the end of an endless sleep", Long, |g| {
            g.timeout = Duration::from_millis(200);
            g.a.cli()?;
            g.a.hlt()
        }),
        case("impossible: code that cannot be assembled", Long, |g| g.a.pusha()),
    ]
}
