//! Emulation assistance: what KVM's emulator gives up on, the interpreter of [`x86`] executes, one
//! instruction at a time.

mod env;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use accel::{CpuBus, CpuState, CpuidTable, Fault};
use accel_soft::native::NativeUnit;
use accel_soft::ram::Ram;
use iced_x86::{Decoder, DecoderOptions};
use kvm_ioctls::VcpuFd;
use x86::Cpu;

use crate::run_page::InternalError;
use crate::stores::StoreLog;
pub use env::AssistEnv;

/// Executes instructions, and delivers events, in KVM's stead. What that needs is made when it is needed first.
#[derive(Default)]
pub struct Assistant {
    tools: Option<Tools>,
}

struct Tools {
    ram: Ram,
    native: NativeUnit,
}

/// What is around a processor, bus apart.
pub struct Around<'a> {
    pub vcpu: &'a VcpuFd,
    pub cpuid: &'a CpuidTable,
    pub stores: &'a StoreLog,
}

/// For what touches no device.
pub struct NoBus;

impl CpuBus for NoBus {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) {}

    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, _: u16, _: &[u8]) {}
}

impl Assistant {
    /// Has the interpreter do something with a processor in `state`.
    pub fn with<T>(
        &mut self,
        state: &mut CpuState,
        around: &Around<'_>,
        bus: &dyn CpuBus,
        f: impl FnOnce(&mut Cpu<AssistEnv<'_>>) -> T,
    ) -> Result<T, Fault> {
        let tools = match &mut self.tools {
            Some(tools) => tools,
            None => {
                let native = NativeUnit::new().map_err(|source| Fault::Host {
                    what: "cannot map memory for generated code".to_owned(),
                    source,
                    remedy: "allow the VMM to map executable memory".to_owned(),
                })?;
                self.tools.insert(Tools { ram: Ram::new(around.stores.memory()), native })
            }
        };
        let env = AssistEnv::new(&tools.ram, &mut tools.native, around, bus);
        let mut cpu = Cpu::new(state.clone(), env);
        let result = f(&mut cpu);
        *state = cpu.state;
        Ok(result)
    }
}

/// Logs each kind of instruction once in the life of this process.
pub fn say_once(state: &CpuState, error: &InternalError) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let bits = if state.is_64bit() {
        64
    } else if state.seg[1].attributes.is_big() {
        32
    } else {
        16
    };
    let kind = kind(bits, error);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    // A guest may have as many kinds as there are.
    if told.len() < 256 && told.insert(format!("{bits} {kind}")) {
        tracing::info!(
            "KVM does not emulate {kind} ({bits}-bit code at {:#x}): Lodge's interpreter does",
            state.rip
        );
    }
}

/// The instruction that KVM gave up on, without its operands, as far as KVM tells.
fn kind(bits: u32, error: &InternalError) -> String {
    /// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`.
    const HAS_BYTES: u64 = 1;
    if error.count < 3 || error.data[0] & HAS_BYTES == 0 {
        return "an instruction".to_owned();
    }
    // Their number in one byte, then fifteen of them.
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&error.data[1].to_le_bytes());
    bytes[8..].copy_from_slice(&error.data[2].to_le_bytes());
    let len = usize::from(bytes[0]).min(15);
    let insn = Decoder::new(bits, &bytes[1..=len], DecoderOptions::NONE).decode();
    if insn.is_invalid() {
        return format!("what begins with {:02x?}", &bytes[1..=len.min(4)]);
    }
    format!("{:?}", insn.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(count: u32, flags: u64, bytes: [u8; 16]) -> InternalError {
        let mut error = InternalError { suberror: 1, data: [0; 16], count };
        error.data[0] = flags;
        error.data[1] = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        error.data[2] = u64::from_le_bytes(*bytes.last_chunk().unwrap());
        error
    }

    #[test]
    fn kvm_may_name_the_instruction() {
        let mut bytes = [0x90; 16];
        bytes[..4].copy_from_slice(&[15, 0x0f, 0x01, 0xf8]);
        assert_eq!(kind(64, &error(4, 1, bytes)), "Swapgs");
        assert_eq!(kind(64, &error(4, 0, bytes)), "an instruction");
        assert_eq!(kind(64, &error(2, 1, bytes)), "an instruction");
        bytes[0] = 255;
        assert_eq!(kind(64, &error(4, 1, bytes)), "Swapgs");
        bytes[0] = 0;
        assert_eq!(kind(64, &error(4, 1, bytes)), "what begins with []");
    }
}
