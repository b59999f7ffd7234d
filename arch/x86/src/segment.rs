//! Segment registers and descriptors (SDM Vol. 3, chapters 3 and 5).

use crate::cpu::{Cpu, is_canonical};
use crate::env::Env;
use crate::exception::{Exception, Exec, vector};
use crate::state::{SegReg, Segment, SegmentAttributes};

/// Types of system descriptors (SDM Vol. 3, table 3-2).
pub(crate) mod system_type {
    pub const TSS16: u32 = 0x1;
    pub const LDT: u32 = 0x2;
    pub const TSS16_BUSY: u32 = 0x3;
    pub const CALL_GATE16: u32 = 0x4;
    pub const TASK_GATE: u32 = 0x5;
    pub const INTERRUPT_GATE16: u32 = 0x6;
    pub const TRAP_GATE16: u32 = 0x7;
    pub const TSS: u32 = 0x9;
    pub const TSS_BUSY: u32 = 0xb;
    pub const CALL_GATE: u32 = 0xc;
    pub const INTERRUPT_GATE: u32 = 0xe;
    pub const TRAP_GATE: u32 = 0xf;
}

/// A segment or gate descriptor, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub raw: u64,
    /// The selector it was found by.
    pub selector: u16,
    /// Its linear address.
    linear: u64,
}

impl Descriptor {
    /// A gate that was read from the IDT.
    pub fn at(raw: u64, linear: u64) -> Self {
        Self { raw, selector: 0, linear }
    }

    /// Where it lies.
    pub fn linear(&self) -> u64 {
        self.linear
    }

    /// Base of a code, data, TSS or LDT descriptor; 32 bits.
    pub fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 32 & 0xff00_0000)
    }

    /// Limit in bytes.
    pub fn limit(&self) -> u32 {
        let limit = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        if self.raw >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// Access rights.
    pub fn attributes(&self) -> SegmentAttributes {
        SegmentAttributes((self.raw >> 40) as u32 & 0xf0ff)
    }

    /// Requested privilege level of the selector.
    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }

    /// Type of a system descriptor, or `None` if it is code or data.
    pub fn system_type(&self) -> Option<u32> {
        let attributes = self.attributes();
        (!attributes.is_code_or_data()).then(|| attributes.kind())
    }

    /// The segment register that it makes.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attributes: self.attributes() }
    }

    /// Target of a call, interrupt or task gate: selector and 32-bit offset.
    pub fn gate_target(&self) -> (u16, u64) {
        ((self.raw >> 16) as u16, (self.raw & 0xffff) | (self.raw >> 32 & 0xffff_0000))
    }
}

/// Whether a selector is null.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The error code that names a selector.
pub(crate) fn selector_code(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl<E: Env> Cpu<E> {
    /// Reads the descriptor of a selector that is not null. `None` if it lies outside its table.
    pub(crate) fn find_descriptor(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, u32::from(self.state.gdtr.limit))
        } else if self.state.ldtr.attributes.is_unusable() {
            return Ok(None);
        } else {
            (self.state.ldtr.base, self.state.ldtr.limit)
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Ok(None);
        }
        let linear = base.wrapping_add(offset.into());
        let raw = self.read_system(linear)?;
        Ok(Some(Descriptor { raw, selector, linear }))
    }

    /// Reads the descriptor of `selector`; a null selector, or one beyond its table, raises
    /// `vector` with the selector (0 if null) as its error code. `ext` is bit 0 of the code.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8, ext: u32) -> Exec<Descriptor> {
        let code = selector_code(selector) | ext;
        if is_null(selector) {
            return Err(self.raise(Exception::with_code(vector, ext)));
        }
        match self.find_descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.raise(Exception::with_code(vector, code))),
        }
    }

    /// The upper half of the base (or offset) of a 16-byte descriptor in long mode.
    pub(crate) fn upper_half(&mut self, descriptor: &Descriptor, vector: u8) -> Exec<u64> {
        // The second half must lie in the table as well.
        if self.find_descriptor(descriptor.selector.wrapping_add(8))?.is_none() {
            let code = selector_code(descriptor.selector);
            return Err(self.raise(Exception::with_code(vector, code)));
        }
        let high: u32 = self.read_system(descriptor.linear.wrapping_add(8))?;
        Ok(u64::from(high) << 32)
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Exec {
        if descriptor.raw >> 40 & 1 == 0 {
            descriptor.raw |= 1 << 40;
            self.write_system(descriptor.linear.wrapping_add(5), (descriptor.raw >> 40) as u8)?;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of a TSS descriptor.
    pub(crate) fn mark_busy(&mut self, selector: u16, busy: bool) -> Exec {
        if let Some(descriptor) = self.find_descriptor(selector)? {
            let access = (descriptor.raw >> 40) as u8;
            let access = if busy { access | 2 } else { access & !2 };
            self.write_system(descriptor.linear.wrapping_add(5), access)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do.
    pub(crate) fn load_segment(&mut self, reg: SegReg, selector: u16) -> Exec {
        if !self.state.is_protected() {
            // The limit stays: "unreal mode" depends on it.
            let segment = &mut self.state.seg[reg as usize];
            segment.selector = selector;
            segment.base = u64::from(selector) << 4;
        } else if self.state.is_v8086() {
            self.state.seg[reg as usize] = v8086_segment(selector);
        } else {
            self.state.seg[reg as usize] = self.data_segment(reg, selector, self.mode.cpl)?;
        }
        self.update_mode();
        Ok(())
    }

    /// What a selector makes of a data segment register in protected mode, for code of privilege
    /// level `cpl`.
    fn data_segment(&mut self, reg: SegReg, selector: u16, cpl: u8) -> Exec<Segment> {
        if reg == SegReg::Ss {
            return self.stack_segment(selector, cpl, vector::GP, 0);
        }
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let code = selector_code(selector);
        let mut descriptor = self.descriptor(selector, vector::GP, 0)?;
        let attributes = descriptor.attributes();
        let shielded = !attributes.is_conforming() && attributes.dpl() < cpl.max(descriptor.rpl());
        if !attributes.is_code_or_data() || !attributes.is_readable() || shielded {
            return Err(self.raise(Exception::gp(code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// What a selector makes of SS for code of privilege level `cpl`. `fault` is #GP, or #TS
    /// where the selector comes from a TSS. `ext` is bit 0 of error codes.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        fault: u8,
        ext: u32,
    ) -> Exec<Segment> {
        let code = selector_code(selector) | ext;
        if is_null(selector) {
            // 64-bit code outside ring 3 may run without a stack segment.
            if self.mode.code_bits == 64 && cpl < 3 && (selector & 3) as u8 == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(self.raise(Exception::with_code(fault, ext)));
        }
        let mut descriptor = self.descriptor(selector, fault, ext)?;
        let attributes = descriptor.attributes();
        if descriptor.rpl() != cpl || attributes.dpl() != cpl || !attributes.is_writable() {
            return Err(self.raise(Exception::with_code(fault, code)));
        }
        if !attributes.is_present() {
            return Err(self.raise(Exception::with_code(vector::SS, code)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Loads LDTR.
    pub(crate) fn load_ldtr(&mut self, selector: u16, fault: u8) -> Exec {
        if is_null(selector) {
            self.state.ldtr = null_segment(selector, 0);
            return Ok(());
        }
        let code = selector_code(selector);
        if selector & 4 != 0 {
            return Err(self.raise(Exception::with_code(fault, code)));
        }
        let descriptor = self.descriptor(selector, fault, 0)?;
        if descriptor.system_type() != Some(system_type::LDT) {
            return Err(self.raise(Exception::with_code(fault, code)));
        }
        if !descriptor.attributes().is_present() {
            let missing = if fault == vector::TS { vector::TS } else { vector::NP };
            return Err(self.raise(Exception::with_code(missing, code)));
        }
        self.state.ldtr = self.system_segment(&descriptor, fault)?;
        Ok(())
    }

    /// LTR.
    pub(crate) fn load_tr(&mut self, selector: u16) -> Exec {
        let code = selector_code(selector);
        if is_null(selector) || selector & 4 != 0 {
            return Err(self.raise(Exception::gp(code)));
        }
        let descriptor = self.descriptor(selector, vector::GP, 0)?;
        let usable = match descriptor.system_type() {
            Some(system_type::TSS) => true,
            Some(system_type::TSS16) => !self.state.is_long_mode(),
            _ => false,
        };
        if !usable {
            return Err(self.raise(Exception::gp(code)));
        }
        if !descriptor.attributes().is_present() {
            return Err(self.raise(Exception::with_code(vector::NP, code)));
        }
        let mut segment = self.system_segment(&descriptor, vector::GP)?;
        segment.attributes.0 |= 2;
        self.mark_busy(selector, true)?;
        self.state.tr = segment;
        Ok(())
    }

    fn system_segment(&mut self, descriptor: &Descriptor, fault: u8) -> Exec<Segment> {
        let mut segment = descriptor.segment(descriptor.selector);
        if self.state.is_long_mode() {
            segment.base |= self.upper_half(descriptor, fault)?;
            if !is_canonical(segment.base) {
                let code = selector_code(descriptor.selector);
                return Err(self.raise(Exception::with_code(fault, code)));
            }
        }
        Ok(segment)
    }

    /// After a return to an outer privilege level: data segments that it may not use become null
    /// (SDM Vol. 3, 5.8.6).
    pub(crate) fn shed_inner_segments(&mut self, cpl: u8) {
        for reg in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            let segment = &mut self.state.seg[reg as usize];
            let attributes = segment.attributes;
            if !attributes.is_unusable() && !attributes.is_conforming() && attributes.dpl() < cpl {
                *segment = Segment {
                    // Bases of FS and GS belong to 64-bit code even if the selector is null.
                    base: segment.base,
                    ..null_segment(0, 0)
                };
            }
        }
    }
}

/// A register loaded with a null selector. SS keeps the privilege level in its DPL.
pub(crate) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        attributes: SegmentAttributes(SegmentAttributes::UNUSABLE.0).with_dpl(dpl),
    }
}

/// A segment register in virtual-8086 mode (SDM Vol. 3, 20.2.1).
pub(crate) fn v8086_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attributes: SegmentAttributes::DATA16.with_dpl(3),
    }
}

/// The flat segments that SYSCALL and its kin load without looking at descriptors.
pub(crate) fn flat_segment(selector: u16, attributes: SegmentAttributes, dpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, attributes: attributes.with_dpl(dpl) }
}
