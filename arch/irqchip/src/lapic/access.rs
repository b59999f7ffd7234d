//! Register accesses: the xAPIC page and the MSRs (SDM Vol. 3, 11.4.1 and 11.12.1).

use super::timer::{Mode, Now};
use super::{Effects, GeneralProtection, Lapic, regs};

impl Lapic {
    /// Whether accesses to `msr` are for the local APIC.
    pub const fn owns_msr(msr: u32) -> bool {
        matches!(
            msr,
            regs::MSR_APIC_BASE | regs::MSR_TSC_DEADLINE | regs::MSR_X2APIC_FIRST
                ..=regs::MSR_X2APIC_LAST
        )
    }

    /// Whether accesses to `msr` look at the time; for others any `now` will do.
    pub const fn msr_needs_time(msr: u32) -> bool {
        msr == regs::MSR_TSC_DEADLINE
            || (msr >= regs::MSR_X2APIC_FIRST
                && msr <= regs::MSR_X2APIC_LAST
                && Self::needs_time((msr - regs::MSR_X2APIC_FIRST) as u8))
    }

    /// Whether accesses at `offset` of the register page look at the time; for others any `now`
    /// will do.
    pub const fn mmio_needs_time(offset: u64) -> bool {
        Self::needs_time(((offset & 0xfff) >> 4) as u8)
    }

    const fn needs_time(register: u8) -> bool {
        matches!(
            register,
            regs::LVT_TIMER | regs::INITIAL_COUNT | regs::CURRENT_COUNT | regs::DIVIDE
        )
    }

    /// Reads from the register page. Registers are 32 bits wide at multiples of 16; any part of
    /// one can be read, everything else reads as zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], now: Now) {
        let register = ((offset & 0xfff) >> 4) as u8;
        let value = self.read_register(register, now).unwrap_or_else(|| {
            self.error(regs::ESR_ILLEGAL_REGISTER);
            0
        });
        let bytes = value.to_le_bytes();
        let start = (offset & 0xf) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(i).and_then(|i| bytes.get(i)).copied().unwrap_or(0);
        }
    }

    /// Writes to the register page. Only aligned 32-bit writes mean anything (11.4.1); of wider
    /// ones the low half counts.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], now: Now) -> Effects {
        let Some(bytes) = data.first_chunk::<4>() else { return Effects::default() };
        if offset & 0xf != 0 {
            return Effects::default();
        }
        let value = u32::from_le_bytes(*bytes);
        match ((offset & 0xfff) >> 4) as u8 {
            regs::LDR => self.logical_id = (value >> 24) as u8,
            regs::DFR => self.dfr = value | 0x0fff_ffff,
            regs::ICR => {
                let high = self.icr & !u64::from(u32::MAX);
                let message = self.send_ipi(high | (u64::from(value) & regs::ICR_LOW_WRITABLE));
                return Effects { message, ..Effects::default() };
            }
            regs::ICR_HIGH => {
                let high = u64::from(value & 0xff00_0000) << 32;
                self.icr = high | (self.icr & u64::from(u32::MAX));
            }
            // Read-only.
            regs::ID
            | regs::VERSION
            | regs::APR
            | regs::PPR
            | regs::RRD
            | regs::ISR..=regs::IRR_LAST
            | regs::CURRENT_COUNT => {}
            register => match self.write_register(register, value, now) {
                Some(effects) => return effects,
                None => self.error(regs::ESR_ILLEGAL_REGISTER),
            },
        }
        Effects::default()
    }

    /// Reads an MSR that the local APIC [owns](Self::owns_msr).
    pub fn read_msr(&self, msr: u32, now: Now) -> Result<u64, GeneralProtection> {
        match msr {
            regs::MSR_APIC_BASE => Ok(self.base),
            regs::MSR_TSC_DEADLINE if self.config.tsc_deadline => Ok(self.timer.tsc_deadline),
            regs::MSR_X2APIC_FIRST..=regs::MSR_X2APIC_LAST if self.x2apic_mode() => {
                match (msr - regs::MSR_X2APIC_FIRST) as u8 {
                    regs::ICR => Ok(self.icr),
                    // Write-only, or gone in this mode (11.12.1.2).
                    regs::EOI
                    | regs::SELF_IPI
                    | regs::APR
                    | regs::RRD
                    | regs::DFR
                    | regs::ICR_HIGH => Err(GeneralProtection),
                    register => {
                        self.read_register(register, now).map(u64::from).ok_or(GeneralProtection)
                    }
                }
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Writes an MSR that the local APIC [owns](Self::owns_msr).
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: Now,
    ) -> Result<Effects, GeneralProtection> {
        match msr {
            regs::MSR_APIC_BASE => self.set_base(value),
            regs::MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                Ok(self.write_tsc_deadline(value, now))
            }
            regs::MSR_X2APIC_FIRST..=regs::MSR_X2APIC_LAST if self.x2apic_mode() => {
                self.write_x2apic((msr - regs::MSR_X2APIC_FIRST) as u8, value, now)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Arms the timer, or with 0 disarms it; ignored in the other modes (11.5.4.1).
    fn write_tsc_deadline(&mut self, value: u64, now: Now) -> Effects {
        if self.timer_mode() == Mode::TscDeadline {
            self.timer.tsc_deadline = value;
            self.timer_expired(now);
        }
        Effects { timer_changed: true, ..Effects::default() }
    }

    /// x2APIC mode refuses reserved bits (11.12.1.3) and what cannot be written.
    fn write_x2apic(
        &mut self,
        register: u8,
        value: u64,
        now: Now,
    ) -> Result<Effects, GeneralProtection> {
        use regs::{LVT_REMOTE_IRR, LVT_STATUS};
        let writable = match register {
            regs::ICR => !regs::ICR_X2APIC_RESERVED,
            regs::TPR | regs::SELF_IPI => 0xff,
            regs::EOI | regs::ESR => 0,
            regs::SVR => regs::SVR_WRITABLE.into(),
            // Read-only bits are not reserved ones.
            regs::LVT_LINT0 | regs::LVT_LINT1 => {
                (self.lvt_writable(register) | LVT_STATUS | LVT_REMOTE_IRR).into()
            }
            regs::LVT_TIMER | regs::LVT_THERMAL | regs::LVT_PERF | regs::LVT_ERROR => {
                (self.lvt_writable(register) | LVT_STATUS).into()
            }
            regs::INITIAL_COUNT => u32::MAX.into(),
            regs::DIVIDE => 0b1011,
            _ => return Err(GeneralProtection),
        };
        if value & !writable != 0 {
            return Err(GeneralProtection);
        }
        match register {
            regs::ICR => {
                let message = self.send_ipi(value & !regs::ICR_STATUS);
                Ok(Effects { message, ..Effects::default() })
            }
            regs::SELF_IPI => {
                self.send_self_ipi(value as u8);
                Ok(Effects::default())
            }
            _ => self.write_register(register, value as u32, now).ok_or(GeneralProtection),
        }
    }

    /// The registers that both interfaces read alike; `None` if there is no such register.
    fn read_register(&self, register: u8, now: Now) -> Option<u32> {
        Some(match register {
            regs::ID if self.x2apic_mode() => self.config.id,
            regs::ID => self.config.id << 24,
            regs::VERSION => regs::VERSION_VALUE,
            regs::TPR => self.tpr.into(),
            regs::PPR => self.ppr().into(),
            // The Pentium's bus arbitration is gone, and EOI is write-only.
            regs::APR | regs::RRD | regs::EOI => 0,
            regs::LDR => self.ldr(),
            regs::DFR => self.dfr,
            regs::SVR => self.svr,
            regs::ISR..=regs::ISR_LAST => self.isr.register(register),
            regs::TMR..=regs::TMR_LAST => self.tmr.register(register),
            regs::IRR..=regs::IRR_LAST => self.irr.register(register),
            regs::ESR => self.esr,
            regs::ICR => self.icr as u32,
            regs::ICR_HIGH => (self.icr >> 32) as u32,
            regs::INITIAL_COUNT => self.timer.initial,
            regs::CURRENT_COUNT => self.timer.count(self.timer_mode(), now.ns),
            regs::DIVIDE => self.timer.divide,
            _ => return self.lvt.get(register),
        })
    }

    /// The registers that both interfaces write alike; `None` if there is no such register.
    fn write_register(&mut self, register: u8, value: u32, now: Now) -> Option<Effects> {
        let mut timer_changed = false;
        match register {
            regs::TPR => self.tpr = value as u8,
            regs::EOI => return Some(self.eoi()),
            regs::SVR => {
                self.svr = value & regs::SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.mask_all();
                    timer_changed = true;
                }
            }
            regs::ESR => self.esr = core::mem::take(&mut self.errors),
            regs::INITIAL_COUNT => {
                self.timer_expired(now);
                self.timer.set_initial(self.timer_mode(), value, now.ns);
                timer_changed = true;
            }
            regs::DIVIDE => {
                self.timer_expired(now);
                self.timer.set_divide(self.timer_mode(), value, now.ns);
                timer_changed = true;
            }
            regs::LVT_TIMER => {
                self.write_lvt(register, value, now);
                timer_changed = true;
            }
            regs::LVT_THERMAL..=regs::LVT_ERROR => self.write_lvt(register, value, now),
            _ => return None,
        }
        Some(Effects { timer_changed, ..Effects::default() })
    }
}
