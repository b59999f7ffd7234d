//! A virtio device without its transport: status, features, queues (chapter 2 and 3.1).

use std::sync::Arc;

use bus::BadState;
use mem::{GuestAddress, GuestMemory};
use runtime::Event;
use serde_json::Value;
use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryBackend;

use crate::Error;
use crate::shared::{ConfigChange, Shared};
use crate::spec::{NO_VECTOR, common, feature, status};
use crate::worker::{QueueTask, Worker};

/// A type of device, as its model implements it. Called under the device's lock, on vCPU
/// threads.
pub trait VirtioDevice: Send {
    /// Which type it is.
    fn device_type(&self) -> DeviceType;

    /// The feature bits of its type that it offers. Transport and ring features are added.
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration fields as they are now, at most 4096 bytes.
    fn config(&self) -> Vec<u8>;

    /// The driver writes configuration fields; `offset + data.len()` is inside them.
    fn config_write(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// What tells the driver of changes to configuration fields. Called once, before all others.
    fn connect(&mut self, change: ConfigChange) {
        let _ = change;
    }

    /// A queue is reset: what is known about the requests in it is forgotten. No task runs.
    fn queue_reset(&mut self, queue: usize) {
        let _ = queue;
    }

    /// What of it changes while a guest runs, beyond registers and queues: `Value::Null`, if there
    /// is nothing. No task runs.
    ///
    /// # Errors
    ///
    /// If that cannot be said as JSON: a mistake in the device.
    fn save(&self) -> Result<Value, BadState>;

    /// Takes over what [`save`](Self::save) gave, in a device that was made from the same
    /// configuration. The state may have been read from anywhere.
    ///
    /// # Errors
    ///
    /// If no such device can have this state.
    fn restore(&mut self, state: Value) -> Result<(), BadState>;

    /// What serves a queue, given the features that the driver has accepted.
    fn task(&self, queue: usize, features: u64) -> Box<dyn QueueTask>;
}

/// A device type (5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
    /// File system device.
    Fs = 26,
}

/// Registers and queues of a device.
pub(crate) struct Device {
    // Configuration.
    model: Box<dyn VirtioDevice>,
    pub(crate) offered: u64,
    // Wiring.
    memory: GuestMemory,
    shared: Arc<Shared>,
    // Volatile state.
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) accepted: u64,
    pub(crate) status: u8,
    pub(crate) queue_select: u16,
    queues: Vec<QueueSlot>,
    bus_master: bool,
    paused: bool,
}

struct QueueSlot {
    /// Rung by the driver; it outlives the workers that listen to it.
    doorbell: Arc<Event>,
    /// The queue's registers, and its positions as of the last time when it was at home.
    state: QueueState,
    worker: Option<Worker>,
}

fn fresh_queue(max_size: u16) -> QueueState {
    QueueState { max_size, size: max_size, ..QueueState::default() }
}

impl Device {
    pub fn new(mut model: Box<dyn VirtioDevice>, memory: GuestMemory) -> Result<Self, Error> {
        let queues: Vec<_> = model
            .queue_sizes()
            .into_iter()
            .map(|max_size| {
                let doorbell = Arc::new(Event::new().map_err(Error::Doorbell)?);
                Ok(QueueSlot { doorbell, state: fresh_queue(max_size), worker: None })
            })
            .collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared::new(queues.len()));
        model.connect(ConfigChange::new(shared.clone()));
        Ok(Self {
            offered: model.features()
                | feature::VERSION_1
                | feature::INDIRECT_DESC
                | feature::EVENT_IDX
                | feature::RING_RESET,
            model,
            memory,
            shared,
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: 0,
            status: 0,
            queue_select: 0,
            queues,
            bus_master: false,
            paused: false,
        })
    }

    pub fn model(&self) -> &dyn VirtioDevice {
        &*self.model
    }

    pub fn model_mut(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.model
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queues' registers, and their positions as of the last time when they were at home.
    pub fn queue_states(&self) -> impl Iterator<Item = &QueueState> {
        self.queues.iter().map(|slot| &slot.state)
    }

    /// Sets the registers and positions of all queues, which are at home.
    pub fn set_queue_states(&mut self, states: &[QueueState]) {
        for (slot, state) in self.queues.iter_mut().zip(states) {
            slot.state = *state;
        }
    }

    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The doorbell of a queue.
    pub fn doorbell(&self, queue: usize) -> Option<&Arc<Event>> {
        self.queues.get(queue).map(|slot| &slot.doorbell)
    }

    /// The common configuration structure as the driver reads it.
    pub fn common_registers(&self) -> [u8; common::LEN] {
        let mut bytes = [0; common::LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(common::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        let offered = word(self.offered, self.device_feature_select);
        put(common::DEVICE_FEATURE, &offered.to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        let accepted = word(self.accepted, self.driver_feature_select);
        put(common::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &self.shared.config_vector().to_le_bytes());
        put(common::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(common::DEVICE_STATUS, &[self.status()]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        let index = usize::from(self.queue_select);
        // A queue that does not exist has size 0 (4.1.4.3.1).
        if let Some(QueueSlot { state, .. }) = self.queues.get(index) {
            put(common::QUEUE_SIZE, &state.size.to_le_bytes());
            put(common::QUEUE_MSIX_VECTOR, &self.shared.queue_vector(index).to_le_bytes());
            put(common::QUEUE_ENABLE, &u16::from(state.ready).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &state.desc_table.to_le_bytes());
            put(common::QUEUE_DRIVER, &state.avail_ring.to_le_bytes());
            put(common::QUEUE_DEVICE, &state.used_ring.to_le_bytes());
        } else {
            put(common::QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        bytes
    }

    /// A write to the common configuration structure, in a field's own width (4.1.3.1). A 64-bit
    /// field is written in halves; other accesses have no effect.
    pub fn write_common(&mut self, offset: usize, data: &[u8]) {
        match *data {
            [value] if offset == common::DEVICE_STATUS => self.write_status(value),
            [a, b] => self.write_common_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_common_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_common_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_common_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn write_common_u16(&mut self, offset: usize, value: u16) {
        let index = usize::from(self.queue_select);
        match offset {
            common::CONFIG_MSIX_VECTOR => self.shared.set_config_vector(value),
            common::QUEUE_SELECT => self.queue_select = value,
            common::QUEUE_MSIX_VECTOR => self.shared.set_queue_vector(index, value),
            common::QUEUE_SIZE => {
                if let Some(state) = self.disabled_queue()
                    && value.is_power_of_two()
                    && value <= state.max_size
                {
                    state.size = value;
                }
            }
            common::QUEUE_ENABLE if value == 1 => self.enable_queue(index),
            common::QUEUE_RESET if value == 1 => self.reset_queue(index),
            _ => {}
        }
    }

    fn write_common_u32(&mut self, offset: usize, value: u32) {
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                let (shift, value) = match self.driver_feature_select {
                    0 => (0, u64::from(value)),
                    1 => (32, u64::from(value)),
                    // No feature has such a number, and accepting none of them is fine.
                    _ => return,
                };
                self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
            }
            common::QUEUE_DESC.. => {
                let Some(state) = self.disabled_queue() else { return };
                let (register, high) = match offset & !4 {
                    common::QUEUE_DESC => (&mut state.desc_table, offset & 4 != 0),
                    common::QUEUE_DRIVER => (&mut state.avail_ring, offset & 4 != 0),
                    common::QUEUE_DEVICE => (&mut state.used_ring, offset & 4 != 0),
                    _ => return,
                };
                let shift = if high { 32 } else { 0 };
                *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }

    /// The selected queue's registers, which are fixed once it is enabled.
    fn disabled_queue(&mut self) -> Option<&mut QueueState> {
        let slot = self.queues.get_mut(usize::from(self.queue_select))?;
        (!slot.state.ready).then_some(&mut slot.state)
    }

    fn status(&self) -> u8 {
        let needs_reset = if self.shared.needs_reset() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// Device status (2.1, 3.1.1). Zero resets; other bits only add up.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status & !status::DEVICE_NEEDS_RESET;
        if added & status::FEATURES_OK != 0 {
            let known = self.accepted & !self.offered == 0;
            let modern = self.accepted & feature::VERSION_1 != 0;
            if !known || !modern {
                // The driver reads the bit back and sees that it was refused (3.1.1, step 6).
                added &= !status::FEATURES_OK;
            }
        }
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        self.place_queues();
    }

    /// Enables a queue, if its rings are in memory.
    fn enable_queue(&mut self, index: usize) {
        let event_idx_enabled = self.accepted & feature::EVENT_IDX != 0;
        let negotiated = self.status & status::FEATURES_OK != 0;
        let Some(slot) = self.queues.get_mut(index) else { return };
        if slot.state.ready || !negotiated {
            return;
        }
        let state = QueueState { ready: true, event_idx_enabled, ..slot.state };
        match Queue::try_from(state) {
            Ok(_) if in_memory(&state, &self.memory) => slot.state = state,
            Ok(_) => self.shared.break_down(&format_args!("queue {index} is not in guest memory")),
            Err(error) => self.shared.break_down(&error),
        }
        self.place_queues();
    }

    /// Takes a queue back from the driver (2.6.1). It is reset when this returns.
    fn reset_queue(&mut self, index: usize) {
        if self.accepted & feature::RING_RESET == 0 {
            return;
        }
        if let Some(slot) = self.queues.get_mut(index) {
            if let Some(worker) = slot.worker.take() {
                worker.stop();
                worker.join();
            }
            slot.state = fresh_queue(slot.state.max_size);
            self.shared.set_queue_vector(index, NO_VECTOR);
            self.model.queue_reset(index);
        }
    }

    pub fn set_bus_master(&mut self, enabled: bool) {
        self.bus_master = enabled;
        self.place_queues();
    }

    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.place_queues();
    }

    /// Back to the state after construction, but for what the transport says.
    pub fn reset(&mut self) {
        self.status = 0;
        self.place_queues();
        for (index, slot) in self.queues.iter_mut().enumerate() {
            slot.state = fresh_queue(slot.state.max_size);
            slot.doorbell.clear();
            self.model.queue_reset(index);
        }
        self.shared.reset();
        self.accepted = 0;
        (self.device_feature_select, self.driver_feature_select, self.queue_select) = (0, 0, 0);
    }

    /// Sends queues out to their workers, or calls them home, as the state demands.
    fn place_queues(&mut self) {
        let live = self.status & (status::DRIVER_OK | status::FAILED) == status::DRIVER_OK;
        self.shared.set_live(live);
        if live && self.bus_master && !self.paused {
            for index in 0..self.queues.len() {
                self.send_out(index);
            }
        } else {
            self.call_home();
        }
    }

    fn send_out(&mut self, index: usize) {
        let Some(slot) = self.queues.get_mut(index) else { return };
        if !slot.state.ready || slot.worker.is_some() || self.shared.needs_reset() {
            return;
        }
        let task = self.model.task(index, self.accepted);
        let started = Queue::try_from(slot.state).map_err(|e| e.to_string()).and_then(|queue| {
            Worker::start(queue, index, &self.memory, &slot.doorbell, &self.shared, task)
                .map_err(|e| format!("no thread for queue {index}: {e}"))
        });
        match started {
            Ok(worker) => slot.worker = Some(worker),
            Err(why) => self.shared.break_down(&why),
        }
    }

    fn call_home(&mut self) {
        // All are told before the first is waited for.
        for worker in self.queues.iter().filter_map(|slot| slot.worker.as_ref()) {
            worker.stop();
        }
        for slot in &mut self.queues {
            // One that panicked has said so, and leaves the state as it was.
            if let Some(state) = slot.worker.take().and_then(Worker::join) {
                slot.state = state;
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.call_home();
    }
}

/// Whether all three parts of a queue are in guest memory (2.7).
pub(crate) fn in_memory(state: &QueueState, memory: &GuestMemory) -> bool {
    let size = usize::from(state.size);
    [
        (state.desc_table, 16 * size),
        (state.avail_ring, 6 + 2 * size),
        (state.used_ring, 6 + 8 * size),
    ]
    .into_iter()
    .all(|(start, len)| GuestMemoryBackend::check_range(memory, GuestAddress(start), len))
}

/// The `select`th 32 bits of a feature set (4.1.4.3).
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
