//! Loads and stores at linear addresses.
//!
//! The fast path is a TLB hit within one page. Everything else, a miss, a page crossing, device
//! registers, alignment checks and breakpoints, takes the slow path.

use crate::cpu::{Cpu, is_canonical};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec, vector};
use crate::paging::{self, Access, Privilege};
use crate::state::SegReg;
use crate::tlb::View;

/// Where one page's part of an access lies.
#[derive(Clone, Copy)]
pub(crate) enum Place<P> {
    /// RAM: page and offset in it.
    Ram(P, usize),
    /// A device's registers, by guest physical address.
    Device(u64),
}

/// An access that was translated and may be carried out: one part, or two at a page crossing.
#[derive(Clone, Copy)]
pub(crate) struct Span<P> {
    first: Place<P>,
    /// Bytes in the first part, and the second part.
    second: Option<(usize, Place<P>)>,
}

impl<E: Env> Cpu<E> {
    /// Loads from a linear address.
    #[inline(always)]
    pub(crate) fn read<W: Word>(&mut self, linear: u64) -> Exec<W> {
        let offset = (linear & 0xfff) as usize;
        if offset <= 0x1000 - W::SIZE
            && let Some(page) = self.tlb.read(self.mode.fast_view, linear)
        {
            return Ok(self.env.load(page, offset));
        }
        self.read_slow(linear)
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub(crate) fn write<W: Word>(&mut self, linear: u64, value: W) -> Exec {
        let offset = (linear & 0xfff) as usize;
        if offset <= 0x1000 - W::SIZE
            && let Some(page) = self.tlb.write(self.mode.fast_view, linear)
        {
            self.env.store(page, offset, value);
            if Some(page) == self.code_page {
                self.leave_block = true;
            }
            return Ok(());
        }
        self.write_slow(linear, value)
    }

    /// Replaces what is at `linear` by what `f` makes of it and returns what `f` says besides.
    /// With `locked`, atomically. Faults before `f` is called. `f` may be called several times;
    /// it must depend on its argument alone.
    #[inline(always)]
    pub(crate) fn update<W: Word, T>(
        &mut self,
        linear: u64,
        locked: bool,
        mut f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        let offset = (linear & 0xfff) as usize;
        if offset <= 0x1000 - W::SIZE
            && let Some(page) = self.tlb.write(self.mode.fast_view, linear)
        {
            return Ok(self.update_ram(page, offset, locked, f));
        }
        self.check_access(linear, W::SIZE, Access::Write)?;
        let span = self.span(linear, W::SIZE, Access::Write, self.mode.view)?;
        if let Span { first: Place::Ram(page, offset), second: None } = span {
            return Ok(self.update_ram(page, offset, locked, f));
        }
        // A split lock or a device: not atomic, as on buses that refuse to lock.
        let mut data = [0; 8];
        self.load_span(&span, &mut data[..W::SIZE]);
        let (new, result) = f(W::truncate(u64::from_le_bytes(data)));
        let new: u64 = new.into();
        self.store_span(&span, &new.to_le_bytes()[..W::SIZE]);
        Ok(result)
    }

    #[inline(always)]
    fn update_ram<W: Word, T>(
        &mut self,
        page: E::Page,
        offset: usize,
        locked: bool,
        mut f: impl FnMut(W) -> (W, T),
    ) -> T {
        if Some(page) == self.code_page {
            self.leave_block = true;
        }
        let mut old = self.env.load(page, offset);
        if !locked {
            let (new, result) = f(old);
            self.env.store(page, offset, new);
            return result;
        }
        loop {
            let (new, result) = f(old);
            match self.env.compare_exchange(page, offset, old, new) {
                Ok(_) => return result,
                Err(now) => old = now,
            }
        }
    }

    /// CMPXCHG16B on memory: stores `new` if `current` is there, and returns what was there.
    /// `linear` is a multiple of 16.
    pub(crate) fn update_128(&mut self, linear: u64, current: u128, new: u128) -> Exec<u128> {
        self.check_access(linear, 16, Access::Write)?;
        let span = self.span(linear, 16, Access::Write, self.mode.view)?;
        match span.first {
            Place::Ram(page, offset) => {
                if Some(page) == self.code_page {
                    self.leave_block = true;
                }
                let result = self.env.compare_exchange_128(page, offset, current, new);
                Ok(result.unwrap_or_else(|old| old))
            }
            Place::Device(_) => {
                let mut data = [0; 16];
                self.load_span(&span, &mut data);
                let old = u128::from_le_bytes(data);
                let value = if old == current { new } else { old };
                self.store_span(&span, &value.to_le_bytes());
                Ok(old)
            }
        }
    }

    /// Loads `data.len()` bytes, at most 4096.
    pub(crate) fn read_bytes(&mut self, linear: u64, data: &mut [u8]) -> Exec {
        self.check_breakpoints(linear, data.len(), Access::Read);
        let span = self.span(linear, data.len(), Access::Read, self.mode.view)?;
        self.load_span(&span, data);
        Ok(())
    }

    /// Stores `data.len()` bytes, at most 4096: all or nothing.
    pub(crate) fn write_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        self.check_breakpoints(linear, data.len(), Access::Write);
        let span = self.span(linear, data.len(), Access::Write, self.mode.view)?;
        self.store_span(&span, data);
        Ok(())
    }

    /// Checks that `len` bytes at `linear` can be stored, and says where. `len` is 1 to 4096.
    pub(crate) fn probe_write(&mut self, linear: u64, len: usize) -> Exec<Span<E::Page>> {
        self.span(linear, len, Access::Write, self.mode.view)
    }

    /// Loads as the processor itself does from descriptor tables and task-state segments:
    /// whatever the CPL, as the supervisor.
    pub(crate) fn read_system<W: Word>(&mut self, linear: u64) -> Exec<W> {
        let mut data = [0; 8];
        let span = self.span(linear, W::SIZE, Access::Read, View::Supervisor)?;
        self.load_span(&span, &mut data[..W::SIZE]);
        Ok(W::truncate(u64::from_le_bytes(data)))
    }

    /// Stores as the processor itself does to descriptor tables, task-state segments and the
    /// stack of an inner privilege level.
    pub(crate) fn write_system<W: Word>(&mut self, linear: u64, value: W) -> Exec {
        let span = self.span(linear, W::SIZE, Access::Write, View::Supervisor)?;
        let value: u64 = value.into();
        self.store_span(&span, &value.to_le_bytes()[..W::SIZE]);
        Ok(())
    }

    /// Where to store on behalf of the supervisor; see [`write_system`](Self::write_system).
    pub(crate) fn probe_write_system(&mut self, linear: u64, len: usize) -> Exec<Span<E::Page>> {
        self.span(linear, len, Access::Write, View::Supervisor)
    }

    #[cold]
    #[inline(never)]
    fn read_slow<W: Word>(&mut self, linear: u64) -> Exec<W> {
        self.check_access(linear, W::SIZE, Access::Read)?;
        let span = self.span(linear, W::SIZE, Access::Read, self.mode.view)?;
        let mut data = [0; 8];
        self.load_span(&span, &mut data[..W::SIZE]);
        Ok(W::truncate(u64::from_le_bytes(data)))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<W: Word>(&mut self, linear: u64, value: W) -> Exec {
        self.check_access(linear, W::SIZE, Access::Write)?;
        let span = self.span(linear, W::SIZE, Access::Write, self.mode.view)?;
        let value: u64 = value.into();
        self.store_span(&span, &value.to_le_bytes()[..W::SIZE]);
        Ok(())
    }

    /// What [`View::Checked`] asks for: #AC, and data breakpoints that this access hits.
    pub(crate) fn check_access(&mut self, linear: u64, len: usize, access: Access) -> Exec {
        self.check_alignment(linear, len)?;
        self.check_breakpoints(linear, len, access);
        Ok(())
    }

    /// #AC, if an access is misaligned and that is checked.
    pub(crate) fn check_alignment(&mut self, linear: u64, len: usize) -> Exec {
        let is_checked = len < 16 || self.checks_wide_alignment;
        if self.mode.check_alignment && is_checked && is_canonical(linear) {
            // Numbers of 80 bits go by 8 bytes (SDM Vol. 3, table 6-7), long vectors by 16 on AMD,
            // and by nothing on Intel (SDM Vol. 1, 14.9).
            let alignment = if len == 10 { 8 } else { len.min(16) as u64 };
            if alignment.is_power_of_two() && linear & (alignment - 1) != 0 {
                return Err(self.raise(Exception::with_code(vector::AC, 0)));
            }
        }
        Ok(())
    }

    /// Notes data breakpoints that an access hits.
    pub(crate) fn check_breakpoints(&mut self, linear: u64, len: usize, access: Access) {
        if self.mode.check_breakpoints {
            self.debug_hits |= crate::debug::data_hits(&self.state, linear, len, access);
            self.debugger.note(linear, len, access);
        }
    }

    /// Translates an access of 1 to 4096 bytes.
    pub(crate) fn span(
        &mut self,
        linear: u64,
        len: usize,
        access: Access,
        view: View,
    ) -> Exec<Span<E::Page>> {
        debug_assert!((1..=4096).contains(&len));
        // In compatibility mode, what programs address has 32 bits, but not what the processor
        // itself does: its descriptor tables and the kernel's stack lie anywhere.
        let is_wide = self.state.is_64bit() || self.state.is_long_mode() && view != View::User;
        let linear = if is_wide { linear } else { linear & 0xffff_ffff };
        let room = 0x1000 - (linear & 0xfff) as usize;
        if len <= room {
            return Ok(Span { first: self.place(linear, access, view)?, second: None });
        }
        let mut next = (linear | 0xfff).wrapping_add(1);
        if !is_wide {
            next &= 0xffff_ffff;
        }
        if !is_canonical(next) {
            return Err(self.raise(Exception::GP0));
        }
        let first = self.place(linear, access, view)?;
        let second = self.place(next, access, view)?;
        Ok(Span { first, second: Some((room, second)) })
    }

    /// Translates the part of an access that lies in one page.
    fn place(&mut self, linear: u64, access: Access, view: View) -> Exec<Place<E::Page>> {
        let offset = (linear & 0xfff) as usize;
        let hit = match access {
            Access::Read => self.tlb.read(view, linear),
            _ => self.tlb.write(view, linear),
        };
        if let Some(page) = hit {
            return Ok(Place::Ram(page, offset));
        }
        self.stats.tlb_misses += 1;
        if !is_canonical(linear) {
            return Err(self.raise(Exception::GP0));
        }
        let privilege = match view {
            View::User => Privilege::User,
            View::Supervisor => Privilege::Supervisor,
            View::SupervisorAc | View::Checked => Privilege::SupervisorAc,
        };
        match paging::translate(&mut self.env, &self.state, linear, access, privilege) {
            Ok(t) => Ok(match self.env.ram_page(t.gpa) {
                Some(page) => {
                    self.tlb.fill(view, linear, page, &t);
                    Place::Ram(page, offset)
                }
                None => Place::Device(t.gpa),
            }),
            Err(code) => Err(self.raise(Exception::page_fault(linear, code))),
        }
    }

    /// The page of RAM at `linear`; see [`translate`](Self::translate).
    pub(crate) fn data_page(&mut self, linear: u64, access: Access, view: View) -> Option<E::Page> {
        match self.place(linear, access, view) {
            Ok(Place::Ram(page, _)) => Some(page),
            Ok(Place::Device(_)) | Err(_) => None,
        }
    }

    /// Carries out a load that [`span`](Self::span) allowed.
    pub(crate) fn load_span(&mut self, span: &Span<E::Page>, data: &mut [u8]) {
        match span.second {
            None => self.load_place(span.first, data),
            Some((room, second)) => {
                let (a, b) = data.split_at_mut(room);
                self.load_place(span.first, a);
                self.load_place(second, b);
            }
        }
    }

    /// Carries out a store that [`span`](Self::span) allowed.
    pub(crate) fn store_span(&mut self, span: &Span<E::Page>, data: &[u8]) {
        match span.second {
            None => self.store_place(span.first, data),
            Some((room, second)) => {
                let (a, b) = data.split_at(room);
                self.store_place(span.first, a);
                self.store_place(second, b);
            }
        }
    }

    fn load_place(&mut self, place: Place<E::Page>, data: &mut [u8]) {
        match place {
            // One access where the size allows it: other processors must not see it torn.
            Place::Ram(page, offset) => match data.len() {
                1 => data[0] = self.env.load(page, offset),
                2 => data.copy_from_slice(&self.env.load::<u16>(page, offset).to_le_bytes()),
                4 => data.copy_from_slice(&self.env.load::<u32>(page, offset).to_le_bytes()),
                8 => data.copy_from_slice(&self.env.load::<u64>(page, offset).to_le_bytes()),
                _ => self.env.load_bytes(page, offset, data),
            },
            Place::Device(gpa) => {
                for (chunk, at) in data.chunks_mut(8).zip((gpa..).step_by(8)) {
                    self.env.mmio_read(at, chunk);
                }
            }
        }
    }

    fn store_place(&mut self, place: Place<E::Page>, data: &[u8]) {
        match place {
            Place::Ram(page, offset) => {
                if Some(page) == self.code_page {
                    self.leave_block = true;
                }
                match *data {
                    [a] => self.env.store(page, offset, a),
                    [a, b] => self.env.store(page, offset, u16::from_le_bytes([a, b])),
                    [a, b, c, d] => self.env.store(page, offset, u32::from_le_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => {
                        let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                        self.env.store(page, offset, value);
                    }
                    _ => self.env.store_bytes(page, offset, data),
                }
            }
            Place::Device(gpa) => {
                for (chunk, at) in data.chunks(8).zip((gpa..).step_by(8)) {
                    self.env.mmio_write(at, chunk);
                }
            }
        }
    }

    // --- Segmented addresses ----------------------------------------------------------------

    /// The linear address of `len` bytes at `offset` in a segment, checked for `access`
    /// (SDM Vol. 3, 5.3 to 5.5). In 64-bit mode only FS and GS have a base and nothing a limit.
    #[inline(always)]
    pub(crate) fn linear(
        &mut self,
        seg: SegReg,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Exec<u64> {
        if self.mode.code_bits == 64 {
            let base = match seg {
                SegReg::Fs | SegReg::Gs => self.state.seg[seg as usize].base,
                _ => 0,
            };
            let linear = base.wrapping_add(offset);
            // Stack references fault differently from all others.
            if seg == SegReg::Ss && !is_canonical(linear) {
                return Err(self.raise(Exception::SS0));
            }
            return Ok(linear);
        }
        self.linear_checked(seg, offset, len, access)
    }

    #[inline(never)]
    fn linear_checked(
        &mut self,
        seg: SegReg,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Exec<u64> {
        let segment = &self.state.seg[seg as usize];
        let attributes = segment.attributes;
        let last = offset + (len as u64 - 1);
        let limit = u64::from(segment.limit);
        let in_limit = if attributes.is_expand_down() && self.state.is_protected() {
            let top = if attributes.is_big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        let rights = !self.state.is_protected()
            || self.state.is_v8086()
            || (!attributes.is_unusable()
                && match access {
                    Access::Read => attributes.is_readable(),
                    Access::Write => attributes.is_writable(),
                    Access::Execute => attributes.is_code(),
                });
        if in_limit && rights {
            return Ok(segment.base.wrapping_add(offset) & 0xffff_ffff);
        }
        let fault = if seg == SegReg::Ss { Exception::SS0 } else { Exception::GP0 };
        Err(self.raise(fault))
    }
}
