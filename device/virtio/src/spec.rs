//! Numbers from VIRTIO 1.2, under its names.

/// Reserved feature bits (6).
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_RESET: u64 = 1 << 40;
}

/// Device status (2.1).
pub mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// ISR status (4.1.4.5).
pub mod isr {
    pub const QUEUE: u8 = 1;
    pub const CONFIGURATION: u8 = 2;
}

/// "No interrupt", for the MSI-X vector registers (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// `struct virtio_pci_common_cfg` (4.1.4.3).
pub mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const CONFIG_MSIX_VECTOR: usize = 16;
    pub const NUM_QUEUES: usize = 18;
    pub const DEVICE_STATUS: usize = 20;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_MSIX_VECTOR: usize = 26;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    pub const QUEUE_RESET: usize = 58;
    pub const LEN: usize = 64;
}

/// PCI discovery and the vendor-specific capabilities (4.1.2, 4.1.4).
pub mod pci {
    pub const VENDOR_ID: u16 = 0x1af4;
    /// Device IDs of modern devices start here; the device type is added.
    pub const DEVICE_ID_BASE: u16 = 0x1040;
    pub const CAPABILITY_VENDOR: u8 = 0x09;
    pub const CFG_COMMON: u8 = 1;
    pub const CFG_NOTIFY: u8 = 2;
    pub const CFG_ISR: u8 = 3;
    pub const CFG_DEVICE: u8 = 4;
    pub const CFG_PCI: u8 = 5;
}

/// The available ring's flag that asks for no interrupts (2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
