//! The machine's interrupt controllers and PIT, shared by its processors and devices.
//!
//! The models are pure; this is where they get their locks, time and wires. Locks are taken in
//! one order: PIT, router, local APIC.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use irqchip::{
    Attention, BadState, ChipsState, Deadline, DeliveryMode, Destination, Effects, IrqSink, Lapic,
    LapicConfig, LapicState, Lint, Message, Msi, Now, PicPort, Pit, Router, Work, lowest_priority,
};
use runtime::{Clock, Timer, TimerTarget, Timers};
use x86::MAX_PHYSICAL_BITS;

use crate::transcode::context::ContextCell;

/// Somebody used the processor's kicker. The low bits of the same word are [`Attention`].
const KICK: u32 = 1 << 8;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One processor's local APIC, and how to wake the processor.
pub struct Slot {
    lapic: Mutex<Lapic>,
    /// What waits for the processor: a copy of [`Lapic::attention`], and [`KICK`].
    flags: AtomicU32,
    /// The local APIC's page; `u64::MAX` if it has none.
    page: AtomicU64,
    /// The guest's TSC less the host's.
    tsc_offset: AtomicU64,
    timer: OnceLock<Timer>,
    /// The processor's translated code, which looks at nothing else.
    context: Arc<ContextCell>,
    sleeping: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Slot {
    fn new(lapic: Lapic, tsc_offset: u64, context: Arc<ContextCell>) -> Self {
        let page = lapic.mmio_base().unwrap_or(u64::MAX);
        Self {
            lapic: Mutex::new(lapic),
            flags: AtomicU32::new(0),
            page: AtomicU64::new(page),
            tsc_offset: AtomicU64::new(tsc_offset),
            timer: OnceLock::new(),
            context,
            sleeping: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Whether the processor has something to do besides executing instructions.
    #[inline]
    pub fn attention(&self, takes_interrupts: bool, takes_nmis: bool) -> bool {
        let flags = self.flags.load(Ordering::Acquire);
        if flags == 0 {
            return false;
        }
        let attention = Attention::from_bits_truncate(flags as u8);
        flags & KICK != 0
            || attention.intersects(Attention::INIT | Attention::STARTUP)
            || (takes_interrupts && attention.intersects(Attention::INTERRUPT | Attention::EXT_INT))
            || (takes_nmis && attention.intersects(Attention::NMI))
    }

    /// What waits in the local APIC.
    pub fn pending(&self) -> Attention {
        Attention::from_bits_truncate(self.flags.load(Ordering::Acquire) as u8)
    }

    /// Kicks the processor.
    pub fn kick(&self) {
        self.flags.fetch_or(KICK, Ordering::SeqCst);
        self.notify();
    }

    /// Takes a kick, if there is one.
    pub fn take_kick(&self) -> bool {
        self.flags.fetch_and(!KICK, Ordering::SeqCst) & KICK != 0
    }

    /// Sleeps until [`attention`](Self::attention) is true.
    pub fn wait(&self, takes_interrupts: bool, takes_nmis: bool) {
        let mut guard = lock(&self.sleep);
        self.sleeping.store(true, Ordering::SeqCst);
        // A flag that is set from here on is followed by a look at `sleeping`.
        std::sync::atomic::fence(Ordering::SeqCst);
        while !self.attention(takes_interrupts, takes_nmis) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    fn notify(&self) {
        self.context.ring();
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }
}

/// The interrupt controllers of one machine.
pub struct Chips {
    slots: Vec<Slot>,
    router: Mutex<Router>,
    pit: Mutex<Pit>,
    pit_timer: OnceLock<Timer>,
    clock: Arc<Clock>,
    tsc_hz: u64,
    /// Who got the last message of the lowest priority.
    last_lowest: AtomicU32,
}

/// The timer of one local APIC.
struct LapicTimer {
    chips: Weak<Chips>,
    index: usize,
}

impl TimerTarget for LapicTimer {
    fn expired(&self, _: u64) {
        if let Some(chips) = self.chips.upgrade() {
            let now = chips.now(&chips.slots[self.index]);
            chips.with_lapic(self.index, |lapic| {
                lapic.timer_expired(now);
                Effects { timer_changed: true, ..Effects::default() }
            });
        }
    }
}

/// The PIT's channel 0.
struct PitTimer(Weak<Chips>);

impl TimerTarget for PitTimer {
    fn expired(&self, _: u64) {
        if let Some(chips) = self.0.upgrade() {
            chips.with_pit(|_, _| ());
        }
    }
}

/// The interrupt controllers, with the targets of their timers, which must live as long.
pub struct Timed {
    chips: Arc<Chips>,
    _targets: Vec<Arc<dyn TimerTarget>>,
}

impl std::ops::Deref for Timed {
    type Target = Arc<Chips>;

    fn deref(&self) -> &Arc<Chips> {
        &self.chips
    }
}

impl Chips {
    /// The interrupt controllers of the processors with these contexts, as firmware leaves them.
    /// All TSCs start as the host's plus `tsc_offset`.
    pub fn wire(
        contexts: &[Arc<ContextCell>],
        clock: Arc<Clock>,
        timers: &Timers,
        tsc_offset: u64,
    ) -> Timed {
        let slots = (0u32..)
            .zip(contexts)
            .map(|(id, context)| {
                let mut lapic = Lapic::new(LapicConfig {
                    id,
                    bootstrap: id == 0,
                    x2apic: true,
                    tsc_deadline: true,
                    physical_address_bits: MAX_PHYSICAL_BITS as u8,
                });
                lapic.set_virtual_wire();
                Slot::new(lapic, tsc_offset, context.clone())
            })
            .collect();
        let chips = Arc::new(Self {
            slots,
            router: Mutex::new(Router::new()),
            pit: Mutex::new(Pit::new()),
            pit_timer: OnceLock::new(),
            clock,
            tsc_hz: runtime::tsc::frequency_hz(),
            last_lowest: AtomicU32::new(0),
        });
        let mut targets: Vec<Arc<dyn TimerTarget>> = Vec::new();
        for (index, slot) in chips.slots.iter().enumerate() {
            let target: Arc<dyn TimerTarget> =
                Arc::new(LapicTimer { chips: Arc::downgrade(&chips), index });
            slot.timer.get_or_init(|| timers.timer(Arc::downgrade(&target)));
            targets.push(target);
        }
        let target: Arc<dyn TimerTarget> = Arc::new(PitTimer(Arc::downgrade(&chips)));
        chips.pit_timer.get_or_init(|| timers.timer(Arc::downgrade(&target)));
        targets.push(target);
        Timed { chips, _targets: targets }
    }

    /// Processor `index`'s slot.
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    fn now(&self, slot: &Slot) -> Now {
        let tsc = runtime::tsc::read().wrapping_add(slot.tsc_offset.load(Ordering::Relaxed));
        Now { ns: self.clock.now(), tsc }
    }

    /// The time, where a register access looks at it.
    fn now_if(&self, slot: &Slot, is_needed: bool) -> Now {
        if is_needed { self.now(slot) } else { Now::default() }
    }

    /// Calls one local APIC's model and carries out what follows.
    fn with_lapic(&self, index: usize, f: impl FnOnce(&mut Lapic) -> Effects) {
        let slot = &self.slots[index];
        let effects = {
            let mut lapic = lock(&slot.lapic);
            let effects = f(&mut lapic);
            if effects.timer_changed {
                self.arm(slot, &lapic);
            }
            if effects.page_changed {
                slot.page.store(lapic.mmio_base().unwrap_or(u64::MAX), Ordering::Relaxed);
            }
            self.publish(slot, &lapic);
            effects
        };
        if let Some(message) = effects.message {
            self.deliver(&message);
        }
        if let Some(vector) = effects.eoi {
            self.with_router(|router| router.eoi(vector));
        }
    }

    /// Sets the timer for the local APIC's next deadline.
    fn arm(&self, slot: &Slot, lapic: &Lapic) {
        let Some(timer) = slot.timer.get() else { return };
        let now = self.now(slot);
        match lapic.next_deadline() {
            None => timer.disarm(),
            Some(Deadline::Ns(at)) => timer.arm(at),
            Some(Deadline::Tsc(at)) => {
                let ticks = u128::from(at.saturating_sub(now.tsc));
                let wait = ticks * 1_000_000_000 / u128::from(self.tsc_hz);
                timer.arm(now.ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)));
            }
        }
    }

    /// Shows the processor what waits for it, and wakes it for what is new.
    fn publish(&self, slot: &Slot, lapic: &Lapic) {
        let attention = u32::from(lapic.attention().bits());
        let old = slot.flags.load(Ordering::Relaxed);
        if old & 0xff == attention {
            return;
        }
        slot.flags.fetch_and(!0xff | attention, Ordering::SeqCst);
        slot.flags.fetch_or(attention, Ordering::SeqCst);
        if attention & !old != 0 {
            slot.notify();
        }
    }

    /// Delivers a message to all local APICs that it is for.
    fn deliver(&self, message: &Message) {
        if message.delivery == DeliveryMode::LowestPriority {
            let accepting = self.slots.iter().enumerate().filter_map(|(index, slot)| {
                let lapic = lock(&slot.lapic);
                lapic.accepts(message).then(|| (index, lapic.ppr()))
            });
            let last = self.last_lowest.load(Ordering::Relaxed) as usize;
            if let Some(index) = lowest_priority(accepting, last) {
                self.last_lowest.store(index as u32, Ordering::Relaxed);
                self.deliver_to(&self.slots[index], message);
            }
            return;
        }
        match message.destination {
            Destination::Physical(id) => {
                if let Some(slot) = self.slots.get(id as usize) {
                    self.deliver_to(slot, message);
                }
            }
            _ => self.slots.iter().for_each(|slot| self.deliver_to(slot, message)),
        }
    }

    fn deliver_to(&self, slot: &Slot, message: &Message) {
        let mut lapic = lock(&slot.lapic);
        if lapic.accepts(message) && lapic.deliver(message) {
            self.publish(slot, &lapic);
        }
    }

    /// Calls the router and carries out what follows, under its lock: changes of its output must
    /// arrive in their order.
    fn with_router(&self, f: impl FnOnce(&mut Router) -> Work) {
        let mut router = lock(&self.router);
        let work = f(&mut router);
        if let Some(level) = work.intr
            && let Some(slot) = self.slots.first()
        {
            let mut lapic = lock(&slot.lapic);
            lapic.set_lint(Lint::Lint0, level);
            self.publish(slot, &lapic);
        }
        for message in &work.messages {
            self.deliver(message);
        }
    }

    fn with_pit<T>(&self, f: impl FnOnce(&mut Pit, u64) -> T) -> T {
        let mut pit = lock(&self.pit);
        let now = self.clock.now();
        let result = f(&mut pit, now);
        for level in pit.poll(now).levels() {
            self.with_router(|router| router.set_gsi(0, level));
        }
        if let Some(timer) = self.pit_timer.get() {
            match pit.next_deadline() {
                Some(at) => timer.arm(at),
                None => timer.disarm(),
            }
        }
        result
    }

    /// What processor `index`'s TSC shows less the host's.
    pub fn tsc_offset(&self, index: usize) -> u64 {
        self.slots[index].tsc_offset.load(Ordering::Relaxed)
    }

    /// Sets processor `index`'s TSC, which is now the host's plus `offset`, and with it the moment
    /// of a TSC deadline.
    pub fn set_tsc_offset(&self, index: usize, offset: u64) {
        self.slots[index].tsc_offset.store(offset, Ordering::Relaxed);
        self.with_lapic(index, |_| Effects { timer_changed: true, ..Effects::default() });
    }

    /// Sets all TSCs back by so many ticks.
    pub fn skip_time(&self, ticks: u64) {
        for (index, slot) in self.slots.iter().enumerate() {
            let offset = slot.tsc_offset.load(Ordering::Relaxed);
            self.set_tsc_offset(index, offset.wrapping_sub(ticks));
        }
    }

    // --- What is saved ------------------------------------------------------------------------

    /// The shared controllers' state.
    pub fn save(&self) -> ChipsState {
        let pit = lock(&self.pit).save();
        let (pic_master, pic_slave, ioapic) = lock(&self.router).save();
        ChipsState { pic_master, pic_slave, ioapic, pit }
    }

    /// Takes over the shared controllers' state. Nobody hears of interrupts of before.
    pub fn restore(&self, state: &ChipsState) -> Result<(), BadState> {
        lock(&self.pit).restore(&state.pit)?;
        self.with_router(|router| {
            router.restore(&state.pic_master, &state.pic_slave, &state.ioapic);
            // Another accelerator may not have told the local APIC of the pair's output.
            Work { intr: Some(router.intr()), ..Work::default() }
        });
        self.with_pit(|_, _| ());
        Ok(())
    }

    /// Processor `index`'s local APIC's state.
    pub fn save_lapic(&self, index: usize) -> LapicState {
        lock(&self.slots[index].lapic).save()
    }

    /// Takes over a local APIC's state. The processor's TSC is what it is to be.
    pub fn restore_lapic(&self, index: usize, state: &LapicState) -> Result<(), BadState> {
        let mut result = Ok(());
        self.with_lapic(index, |lapic| {
            result = lapic.restore(state);
            Effects { timer_changed: true, page_changed: true, ..Effects::default() }
        });
        result
    }

    // --- What a processor does --------------------------------------------------------------

    /// Takes the interrupt that is pending for processor `index`, and gives its vector.
    pub fn acknowledge(&self, index: usize) -> Option<u8> {
        let slot = &self.slots[index];
        let ext_int = {
            let mut lapic = lock(&slot.lapic);
            let vector = lapic.acknowledge();
            let ext_int = vector.is_none() && lapic.take_ext_int();
            self.publish(slot, &lapic);
            if vector.is_some() {
                return vector;
            }
            ext_int
        };
        if !ext_int {
            return None;
        }
        let mut vector = None;
        self.with_router(|router| {
            // The request may be gone by now.
            if !router.intr() {
                return Work::default();
            }
            let (v, work) = router.acknowledge_pic();
            vector = Some(v);
            work
        });
        vector
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&self, index: usize) -> bool {
        self.take(index, Lapic::take_nmi)
    }

    /// Takes a pending INIT.
    pub fn take_init(&self, index: usize) -> bool {
        let mut taken = false;
        self.with_lapic(index, |lapic| {
            taken = lapic.take_init();
            Effects { timer_changed: taken, ..Effects::default() }
        });
        taken
    }

    /// Takes a start-up IPI: its vector.
    pub fn take_startup(&self, index: usize) -> Option<u8> {
        self.take(index, Lapic::take_startup)
    }

    /// Whether the processor waits for a start-up IPI.
    pub fn is_waiting(&self, index: usize) -> bool {
        lock(&self.slots[index].lapic).is_waiting()
    }

    fn take<T>(&self, index: usize, f: impl FnOnce(&mut Lapic) -> T) -> T {
        let slot = &self.slots[index];
        let mut lapic = lock(&slot.lapic);
        let result = f(&mut lapic);
        self.publish(slot, &lapic);
        result
    }

    /// CR8.
    pub fn cr8(&self, index: usize) -> u8 {
        lock(&self.slots[index].lapic).cr8()
    }

    /// Sets CR8.
    pub fn set_cr8(&self, index: usize, value: u8) {
        self.with_lapic(index, |lapic| {
            lapic.set_cr8(value);
            Effects::default()
        });
    }

    /// RDMSR of a register that the local APIC owns.
    pub fn read_msr(&self, index: usize, msr: u32) -> Option<u64> {
        let slot = &self.slots[index];
        let now = self.now_if(slot, Lapic::msr_needs_time(msr));
        lock(&slot.lapic).read_msr(msr, now).ok()
    }

    /// WRMSR of such a register.
    pub fn write_msr(&self, index: usize, msr: u32, value: u64) -> Option<()> {
        let mut done = None;
        let now = self.now_if(&self.slots[index], Lapic::msr_needs_time(msr));
        self.with_lapic(index, |lapic| match lapic.write_msr(msr, value, now) {
            Ok(effects) => {
                done = Some(());
                effects
            }
            Err(_) => Effects::default(),
        });
        done
    }

    /// A load from one of the controllers' pages; `false` if `addr` is in none of them.
    pub fn mmio_read(&self, index: usize, addr: u64, data: &mut [u8]) -> bool {
        let page = addr & !0xfff;
        if page == self.slots[index].page.load(Ordering::Relaxed) {
            let now = self.now_if(&self.slots[index], Lapic::mmio_needs_time(addr));
            self.with_lapic(index, |lapic| {
                lapic.mmio_read(addr & 0xfff, data, now);
                Effects::default()
            });
        } else if page == IOAPIC_BASE {
            lock(&self.router).read_ioapic(addr & 0xfff, data);
        } else {
            return false;
        }
        true
    }

    /// A store to one of the controllers' pages.
    pub fn mmio_write(&self, index: usize, addr: u64, data: &[u8]) -> bool {
        let page = addr & !0xfff;
        if page == self.slots[index].page.load(Ordering::Relaxed) {
            let now = self.now_if(&self.slots[index], Lapic::mmio_needs_time(addr));
            self.with_lapic(index, |lapic| lapic.mmio_write(addr & 0xfff, data, now));
        } else if page == IOAPIC_BASE {
            self.with_router(|router| router.write_ioapic(addr & 0xfff, data));
        } else {
            return false;
        }
        true
    }

    /// IN from one of the controllers' ports; `false` if it is not one. They are a byte wide: of
    /// wider accesses the upper bytes float.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let value = if let Some(pic) = PicPort::from_port(port) {
            let mut value = 0;
            self.with_router(|router| {
                let (v, work) = router.read_pic(pic);
                value = v;
                work
            });
            value
        } else {
            match port {
                0x40..=0x43 => self.with_pit(|pit, now| pit.read((port - 0x40) as u8, now)),
                0x61 => self.with_pit(|pit, now| pit.read_port61(now)),
                _ => return false,
            }
        };
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = value;
        }
        true
    }

    /// OUT to one of the controllers' ports.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        let value = data.first().copied().unwrap_or(0);
        if let Some(pic) = PicPort::from_port(port) {
            self.with_router(|router| router.write_pic(pic, value));
        } else {
            match port {
                0x40..=0x43 => self.with_pit(|pit, now| pit.write((port - 0x40) as u8, value, now)),
                0x61 => self.with_pit(|pit, now| pit.write_port61(value, now)),
                _ => return false,
            }
        }
        true
    }
}

/// Where a PC's I/O APIC lies.
const IOAPIC_BASE: u64 = 0xfec0_0000;

impl IrqSink for Chips {
    fn set_gsi(&self, gsi: u32, level: bool) {
        self.with_router(|router| router.set_gsi(gsi, level));
    }

    fn send_msi(&self, msi: Msi) {
        if let Some(message) = msi.message() {
            self.deliver(&message);
        }
    }
}
