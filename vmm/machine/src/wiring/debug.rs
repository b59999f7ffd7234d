//! Ports that end the machine, and devices that only test kernels want.

use std::sync::{Arc, Mutex};

use chipset::testdev::{TestIrqs, TestMemory, TestPorts};
use chipset::{DebugConsole, DebugExit, ExitPort};

use super::{Board, gsi, port};
use crate::BuildError;

/// Where pc-testdev has its memory.
const TEST_MEMORY: u64 = 0xff00_0000;
/// How many ports the test value takes: with its copy at E8h, which the debug console may need.
const TEST_VALUE_LEN: u64 = 12;
const TEST_VALUE_LEN_WITHOUT_COPY: u64 = 8;

/// Attaches what the configuration asks for.
pub fn attach(board: &Board) -> Result<(), BuildError> {
    let debug = board.parts.config.debug;
    if let Some(console) = &board.parts.debug_console {
        let device = Arc::new(Mutex::new(DebugConsole::new(console.clone())));
        board.attach_ports("debug console", port::DEBUG_CONSOLE, 1, device)?;
    }
    if board.parts.config.exit_port {
        let device = Arc::new(Mutex::new(ExitPort::new(board.power.clone())));
        board.attach_ports("exit port", port::EXIT, 1, device)?;
    }
    if debug.debug_exit {
        let device = Arc::new(Mutex::new(DebugExit::new(board.power.clone())));
        board.attach_ports("isa-debug-exit", port::DEBUG_EXIT, DebugExit::LEN, device)?;
    }
    if debug.testdev {
        let len = match board.parts.debug_console {
            Some(_) => TEST_VALUE_LEN_WITHOUT_COPY,
            None => TEST_VALUE_LEN,
        };
        let value = Arc::new(Mutex::new(TestPorts::new()));
        board.attach_ports("test value", port::TEST_VALUE, len, value)?;
        let lines = (0..gsi::COUNT).map(|gsi| board.irq(gsi)).collect();
        let irqs = Arc::new(Mutex::new(TestIrqs::new(lines)));
        board.attach_ports("test interrupts", port::TEST_IRQS, gsi::COUNT.into(), irqs)?;
        let memory = Arc::new(Mutex::new(TestMemory::new()));
        let window = TEST_MEMORY..=TEST_MEMORY + TestMemory::LEN - 1;
        board.keep("test memory", memory.clone());
        board.memory_space.attach("test memory", window, memory)?;
    }
    Ok(())
}
