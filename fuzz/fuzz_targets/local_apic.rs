//! Two local APICs, which send each other interrupts, and the messages of devices.
#![no_main]

use arbitrary::Arbitrary;
use irqchip::{
    Deadline, DeliveryMode, Effects, Lapic, LapicConfig, Lint, Message, Msi, Now, Router,
    lowest_priority,
};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};

#[derive(Arbitrary, Debug)]
enum Step {
    Mmio(Access),
    /// A write to the register page's register of this number.
    Register(u8, u32),
    ReadMsr(u8),
    WriteMsr(u8, u64),
    Base {
        x2apic: bool,
        enable: bool,
        address: u64,
    },
    TscDeadline(u64),
    Msi {
        address: u32,
        data: u32,
    },
    Lint {
        pin: bool,
        level: bool,
    },
    Take,
    Cr8(u8),
    Eoi,
    Wait {
        ns: u32,
        scale: u8,
    },
    SetTsc(u64),
    Expire,
    Performance,
    Reset,
}

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC: u32 = 0x800;

struct Machine {
    lapics: [Lapic; 2],
    router: Router,
    now: Now,
}

impl Machine {
    fn apply(&mut self, effects: Effects) {
        effects.message.iter().for_each(|message| self.deliver(message));
        if let Some(vector) = effects.eoi {
            let work = self.router.eoi(vector);
            work.messages.iter().for_each(|message| self.deliver(message));
        }
    }

    fn deliver(&mut self, message: &Message) {
        let accepting = self.lapics.iter().enumerate().filter(|(_, lapic)| lapic.accepts(message));
        if message.delivery == DeliveryMode::LowestPriority {
            let candidates = accepting.map(|(index, lapic)| (index, lapic.ppr()));
            if let Some(index) = lowest_priority(candidates, 0) {
                self.lapics[index].deliver(message);
            }
            return;
        }
        for lapic in &mut self.lapics {
            if lapic.accepts(message) {
                lapic.deliver(message);
            }
        }
    }

    fn step(&mut self, which: usize, step: &Step) {
        let now = self.now;
        let lapic = &mut self.lapics[which];
        let effects = match *step {
            Step::Mmio(access) => {
                let mut effects = Effects::default();
                access.perform(
                    lapic,
                    (0x1000, Bus::Memory),
                    |lapic, offset, data| lapic.mmio_read(offset, data, now),
                    |lapic, offset, data| effects = lapic.mmio_write(offset, data, now),
                );
                effects
            }
            Step::Register(register, value) => {
                lapic.mmio_write(u64::from(register & 0x3f) << 4, &value.to_le_bytes(), now)
            }
            Step::ReadMsr(register) => {
                let _ = lapic.read_msr(X2APIC + u32::from(register), now);
                Effects::default()
            }
            Step::WriteMsr(register, value) => {
                lapic.write_msr(X2APIC + u32::from(register), value, now).unwrap_or_default()
            }
            Step::Base { x2apic, enable, address } => {
                let mode = u64::from(enable) << 11 | u64::from(x2apic) << 10;
                lapic.write_msr(APIC_BASE, address & !0xfff | mode, now).unwrap_or_default()
            }
            Step::TscDeadline(value) => {
                lapic.write_msr(TSC_DEADLINE, value, now).unwrap_or_default()
            }
            Step::Msi { address, data } => {
                let address = 0xfee0_0000 | u64::from(address & 0xf_ffff);
                if let Some(message) = (Msi { address, data }).message() {
                    self.deliver(&message);
                }
                return;
            }
            Step::Lint { pin, level } => {
                lapic.set_lint(if pin { Lint::Lint1 } else { Lint::Lint0 }, level);
                Effects::default()
            }
            Step::Take => {
                lapic.acknowledge();
                lapic.take_ext_int();
                lapic.take_nmi();
                lapic.take_init();
                lapic.take_startup();
                Effects::default()
            }
            Step::Cr8(value) => {
                lapic.set_cr8(value);
                Effects::default()
            }
            Step::Eoi => lapic.eoi(),
            Step::Wait { ns, scale } => {
                let ns = u64::from(ns) << (scale % 24);
                self.now.ns = (now.ns + ns).min(1 << 59);
                self.now.tsc = now.tsc.wrapping_add(3 * ns);
                return;
            }
            Step::SetTsc(value) => {
                self.now.tsc = value;
                return;
            }
            Step::Expire => {
                match lapic.next_deadline() {
                    Some(Deadline::Ns(at)) => self.now.ns = at.max(now.ns).min(1 << 59),
                    Some(Deadline::Tsc(at)) => self.now.tsc = at.max(now.tsc),
                    None => {}
                }
                lapic.timer_expired(self.now);
                Effects::default()
            }
            Step::Performance => {
                lapic.signal_performance();
                Effects::default()
            }
            Step::Reset => {
                lapic.reset();
                Effects::default()
            }
        };
        let lapic = &self.lapics[which];
        assert!(lapic.pending().is_none_or(|vector| vector >= 16), "an illegal vector");
        lapic.attention();
        lapic.mmio_base();
        self.apply(effects);
    }
}

fuzz_target!(|input: (bool, Vec<(bool, Step)>)| {
    let (x2apic, steps) = input;
    let config = |id| LapicConfig {
        id,
        bootstrap: id == 0,
        x2apic,
        tsc_deadline: true,
        physical_address_bits: 40,
    };
    let mut machine = Machine {
        lapics: [0, 1].map(|id| Lapic::new(config(id))),
        router: Router::new(),
        now: Now::default(),
    };
    for (which, step) in &steps {
        machine.step(usize::from(*which), step);
    }
});
