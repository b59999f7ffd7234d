//! Control and debug registers, and what they do to the TLB.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::MAX_PHYSICAL_BITS;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec, vector};
use crate::insn::operand::{Source, source_operand};
use crate::interrupt::GENERAL_DETECT;
use crate::paging;
use crate::paging::Access;
use crate::state::{Cr0, Cr4, Efer};
use crate::system::segment_insn::check_umip;

/// The handler for a control or debug register instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let is_control = |reg: Register| reg.is_cr();
    let is_debug = |reg: Register| reg.is_dr();
    match insn.mnemonic() {
        Mnemonic::Mov if is_control(insn.op0_register()) => Some(mov_to_cr),
        Mnemonic::Mov if is_control(insn.op1_register()) => Some(mov_from_cr),
        Mnemonic::Mov if is_debug(insn.op0_register()) => Some(mov_to_dr),
        Mnemonic::Mov if is_debug(insn.op1_register()) => Some(mov_from_dr),
        Mnemonic::Clts => Some(clts),
        Mnemonic::Smsw => Some(smsw),
        Mnemonic::Lmsw => source_operand!(insn, 0, S => Some(lmsw::<E, S> as Handler<E>)),
        Mnemonic::Invlpg => Some(invlpg),
        Mnemonic::Invpcid => Some(invpcid),
        _ => None,
    }
}

/// The bits of CR4 that this processor has.
const CR4_SUPPORTED: Cr4 = Cr4::TSD
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::MCE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::UMIP)
    .union(Cr4::FSGSBASE)
    .union(Cr4::PCIDE)
    .union(Cr4::OSXSAVE)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP);

/// Changes of these bits invalidate all translations.
const CR4_PAGING: Cr4 =
    Cr4::PSE.union(Cr4::PAE).union(Cr4::PGE).union(Cr4::PCIDE).union(Cr4::SMEP).union(Cr4::SMAP);

impl<E: Env> Cpu<E> {
    /// Raises #GP(0) unless CPL is 0.
    pub(crate) fn require_cpl0(&mut self) -> Exec {
        if self.mode.cpl == 0 { Ok(()) } else { Err(self.raise(Exception::GP0)) }
    }

    fn gp_unless(&mut self, ok: bool) -> Exec {
        if ok { Ok(()) } else { Err(self.raise(Exception::GP0)) }
    }

    /// MOV to CR0 (SDM Vol. 3, 2.5 and 10.8.5).
    fn set_cr0(&mut self, value: u64) -> Exec {
        let new = Cr0::from_bits_truncate(value) | Cr0::ET;
        let old = self.state.cr0;
        self.gp_unless(value >> 32 == 0)?;
        self.gp_unless(!new.contains(Cr0::PG) || new.contains(Cr0::PE))?;
        self.gp_unless(!new.contains(Cr0::NW) || new.contains(Cr0::CD))?;
        let turns_on = new.contains(Cr0::PG) && !old.contains(Cr0::PG);
        let turns_off = old.contains(Cr0::PG) && !new.contains(Cr0::PG);
        if turns_off {
            self.gp_unless(self.mode.code_bits != 64)?;
            self.gp_unless(!self.state.cr4.contains(Cr4::PCIDE))?;
        }
        if turns_on {
            if self.state.efer.contains(Efer::LME) {
                let cs = self.state.seg[1].attributes;
                self.gp_unless(self.state.cr4.contains(Cr4::PAE) && !cs.is_long())?;
                self.state.efer |= Efer::LMA;
            } else if self.state.cr4.contains(Cr4::PAE) {
                self.load_pdptes()?;
            }
        }
        if turns_off {
            self.state.efer -= Efer::LMA;
        }
        self.state.cr0 = new;
        if (old ^ new).intersects(Cr0::PG | Cr0::PE | Cr0::WP) {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to CR3. Bit 63 keeps what is cached for the PCID (SDM Vol. 3, 4.10.4.1).
    fn set_cr3(&mut self, value: u64) -> Exec {
        let has_pcid = self.state.cr4.contains(Cr4::PCIDE);
        let keep = has_pcid && value >> 63 != 0;
        let value = if has_pcid { value & !(1 << 63) } else { value };
        if self.state.is_long_mode() {
            self.gp_unless(value >> MAX_PHYSICAL_BITS == 0)?;
        }
        let old = self.state.cr3;
        self.state.cr3 = value;
        let is_pae = self.state.cr4.contains(Cr4::PAE) && self.state.cr0.contains(Cr0::PG);
        if is_pae
            && !self.state.is_long_mode()
            && let Err(raised) = self.load_pdptes()
        {
            self.state.cr3 = old;
            return Err(raised);
        }
        let pcid = if has_pcid { value as u16 & 0xfff } else { 0 };
        self.tlb.switch(pcid, keep);
        self.leave_block = true;
        Ok(())
    }

    /// Loads the four entries that PAE paging keeps in the processor.
    pub(crate) fn load_pdptes(&mut self) -> Exec {
        let base = paging::pdpt_base(self.state.cr3);
        let mut entries = [0; 4];
        for (i, entry) in entries.iter_mut().enumerate() {
            *entry = paging::read_physical(&mut self.env, base + i as u64 * 8);
            if paging::is_pdpte_reserved(*entry) {
                return Err(self.raise(Exception::GP0));
            }
        }
        self.state.pdpte = entries;
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Exec {
        let Some(new) = Cr4::from_bits(value).filter(|new| CR4_SUPPORTED.contains(*new)) else {
            return Err(self.raise(Exception::GP0));
        };
        let old = self.state.cr4;
        if self.state.is_long_mode() {
            self.gp_unless(new.contains(Cr4::PAE))?;
        }
        if new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE) {
            self.gp_unless(self.state.is_long_mode() && self.state.cr3 & 0xfff == 0)?;
        }
        let changed = old ^ new;
        self.state.cr4 = new;
        let paged = self.state.cr0.contains(Cr0::PG) && !self.state.is_long_mode();
        let reloads = changed.intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP);
        if paged
            && new.contains(Cr4::PAE)
            && reloads
            && let Err(raised) = self.load_pdptes()
        {
            self.state.cr4 = old;
            return Err(raised);
        }
        if changed.intersects(CR4_PAGING) {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    /// Which debug register an instruction names; DR4 and DR5 are DR6 and DR7 unless CR4.DE
    /// forbids them. Raises #DB if DR7.GD guards them all.
    fn debug_register(&mut self, reg: Register) -> Exec<u32> {
        let number = reg.number() as u32;
        let is_alias = matches!(number, 4 | 5);
        if number > 7 {
            return Err(self.raise(Exception::UD));
        }
        self.require_cpl0()?;
        if is_alias && self.state.cr4.contains(Cr4::DE) {
            return Err(self.raise(Exception::UD));
        }
        if self.state.dr7 & GENERAL_DETECT != 0 {
            self.state.dr6 |= 1 << 13; // BD
            return Err(self.raise(Exception::new(vector::DB)));
        }
        Ok(if is_alias { number + 2 } else { number })
    }
}

fn mov_to_cr<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let number = op.insn.op0_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_cpl0()?;
    let value = if cpu.mode.code_bits == 64 {
        cpu.reg(op.regs[1])
    } else {
        cpu.reg::<u32>(op.regs[1]).into()
    };
    match number {
        0 => cpu.set_cr0(value),
        2 => {
            cpu.state.cr2 = value;
            Ok(())
        }
        3 => cpu.set_cr3(value),
        4 => cpu.set_cr4(value),
        _ => {
            cpu.gp_unless(value < 16)?;
            cpu.env.write_cr8(value);
            cpu.leave_block = true;
            Ok(())
        }
    }
}

fn mov_from_cr<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let number = op.insn.op1_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_cpl0()?;
    let value = match number {
        0 => cpu.state.cr0.bits(),
        2 => cpu.state.cr2,
        3 => cpu.state.cr3,
        4 => cpu.state.cr4.bits(),
        _ => cpu.env.read_cr8(),
    };
    set_whole(cpu, op.regs[0], value);
    Ok(())
}

/// Writes a register at the full width of the mode.
fn set_whole<E: Env>(cpu: &mut Cpu<E>, reg: u8, value: u64) {
    if cpu.mode.code_bits == 64 {
        cpu.set_reg(reg, value);
    } else {
        cpu.set_reg(reg, value as u32);
    }
}

fn mov_to_dr<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let number = cpu.debug_register(op.insn.op0_register())?;
    let value: u64 = if cpu.mode.code_bits == 64 {
        cpu.reg(op.regs[1])
    } else {
        cpu.reg::<u32>(op.regs[1]).into()
    };
    match number {
        0..=3 => cpu.state.dr[number as usize] = value,
        6 => {
            cpu.gp_unless(value >> 32 == 0)?;
            cpu.state.dr6 = value & 0xe00f | 0xffff_0ff0;
        }
        _ => {
            cpu.gp_unless(value >> 32 == 0)?;
            cpu.state.dr7 = value & 0xffff_2bff | 0x400;
        }
    }
    cpu.update_mode();
    Ok(())
}

fn mov_from_dr<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let number = cpu.debug_register(op.insn.op1_register())?;
    let value = match number {
        0..=3 => cpu.state.dr[number as usize],
        6 => cpu.state.dr6,
        _ => cpu.state.dr7,
    };
    set_whole(cpu, op.regs[0], value);
    Ok(())
}

fn clts<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    cpu.state.cr0 -= Cr0::TS;
    Ok(())
}

fn smsw<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check_umip(cpu)?;
    let value = cpu.state.cr0.bits();
    if op.insn.op0_kind() == iced_x86::OpKind::Memory {
        let linear = cpu.operand_address(op, 2, Access::Write)?;
        return cpu.write(linear, value as u16);
    }
    match op.insn.op0_register().size() {
        2 => cpu.set_reg(op.regs[0], value as u16),
        4 => cpu.set_reg(op.regs[0], value as u32),
        _ => cpu.set_reg(op.regs[0], value),
    }
    Ok(())
}

/// LMSW sets PE, MP, EM and TS, and cannot clear PE.
fn lmsw<E: Env, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    let value: u16 = S::get(cpu, op)?;
    let old = cpu.state.cr0.bits();
    cpu.set_cr0(old & !0xe | u64::from(value) & 0xf | old & 1)
}

fn invlpg<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    let offset = cpu.effective_address(op);
    let base = match (cpu.mode.code_bits, op.seg) {
        (64, crate::state::SegReg::Fs | crate::state::SegReg::Gs) | (16 | 32, _) => {
            cpu.state.segment(op.seg).base
        }
        _ => 0,
    };
    let linear = base.wrapping_add(offset);
    let is_64bit = cpu.mode.code_bits == 64;
    cpu.tlb.flush_page(if is_64bit { linear } else { linear & 0xffff_ffff });
    cpu.leave_block = true;
    Ok(())
}

fn invpcid<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_cpl0()?;
    let kind: u64 = if cpu.mode.code_bits == 64 {
        cpu.reg(op.regs[0])
    } else {
        cpu.reg::<u32>(op.regs[0]).into()
    };
    let linear = cpu.operand_address(op, 16, Access::Read)?;
    let mut descriptor = [0; 16];
    cpu.read_bytes(linear, &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let (low, address) = (descriptor as u64, (descriptor >> 64) as u64);
    cpu.gp_unless(low >> 12 == 0)?;
    let pcid = low as u16;
    let has_pcid = cpu.state.cr4.contains(Cr4::PCIDE);
    // Without PCIDs, bits 4:3 of CR3 are PCD and PWT, and all belongs to PCID 0.
    let current = !has_pcid || pcid == cpu.state.cr3 as u16 & 0xfff;
    cpu.gp_unless(has_pcid || pcid == 0 || kind >= 2)?;
    match kind {
        0 => {
            cpu.gp_unless(crate::cpu::is_canonical(address))?;
            cpu.tlb.flush_page(address);
        }
        1 => cpu.tlb.flush_pcid(pcid, current),
        2 | 3 => cpu.tlb.flush_all(),
        _ => return Err(cpu.raise(Exception::GP0)),
    }
    cpu.leave_block = true;
    Ok(())
}
