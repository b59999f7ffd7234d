//! What goes into a run and what comes out. Both cross to the child process in shared memory, so
//! they are plain data.

use x86::state::VectorState;

use crate::layout::{DATA_SIZE, FILL};

/// The longest code of a case.
pub const MAX_CODE: usize = 192;
/// How many places in memory a case changes beforehand.
pub const PATCHES: usize = 3;

/// Bytes to be put into the data pages.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Patch {
    /// Offset into the data pages; the patch may end beyond them.
    pub offset: u32,
    /// How many of the bytes count.
    pub len: u32,
    /// The bytes.
    pub bytes: [u8; 64],
}

impl Patch {
    /// Changes nothing.
    pub const NONE: Self = Self { offset: 0, len: 0, bytes: [0; 64] };

    /// Puts the bytes where they belong.
    pub fn apply(&self, data: &mut [u8; DATA_SIZE]) {
        let bytes = &self.bytes[..(self.len as usize).min(64)];
        for (slot, byte) in data.iter_mut().skip(self.offset as usize).zip(bytes) {
            *slot = *byte;
        }
    }
}

/// Instructions and the state that they start from.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Case {
    /// Where the code starts.
    pub start: u64,
    /// The code; the rest is [`FILL`].
    pub code: [u8; MAX_CODE],
    /// General-purpose registers.
    pub gpr: [u64; 16],
    /// Flags. With TF, the case ends after one instruction, else at an INT3.
    pub rflags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// 0 for 64-bit code, 1 for 32-bit code.
    pub is_32bit: u32,
    /// Which image the data pages start from.
    pub image: u32,
    /// What is different from the image.
    pub patches: [Patch; PATCHES],
    /// x87, vector and mask registers.
    pub vector: VectorState,
}

impl Case {
    /// A case that does nothing, to be filled in.
    pub fn empty() -> Self {
        Self {
            start: 0,
            code: [FILL; MAX_CODE],
            gpr: [0; 16],
            rflags: 2,
            fs_base: 0,
            gs_base: 0,
            is_32bit: 0,
            image: 0,
            patches: [Patch::NONE; PATCHES],
            vector: VectorState::default(),
        }
    }
}

/// The exception that ended a case, and the state at that moment.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Outcome {
    /// The exception's vector, or one of the constants below.
    pub trap: u32,
    /// Its error code, 0 if it has none.
    pub error: u32,
    /// The faulting address of #PF, else 0.
    pub cr2: u64,
    /// Instruction pointer as the exception saved it.
    pub rip: u64,
    /// Flags, likewise.
    pub rflags: u64,
    /// General-purpose registers.
    pub gpr: [u64; 16],
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// x87, vector and mask registers.
    pub vector: VectorState,
    /// The data pages.
    pub data: [u8; DATA_SIZE],
}

impl Outcome {
    /// The processor shut down.
    pub const SHUTDOWN: u32 = 0x100;
    /// The case did not end.
    pub const ENDLESS: u32 = 0x101;

    /// The engine panicked.
    pub const PANIC: u32 = 0x102;

    /// One to be filled in.
    pub fn empty() -> Box<Self> {
        Box::new(Self {
            trap: 0,
            error: 0,
            cr2: 0,
            rip: 0,
            rflags: 0,
            gpr: [0; 16],
            fs_base: 0,
            gs_base: 0,
            vector: VectorState::default(),
            data: [0; DATA_SIZE],
        })
    }
}
