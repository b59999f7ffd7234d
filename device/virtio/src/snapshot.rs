//! What of a virtio device is saved: its registers and, since it is paused, its queues as plain state.

use bus::BadState;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_queue::{Queue, QueueState};

use crate::device::{Device, in_memory};
use crate::shared::Shared;
use crate::spec::{feature, status};

/// The state of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceState {
    device_feature_select: u32,
    driver_feature_select: u32,
    /// The features that the driver has accepted.
    accepted: u64,
    status: u8,
    queue_select: u16,
    config_vector: u16,
    isr: u8,
    needs_reset: bool,
    queues: Vec<SavedQueue>,
    /// What the model itself says.
    model: Value,
}

/// The state of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    size: u16,
    ready: bool,
    vector: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
}

impl Device {
    /// Its state. No queue is out with a worker.
    pub fn save(&self) -> Result<Value, BadState> {
        let shared = self.shared();
        let queues = self.queue_states().enumerate().map(|(index, state)| SavedQueue {
            size: state.size,
            ready: state.ready,
            vector: shared.queue_vector(index),
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            event_idx: state.event_idx_enabled,
            next_available: state.next_avail,
            next_used: state.next_used,
        });
        let state = DeviceState {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            accepted: self.accepted,
            status: self.status,
            queue_select: self.queue_select,
            config_vector: shared.config_vector(),
            isr: shared.isr_status(),
            needs_reset: shared.needs_reset(),
            queues: queues.collect(),
            model: self.model().save()?,
        };
        serde_json::to_value(state).map_err(BadState::new)
    }

    /// Takes over a state.
    pub fn restore(&mut self, state: Value) -> Result<(), BadState> {
        let state: DeviceState = serde_json::from_value(state).map_err(BadState::new)?;
        let missing = state.accepted & !self.offered;
        if missing != 0 {
            return Err(BadState::new(format!(
                "the driver uses features that this device does not have: {missing:#x}"
            )));
        }
        if state.status & status::FEATURES_OK != 0 && state.accepted & feature::VERSION_1 == 0 {
            return Err(BadState::new("the driver has settled for features that are not enough"));
        }
        let max_sizes: Vec<u16> = self.queue_states().map(|queue| queue.max_size).collect();
        if state.queues.len() != max_sizes.len() {
            return Err(BadState::new(format!(
                "the device has {} queues, not {}",
                max_sizes.len(),
                state.queues.len()
            )));
        }
        let mut queues = Vec::new();
        for (index, (saved, max_size)) in state.queues.iter().zip(max_sizes).enumerate() {
            let queue = QueueState {
                max_size,
                size: saved.size,
                ready: saved.ready,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
                event_idx_enabled: saved.event_idx,
                next_avail: saved.next_available,
                next_used: saved.next_used,
            };
            // One that is not enabled may have any addresses.
            if queue.ready {
                Queue::try_from(queue).map_err(|e| BadState::new(format!("queue {index}: {e}")))?;
                if !in_memory(&queue, self.memory()) {
                    return Err(BadState::new(format!("queue {index} is not in guest memory")));
                }
            } else if !queue.size.is_power_of_two() || queue.size > max_size {
                return Err(BadState::new(format!("queue {index} has no such size")));
            }
            queues.push(queue);
        }
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.accepted = state.accepted;
        self.status = state.status & !status::DEVICE_NEEDS_RESET;
        self.queue_select = state.queue_select;
        self.set_queue_states(&queues);
        let shared = self.shared();
        shared.set_config_vector(state.config_vector);
        for (index, saved) in state.queues.iter().enumerate() {
            shared.set_queue_vector(index, saved.vector);
        }
        shared.restore(state.isr, state.needs_reset);
        self.model_mut().restore(state.model)
    }
}

impl Shared {
    /// ISR status, which stays as it is. The pin is saved by the bus.
    fn isr_status(&self) -> u8 {
        *self.isr()
    }

    fn restore(&self, isr: u8, needs_reset: bool) {
        *self.isr() = isr;
        self.set_needs_reset(needs_reset);
    }
}
