//! Builds a guest: its memory, its code, and what it shall do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use accel::CpuidTable;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use irqchip::IrqSink;
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory, RamRange};
use x86::CpuState;

use crate::expect::{Ending, Want};
use crate::handlers;
use crate::layout::{self, sel};
use crate::start::Start;
use crate::tables::{Paging, access, gate, pte, segment, size};

/// What a case's host function can reach.
pub struct Host {
    pub memory: GuestMemory,
    pub irq: Arc<dyn IrqSink>,
}

/// What happens when the guest calls the host.
pub(crate) type HostCall = Arc<dyn Fn(&Host, u32) + Send + Sync>;
type Tweak = Box<dyn FnOnce(&mut CpuState)>;

/// Where code goes.
struct Section {
    linear: u64,
    ip: u64,
}

/// A guest under construction.
///
/// It is built several times, until all marks are where the pass before had them: so code may
/// name addresses that come later, in other sections, and of other code sizes.
pub struct Guest {
    /// Assembles the current section.
    pub a: CodeAssembler,
    pub(crate) start: Start,
    pub(crate) memory: GuestMemory,
    pub(crate) cpuid: CpuidTable,
    pub(crate) root: u64,
    pub(crate) cpus: u32,
    pub(crate) tweaks: Vec<Tweak>,
    pub(crate) host: Option<HostCall>,
    pub(crate) wants: Vec<Want>,
    pub(crate) registers: Vec<(usize, u64)>,
    pub(crate) words: Vec<(u64, u64, u64)>,
    pub(crate) ending: Ending,
    pub(crate) timeout: Duration,
    pub(crate) missing: Option<&'static str>,
    /// A bit of a page-table entry is taken for reserved that wide physical addresses need.
    pub(crate) needs_narrow_addresses: bool,
    /// Generic handlers of the starting mode.
    pub(crate) handlers: Vec<u64>,
    section: Section,
    /// Marks in the current section, by label.
    labels: Vec<(&'static str, iced_x86::code_asm::CodeLabel)>,
    /// Marks of this pass so far, and of the one before.
    marks: BTreeMap<&'static str, u64>,
    known: BTreeMap<&'static str, u64>,
    next_table: u64,
}

/// The guest's RAM.
fn allocate() -> Result<GuestMemory, mem::Error> {
    mem::allocate(&[
        RamRange { start: 0, len: layout::RAM },
        RamRange { start: layout::ROM, len: 0x1_0000 },
        RamRange { start: layout::HIGH_RAM, len: layout::HIGH_RAM_LEN },
    ])
}

impl Guest {
    fn new(
        start: Start,
        cpuid: &CpuidTable,
        known: BTreeMap<&'static str, u64>,
    ) -> Result<Self, String> {
        let (linear, ip) = start.entry();
        let mut guest = Self {
            a: CodeAssembler::new(start.bits()).map_err(|e| e.to_string())?,
            start,
            memory: allocate().map_err(|e| e.to_string())?,
            cpuid: cpuid.clone(),
            root: layout::TABLES,
            cpus: 1,
            tweaks: Vec::new(),
            host: None,
            wants: Vec::new(),
            registers: Vec::new(),
            words: Vec::new(),
            ending: Ending::Exit,
            timeout: Duration::from_secs(120),
            missing: None,
            needs_narrow_addresses: false,
            handlers: Vec::new(),
            section: Section { linear, ip },
            labels: Vec::new(),
            marks: BTreeMap::new(),
            known,
            next_table: layout::TABLES + 0x1000,
        };
        guest.lay_out();
        Ok(guest)
    }

    /// Builds a case's guest.
    pub(crate) fn build(
        start: Start,
        cpuid: &CpuidTable,
        build: &crate::case::Build,
    ) -> Result<Self, String> {
        let mut known = BTreeMap::new();
        for _ in 0..8 {
            let mut guest = Self::new(start, cpuid, known)?;
            build(&mut guest).map_err(|e| format!("the case cannot be assembled: {e}"))?;
            guest.finish_section().map_err(|e| format!("the case cannot be assembled: {e}"))?;
            if guest.marks == guest.known {
                return Ok(guest);
            }
            known = guest.marks;
        }
        Err("the case's marks do not come to rest".to_owned())
    }

    /// Descriptor tables, handlers, page tables: what every guest has.
    fn lay_out(&mut self) {
        use access::{CODE, DATA, DPL3};
        let (flat, wide) = (0xf_ffff, size::PAGES | size::BITS32);
        let long = size::PAGES | size::BITS64;
        let code_base = layout::CODE as u32;
        let tss = access::TSS_BUSY;
        for (selector, descriptor) in [
            (sel::KCODE32, segment(0, flat, CODE | 1, wide)),
            (sel::KCODE64, segment(0, flat, CODE | 1, long)),
            (sel::KDATA, segment(0, flat, DATA | 1, wide)),
            (sel::UCODE32, segment(0, flat, CODE | DPL3 | 1, wide)),
            (sel::UDATA, segment(0, flat, DATA | DPL3 | 1, wide)),
            (sel::UCODE64, segment(0, flat, CODE | DPL3 | 1, long)),
            (0x38, segment(0, flat, DATA | DPL3 | 1, wide)),
            (sel::KCODE16, segment(code_base, 0xffff, CODE | 1, size::BITS16)),
            (sel::KDATA16, segment(0, 0xffff, DATA | 1, size::BITS16)),
            (sel::TSS, segment(layout::TSS as u32, 0x2068, tss, 0)),
            (sel::LDT, segment(layout::LDT as u32, 0x7ff, access::LDT, 0)),
        ] {
            self.descriptor(selector, descriptor);
        }
        self.task_stacks();
        handlers::install(self);
        match self.start.paging() {
            Paging::None => {}
            Paging::Bits32 => self.map_low(),
            Paging::Pae => {
                // All four entries are there, since the processor reads them once.
                for i in 0..4 {
                    let table = self.new_table();
                    self.write64(self.root + i * 8, table | pte::P);
                }
                self.map_low();
            }
            Paging::FourLevel => self.map_low(),
        }
    }

    /// Stacks of inner levels, and an I/O bitmap that opens the test's ports to everybody.
    fn task_stacks(&mut self) {
        if self.start.is_long() {
            for ring in 0..3 {
                self.write64(layout::TSS + 4 + ring * 8, layout::STACK0);
            }
            for ist in 0..7 {
                self.write64(layout::TSS + 36 + ist * 8, layout::IST + ist * layout::IST_STEP);
            }
        } else {
            self.write32(layout::TSS + 4, layout::STACK0 as u32);
            self.write32(layout::TSS + 8, sel::KDATA.into());
        }
        let bitmap = 0x68;
        self.write(layout::TSS + 0x66, &[bitmap, 0]);
        self.write(layout::TSS + u64::from(bitmap), &[0xff; 0x2001]);
        for port in
            [layout::port::OUT, layout::port::RECORD, layout::port::HOST, layout::port::EXIT]
        {
            self.open_port(port.into(), 4);
        }
    }

    /// Clears bits of the I/O permission bitmap.
    pub fn open_port(&mut self, port: u16, count: u16) {
        for port in port..port + count {
            let at = layout::TSS + 0x68 + u64::from(port / 8);
            let byte = self.read(at, 1) as u8 & !(1 << (port % 8));
            self.write(at, &[byte]);
        }
    }

    /// 2 MiB for the supervisor, 2 MiB for the user, and the devices below 4 GiB.
    fn map_low(&mut self) {
        for page in (0..layout::USER_CODE).step_by(0x1000) {
            self.map(page, page, pte::P | pte::W | pte::A | pte::D);
        }
        for page in (layout::USER_CODE..layout::WINDOW).step_by(0x1000) {
            self.map(page, page, pte::P | pte::W | pte::U | pte::A | pte::D);
        }
        self.map(layout::USER_SHARED, 0, pte::P | pte::W | pte::U | pte::A | pte::D);
        let step = 1 << self.start.paging().shift(2);
        for page in (0xc000_0000..1 << 32).step_by(step) {
            self.map_large(page, page, 2, pte::P | pte::W | pte::A | pte::D);
        }
    }

    // --- Memory -------------------------------------------------------------------------------

    /// Writes to guest physical memory. Cases write to RAM only.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("cases write to RAM");
    }

    pub fn write16(&mut self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn write32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn write64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Reads up to eight bytes of guest physical memory.
    pub fn read(&self, at: u64, len: u64) -> u64 {
        read(&self.memory, at, len)
    }

    // --- Tables -------------------------------------------------------------------------------

    /// Puts a descriptor into the GDT.
    pub fn descriptor(&mut self, selector: u16, descriptor: u64) {
        self.write64(layout::GDT + u64::from(selector & !7), descriptor);
    }

    /// Puts a 32-bit or, in long mode, a 64-bit gate into the IDT that leads to kernel code
    /// marked `name`.
    pub fn gate(&mut self, vector: u8, name: &'static str, access: u8, ist: u8) {
        let offset = self.addr(name);
        self.gate_to(vector, self.kernel_code(), offset, access, ist);
    }

    /// The same with any selector and offset.
    pub fn gate_to(&mut self, vector: u8, selector: u16, offset: u64, access: u8, extra: u8) {
        let low = gate(selector, offset, access, extra);
        if self.start.is_long() {
            let at = layout::IDT64 + u64::from(vector) * 16;
            self.write64(at, low);
            self.write64(at + 8, offset >> 32);
        } else {
            self.write64(layout::IDT32 + u64::from(vector) * 8, low);
        }
    }

    /// Where the generic handler of `vector` is.
    pub fn handler(&self, vector: u8) -> u64 {
        self.handlers[usize::from(vector)]
    }

    /// Has `vector` handled by the generic handler on the stack of an IST.
    pub fn handle_on_ist(&mut self, vector: u8, ist: u8) {
        let handler = self.handler(vector);
        self.gate_to(vector, sel::KCODE64, handler, access::INTERRUPT_GATE, ist);
    }

    /// Code segment of 32-bit or 64-bit handlers.
    pub fn kernel_code(&self) -> u16 {
        if self.start.is_long() { sel::KCODE64 } else { sel::KCODE32 }
    }

    /// Lets the generic handler of `vector` return to where it came from.
    pub fn resume(&mut self, vector: u8) {
        let at = layout::RESUME + u64::from(vector / 8);
        let byte = self.read(at, 1) as u8 | 1 << (vector % 8);
        self.write(at, &[byte]);
    }

    fn new_table(&mut self) -> u64 {
        let table = self.next_table;
        self.next_table += 0x1000;
        assert!(table < layout::USER_CODE, "cases make few page tables");
        table
    }

    /// Where the entry of `linear` in its table of `level` lies; tables above it are made.
    pub fn entry(&mut self, linear: u64, level: u32) -> u64 {
        let paging = self.start.paging();
        let mut table = self.root;
        let mut at = paging.levels();
        loop {
            let place = table + paging.index(at, linear) * paging.entry_size();
            if at == level {
                return place;
            }
            let mut entry = self.read(place, paging.entry_size());
            if entry & pte::P == 0 {
                entry = self.new_table() | pte::P | pte::W | pte::U | pte::A;
                self.set_entry(place, entry);
            }
            table = entry & 0x000f_ffff_ffff_f000;
            at -= 1;
        }
    }

    /// Writes a paging-structure entry of this guest's size.
    pub fn set_entry(&mut self, place: u64, entry: u64) {
        if self.start.paging().entry_size() == 4 {
            self.write32(place, entry as u32);
        } else {
            self.write64(place, entry);
        }
    }

    /// Maps a 4 KiB page.
    pub fn map(&mut self, linear: u64, physical: u64, bits: u64) {
        let place = self.entry(linear, 1);
        self.set_entry(place, physical | bits);
    }

    /// Maps a page by an entry of `level`.
    pub fn map_large(&mut self, linear: u64, physical: u64, level: u32, bits: u64) {
        let place = self.entry(linear, level);
        self.set_entry(place, physical | bits | pte::PS);
    }

    /// Copies the four tables that lead to `linear` to `at` and the pages behind it, in 4-level paging:
    /// the copy's root is at `at`. Returns where its table of the last level is.
    pub fn copy_tables(&mut self, linear: u64, at: u64) -> u64 {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut from = self.root;
        for level in (1..=4u32).rev() {
            let to = at + u64::from(4 - level) * 0x1000;
            for i in 0..512 {
                let entry = self.read(from + i * 8, 8);
                self.write64(to + i * 8, entry);
            }
            if level > 1 {
                let index = self.start.paging().index(level, linear);
                let entry = self.read(from + index * 8, 8);
                self.write64(to + index * 8, entry & !ADDRESS | (to + 0x1000));
                from = entry & ADDRESS;
            }
        }
        at + 0x3000
    }

    // --- Code ---------------------------------------------------------------------------------

    /// Marks the next instruction.
    pub fn mark(&mut self, name: &'static str) -> Result<(), IcedError> {
        let mut label = self.a.create_label();
        self.a.set_label(&mut label)?;
        // A label needs an instruction of its own: another one may be set at the same place.
        self.a.zero_bytes()?;
        self.labels.push((name, label));
        Ok(())
    }

    /// The offset of what is marked `name`, as the last pass had it.
    pub fn addr(&self, name: &str) -> u64 {
        // Not zero and not small, so that encodings do not depend on the pass.
        self.known.get(name).copied().unwrap_or(self.section.ip + 0x100)
    }

    /// [`addr`](Self::addr) for code below 4 GiB.
    pub fn addr32(&self, name: &str) -> u32 {
        self.addr(name) as u32
    }

    /// The current section is code of ring 3.
    pub fn is_user(&self) -> bool {
        (layout::USER_CODE..layout::WINDOW).contains(&self.section.linear)
            && self.start.paging() != Paging::None
    }

    /// Where a mark is, once the guest is built.
    pub(crate) fn marked(&self, name: &str) -> Option<u64> {
        self.known.get(name).copied()
    }

    /// Ends the current section; what follows is `bits`-bit code at `linear`, whose first
    /// instruction has the offset `ip`.
    pub fn section(&mut self, bits: u32, linear: u64, ip: u64) -> Result<(), IcedError> {
        self.finish_section()?;
        self.a = CodeAssembler::new(bits)?;
        self.section = Section { linear, ip };
        Ok(())
    }

    fn finish_section(&mut self) -> Result<(), IcedError> {
        use iced_x86::BlockEncoderOptions;
        self.a.zero_bytes()?;
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.a.assemble_options(self.section.ip, options)?;
        for (name, label) in self.labels.drain(..) {
            let before = self.marks.insert(name, result.label_ip(&label)?);
            assert!(before.is_none(), "{name} is marked twice");
        }
        let bytes = result.inner.code_buffer;
        let linear = self.section.linear;
        self.write(linear, &bytes);
        Ok(())
    }

    // --- Conditions and expectations ----------------------------------------------------------

    /// Skips the case, for want of a feature.
    pub fn needs(&mut self, feature: &Feature) {
        if !self.has(feature) {
            self.missing = Some(feature.name);
        }
    }

    /// Skips the case where hardware has physical addresses of 52 bits, all that an entry has room for.
    /// It goes by its own width, whatever CPUID tells (SDM Vol. 3, 4.4.2 and 29.3.3).
    pub fn needs_bit_51_reserved(&mut self) {
        self.needs_narrow_addresses = true;
    }

    /// Whether the processors have a feature.
    pub fn has(&self, feature: &Feature) -> bool {
        feature.is_in(&self.cpuid)
    }

    /// Changes the processor's state before it starts.
    pub fn state(&mut self, tweak: impl FnOnce(&mut CpuState) + 'static) {
        self.tweaks.push(Box::new(tweak));
    }

    /// What the host does when the guest writes a value to [`layout::port::HOST`].
    pub fn on_host_call(&mut self, call: impl Fn(&Host, u32) + Send + Sync + 'static) {
        self.host = Some(Arc::new(call));
    }

    /// This happens next.
    pub fn want(&mut self, want: impl Into<Want>) {
        self.wants.push(want.into());
    }

    /// A general-purpose register of processor 0 at the end.
    pub fn want_register(&mut self, number: usize, value: u64) {
        self.registers.push((number, value));
    }

    /// `len` bytes of memory at the end.
    pub fn want_memory(&mut self, at: u64, len: u64, value: u64) {
        self.words.push((at, len, value));
    }

    /// The case ends in a shutdown.
    pub fn want_triple_fault(&mut self) {
        self.ending = Ending::TripleFault;
    }

    /// The case ends, no matter how.
    pub fn ends_anyhow(&mut self) {
        self.ending = Ending::Any;
    }
}

/// Reads up to eight bytes; zero where there is no RAM.
pub(crate) fn read(memory: &GuestMemory, at: u64, len: u64) -> u64 {
    let mut bytes = [0; 8];
    let len = len.min(8) as usize;
    let _ = memory.read_slice(&mut bytes[..len], GuestAddress(at));
    u64::from_le_bytes(bytes)
}

/// A CPUID bit that some cases need.
pub struct Feature {
    name: &'static str,
    leaf: u32,
    register: usize,
    bit: u32,
}

impl Feature {
    /// Whether processors that are told this have it.
    pub fn is_in(&self, cpuid: &CpuidTable) -> bool {
        let result = cpuid.get(self.leaf, 0).unwrap_or_default();
        let word = [result.eax, result.ebx, result.ecx, result.edx][self.register];
        word >> self.bit & 1 != 0
    }
}

const fn feature(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    Feature { name, leaf, register, bit }
}

/// A processor of AMD's: bit 0 of "cAMD", the end of its name, is not in Intel's "ntel".
pub const AMD: Feature = feature("AMD's alignment checks", 0, 2, 0);
/// One of Intel's, the other way round by bit 2.
pub const INTEL: Feature = feature("Intel's breakpoints", 0, 2, 2);
pub const PCID: Feature = feature("PCID", 1, 2, 17);
pub const X2APIC: Feature = feature("x2APIC", 1, 2, 21);
pub const TSC_DEADLINE: Feature = feature("TSC-deadline", 1, 2, 24);
pub const CX16: Feature = feature("CMPXCHG16B", 1, 2, 13);
pub const FSGSBASE: Feature = feature("FSGSBASE", 7, 1, 0);
pub const SMEP: Feature = feature("SMEP", 7, 1, 7);
pub const INVPCID: Feature = feature("INVPCID", 7, 1, 10);
pub const SMAP: Feature = feature("SMAP", 7, 1, 20);
pub const UMIP: Feature = feature("UMIP", 7, 2, 2);
pub const PAGE_1G: Feature = feature("1 GiB pages", 0x8000_0001, 3, 26);
pub const RDTSCP: Feature = feature("RDTSCP", 0x8000_0001, 3, 27);
pub const STEAL_TIME: Feature = feature("steal time", 0x4000_0001, 0, 5);
pub const PV_EOI: Feature = feature("EOI in memory", 0x4000_0001, 0, 6);
pub const PV_SEND_IPI: Feature = feature("IPIs by hypercall", 0x4000_0001, 0, 11);
pub const ASYNC_PF_INT: Feature = feature("asynchronous page faults", 0x4000_0001, 0, 14);
pub const KVM_CLOCK: Feature = feature("KVM clock", 0x4000_0001, 0, 3);
