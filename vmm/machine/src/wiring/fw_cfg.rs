//! The firmware configuration device: what test kernels and drivers ask a machine about itself.

use std::sync::{Arc, Mutex};

use chipset::FwCfg;
use chipset::fw_cfg::{LEN, PORT, key};

use super::Board;
use crate::BuildError;

/// Fills in the items and attaches the device.
pub fn attach(board: &Board) -> Result<(), BuildError> {
    let config = board.parts.config;
    let mut device = FwCfg::new(board.parts.memory.clone());
    let ram = config.memory_mib << 20;
    let cpus = u16::try_from(config.cpus).unwrap_or(u16::MAX);
    device.add(key::RAM_SIZE, ram.to_le_bytes());
    device.add(key::NB_CPUS, cpus.to_le_bytes());
    device.add(key::MAX_CPUS, cpus.to_le_bytes());
    // struct e820_entry: start, length, type; packed.
    let mut e820 = Vec::new();
    for entry in board.parts.map.e820() {
        e820.extend(entry.start.to_le_bytes());
        e820.extend(entry.len.to_le_bytes());
        e820.extend((entry.kind as u32).to_le_bytes());
    }
    device.add_file("etc/e820", e820)?;
    board.attach_ports("fw_cfg", PORT, LEN, Arc::new(Mutex::new(device)))
}
