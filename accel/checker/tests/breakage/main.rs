//! One thing is wrong in each of these blocks, and each is refused for it.

#[path = "../common/mod.rs"]
mod common;

use common::*;
use iced_x86::code_asm::*;

macro_rules! refused {
    ($($name:ident: $problem:ident, |$b:ident| $body:block)*) => {
        $(#[test]
        fn $name() {
            let code = crate::common::build(|$b| { $body Ok(()) });
            crate::common::assert_refused(&code, checker::Problem::$problem);
        })*
    };
}

mod branches;
mod check;
mod context_fields;
mod instructions;
mod jump_cache;
mod misses;
mod operands;
mod secrets;
mod slots;
mod vectors;
mod ways;
mod words;

/// A store to the address in RBX.
fn store(b: &mut Builder) -> Built {
    b.a.mov(ptr(rbx), rcx)
}

/// Loads vector registers if they are not.
fn make_live(b: &mut Builder) -> Built {
    let mut live = b.a.create_label();
    b.a.cmp(dword_ptr(context(VECTORS_LIVE)), 0)?;
    b.a.jne(live)?;
    b.a.call(LOAD_VECTORS)?;
    b.a.set_label(&mut live)?;
    b.a.zero_bytes()
}

#[test]
fn without_breakage_it_is_accepted() {
    let code = build(|b| {
        checked(b)?;
        b.a.mov(ptr(rbx), rcx)
    });
    code.check().unwrap();
    let code = build(|b| {
        b.a.mov(rbx, r9)?;
        look_up(b)?;
        jump(b)
    });
    code.check().unwrap();
}
