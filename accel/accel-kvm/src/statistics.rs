//! What this accelerator counts, by the names that the world outside knows (docs/stats.md).

use accel::Statistics;

/// How often a processor left the guest for this program, by cause. What KVM does itself is not
/// among it: interrupt controllers, HLT, doorbells that are events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// KVM_RUN was called.
    pub entries: u64,
    /// IN, and INS.
    pub port_reads: u64,
    /// OUT, and OUTS.
    pub port_writes: u64,
    /// Loads from what is not RAM.
    pub mmio_reads: u64,
    /// Stores to it.
    pub mmio_writes: u64,
    /// A signal came: kicks, mostly.
    pub interrupted: u64,
    /// Debug exceptions for the VMM.
    pub debug: u64,
    /// Triple faults.
    pub shutdowns: u64,
    /// Instructions that KVM gave up on and the interpreter completed.
    pub assisted: u64,
    /// Everything else.
    pub other: u64,
}

impl Counters {
    /// The numbers under their names.
    pub fn statistics(&self) -> Statistics {
        // All fields are named, so that none that is added is forgotten here.
        let &Self {
            entries,
            port_reads,
            port_writes,
            mmio_reads,
            mmio_writes,
            interrupted,
            debug,
            shutdowns,
            assisted,
            other,
        } = self;
        Statistics {
            counts: vec![
                ("guest_entries", entries),
                ("exits_port_read", port_reads),
                ("exits_port_write", port_writes),
                ("exits_mmio_read", mmio_reads),
                ("exits_mmio_write", mmio_writes),
                ("exits_interrupted", interrupted),
                ("exits_debug", debug),
                ("exits_shutdown", shutdowns),
                ("exits_assisted", assisted),
                ("exits_other", other),
            ],
            levels: Vec::new(),
        }
    }
}
