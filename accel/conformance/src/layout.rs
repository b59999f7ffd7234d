//! Where things lie in a guest's memory. Linear and physical addresses are the same below 4 MiB.

/// Real-mode interrupt vector table.
pub const IVT: u64 = 0;
/// Words that handlers and cases share; see the offsets below.
pub const SHARED: u64 = 0x600;
/// What a handler records: nine 8-byte words, in the order of [`crate::expect::Record`].
pub const RECORD: u64 = SHARED;
/// Where the next exception returns to, if not zero; taken once.
pub const RECOVER: u64 = SHARED + 0x50;
/// ORed into the flags that a #DB returns to.
pub const DEBUG_FLAGS: u64 = SHARED + 0x58;
/// How handlers of vectors from 32 up end interrupts: [`eoi`].
pub const EOI: u64 = SHARED + 0x60;
/// A bit for each vector whose handler returns to where it came from.
pub const RESUME: u64 = SHARED + 0x80;

/// Values of [`EOI`].
pub mod eoi {
    /// Not at all.
    pub const NONE: u64 = 0;
    /// By the local APIC's page.
    pub const XAPIC: u64 = 1;
    /// By the local APIC's MSR.
    pub const X2APIC: u64 = 2;
    /// At both 8259s.
    pub const PIC: u64 = 3;
}

/// Global descriptor table, 4 KiB.
pub const GDT: u64 = 0x1000;
/// 8-byte gates.
pub const IDT32: u64 = 0x2000;
/// TSS of the processor, with a whole I/O permission bitmap; to 0x5fff.
pub const TSS: u64 = 0x3000;
/// 16-byte gates.
pub const IDT64: u64 = 0x6000;
/// Further task-state segments, for cases that switch tasks.
pub const OTHER_TSS: u64 = 0x7000;
/// Local descriptor table.
pub const LDT: u64 = 0x7800;
/// Generic handlers of the three code sizes.
pub const HANDLERS16: u64 = 0x8000;
/// See [`HANDLERS16`].
pub const HANDLERS32: u64 = 0x9000;
/// See [`HANDLERS16`].
pub const HANDLERS64: u64 = 0xa000;
/// Where application processors start: SIPI vector 0x0c.
pub const AP_CODE: u64 = 0xc000;
/// The case's code. 16-bit code segments have their base here.
pub const CODE: u64 = 0x1_0000;
/// Data that only the supervisor can reach.
pub const DATA: u64 = 0x2_0000;
/// Top of the stack that the case starts on, as 16-bit segments see it (base 0x30000), too.
pub const STACK: u64 = 0x3_f000;
/// Top of the privileged stack in the TSS.
pub const STACK0: u64 = 0x5_8000;
/// Tops of the stacks of IST 1 to 7 lie this far apart, from here.
pub const IST: u64 = 0x6_0000;
/// Distance between stacks.
pub const IST_STEP: u64 = 0x1000;
/// Top of the stack of application processors.
pub const AP_STACK: u64 = 0x7_0000;
/// Page tables are made from here upwards.
pub const TABLES: u64 = 0x10_0000;
/// Code of ring 3. From here to 4 MiB pages belong to the user.
pub const USER_CODE: u64 = 0x20_0000;
/// Data of ring 3.
pub const USER_DATA: u64 = 0x22_0000;
/// Top of the stack of ring 3.
pub const USER_STACK: u64 = 0x23_f000;
/// The page of [`SHARED`] once more, for the user.
pub const USER_SHARED: u64 = 0x3f_f000;
/// Linear addresses from here to 1 GiB are for cases to map.
pub const WINDOW: u64 = 0x40_0000;
/// RAM for whatever cases map, 4 MiB-aligned.
pub const FRAMES: u64 = 0x80_0000;
/// RAM from 0 to here.
pub const RAM: u64 = 0x100_0000;
/// Some RAM above 4 GiB.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// How much of it.
pub const HIGH_RAM_LEN: u64 = 0x40_0000;
/// RAM in place of a ROM: the reset vector is at its end.
pub const ROM: u64 = 0xffff_0000;

/// Selectors in the GDT. SYSCALL, SYSENTER and their returns need this order.
pub mod sel {
    pub const KCODE32: u16 = 0x08;
    pub const KCODE64: u16 = 0x10;
    pub const KDATA: u16 = 0x18;
    pub const UCODE32: u16 = 0x20 | 3;
    pub const UDATA: u16 = 0x28 | 3;
    pub const UCODE64: u16 = 0x30 | 3;
    pub const KCODE16: u16 = 0x40;
    pub const KDATA16: u16 = 0x48;
    pub const TSS: u16 = 0x50;
    pub const LDT: u16 = 0x60;
    /// From here on descriptors are free for cases.
    pub const FREE: u16 = 0x70;
}

/// Ports of the test bus.
pub mod port {
    /// 32-bit values that become part of the outcome.
    pub const OUT: u8 = 0xe0;
    /// A handler has filled the record.
    pub const RECORD: u8 = 0xe4;
    /// Calls the case's host function with the value.
    pub const HOST: u8 = 0xec;
    /// Ends the case.
    pub const EXIT: u8 = 0xf4;
}

/// A device on the test bus: a load of n bytes gives bytes of its address (its low byte, and so
/// on upwards); stores become part of the outcome.
pub const DEVICE: u64 = 0xd000_0000;
/// Its size.
pub const DEVICE_LEN: u64 = 0x2000;
