//! What the checker is told of the context that translated code works on.

/// Where things are in the context, as offsets from the stack pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Fields that translated code may touch. Accesses must be aligned to their size, of at most
    /// 8 bytes, and lie in one field.
    pub fields: Vec<Field>,
    /// RFLAGS, 8 bytes that are not among the fields: they may be read, and changed by AND and
    /// OR with an immediate, as far as a block's [`flags`](crate::Block::flags) allow it.
    pub flags: u32,
    /// 4 bytes, among the fields: not zero if vector registers hold the guest's values.
    pub vectors_live: u32,
    /// The tables of each view.
    pub views: Vec<ViewTables>,
    /// How many entries each table of a soft TLB has, a power of two. They are indexed by the number
    /// of the page.
    pub tlb_entries: u32,
    /// How many entries follow these that belong to no address: slots.
    pub tlb_slots: u32,
}

/// A field of the context that is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it begins.
    pub offset: u32,
    /// How many bytes it has.
    pub size: u32,
    /// The views whose blocks may write it: a bit for each, by their numbers.
    pub writers: u32,
}

/// Tables of one view. Their entries have 16 bytes, and code indexes them by twice an entry's number
/// with a scale of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewTables {
    /// The soft TLB for loads. The first half of an entry, added to a linear address, gives the
    /// offset in the page if it hits, else a number above 4095; the second half is the host's
    /// address of the page.
    pub read: u32,
    /// The same for stores.
    pub write: u32,
    /// The jump cache. The first half of an entry is the guest's instruction pointer, or one of
    /// another entry if there is none; the second is the host's address of the code there.
    pub jump: u32,
    /// Entries of the jump cache, a power of two.
    pub jump_entries: u32,
}

/// Half of one of a view's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Tag { write: bool },
    HostPage { write: bool },
    JumpGuest,
    JumpHost,
}

impl ViewTables {
    /// The half of a table that begins at `offset`.
    pub(crate) fn table(&self, offset: u64) -> Option<Table> {
        [
            (self.read, Table::Tag { write: false }, Table::HostPage { write: false }),
            (self.write, Table::Tag { write: true }, Table::HostPage { write: true }),
            (self.jump, Table::JumpGuest, Table::JumpHost),
        ]
        .into_iter()
        .find_map(|(start, first, second)| match offset.checked_sub(start.into()) {
            Some(0) => Some(first),
            Some(8) => Some(second),
            _ => None,
        })
    }
}

impl Layout {
    /// The half of a table, and the slot, that lie at `offset`.
    pub(crate) fn slot(&self, tables: &ViewTables, offset: u64) -> Option<(Table, u32)> {
        let entries = 16 * u64::from(self.tlb_entries);
        [(tables.read, false), (tables.write, true)].into_iter().find_map(|(start, write)| {
            let from_first = offset.checked_sub(u64::from(start) + entries)?;
            let slot = u32::try_from(from_first / 16).ok().filter(|&slot| slot < self.tlb_slots)?;
            match from_first % 16 {
                0 => Some((Table::Tag { write }, slot)),
                8 => Some((Table::HostPage { write }, slot)),
                _ => None,
            }
        })
    }

    /// Whether `size` bytes at `offset` may be read, or written by blocks of `view`.
    pub(crate) fn allows(&self, offset: u64, size: u64, write: bool, view: usize) -> bool {
        if !matches!(size, 1 | 2 | 4 | 8) || !offset.is_multiple_of(size) {
            return false;
        }
        let within = |start: u32, length: u32| {
            let (start, end) = (u64::from(start), u64::from(start) + u64::from(length));
            start <= offset && offset.checked_add(size).is_some_and(|last| last <= end)
        };
        let writes = |field: &Field| field.writers.checked_shr(view as u32).unwrap_or(0) & 1 != 0;
        !write && within(self.flags, 8)
            || self.fields.iter().any(|f| within(f.offset, f.size) && (!write || writes(f)))
    }
}
