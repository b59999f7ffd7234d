//! Far jumps, calls and returns, call gates, INT and IRET (SDM Vol. 2; Vol. 3, 5.8 and 6.12).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::cpu::{Cpu, is_canonical};
use crate::debug;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec, vector};
use crate::interrupt::{Frame, Source};
use crate::paging::Access;
use crate::segment::{
    Descriptor, is_null, null_segment, selector_code, system_type, v8086_segment,
};
use crate::state::{Rflags, SegReg, Segment, SegmentAttributes, gpr};
use crate::system::task::TaskSwitch;

/// The handler for a far transfer.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Jmp if is_far(insn) => Some(jmp_far),
        Mnemonic::Call if is_far(insn) => match insn.code() {
            Code::Call_ptr1616 | Code::Call_m1616 => Some(call_far::<E, u16>),
            Code::Call_ptr1632 | Code::Call_m1632 => Some(call_far::<E, u32>),
            _ => Some(call_far::<E, u64>),
        },
        Mnemonic::Retf => match insn.code() {
            Code::Retfw | Code::Retfw_imm16 => Some(retf::<E, u16>),
            Code::Retfd | Code::Retfd_imm16 => Some(retf::<E, u32>),
            _ => Some(retf::<E, u64>),
        },
        Mnemonic::Iret => Some(iret::<E, u16>),
        Mnemonic::Iretd => Some(iret::<E, u32>),
        Mnemonic::Iretq => Some(iret::<E, u64>),
        Mnemonic::Int => Some(|cpu, op| {
            // In virtual-8086 mode it needs IOPL 3, unlike INT3, INT1 and INTO (SDM Vol. 3, 20.2.7).
            if cpu.state.is_v8086() && cpu.iopl() < 3 {
                return Err(cpu.raise(Exception::GP0));
            }
            cpu.software_interrupt(op.imm as u8, Source::Software)
        }),
        Mnemonic::Int3 => Some(|cpu, _| cpu.int3()),
        Mnemonic::Int1 => Some(|cpu, _| cpu.software_interrupt(vector::DB, Source::Int1)),
        Mnemonic::Into => Some(|cpu, _| {
            if cpu.flag(Rflags::OF) {
                cpu.software_interrupt(vector::OF, Source::Software)?;
            }
            Ok(())
        }),
        _ => None,
    }
}

fn is_far(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32)
        || insn.is_jmp_far_indirect()
        || insn.is_call_far_indirect()
}

impl<E: Env> Cpu<E> {
    /// Selector and offset of a far transfer.
    fn far_target(&mut self, op: &Op<E>) -> Exec<(u16, u64)> {
        let insn = &op.insn;
        match insn.op0_kind() {
            OpKind::FarBranch16 => Ok((insn.far_branch_selector(), insn.far_branch16().into())),
            OpKind::FarBranch32 => Ok((insn.far_branch_selector(), insn.far_branch32().into())),
            _ => {
                let size = match insn.code() {
                    Code::Jmp_m1616 | Code::Call_m1616 => 2,
                    Code::Jmp_m1632 | Code::Call_m1632 => 4,
                    _ => 8,
                };
                self.far_pointer(op, size)
            }
        }
    }

    /// Reads a far pointer: `size` bytes of offset, then the selector.
    pub(crate) fn far_pointer(&mut self, op: &Op<E>, size: usize) -> Exec<(u16, u64)> {
        let linear = self.operand_address(op, size + 2, Access::Read)?;
        let offset = match size {
            2 => self.read::<u16>(linear)?.into(),
            4 => self.read::<u32>(linear)?.into(),
            _ => self.read::<u64>(linear)?,
        };
        let selector = self.read(linear.wrapping_add(size as u64))?;
        Ok((selector, offset))
    }

    /// Loads CS in real or virtual-8086 mode.
    fn load_real_code(&mut self, selector: u16, offset: u64) -> Exec {
        if offset > u64::from(self.state.segment(SegReg::Cs).limit) {
            return Err(self.raise(Exception::GP0));
        }
        if self.state.is_v8086() {
            self.state.seg[SegReg::Cs as usize] = v8086_segment(selector);
        } else {
            let cs = &mut self.state.seg[SegReg::Cs as usize];
            cs.selector = selector;
            cs.base = u64::from(selector) << 4;
        }
        self.state.rip = offset;
        self.update_mode();
        Ok(())
    }

    fn is_real_or_v8086(&self) -> bool {
        !self.state.is_protected() || self.state.is_v8086()
    }

    /// Checks that code at CPL may go to a code segment by JMP or CALL.
    fn check_code(&mut self, descriptor: &Descriptor) -> Exec {
        let attributes = descriptor.attributes();
        let code = selector_code(descriptor.selector);
        let cpl = self.mode.cpl;
        let allowed = if attributes.is_conforming() {
            attributes.dpl() <= cpl
        } else {
            descriptor.rpl() <= cpl && attributes.dpl() == cpl
        };
        // L and D together are reserved.
        let is_reserved = self.state.is_long_mode() && attributes.is_long() && attributes.is_big();
        if !attributes.is_code() || !allowed || is_reserved {
            return Err(self.raise(Exception::gp(code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        Ok(())
    }

    /// Checks an offset against the code segment that it shall be used with.
    fn check_offset(&mut self, segment: &Segment, offset: u64) -> Exec {
        let ok = if self.state.is_long_mode() && segment.attributes.is_long() {
            is_canonical(offset)
        } else {
            offset <= u64::from(segment.limit)
        };
        if ok { Ok(()) } else { Err(self.raise(Exception::GP0)) }
    }

    fn set_code(&mut self, segment: Segment, offset: u64) {
        self.state.seg[SegReg::Cs as usize] = segment;
        self.state.rip = offset;
        self.update_mode();
    }

    /// The code segment and offset behind a call gate, and the gate's parameter count
    /// (SDM Vol. 3, 5.8.3 and 5.8.4).
    fn through_call_gate(&mut self, gate: &Descriptor) -> Exec<(Descriptor, u64, usize)> {
        let code = selector_code(gate.selector);
        if gate.attributes().dpl() < self.mode.cpl.max(gate.rpl()) {
            return Err(self.raise(Exception::gp(code)));
        }
        if !gate.attributes().is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        let (selector, mut offset) = gate.gate_target();
        if self.state.is_long_mode() {
            offset |= self.upper_half(gate, vector::GP)?;
        } else if gate.system_type() == Some(system_type::CALL_GATE16) {
            offset &= 0xffff;
        }
        let target = self.descriptor(selector, vector::GP, 0)?;
        let attributes = target.attributes();
        let code = selector_code(selector);
        if !attributes.is_code() || attributes.dpl() > self.mode.cpl {
            return Err(self.raise(Exception::gp(code)));
        }
        if self.state.is_long_mode() && (!attributes.is_long() || attributes.is_big()) {
            return Err(self.raise(Exception::gp(code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        Ok((target, offset, (gate.raw >> 32 & 31) as usize))
    }

    /// Whether a system descriptor is a call gate in the current mode.
    fn is_call_gate(&self, kind: u32) -> bool {
        kind == system_type::CALL_GATE
            || (kind == system_type::CALL_GATE16 && !self.state.is_long_mode())
    }

    /// A JMP or CALL to a TSS or task gate.
    fn far_to_task(&mut self, descriptor: &Descriptor, why: TaskSwitch) -> Exec {
        let code = selector_code(descriptor.selector);
        let kind = descriptor.system_type();
        let is_task = matches!(kind, Some(system_type::TSS | system_type::TASK_GATE));
        let shielded = descriptor.attributes().dpl() < self.mode.cpl.max(descriptor.rpl());
        if !is_task || self.state.is_long_mode() || shielded {
            return Err(self.raise(Exception::gp(code)));
        }
        if !descriptor.attributes().is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        let selector = if kind == Some(system_type::TASK_GATE) {
            descriptor.gate_target().0
        } else {
            descriptor.selector
        };
        self.switch_task(selector, why, 0)
    }
}

fn jmp_far<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let (selector, offset) = cpu.far_target(op)?;
    if cpu.is_real_or_v8086() {
        return cpu.load_real_code(selector, offset);
    }
    let mut descriptor = cpu.descriptor(selector, vector::GP, 0)?;
    let (mut target, offset) = match descriptor.system_type() {
        None => {
            cpu.check_code(&descriptor)?;
            (descriptor, offset)
        }
        Some(kind) if cpu.is_call_gate(kind) => {
            let (target, offset, _) = cpu.through_call_gate(&descriptor)?;
            // JMP cannot change the privilege level.
            let attributes = target.attributes();
            if !attributes.is_conforming() && attributes.dpl() != cpu.mode.cpl {
                let code = selector_code(target.selector);
                return Err(cpu.raise(Exception::gp(code)));
            }
            (target, offset)
        }
        Some(_) => return cpu.far_to_task(&descriptor, TaskSwitch::Jump),
    };
    descriptor = target;
    let segment = descriptor.segment(descriptor.selector & !3 | u16::from(cpu.mode.cpl));
    cpu.check_offset(&segment, offset)?;
    cpu.mark_accessed(&mut target)?;
    cpu.set_code(target.segment(segment.selector), offset);
    Ok(())
}

/// Pushes CS and the return address of a far call on the current stack.
fn push_return<E: Env, W: Word>(cpu: &mut Cpu<E>) -> Exec {
    let before = cpu.state.gpr[gpr::RSP];
    let cs = cpu.state.segment(SegReg::Cs).selector;
    let rip = cpu.state.rip;
    let result = cpu.push(W::truncate(cs.into())).and_then(|()| cpu.push(W::truncate(rip)));
    if result.is_err() {
        cpu.state.gpr[gpr::RSP] = before;
    }
    result
}

fn call_far<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let (selector, offset) = cpu.far_target(op)?;
    if cpu.is_real_or_v8086() {
        if offset > u64::from(cpu.state.segment(SegReg::Cs).limit) {
            return Err(cpu.raise(Exception::GP0));
        }
        push_return::<E, W>(cpu)?;
        return cpu.load_real_code(selector, offset);
    }
    let mut descriptor = cpu.descriptor(selector, vector::GP, 0)?;
    match descriptor.system_type() {
        None => {
            cpu.check_code(&descriptor)?;
            let segment = descriptor.segment(selector & !3 | u16::from(cpu.mode.cpl));
            cpu.check_offset(&segment, offset)?;
            push_return::<E, W>(cpu)?;
            cpu.mark_accessed(&mut descriptor)?;
            cpu.set_code(descriptor.segment(segment.selector), offset);
            Ok(())
        }
        Some(kind) if cpu.is_call_gate(kind) => call_through_gate(cpu, &descriptor, kind),
        Some(_) => cpu.far_to_task(&descriptor, TaskSwitch::Call),
    }
}

fn call_through_gate<E: Env>(cpu: &mut Cpu<E>, gate: &Descriptor, kind: u32) -> Exec {
    let (mut target, offset, parameters) = cpu.through_call_gate(gate)?;
    let attributes = target.attributes();
    let cpl = cpu.mode.cpl;
    let new_cpl = if attributes.is_conforming() { cpl } else { attributes.dpl() };
    let segment = target.segment(target.selector & !3 | u16::from(new_cpl));
    cpu.check_offset(&segment, offset)?;
    if cpu.state.is_long_mode() {
        return call_long_gate(cpu, target, segment, offset, new_cpl);
    }
    let is_wide = kind == system_type::CALL_GATE;
    if new_cpl == cpl {
        if is_wide { push_return::<E, u32>(cpu)? } else { push_return::<E, u16>(cpu)? }
    } else {
        let old_ss = *cpu.state.segment(SegReg::Ss);
        let old_esp = cpu.state.gpr[gpr::RSP];
        let (ss, esp) = cpu.inner_stack(new_cpl, 0)?;
        let mut frame = Frame::new(is_wide);
        frame.push(old_ss.selector.into());
        frame.push(old_esp as u32);
        for i in (0..parameters as u64).rev() {
            let value =
                if is_wide { cpu.peek::<u32>(i * 4)? } else { cpu.peek::<u16>(i * 2)?.into() };
            frame.push(value);
        }
        frame.push(cpu.state.segment(SegReg::Cs).selector.into());
        frame.push(cpu.state.rip as u32);
        let sp = cpu.push_frame(&frame, &ss, esp, new_cpl, 0)?;
        cpu.state.seg[SegReg::Ss as usize] = ss;
        cpu.state.gpr[gpr::RSP] = sp;
    }
    cpu.mark_accessed(&mut target)?;
    cpu.set_code(target.segment(segment.selector), offset);
    Ok(())
}

/// A 64-bit call gate (SDM Vol. 3, 5.8.3.1): no parameters, and SS becomes null.
fn call_long_gate<E: Env>(
    cpu: &mut Cpu<E>,
    mut target: Descriptor,
    segment: Segment,
    offset: u64,
    new_cpl: u8,
) -> Exec {
    let cs = cpu.state.segment(SegReg::Cs).selector;
    let ss = cpu.state.segment(SegReg::Ss).selector;
    let (rip, rsp) = (cpu.state.rip, cpu.state.gpr[gpr::RSP]);
    let changes = new_cpl != cpu.mode.cpl;
    let stack = if changes { cpu.stack_from_tss(4 + u64::from(new_cpl) * 8, 0)? } else { rsp };
    let frame = [rip, cs.into(), rsp, ss.into()];
    let size = if changes { 32 } else { 16 };
    let new_rsp = stack.wrapping_sub(size);
    if !is_canonical(new_rsp) {
        return Err(cpu.raise(Exception::SS0));
    }
    let mut bytes = [0; 32];
    for (slot, value) in bytes.chunks_exact_mut(8).zip(frame) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    let span = if new_cpl == 3 {
        cpu.probe_write(new_rsp, size as usize)?
    } else {
        cpu.probe_write_system(new_rsp, size as usize)?
    };
    cpu.mark_accessed(&mut target)?;
    cpu.store_span(&span, &bytes[..size as usize]);
    cpu.state.gpr[gpr::RSP] = new_rsp;
    if changes {
        cpu.state.seg[SegReg::Ss as usize] = null_segment(new_cpl.into(), new_cpl);
    }
    cpu.set_code(target.segment(segment.selector), offset);
    Ok(())
}

/// Where a far return or IRET goes, checked but not yet taken.
struct Return {
    cs: Descriptor,
    rip: u64,
    cpl: u8,
}

impl<E: Env> Cpu<E> {
    /// Checks the code segment that a return goes to.
    fn return_target(&mut self, selector: u16, rip: u64) -> Exec<Return> {
        let cs = self.descriptor(selector, vector::GP, 0)?;
        let code = selector_code(selector);
        let attributes = cs.attributes();
        let rpl = cs.rpl();
        let allowed = if attributes.is_conforming() {
            attributes.dpl() <= rpl
        } else {
            attributes.dpl() == rpl
        };
        let is_reserved = self.state.is_long_mode() && attributes.is_long() && attributes.is_big();
        if !attributes.is_code() || rpl < self.mode.cpl || !allowed || is_reserved {
            return Err(self.raise(Exception::gp(code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        self.check_offset(&cs.segment(selector), rip)?;
        Ok(Return { cs, rip, cpl: rpl })
    }

    /// The stack segment that a return to `to` loads.
    fn return_stack(&mut self, to: &Return, selector: u16) -> Exec<Segment> {
        if is_null(selector) {
            let to_64bit = self.state.is_long_mode() && to.cs.attributes().is_long();
            if to_64bit && to.cpl < 3 && (selector & 3) as u8 == to.cpl {
                return Ok(null_segment(selector, to.cpl));
            }
            return Err(self.raise(Exception::GP0));
        }
        self.stack_segment(selector, to.cpl, vector::GP, 0)
    }

    /// Takes a return that was checked.
    fn take_return(&mut self, mut to: Return, stack: Option<(Segment, u64)>) -> Exec {
        self.mark_accessed(&mut to.cs)?;
        let old_cpl = self.mode.cpl;
        self.state.seg[SegReg::Cs as usize] = to.cs.segment(to.cs.selector);
        self.state.rip = to.rip;
        if let Some((ss, rsp)) = stack {
            self.state.seg[SegReg::Ss as usize] = ss;
            self.update_mode();
            self.set_stack_pointer(rsp);
            if to.cpl > old_cpl {
                self.shed_inner_segments(to.cpl);
            }
        }
        self.update_mode();
        Ok(())
    }
}

fn retf<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let size = W::SIZE as u64;
    let rip: W = cpu.peek(0)?;
    let rip = rip.into();
    let selector: W = cpu.peek(size)?;
    let selector: u64 = selector.into();
    let selector = selector as u16;
    let release = op.imm & 0xffff;
    let inner_rsp = cpu.state.gpr[gpr::RSP].wrapping_add(2 * size + release);
    if cpu.is_real_or_v8086() {
        cpu.load_real_code(selector, rip)?;
        cpu.set_stack_pointer(inner_rsp);
        return Ok(());
    }
    let to = cpu.return_target(selector, rip)?;
    if to.cpl == cpu.mode.cpl {
        cpu.take_return(to, None)?;
        cpu.set_stack_pointer(inner_rsp);
        return Ok(());
    }
    let rsp: W = cpu.peek(2 * size + release)?;
    let ss: W = cpu.peek(3 * size + release)?;
    let (rsp, ss): (u64, u64) = (rsp.into(), ss.into());
    let ss = cpu.return_stack(&to, ss as u16)?;
    cpu.take_return(to, Some((ss, rsp.wrapping_add(release))))
}

fn iret<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.state.is_v8086() && cpu.iopl() < 3 {
        return Err(cpu.raise(Exception::GP0));
    }
    let is_protected = cpu.state.is_protected() && !cpu.state.is_v8086();
    if is_protected && cpu.flag(Rflags::NT) {
        return return_from_task(cpu);
    }
    let size = W::SIZE as u64;
    let mut words = [0; 3];
    for (i, word) in words.iter_mut().enumerate() {
        *word = cpu.peek::<W>(i as u64 * size)?.into();
    }
    let [rip, cs, flags] = words;
    let after = cpu.state.gpr[gpr::RSP].wrapping_add(3 * size);
    if !is_protected {
        cpu.load_real_code(cs as u16, rip)?;
        cpu.set_stack_pointer(after);
    } else if W::SIZE == 4
        && flags & Rflags::VM.bits() != 0
        && cpu.mode.cpl == 0
        && !cpu.state.is_long_mode()
    {
        return return_to_v8086(cpu, rip, cs as u16, flags);
    } else {
        let to = cpu.return_target(cs as u16, rip)?;
        let old_cpl = cpu.mode.cpl;
        let iopl = cpu.iopl();
        if to.cpl != old_cpl || cpu.mode.code_bits == 64 {
            let rsp = cpu.peek::<W>(3 * size)?.into();
            let ss = cpu.peek::<W>(4 * size)?.into();
            let ss = cpu.return_stack(&to, ss as u16)?;
            cpu.take_return(to, Some((ss, rsp)))?;
        } else {
            cpu.take_return(to, None)?;
            cpu.set_stack_pointer(after);
        }
        cpu.return_flags(flags, W::BITS, old_cpl, iopl);
        return Ok(());
    }
    let (cpl, iopl) = (cpu.mode.cpl, cpu.iopl());
    cpu.return_flags(flags, W::BITS, cpl, iopl);
    Ok(())
}

impl<E: Env> Cpu<E> {
    /// RFLAGS as IRET loads them from code of privilege level `cpl`. Ends the blocking of NMIs.
    fn return_flags(&mut self, flags: u64, width: u32, cpl: u8, iopl: u8) {
        let mut writable = Rflags::STATUS
            | Rflags::TF
            | Rflags::DF
            | Rflags::NT
            | Rflags::RF
            | Rflags::AC
            | Rflags::ID;
        if cpl == 0 {
            writable |= Rflags::IOPL;
        }
        if cpl <= iopl {
            writable |= Rflags::IF;
        }
        let mask = writable.bits() & (u64::MAX >> (64 - width));
        self.state.rflags = self.state.rflags & !mask | flags & mask;
        // After each page fault, kernels return with RF set. It is cleared behind the next instruction, and
        // matters to armed breakpoints only.
        if self.state.dr7 & debug::ENABLED == 0 {
            self.state.rflags &= !Rflags::RF.bits();
        }
        self.state.nmi_blocked = false;
        self.update_mode();
    }
}

fn return_from_task<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if cpu.state.is_long_mode() {
        return Err(cpu.raise(Exception::GP0));
    }
    let link = cpu.read_system(cpu.state.tr.base)?;
    cpu.switch_task(link, TaskSwitch::Return, 0)?;
    cpu.state.nmi_blocked = false;
    Ok(())
}

fn return_to_v8086<E: Env>(cpu: &mut Cpu<E>, rip: u64, cs: u16, flags: u64) -> Exec {
    let mut words = [0; 6];
    for (i, word) in words.iter_mut().enumerate() {
        *word = cpu.peek::<u32>(12 + i as u64 * 4)?;
    }
    let [esp, ss, es, ds, fs, gs] = words;
    let writable = (Rflags::VM | Rflags::VIF | Rflags::VIP | Rflags::IF).bits();
    cpu.state.rflags = cpu.state.rflags & !writable | flags & writable;
    for (reg, selector) in [
        (SegReg::Cs, u32::from(cs)),
        (SegReg::Ss, ss),
        (SegReg::Es, es),
        (SegReg::Ds, ds),
        (SegReg::Fs, fs),
        (SegReg::Gs, gs),
    ] {
        cpu.state.seg[reg as usize] = v8086_segment(selector as u16);
    }
    debug_assert_eq!(
        cpu.state.segment(SegReg::Ss).attributes,
        SegmentAttributes::DATA16.with_dpl(3)
    );
    cpu.state.gpr[gpr::RSP] = esp.into();
    cpu.state.rip = rip & 0xffff;
    cpu.return_flags(flags, 32, 0, 0);
    Ok(())
}
