//! What is known of registers at a place in the code.

/// Names a value that some instruction produced. Equal numbers are equal values.
pub(crate) type Number = u32;

/// The number that stands for every address, where an entry is looked at that belongs to a slot.
pub(crate) fn slot_number(slot: u32) -> Number {
    Number::MAX - slot
}

/// Whether a number stands for a slot. Values have far smaller ones.
pub(crate) fn is_slot(number: Number) -> bool {
    number > Number::MAX / 2
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub number: Number,
    pub kind: Kind,
}

/// What is known of a value. `of` is the number of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything, but nothing of the host's.
    Any,
    /// May be, or tell of, what the guest must not know.
    Secret,
    Const(u32),
    /// Less than this.
    Below(u32),
    /// The lower 32 bits of a value, zero-extended.
    Low {
        of: Number,
    },
    /// The lower `bits` bits are those of a value shifted right by `by`, which is 11 or 12.
    Page {
        of: Number,
        by: u8,
        bits: u8,
    },
    /// The lower `bits` bits are those of a value exclusive-or itself shifted right by 12.
    Hash {
        of: Number,
        bits: u8,
    },
    /// Where a linear address is to be looked up: twice the number of an entry.
    TlbIndex {
        of: Number,
    },
    /// Where the address of an instruction is to be looked up: twice the number of an entry.
    JumpIndex {
        of: Number,
    },
    /// What a table of tags has for an address.
    Tag {
        of: Number,
        write: bool,
    },
    /// An address with its tag added. If `room` is not 0, then it is the offset in a page, with
    /// at least so many bytes behind it that may be read, or written.
    Offset {
        of: Number,
        write: bool,
        room: u16,
    },
    /// What a table of pages has for an address.
    HostPage {
        of: Number,
        write: bool,
    },
    /// A host address. Bytes from `from` up to `to` relative to it are the guest's, to be
    /// written or only to be read.
    Host {
        write: bool,
        from: i32,
        to: i32,
    },
}

impl Kind {
    /// Whether the guest must not see it.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::HostPage { .. } | Self::Host { .. })
    }
}

/// What the status flags tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    Nothing,
    /// They are of an unsigned comparison of a value, an offset, with a limit.
    Offset {
        number: Number,
        limit: u64,
    },
    /// Equal: the jump cache has this address.
    Jump {
        of: Number,
    },
    /// Not equal: vector registers are live.
    Live,
}

/// Everything that is known at one place.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub registers: [Value; 16],
    pub flags: Flags,
    /// Vector registers hold the guest's values.
    pub live: bool,
    /// An address that the jump cache was found to have.
    pub found: Option<Number>,
    /// The number of the exit of a miss just before is in the context.
    pub has_missed: bool,
}

pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RBP: usize = 5;

/// Gives numbers to values.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Number);

impl Numbers {
    /// A value of which only this is known.
    pub fn value(&mut self, kind: Kind) -> Value {
        // A block has far fewer values than numbers: its length is limited.
        self.0 += 1;
        Value { number: self.0, kind }
    }
}

impl State {
    /// Where code is entered: RBP holds what the host left in it, and RBX may.
    pub fn entry(numbers: &mut Numbers, is_rbx_secret: bool, live: bool) -> Self {
        let registers = std::array::from_fn(|n| match n {
            RBP => numbers.value(Kind::Secret),
            RBX if is_rbx_secret => numbers.value(Kind::Secret),
            _ => numbers.value(Kind::Any),
        });
        Self { registers, flags: Flags::Nothing, live, found: None, has_missed: false }
    }

    /// Keeps what holds in `other`, too.
    pub fn merge(&mut self, other: &Self, tlb: u32, jump: u32, numbers: &mut Numbers) {
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            *mine = meet(*mine, *theirs, tlb, jump, numbers);
        }
        if self.flags != other.flags {
            self.flags = Flags::Nothing;
        }
        self.live &= other.live;
        self.has_missed &= other.has_missed;
        if self.found != other.found {
            self.found = None;
        }
    }

    /// An offset turned out to have at least `room` bytes behind it in its page.
    pub fn learn_room(&mut self, number: Number, at_least: u16) {
        for value in &mut self.registers {
            if value.number == number
                && let Kind::Offset { room, .. } = &mut value.kind
            {
                *room = (*room).max(at_least);
            }
        }
    }

    /// Whether registers that are the guest's, or keep its flags, hold a secret.
    pub fn leaks(&self) -> bool {
        let mut registers = self.registers.iter().enumerate();
        registers.any(|(n, value)| n != RBX && n != RBP && value.kind.is_secret())
    }
}

/// What holds for both of two values.
fn meet(a: Value, b: Value, tlb: u32, jump: u32, numbers: &mut Numbers) -> Value {
    if a == b {
        return a;
    }
    let kind = match (a.kind, b.kind) {
        // The same value, about which one way knows more.
        (
            Kind::Offset { of, write, room: x },
            Kind::Offset { of: of_b, write: write_b, room: y },
        ) if a.number == b.number && of == of_b && write == write_b => {
            return Value { number: a.number, kind: Kind::Offset { of, write, room: x.min(y) } };
        }
        (Kind::Host { write, from, to }, Kind::Host { write: write_b, from: from_b, to: to_b }) => {
            Kind::Host { write: write && write_b, from: from.max(from_b), to: to.min(to_b) }
        }
        (a, b) if a.is_secret() || b.is_secret() => Kind::Secret,
        (a, b) => match (bound(a, tlb, jump), bound(b, tlb, jump)) {
            (Some(x), Some(y)) => Kind::Below(x.max(y)),
            _ => Kind::Any,
        },
    };
    numbers.value(kind)
}

/// A number that a value is known to be below.
pub(crate) fn bound(kind: Kind, tlb: u32, jump: u32) -> Option<u32> {
    match kind {
        Kind::Below(bound) => Some(bound),
        Kind::Const(value) => value.checked_add(1),
        Kind::TlbIndex { .. } => Some(2 * tlb - 1),
        Kind::JumpIndex { .. } => Some(2 * jump - 1),
        _ => None,
    }
}
