//! What a translator needs of the processor whose code it translates: where code and data lie,
//! what to forget, and which instructions there are.

use iced_x86::{Code, Instruction};

use crate::CpuState;
use crate::cpu::{Cpu, Mode};
use crate::decode;
use crate::env::Env;
use crate::exception::Raised;
use crate::paging::Access;
use crate::tlb::{Forgotten, View};

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<P> {
    /// The page of RAM.
    pub page: P,
    /// Stores are allowed, and the page is dirty.
    pub writable: bool,
    /// The translation holds in every address space.
    pub global: bool,
}

impl<E: Env> Cpu<E> {
    /// How code is executed now.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Where the code at the instruction pointer lies: its guest physical address and page.
    /// `None` if fetching there would fault or is not from RAM; executing there says why.
    pub fn code_place(&mut self) -> Option<(u64, E::Page)> {
        let linear = self.code_linear();
        let offset = linear & 0xfff;
        if let Some((frame, page)) = self.tlb.code(self.mode.cpl == 3, linear) {
            return Some((frame | offset, page));
        }
        match self.fetch_place(linear) {
            Ok((gpa, Some(page))) => Some((gpa, page)),
            Ok((_, None)) | Err(Raised(())) => None,
        }
    }

    /// Whether the place that [`code_place`](Self::code_place) just gave holds in every address
    /// space.
    pub fn is_code_global(&self) -> bool {
        self.tlb.is_code_global(self.mode.cpl == 3, self.code_linear())
    }

    /// Where data at `linear` lies, as the code that runs now sees it. `None` if an access would
    /// fault, is not to RAM, or must be looked at one by one. For a store, the page becomes
    /// dirty.
    pub fn translate(&mut self, linear: u64, write: bool) -> Option<Target<E::Page>> {
        let view = self.mode.fast_view;
        if view == View::Checked {
            return None;
        }
        let access = if write { Access::Write } else { Access::Read };
        let page = self.data_page(linear, access, view)?;
        let writable = self.tlb.write(view, linear).is_some();
        Some(Target { page, writable, global: self.tlb.is_global(view, linear) })
    }

    /// The number of the address space, below 4096, by which the TLB tells it from others. A number
    /// is given to another address space only after the TLB forgot everything.
    pub fn address_space(&self) -> u16 {
        self.tlb.address_space()
    }

    /// What the TLB forgot since the last call.
    pub fn take_forgotten(&mut self) -> Forgotten {
        core::mem::take(&mut self.tlb.forgotten)
    }

    /// Whether the next [`take_forgotten`](Self::take_forgotten) would say nothing.
    pub fn has_forgotten_nothing(&self) -> bool {
        self.tlb.forgotten.is_empty()
    }

    /// Whether the TLB forgot single pages since the last [`take_forgotten`](Self::take_forgotten), and
    /// nothing else: none of them the one at the linear address `page`.
    pub fn has_forgotten_but(&self, page: u64) -> bool {
        let forgotten = &self.tlb.forgotten;
        let is_little = !forgotten.all && !forgotten.space && !forgotten.is_empty();
        is_little && !forgotten.pages().contains(&page)
    }

    /// Takes over the state of another processor that executes the same instructions, but keeps the
    /// TLB, which [`follow`](Self::follow) keeps right.
    pub fn assume(&mut self, state: &CpuState) {
        self.state.clone_from(state);
        self.single_step = false;
        self.stack_loaded = false;
        self.debug_hits = 0;
        self.update_mode();
    }

    /// Forgets what another processor forgot ([`take_forgotten`](Self::take_forgotten)), and all
    /// but global pages may go with it.
    pub fn follow(&mut self, forgotten: &Forgotten) {
        if forgotten.all {
            self.tlb.flush_all();
        } else if forgotten.space {
            self.tlb.switch(0, false);
        }
        for &linear in forgotten.pages() {
            self.tlb.flush_page(linear);
        }
        self.take_forgotten();
    }

    /// Decodes the first instruction of `bytes`, as if it lay at `ip`. `None` if there are too
    /// few bytes, or they are no instruction of this processor.
    pub fn decode(&self, bytes: &[u8], ip: u64) -> Option<Instruction> {
        let op = decode::decode::<E>(self.mode.code_bits, bytes, ip, self.decoder_options).ok()?;
        Some(*op.insn)
    }

    /// Whether the guest's processor model has a vector instruction.
    pub fn offers(&mut self, code: Code) -> bool {
        self.is_offered(code)
    }
}
