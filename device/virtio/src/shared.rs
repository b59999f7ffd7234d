//! What a device's registers and its workers share: interrupts and the need for a reset.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::Interrupts;

use crate::spec::{NO_VECTOR, isr};

/// Tells the driver that configuration fields of its device have changed (2.5.3).
#[derive(Clone)]
pub struct ConfigChange(Arc<Shared>);

impl ConfigChange {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The fields are new. A driver that is not there yet will read them anyway.
    pub fn announce(&self) {
        if self.0.is_live.load(Ordering::Relaxed) {
            self.0.interrupt(self.0.config_vector(), isr::CONFIGURATION);
        }
    }
}

/// Shared by the registers and all workers of one device.
pub(crate) struct Shared {
    // Wiring.
    interrupts: Interrupts,
    // Volatile state.
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// ISR status; INTA is high while it is not zero.
    isr: Mutex<u8>,
    needs_reset: AtomicBool,
    /// The driver is there and listens.
    is_live: AtomicBool,
    /// A guest can break its device again and again, but the log hears of it once.
    complained: AtomicBool,
}

impl Shared {
    /// State of a device with this many queues.
    pub fn new(queues: usize) -> Self {
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
        Self {
            interrupts: Interrupts::new(vectors),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: Mutex::new(0),
            needs_reset: AtomicBool::new(false),
            is_live: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        }
    }

    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Back to the state after construction. No worker runs.
    pub fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.needs_reset.store(false, Ordering::Relaxed);
        self.read_isr();
    }

    /// Used buffer notification of a queue (4.1.5.3).
    pub fn used_buffers(&self, queue: usize) {
        self.interrupt(self.queue_vector(queue), isr::QUEUE);
    }

    /// The driver broke the device: DEVICE_NEEDS_RESET, and a configuration change notification
    /// to say so (2.1.2).
    pub fn break_down(&self, why: &dyn std::fmt::Display) {
        if self.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!("a virtio device needs a reset: {why}");
        } else {
            tracing::warn!("the guest's driver broke a virtio device, which needs a reset: {why}");
        }
        self.needs_reset.store(true, Ordering::Relaxed);
        self.interrupt(self.config_vector(), isr::CONFIGURATION);
    }

    pub fn set_live(&self, is_live: bool) {
        self.is_live.store(is_live, Ordering::Relaxed);
    }

    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Relaxed)
    }

    pub fn set_needs_reset(&self, needs_reset: bool) {
        self.needs_reset.store(needs_reset, Ordering::Relaxed);
    }

    /// Reads ISR status, which clears it and lowers INTA (4.1.4.5).
    pub fn read_isr(&self) -> u8 {
        let mut isr = self.isr();
        self.interrupts.set_intx(false);
        std::mem::take(&mut *isr)
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    pub fn queue_vector(&self, queue: usize) -> u16 {
        self.queue_vectors.get(queue).map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed))
    }

    pub fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(v) = self.queue_vectors.get(queue) {
            v.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    /// A vector that does not exist reads back as "none" (4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.interrupts.vectors() { vector } else { NO_VECTOR }
    }

    fn interrupt(&self, vector: u16, isr_bit: u8) {
        if self.interrupts.msix_enabled() {
            // NO_VECTOR is one that does not exist.
            self.interrupts.raise(vector);
        } else {
            let mut isr = self.isr();
            *isr |= isr_bit;
            self.interrupts.set_intx(true);
        }
    }

    pub(crate) fn isr(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
