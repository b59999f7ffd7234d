//! Task switches with 32-bit task-state segments (SDM Vol. 3, chapter 7).

use crate::cpu::Cpu;
use crate::env::Env;
use crate::exception::{Exception, Exec, vector};
use crate::segment::{is_null, null_segment, selector_code, system_type, v8086_segment};
use crate::state::{Cr0, Cr4, Rflags, SegReg};

/// What caused a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskSwitch {
    /// A far JMP.
    Jump,
    /// A far CALL.
    Call,
    /// An interrupt or exception through a task gate.
    Gate,
    /// IRET with NT set.
    Return,
}

/// Offsets in a 32-bit TSS (SDM Vol. 3, figure 7-2).
mod tss {
    pub const LINK: u64 = 0;
    pub const CR3: u64 = 28;
    pub const EIP: u64 = 32;
    pub const EFLAGS: u64 = 36;
    pub const GPR: u64 = 40;
    pub const SEG: u64 = 72;
    pub const LDT: u64 = 96;
    pub const TRAP: u64 = 100;
    pub const MIN_LIMIT: u32 = 0x67;
}

impl<E: Env> Cpu<E> {
    /// Switches to the task of a TSS selector or task gate `selector`. `ext` is bit 0 of error
    /// codes. Faults up to the loading of the new task's segments leave the old task untouched.
    pub(crate) fn switch_task(&mut self, selector: u16, why: TaskSwitch, ext: u32) -> Exec {
        // A return names a busy TSS through the link field, where the fault is #TS.
        let fault = if why == TaskSwitch::Return { vector::TS } else { vector::GP };
        let code = selector_code(selector) | ext;
        if is_null(selector) || selector & 4 != 0 {
            return Err(self.raise(Exception::with_code(fault, code)));
        }
        let descriptor = self.descriptor(selector, fault, ext)?;
        let wanted =
            if why == TaskSwitch::Return { system_type::TSS_BUSY } else { system_type::TSS };
        if descriptor.system_type() != Some(wanted) {
            return Err(self.raise(Exception::with_code(fault, code)));
        }
        if !descriptor.attributes().is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        if descriptor.limit() < tss::MIN_LIMIT {
            return Err(self.raise(Exception::with_code(vector::TS, code)));
        }
        let mut tr = descriptor.segment(selector);
        tr.attributes.0 |= 2;

        let incoming = self.read_task(tr.base)?;
        let old = self.state.tr;
        self.save_task(old.base, why)?;
        if matches!(why, TaskSwitch::Jump | TaskSwitch::Return) {
            self.mark_busy(old.selector, false)?;
        }
        if why != TaskSwitch::Return {
            self.mark_busy(selector, true)?;
        }
        let nests = matches!(why, TaskSwitch::Call | TaskSwitch::Gate);
        if nests {
            self.write_system(tr.base.wrapping_add(tss::LINK), old.selector)?;
        }

        self.state.tr = tr;
        self.state.cr0 |= Cr0::TS;
        // Local breakpoints belong to the old task.
        self.state.dr7 &= !0x155;
        self.load_task(&incoming, nests)
    }

    fn read_task(&mut self, base: u64) -> Exec<[u32; 26]> {
        let mut image = [0; 26];
        for (i, word) in image.iter_mut().enumerate() {
            *word = self.read_system(base.wrapping_add(i as u64 * 4))?;
        }
        Ok(image)
    }

    /// Saves the dynamic fields of the current task.
    fn save_task(&mut self, base: u64, why: TaskSwitch) -> Exec {
        // All of it must be writable before any of it is written.
        self.probe_write_system(base.wrapping_add(tss::EIP), (tss::LDT - tss::EIP) as usize)?;
        let mut flags = self.state.rflags as u32;
        if why == TaskSwitch::Return {
            flags &= !(Rflags::NT.bits() as u32);
        }
        self.write_system(base.wrapping_add(tss::EIP), self.state.rip as u32)?;
        self.write_system(base.wrapping_add(tss::EFLAGS), flags)?;
        for i in 0..8 {
            let value = self.state.gpr[i as usize] as u32;
            self.write_system(base.wrapping_add(tss::GPR + i * 4), value)?;
        }
        for i in 0..6 {
            let value = self.state.seg[i as usize].selector;
            self.write_system(base.wrapping_add(tss::SEG + i * 4), value)?;
        }
        Ok(())
    }

    /// Loads everything from a TSS. What faults here faults in the new task.
    fn load_task(&mut self, image: &[u32; 26], nests: bool) -> Exec {
        let word = |offset: u64| image[(offset / 4) as usize];
        let is_paged = self.state.cr0.contains(Cr0::PG);
        if is_paged && u64::from(word(tss::CR3)) != self.state.cr3 {
            self.state.cr3 = word(tss::CR3).into();
            if self.state.cr4.contains(Cr4::PAE) {
                self.load_pdptes()?;
            }
            self.tlb.switch(0, false);
        }
        // Reserved bits stay as they are (SDM Vol. 1, 3.4.3).
        let known = Rflags::all().bits();
        let mut flags = u64::from(word(tss::EFLAGS)) & known | Rflags::FIXED.bits();
        if nests {
            flags |= Rflags::NT.bits();
        }
        self.state.rflags = flags;
        self.state.rip = word(tss::EIP).into();
        // Faults from here on are the new task's, at its first instruction.
        self.insn_ip = self.state.rip;
        for i in 0..8 {
            self.state.gpr[i] = image[tss::GPR as usize / 4 + i].into();
        }
        let selectors: [u16; 6] = core::array::from_fn(|i| image[tss::SEG as usize / 4 + i] as u16);
        // Until they are loaded, registers hold selectors without usable descriptors.
        for (reg, selector) in SegReg::ALL.into_iter().zip(selectors) {
            self.state.seg[reg as usize] = null_segment(selector, 0);
        }
        let cs = selectors[SegReg::Cs as usize];
        let cpl = (cs & 3) as u8;
        self.state.seg[SegReg::Ss as usize].attributes = null_segment(0, cpl).attributes;
        self.update_mode();
        self.load_ldtr(word(tss::LDT) as u16, vector::TS)?;

        if self.state.is_v8086() {
            for (reg, selector) in SegReg::ALL.into_iter().zip(selectors) {
                self.state.seg[reg as usize] = v8086_segment(selector);
            }
        } else {
            self.load_task_code(cs, cpl)?;
            self.mode.cpl = cpl;
            let ss = selectors[SegReg::Ss as usize];
            self.state.seg[SegReg::Ss as usize] = self.stack_segment(ss, cpl, vector::TS, 0)?;
            for reg in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
                self.load_segment(reg, selectors[reg as usize])?;
            }
        }
        self.update_mode();
        if self.state.rip > u64::from(self.state.segment(SegReg::Cs).limit) {
            return Err(self.raise(Exception::GP0));
        }
        if word(tss::TRAP) & 1 != 0 {
            self.state.dr6 |= 1 << 15; // BT
            return Err(self.raise(Exception::new(vector::DB)));
        }
        Ok(())
    }

    fn load_task_code(&mut self, selector: u16, cpl: u8) -> Exec {
        let code = selector_code(selector);
        let mut descriptor = self.descriptor(selector, vector::TS, 0)?;
        let attributes = descriptor.attributes();
        let allowed = if attributes.is_conforming() {
            attributes.dpl() <= cpl
        } else {
            attributes.dpl() == cpl
        };
        if !attributes.is_code() || !allowed {
            return Err(self.raise(Exception::with_code(vector::TS, code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        self.mark_accessed(&mut descriptor)?;
        self.state.seg[SegReg::Cs as usize] = descriptor.segment(selector);
        self.update_mode();
        Ok(())
    }
}
