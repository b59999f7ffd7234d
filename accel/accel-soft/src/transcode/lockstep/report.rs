//! What is said of a difference.

use std::fmt::Write;

use x86::state::VectorState;

use super::{Lockstep, Registers};

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

impl Registers {
    fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let others = [
            ("rip", self.rip),
            ("rflags", self.rflags),
            ("gs base", self.gs_base),
            ("kernel gs base", self.kernel_gs_base),
        ];
        NAMES.into_iter().zip(self.gpr).chain(others)
    }
}

impl Lockstep {
    /// All that there is to know of a difference in `what` before step `index`.
    pub(super) fn report(
        &self,
        what: &str,
        index: usize,
        found: &Registers,
        vectors: Option<&VectorState>,
    ) -> String {
        let mut text =
            format!("lockstep: translated code differs from the interpreter in {what}\n");
        // Nothing but lack of memory makes writing to a string fail.
        let _ = self.describe(&mut text, index, found, vectors);
        text
    }

    fn describe(
        &self,
        text: &mut String,
        index: usize,
        found: &Registers,
        vectors: Option<&VectorState>,
    ) -> std::fmt::Result {
        let (Some(first), Some(step)) = (self.steps.first(), self.steps.get(index)) else {
            return writeln!(text, "the interpreter did nothing");
        };
        let page = first.registers.rip & !0xfff;
        writeln!(text, "registers: at the start; by the interpreter; by translated code")?;
        for (((name, before), (_, expected)), (_, found)) in
            first.registers.all().zip(step.registers.all()).zip(found.all())
        {
            let mark = if expected == found { ' ' } else { '*' };
            writeln!(text, "{mark} {name:15}{before:016x} {expected:016x} {found:016x}")?;
        }
        let expected = self.vectors.get(step.vectors).unwrap_or(&self.shadow.state.vector);
        let found = vectors.unwrap_or(expected);
        for (i, (expected, found)) in expected.zmm.iter().zip(&found.zmm).enumerate() {
            if expected != found {
                writeln!(text, "* zmm{i} {expected:016x?}\n        {found:016x?}")?;
            }
        }
        if expected.k != found.k || expected.x87 != found.x87 {
            writeln!(text, "* {:x?} {:x?}", expected.k, expected.x87)?;
            writeln!(text, "* {:x?} {:x?}", found.k, found.x87)?;
        }
        if let Some(wrong) = self.shadow.env.wrong_byte(step.stores) {
            let (expected, found) = (wrong.expected, wrong.found);
            let who = if wrong.stored { "the interpreter stores" } else { "before it was" };
            let gpa = wrong.gpa.unwrap_or_default();
            writeln!(text, "* memory at {gpa:#x}: {who} {expected:02x}, now it is {found:02x}")?;
        }
        let way: Vec<_> =
            self.steps.iter().map(|step| format!("{:x}", step.registers.rip)).collect();
        writeln!(text, "the interpreter's way: {}", way.join(" "))?;
        let Some(block) = self.blocks.get(self.current) else { return Ok(()) };
        writeln!(text, "guest code:")?;
        for insn in &block.insns {
            writeln!(text, "  {:x}  {insn}", page + insn.ip())?;
        }
        writeln!(text, "host code:")?;
        // SAFETY: the code lies in the cache, which is not cleared while `blocks` knows it; only
        // this thread, which owns the cache, changes it.
        let host =
            unsafe { std::slice::from_raw_parts(block.host as *const u8, block.host_len as usize) };
        for insn in iced_x86::Decoder::with_ip(64, host, block.host, 0) {
            writeln!(text, "  {:x}  {insn}", insn.ip() - block.host)?;
        }
        Ok(())
    }
}
