//! Delivery of exceptions and interrupts (SDM Vol. 3, chapter 6).

use crate::cpu::{Cpu, is_canonical};
use crate::debug::BTF;
use crate::env::Env;
use crate::exception::{Exception, Exec, Raised, vector};
use crate::segment::{Descriptor, flat_segment, null_segment, selector_code, system_type};
use crate::state::{Activity, Rflags, SegReg, SegmentAttributes, gpr};
use crate::system::task::TaskSwitch;

/// Where an interrupt comes from: it decides about privilege checks and error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An exception, an NMI, or an interrupt from outside.
    Hardware,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1: like software, but without the check.
    Int1,
}

/// Classes of exceptions that decide about double faults (SDM Vol. 3, table 6-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

/// Faults set RF in the flags that they save, so that their restart does not hit the same
/// instruction breakpoint again (SDM Vol. 3, 17.3.1.1).
fn sets_resume_flag(vector: u8) -> bool {
    !matches!(vector, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
}

/// DR7.GD.
pub(crate) const GENERAL_DETECT: u64 = 1 << 13;

/// Benign exceptions whose delivery raises benign exceptions could go on for ever, through task
/// gates to tasks that trap. A processor that does not get anywhere shuts down.
const MAX_DELIVERIES: usize = 16;

impl<E: Env> Cpu<E> {
    /// Delivers the exception that was raised last. `state.rip` is that of the instruction that
    /// raised it (for traps, of the next one).
    pub(crate) fn deliver_raised(&mut self) {
        self.stats.exceptions += 1;
        let mut exception = self.raised;
        for _ in 0..MAX_DELIVERIES {
            match exception.vector {
                vector::PF => self.state.cr2 = exception.address,
                // SDM Vol. 3, 17.2.4 and 17.4.3: whatever raised it.
                vector::DB => {
                    self.state.dr7 &= !GENERAL_DETECT;
                    self.state.msrs.debugctl &= !BTF;
                }
                _ => {}
            }
            let rflags = self.state.rflags;
            let saved = if sets_resume_flag(exception.vector) {
                rflags | Rflags::RF.bits()
            } else {
                rflags
            };
            let code = exception.error_code;
            if self.enter_handler(exception.vector, Source::Hardware, code, saved).is_ok() {
                return;
            }
            let second = self.raised;
            if exception.vector == vector::DF {
                break;
            }
            let doubles = match class(exception.vector) {
                Class::Benign => false,
                Class::Contributory => class(second.vector) == Class::Contributory,
                Class::PageFault => class(second.vector) != Class::Benign,
            };
            if doubles && second.vector == vector::PF {
                self.state.cr2 = second.address;
            }
            exception = if doubles { Exception::with_code(vector::DF, 0) } else { second };
        }
        self.state.activity = Activity::Shutdown;
        self.leave_block = true;
    }

    /// Whether a maskable interrupt would be taken now.
    pub fn accepts_interrupt(&self) -> bool {
        self.flag(Rflags::IF) && !self.state.interrupt_shadow && !self.is_stepped()
    }

    /// Whether an NMI would be taken now.
    pub fn accepts_nmi(&self) -> bool {
        !self.state.nmi_blocked && !self.state.interrupt_shadow && !self.is_stepped()
    }

    /// Takes an interrupt from outside, which [`accepts_interrupt`](Self::accepts_interrupt)
    /// allows. Ends HLT.
    pub fn interrupt(&mut self, vector: u8) {
        self.take_event(vector);
    }

    /// Takes an NMI, which [`accepts_nmi`](Self::accepts_nmi) allows. Ends HLT.
    pub fn nmi(&mut self) {
        self.state.nmi_blocked = true;
        self.take_event(vector::NMI);
    }

    /// Takes an exception that somebody else found, who executes this processor's instructions by
    /// turns with it; `state.rip` is that of the instruction for a fault, of the next for a trap.
    pub fn exception(&mut self, exception: Exception) {
        self.insn_ip = self.state.rip;
        self.raised = exception;
        self.deliver_raised();
        self.update_mode();
    }

    fn take_event(&mut self, vector: u8) {
        self.insn_ip = self.state.rip;
        let flags = self.state.rflags;
        if let Err(Raised(())) = self.enter_handler(vector, Source::Hardware, None, flags) {
            self.deliver_raised();
        }
    }

    /// INT n and its kin, with `state.rip` after the instruction. If delivery faults, the fault
    /// is the instruction's.
    pub(crate) fn software_interrupt(&mut self, vector: u8, source: Source) -> Exec {
        let flags = self.state.rflags;
        self.enter_handler(vector, source, None, flags)
    }

    /// Enters the handler of `vector`. On an error nothing has changed.
    fn enter_handler(
        &mut self,
        vector: u8,
        source: Source,
        error_code: Option<u32>,
        saved_flags: u64,
    ) -> Exec {
        if !self.state.is_protected() {
            self.enter_real(vector, saved_flags)?;
        } else if self.state.is_long_mode() {
            self.enter_long(vector, source, error_code, saved_flags)?;
        } else {
            self.enter_protected(vector, source, error_code, saved_flags)?;
        }
        self.state.interrupt_shadow = false;
        self.state.activity = Activity::Active;
        // The handler is not stepped into (SDM Vol. 3, 17.3.1.4).
        self.single_step = false;
        self.stack_loaded = false;
        self.debug_hits = 0;
        self.update_mode();
        Ok(())
    }

    /// Real mode: the interrupt vector table (SDM Vol. 3, 20.1.4).
    fn enter_real(&mut self, vector: u8, saved_flags: u64) -> Exec {
        let offset = u64::from(vector) * 4;
        if offset + 3 > u64::from(self.state.idtr.limit) {
            return Err(self.raise(Exception::GP0));
        }
        let entry: u32 = self.read_system(self.state.idtr.base.wrapping_add(offset))?;
        let before = self.state.gpr[gpr::RSP];
        let cs = self.state.segment(SegReg::Cs).selector;
        let ip = self.state.rip as u16;
        let pushed = (|| {
            self.push(saved_flags as u16)?;
            self.push(cs)?;
            self.push(ip)
        })();
        if pushed.is_err() {
            self.state.gpr[gpr::RSP] = before;
            return pushed;
        }
        let cs = &mut self.state.seg[SegReg::Cs as usize];
        cs.selector = (entry >> 16) as u16;
        cs.base = u64::from(cs.selector) << 4;
        self.state.rip = u64::from(entry as u16);
        self.set_flag(Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF, false);
        Ok(())
    }

    /// The gate of `vector`, checked as far as all modes agree: it exists, software may use it,
    /// it is present. `code` is the error code that names the vector.
    fn gate(&mut self, vector: u8, source: Source, size: u64, code: u32) -> Exec<Descriptor> {
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.state.idtr.limit) {
            return Err(self.raise(Exception::gp(code)));
        }
        let linear = self.state.idtr.base.wrapping_add(offset);
        let raw = self.read_system(linear)?;
        let gate = Descriptor::at(raw, linear);
        let is_gate = match gate.system_type() {
            Some(system_type::INTERRUPT_GATE | system_type::TRAP_GATE) => true,
            Some(
                system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 | system_type::TASK_GATE,
            ) => size == 8,
            _ => false,
        };
        if !is_gate {
            return Err(self.raise(Exception::gp(code)));
        }
        if source == Source::Software && gate.attributes().dpl() < self.mode.cpl {
            return Err(self.raise(Exception::gp(code)));
        }
        if !gate.attributes().is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        Ok(gate)
    }

    /// The code segment that a gate leads to, for delivery from the current privilege level.
    fn handler_segment(&mut self, selector: u16, ext: u32) -> Exec<Descriptor> {
        let descriptor = self.descriptor(selector, vector::GP, ext)?;
        let code = selector_code(selector) | ext;
        let attributes = descriptor.attributes();
        if !attributes.is_code() || attributes.dpl() > self.mode.cpl {
            return Err(self.raise(Exception::gp(code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        Ok(descriptor)
    }

    /// Long mode (SDM Vol. 3, 6.14).
    fn enter_long(
        &mut self,
        vector: u8,
        source: Source,
        error_code: Option<u32>,
        saved_flags: u64,
    ) -> Exec {
        let ext = u32::from(source == Source::Hardware);
        let gate = self.gate(vector, source, 16, u32::from(vector) << 3 | 2 | ext)?;
        let high: u64 = self.read_system(gate.linear().wrapping_add(8))?;
        let (selector, low) = gate.gate_target();
        let target = high << 32 | low;
        let mut cs = self.handler_segment(selector, ext)?;
        let attributes = cs.attributes();
        if !attributes.is_long() || attributes.is_big() {
            return Err(self.raise(Exception::gp(selector_code(selector) | ext)));
        }
        let cpl = self.mode.cpl;
        let new_cpl = if attributes.is_conforming() { cpl } else { attributes.dpl() };
        let ist = gate.raw >> 32 & 7;
        let old_rsp = self.state.gpr[gpr::RSP];
        let rsp = if ist != 0 {
            self.stack_from_tss(36 + (ist - 1) * 8, ext)?
        } else if new_cpl < cpl {
            self.stack_from_tss(4 + u64::from(new_cpl) * 8, ext)?
        } else {
            old_rsp
        };
        if !is_canonical(rsp) {
            return Err(self.raise(Exception::with_code(vector::SS, ext)));
        }
        if !is_canonical(target) {
            return Err(self.raise(Exception::gp(ext)));
        }

        let frame = [
            error_code.unwrap_or(0).into(),
            self.state.rip,
            self.state.segment(SegReg::Cs).selector.into(),
            saved_flags,
            old_rsp,
            self.state.segment(SegReg::Ss).selector.into(),
        ];
        let frame = if error_code.is_some() { &frame[..] } else { &frame[1..] };
        let size = frame.len() * 8;
        let new_rsp = (rsp & !0xf).wrapping_sub(size as u64);
        let mut bytes = [0; 48];
        for (slot, value) in bytes.chunks_exact_mut(8).zip(frame) {
            slot.copy_from_slice(&u64::to_le_bytes(*value));
        }
        let span = self.probe_write_for(new_cpl, new_rsp, size)?;
        self.mark_accessed(&mut cs)?;
        self.store_span(&span, &bytes[..size]);

        self.state.gpr[gpr::RSP] = new_rsp;
        if new_cpl != cpl {
            self.state.seg[SegReg::Ss as usize] = null_segment(new_cpl.into(), new_cpl);
        }
        self.state.seg[SegReg::Cs as usize] = cs.segment(selector & !3 | u16::from(new_cpl));
        self.state.rip = target;
        self.finish_entry(gate.system_type() == Some(system_type::INTERRUPT_GATE));
        Ok(())
    }

    /// Where to store on the stack of privilege level `cpl`.
    fn probe_write_for(
        &mut self,
        cpl: u8,
        linear: u64,
        len: usize,
    ) -> Exec<crate::access::Span<E::Page>> {
        if cpl == 3 { self.probe_write(linear, len) } else { self.probe_write_system(linear, len) }
    }

    /// Flags that every entry through a gate clears.
    fn finish_entry(&mut self, is_interrupt_gate: bool) {
        self.set_flag(Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM, false);
        if is_interrupt_gate {
            self.set_flag(Rflags::IF, false);
        }
    }

    /// A stack pointer from a 64-bit TSS. `ext` is bit 0 of error codes.
    pub(crate) fn stack_from_tss(&mut self, offset: u64, ext: u32) -> Exec<u64> {
        let tr = self.state.tr;
        if offset + 7 > u64::from(tr.limit) {
            let code = selector_code(tr.selector) | ext;
            return Err(self.raise(Exception::with_code(vector::TS, code)));
        }
        self.read_system(tr.base.wrapping_add(offset))
    }

    /// Protected mode without long mode (SDM Vol. 3, 6.12).
    fn enter_protected(
        &mut self,
        vector: u8,
        source: Source,
        error_code: Option<u32>,
        saved_flags: u64,
    ) -> Exec {
        let from_v8086 = self.state.is_v8086();
        let ext = u32::from(source == Source::Hardware);
        let gate = self.gate(vector, source, 8, u32::from(vector) << 3 | 2 | ext)?;
        let (selector, offset) = gate.gate_target();
        if gate.system_type() == Some(system_type::TASK_GATE) {
            return self.enter_task(selector, error_code, ext);
        }
        let mut cs = self.handler_segment(selector, ext)?;
        let attributes = cs.attributes();
        let cpl = self.mode.cpl;
        let new_cpl = if attributes.is_conforming() { cpl } else { attributes.dpl() };
        if from_v8086 && new_cpl != 0 {
            return Err(self.raise(Exception::gp(selector_code(selector) | ext)));
        }
        let is_wide = matches!(
            gate.system_type(),
            Some(system_type::INTERRUPT_GATE | system_type::TRAP_GATE)
        );
        let offset = if is_wide { offset } else { offset & 0xffff };
        if offset > u64::from(cs.limit()) {
            return Err(self.raise(Exception::gp(ext)));
        }

        let old_ss = *self.state.segment(SegReg::Ss);
        let old_esp = self.state.gpr[gpr::RSP];
        let mut frame = Frame::new(is_wide);
        let (ss, esp) = if new_cpl < cpl || from_v8086 {
            if from_v8086 {
                for reg in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                    frame.push(self.state.segment(reg).selector.into());
                }
            }
            frame.push(old_ss.selector.into());
            frame.push(old_esp as u32);
            self.inner_stack(new_cpl, ext)?
        } else {
            (old_ss, old_esp)
        };
        frame.push(saved_flags as u32);
        frame.push(self.state.segment(SegReg::Cs).selector.into());
        frame.push(self.state.rip as u32);
        if let Some(code) = error_code {
            frame.push(code);
        }
        let sp = self.push_frame(&frame, &ss, esp, new_cpl, ext)?;
        self.mark_accessed(&mut cs)?;

        self.state.seg[SegReg::Ss as usize] = ss;
        self.state.gpr[gpr::RSP] = sp;
        self.state.seg[SegReg::Cs as usize] = cs.segment(selector & !3 | u16::from(new_cpl));
        if from_v8086 {
            for reg in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                self.state.seg[reg as usize] = null_segment(0, 0);
            }
        }
        self.state.rip = offset;
        self.finish_entry(matches!(
            gate.system_type(),
            Some(system_type::INTERRUPT_GATE | system_type::INTERRUPT_GATE16)
        ));
        Ok(())
    }

    /// Interrupts through a task gate switch tasks; the error code goes to the new stack.
    fn enter_task(&mut self, selector: u16, error_code: Option<u32>, ext: u32) -> Exec {
        self.switch_task(selector, TaskSwitch::Gate, ext)?;
        self.update_mode();
        if let Some(code) = error_code {
            let is_wide = self.state.tr.attributes.kind() & 8 != 0;
            if is_wide { self.push(code)? } else { self.push(code as u16)? }
        }
        Ok(())
    }

    /// SS and ESP of an inner privilege level, from the TSS (SDM Vol. 3, 7.2.1).
    pub(crate) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Exec<(crate::state::Segment, u64)> {
        let tr = self.state.tr;
        let is_wide = tr.attributes.kind() & 8 != 0;
        let (offset, size) =
            if is_wide { (4 + u64::from(cpl) * 8, 6) } else { (2 + u64::from(cpl) * 4, 4) };
        if offset + size - 1 > u64::from(tr.limit) {
            let code = selector_code(tr.selector) | ext;
            return Err(self.raise(Exception::with_code(vector::TS, code)));
        }
        let at = tr.base.wrapping_add(offset);
        let (esp, selector) = if is_wide {
            (self.read_system::<u32>(at)?.into(), self.read_system(at.wrapping_add(4))?)
        } else {
            (self.read_system::<u16>(at)?.into(), self.read_system(at.wrapping_add(2))?)
        };
        let ss = self.stack_segment(selector, cpl, vector::TS, ext)?;
        Ok((ss, esp))
    }

    /// Stores a frame on the stack `ss:esp` of privilege level `cpl`, and returns the new ESP.
    pub(crate) fn push_frame(
        &mut self,
        frame: &Frame,
        ss: &crate::state::Segment,
        esp: u64,
        cpl: u8,
        ext: u32,
    ) -> Exec<u64> {
        let mask = if ss.attributes.is_big() { 0xffff_ffff } else { 0xffff };
        let bytes = frame.bytes();
        let sp = esp.wrapping_sub(bytes.len() as u64) & mask;
        let last = sp + (bytes.len() as u64 - 1);
        let in_limit = if ss.attributes.is_expand_down() {
            sp > u64::from(ss.limit) && last <= mask
        } else {
            last <= u64::from(ss.limit)
        };
        if !in_limit {
            // The new stack is named, the current one is not.
            let code = if cpl < self.mode.cpl { selector_code(ss.selector) } else { 0 };
            return Err(self.raise(Exception::with_code(vector::SS, code | ext)));
        }
        let linear = ss.base.wrapping_add(sp) & 0xffff_ffff;
        let span = self.probe_write_for(cpl, linear, bytes.len())?;
        self.store_span(&span, bytes);
        Ok(esp & !mask | sp)
    }
}

/// What an entry pushes, from the first push to the last.
pub(crate) struct Frame {
    bytes: [u8; 40 + 31 * 4],
    /// Start of what was pushed.
    at: usize,
    is_wide: bool,
}

impl Frame {
    /// An empty frame of 32-bit or 16-bit values.
    pub fn new(is_wide: bool) -> Self {
        let bytes = [0; 40 + 31 * 4];
        Self { at: bytes.len(), bytes, is_wide }
    }

    /// Pushes a value. A frame holds ten values, and the parameters of a call gate.
    pub fn push(&mut self, value: u32) {
        let size = if self.is_wide { 4 } else { 2 };
        let end = self.at;
        self.at = end.saturating_sub(size);
        self.bytes[self.at..end].copy_from_slice(&value.to_le_bytes()[..end - self.at]);
    }

    /// What was pushed, as it lies in memory.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

/// CS and SS as SYSCALL, SYSENTER and their returns load them.
pub(crate) fn flat_code_and_stack(
    cs: u16,
    ss: u16,
    code: SegmentAttributes,
    dpl: u8,
) -> (crate::state::Segment, crate::state::Segment) {
    (flat_segment(cs, code, dpl), flat_segment(ss, SegmentAttributes::DATA32, dpl))
}
