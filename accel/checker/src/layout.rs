//! What the checker is told of the context that translated code works on.

/// Where things are in the context, as offsets from the host's GS base.
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
    /// How many entries the tables of a soft TLB have, a power of two. They are indexed by the
    /// number of the page.
    pub tlb_entries: u32,
    /// How many entries the tables of a jump cache have, a power of two. They are indexed by the
    /// address exclusive-or the number of its page.
    pub jump_entries: u32,
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

/// Tables of one view, of 8 bytes per entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewTables {
    /// Added to a linear address of the entry, gives the offset in the page if loads from it hit,
    /// else a number above 4095.
    pub read: u32,
    /// The same for stores.
    pub write: u32,
    /// The host's address of the page, for loads.
    pub read_host: u32,
    /// The same for stores.
    pub write_host: u32,
    /// The guest's instruction pointer; one of another entry if there is none.
    pub jump_guest: u32,
    /// The host's address of the code there.
    pub jump_host: u32,
}

/// One of a view's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Tag { write: bool },
    HostPage { write: bool },
    JumpGuest,
    JumpHost,
}

impl ViewTables {
    /// The table that begins at `offset`.
    pub(crate) fn table(&self, offset: u64) -> Option<Table> {
        [
            (self.read, Table::Tag { write: false }),
            (self.write, Table::Tag { write: true }),
            (self.read_host, Table::HostPage { write: false }),
            (self.write_host, Table::HostPage { write: true }),
            (self.jump_guest, Table::JumpGuest),
            (self.jump_host, Table::JumpHost),
        ]
        .into_iter()
        .find_map(|(start, table)| (u64::from(start) == offset).then_some(table))
    }
}

impl Layout {
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
