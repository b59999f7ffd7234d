//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS (SDM Vol. 3, 5.8.7; AMD APM Vol. 2, 6.1).
//!
//! Vendors differ: SYSCALL from compatibility mode works as on AMD's processors, SYSENTER in
//! long mode as on Intel's. An operating system uses the one that its vendor has.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::{Cpu, is_canonical};
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::interrupt::flat_code_and_stack;
use crate::state::gpr::{R11, RCX, RDX, RSP};
use crate::state::{Efer, Rflags, SegReg, SegmentAttributes};

/// The handler for a fast system call.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Syscall => Some(syscall),
        Mnemonic::Sysret | Mnemonic::Sysretq => Some(sysret),
        Mnemonic::Sysenter => Some(sysenter),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => Some(sysexit),
        Mnemonic::Swapgs => Some(swapgs),
        _ => None,
    }
}

impl<E: Env> Cpu<E> {
    fn load_flat(&mut self, cs: u16, ss: u16, code: SegmentAttributes, dpl: u8) {
        let rpl = u16::from(dpl);
        let (cs, ss) = flat_code_and_stack(cs & !3 | rpl, ss & !3 | rpl, code, dpl);
        self.state.seg[SegReg::Cs as usize] = cs;
        self.state.seg[SegReg::Ss as usize] = ss;
        self.update_mode();
    }
}

fn syscall<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if !cpu.state.efer.contains(Efer::SCE) || !cpu.state.is_protected() {
        return Err(cpu.raise(Exception::UD));
    }
    let msrs = &cpu.state.msrs;
    let (star, lstar, cstar, sfmask) = (msrs.star, msrs.lstar, msrs.cstar, msrs.sfmask);
    let cs = (star >> 32) as u16;
    let ss = cs.wrapping_add(8);
    let rip = cpu.state.rip;
    cpu.state.gpr[RCX] = rip;
    if cpu.state.is_long_mode() {
        let target = if cpu.mode.code_bits == 64 { lstar } else { cstar };
        cpu.state.gpr[R11] = cpu.state.rflags & !Rflags::RF.bits();
        cpu.state.rflags &= !(sfmask | Rflags::RF.bits());
        cpu.state.rflags |= Rflags::FIXED.bits();
        cpu.load_flat(cs, ss, SegmentAttributes::CODE64, 0);
        cpu.state.rip = target;
    } else {
        let cleared = Rflags::IF | Rflags::RF | Rflags::VM;
        cpu.state.rflags &= !cleared.bits();
        cpu.load_flat(cs, ss, SegmentAttributes::CODE32, 0);
        cpu.state.rip = star & 0xffff_ffff;
    }
    // The system shall not be stepped if SFMASK clears TF: what counts is TF after SYSCALL, and
    // the step is then caught up with at SYSRET.
    cpu.single_step &= cpu.flag(Rflags::TF);
    Ok(())
}

fn sysret<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if !cpu.state.efer.contains(Efer::SCE) || !cpu.state.is_protected() {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_cpl0()?;
    let star = (cpu.state.msrs.star >> 48) as u16;
    let to_64bit = op.insn.code() == Code::Sysretq;
    let rip = cpu.state.gpr[RCX];
    if to_64bit && !is_canonical(rip) {
        return Err(cpu.raise(Exception::GP0));
    }
    if cpu.state.is_long_mode() {
        let writable = Rflags::STATUS
            | Rflags::TF
            | Rflags::IF
            | Rflags::DF
            | Rflags::IOPL
            | Rflags::NT
            | Rflags::AC
            | Rflags::ID;
        cpu.state.rflags = cpu.state.gpr[R11] & writable.bits() | Rflags::FIXED.bits();
    } else {
        cpu.set_flag(Rflags::IF, true);
    }
    let ss = star.wrapping_add(8);
    if to_64bit {
        cpu.load_flat(star.wrapping_add(16), ss, SegmentAttributes::CODE64, 3);
        cpu.state.rip = rip;
    } else {
        cpu.load_flat(star, ss, SegmentAttributes::CODE32, 3);
        cpu.state.rip = rip & 0xffff_ffff;
    }
    cpu.single_step = cpu.flag(Rflags::TF);
    Ok(())
}

fn sysenter<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let cs = cpu.state.msrs.sysenter_cs as u16;
    if !cpu.state.is_protected() || cs & !3 == 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    let is_long = cpu.state.is_long_mode();
    let mask = if is_long { u64::MAX } else { 0xffff_ffff };
    cpu.set_flag(Rflags::VM | Rflags::IF | Rflags::RF, false);
    let code = if is_long { SegmentAttributes::CODE64 } else { SegmentAttributes::CODE32 };
    cpu.load_flat(cs, cs.wrapping_add(8), code, 0);
    cpu.state.gpr[RSP] = cpu.state.msrs.sysenter_esp & mask;
    cpu.state.rip = cpu.state.msrs.sysenter_eip & mask;
    Ok(())
}

fn sysexit<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let cs = cpu.state.msrs.sysenter_cs as u16;
    if !cpu.state.is_protected() || cs & !3 == 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    cpu.require_cpl0()?;
    let (rip, rsp) = (cpu.state.gpr[RDX], cpu.state.gpr[RCX]);
    if op.insn.code() == Code::Sysexitq {
        if !is_canonical(rip) || !is_canonical(rsp) {
            return Err(cpu.raise(Exception::GP0));
        }
        let (cs, ss) = (cs.wrapping_add(32), cs.wrapping_add(40));
        cpu.load_flat(cs, ss, SegmentAttributes::CODE64, 3);
        cpu.state.rip = rip;
        cpu.state.gpr[RSP] = rsp;
    } else {
        let (cs, ss) = (cs.wrapping_add(16), cs.wrapping_add(24));
        cpu.load_flat(cs, ss, SegmentAttributes::CODE32, 3);
        cpu.state.rip = rip & 0xffff_ffff;
        cpu.state.gpr[RSP] = rsp & 0xffff_ffff;
    }
    Ok(())
}

fn swapgs<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.mode.code_bits != 64 {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_cpl0()?;
    let gs = &mut cpu.state.seg[SegReg::Gs as usize];
    core::mem::swap(&mut gs.base, &mut cpu.state.msrs.kernel_gs_base);
    Ok(())
}
