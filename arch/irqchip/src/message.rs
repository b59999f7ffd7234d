//! Interrupt messages as they travel between I/O APIC, devices and local APICs.

/// An interrupt message on the system bus (SDM Vol. 3, 11.6.1 and 11.11).
///
/// Whoever carries it delivers it to each local APIC that [accepts](crate::Lapic::accepts) it,
/// except that [`DeliveryMode::LowestPriority`] goes to only one of those: see
/// [`lowest_priority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which local APICs it is for.
    pub destination: Destination,
    /// What it does there.
    pub delivery: DeliveryMode,
    /// The interrupt vector; for a start-up IPI, the page number of the first instruction.
    /// Meaningless for NMI, INIT and ExtINT.
    pub vector: u8,
    /// Whether the end of interrupt is to be broadcast to the I/O APICs.
    pub trigger: Trigger,
}

/// The local APICs that a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The one with this APIC ID.
    Physical(u32),
    /// Those whose logical destination register matches.
    Logical(u32),
    /// All of them.
    All,
    /// All but the one with this APIC ID, which sent it.
    AllExcept(u32),
}

impl Destination {
    /// A destination as the 8-bit field of an xAPIC ICR, an I/O APIC entry or an MSI address
    /// gives it. All ones is the broadcast in either mode (SDM Vol. 3, 11.6.2.1 and 11.6.2.2).
    pub(crate) fn from_8_bit(logical: bool, id: u8) -> Self {
        match (id, logical) {
            (0xff, _) => Self::All,
            (id, true) => Self::Logical(id.into()),
            (id, false) => Self::Physical(id.into()),
        }
    }
}

/// What a message does at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// Requests the interrupt `vector`.
    Fixed,
    /// The same, at the one destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt. Lodge's processors have no SMM: nobody accepts it.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Resets the processor, which then waits for a start-up IPI.
    Init,
    /// Starts a waiting processor at `vector << 12`.
    StartUp,
    /// The vector is to be fetched from the 8259 pair.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the 3-bit field that ICR, LVT, I/O APIC and MSI share; `None` is reserved.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// How an interrupt is triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By a rising edge or a message.
    Edge,
    /// By a level that lasts until the device has been served.
    Level,
}

/// Chooses the receiver of a [`DeliveryMode::LowestPriority`] message (SDM Vol. 3, 11.6.2.4).
///
/// `candidates` gives, for each local APIC that accepts the message, the owner's index of it and
/// its [processor priority](crate::Lapic::ppr). Among equals the first index after `last` wins,
/// so that a caller who passes the index chosen the time before spreads the load.
pub fn lowest_priority(
    candidates: impl IntoIterator<Item = (usize, u8)>,
    last: usize,
) -> Option<usize> {
    candidates
        .into_iter()
        .min_by_key(|&(index, priority)| (priority, index <= last, index))
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_priority_prefers_the_idle_and_takes_turns() {
        assert_eq!(lowest_priority([(0, 0x30), (1, 0x20), (2, 0x40)], 0), Some(1));
        let idle = [(0, 0), (1, 0), (2, 0)];
        assert_eq!(lowest_priority(idle, 0), Some(1));
        assert_eq!(lowest_priority(idle, 1), Some(2));
        assert_eq!(lowest_priority(idle, 2), Some(0));
        assert_eq!(lowest_priority([], 2), None);
    }

    #[test]
    fn an_8_bit_destination_of_all_ones_is_everybody() {
        assert_eq!(Destination::from_8_bit(false, 0xff), Destination::All);
        assert_eq!(Destination::from_8_bit(true, 0xff), Destination::All);
        assert_eq!(Destination::from_8_bit(true, 0x81), Destination::Logical(0x81));
        assert_eq!(Destination::from_8_bit(false, 0x81), Destination::Physical(0x81));
    }
}
