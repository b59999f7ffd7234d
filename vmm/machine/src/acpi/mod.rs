//! The ACPI tables (ACPI 6.5) that describe the machine to the guest.

mod dsdt;
mod fixed;
mod slots;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::Bytes;

use crate::MemoryMap;

/// Who made the tables (5.2.6).
const OEM_ID: [u8; 6] = *b"LODGE ";
const OEM_TABLE_ID: [u8; 8] = *b"LODGEPC ";
const OEM_REVISION: u32 = 1;

/// What of a machine the tables tell.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// How many processors; their local APIC IDs are 0 to `cpus - 1`.
    pub cpus: u32,
    /// Where things are.
    pub map: &'a MemoryMap,
    /// Power management registers.
    pub pm: PmRegisters,
    /// The system control interrupt: level-triggered, active high.
    pub sci: u8,
    /// The global system interrupts that the pins of PCI devices lead to: INTA of device `n` to
    /// entry `n % 4`, and so on.
    pub pci_intx: [u32; 4],
    /// The serial ports that are there: first port and interrupt.
    pub serial: Vec<(u16, u32)>,
    /// First port of the fw_cfg device.
    pub fw_cfg: u16,
    /// First port of the registers about slots whose devices come and go.
    pub slots: u16,
    /// The general-purpose event that tells of a new generation ID, below 16.
    pub generation_event: u32,
}

/// The ports of the fixed hardware (4.8), and what goes into them.
#[derive(Clone, Copy, Debug)]
pub struct PmRegisters {
    /// PM1a event block: status and enable, 4 bytes.
    pub pm1a_event: u16,
    /// PM1a control block, 2 bytes.
    pub pm1a_control: u16,
    /// The power management timer, 4 bytes.
    pub timer: u16,
    /// The timer counts 32 bits, not 24.
    pub timer_is_32bit: bool,
    /// General-purpose event block 0, status and enable.
    pub gpe0: u16,
    /// Its length in bytes.
    pub gpe0_len: u8,
    /// The reset register.
    pub reset: u16,
    /// What resets the machine when written there.
    pub reset_value: u8,
    /// SLP_TYP of the soft-off state S5.
    pub soft_off: u8,
    /// CMOS index of the century.
    pub cmos_century: u8,
}

/// The tables, ready to be written to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where they belong. The root pointer (RSDP) comes first.
    pub address: u64,
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// Where in `bytes` each table begins.
    index: Vec<([u8; 4], usize)>,
}

/// The tables have no room for so many processors.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables have no room for {0} processors: give the guest fewer")]
pub struct TooManyProcessors(u32);

/// Names of processors in the DSDT have three hexadecimal digits.
const MAX_PROCESSORS: u32 = 0x1000;

impl Tables {
    /// Makes the tables of a machine.
    pub fn build(platform: &Platform) -> Result<Self, TooManyProcessors> {
        if platform.cpus > MAX_PROCESSORS {
            return Err(TooManyProcessors(platform.cpus));
        }
        let mut tables =
            Self { address: platform.map.firmware.start, bytes: Vec::new(), index: Vec::new() };
        tables.bytes.resize(Rsdp::len(), 0);

        let dsdt = tables.append(*b"DSDT", &dsdt::dsdt(platform));
        let facs = tables.append(*b"FACS", &FACS::new());
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(tables.append(*b"FACP", &fixed::fadt(platform, dsdt, facs)));
        xsdt.add_entry(tables.append(*b"APIC", &fixed::madt(platform)));
        xsdt.add_entry(tables.append(*b"MCFG", &fixed::mcfg(platform)));
        let xsdt = tables.append(*b"XSDT", &xsdt);

        let mut rsdp = Vec::new();
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);

        let room = platform.map.generation_id() - platform.map.firmware.start;
        if tables.bytes.len() as u64 > room {
            return Err(TooManyProcessors(platform.cpus));
        }
        Ok(tables)
    }

    /// Writes the tables to where they belong.
    pub fn write(&self, memory: &mem::GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
        memory.write_slice(&self.bytes, vm_memory::GuestAddress(self.address))
    }

    /// Adds a table and returns its address. A FACS wants 64 bytes alignment (5.2.10).
    fn append(&mut self, signature: [u8; 4], table: &dyn Aml) -> u64 {
        let at = self.bytes.len().next_multiple_of(64);
        self.bytes.resize(at, 0);
        self.index.push((signature, at));
        table.to_aml_bytes(&mut self.bytes);
        self.address + at as u64
    }
}

/// An empty table with a header.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER_LEN: u32 = 36;
    Sdt::new(signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

#[cfg(test)]
mod tests;
