//! The tables with a fixed layout: FADT, MADT, MCFG.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, table};

/// Fixed ACPI Description Table (5.2.9), for full hardware: fixed registers at ports.
pub(super) fn fadt(platform: &Platform, dsdt: u64, facs: u64) -> FADT {
    /// IAPC_BOOT_ARCH (5.2.9.3): devices on the ISA bus, an i8042, no VGA.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    /// Latencies beyond these say that C2 and C3 are not there.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let pm = &platform.pm;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton) // set means that there is none; the power button is a fixed one
        .flag(Flags::ResetRegSup);
    if pm.timer_is_32bit {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    // The tables lie below 1 MiB. Both widths are filled in: old systems know only the first.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    // A FACS may stand in one of its fields only (5.2.9, X_FIRMWARE_CTRL).
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = u16::from(platform.sci).into();
    // No SMI_CMD: the machine is always in ACPI mode (5.2.9, SMI_CMD).

    fadt.pm1a_evt_blk = u32::from(pm.pm1a_event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(pm.pm1a_event, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pm.pm1a_control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(pm.pm1a_control, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(pm.timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(pm.timer, 32, AccessSize::DwordAccess);
    fadt.gpe0_blk = u32::from(pm.gpe0).into();
    fadt.gpe0_blk_len = pm.gpe0_len;
    fadt.x_gpe0_blk = port(pm.gpe0, pm.gpe0_len.saturating_mul(8), AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = pm.cmos_century;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | HAS_8042 | NO_VGA).into();
    fadt.reset_reg = port(pm.reset, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm.reset_value;
    fadt.finalize()
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

/// Multiple APIC Description Table (5.2.12).
pub(super) fn madt(platform: &Platform) -> Sdt {
    /// A PC with two 8259s as well.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    /// MPS INTI flags (table 5.26): polarity in bits 1:0, trigger mode in bits 3:2.
    const AS_BUS_SAYS: u16 = 0;
    const ACTIVE_HIGH: u16 = 0b01;
    const LEVEL: u16 = 0b11 << 2;
    const ISA: u8 = 0;
    const ALL_PROCESSORS_8: u8 = 0xff;
    const ALL_PROCESSORS_32: u32 = 0xffff_ffff;
    /// xAPIC IDs end below this one, the broadcast address.
    const X2APIC_FROM: u32 = 0xff;
    const LINT1: u8 = 1;

    let mut madt = table(*b"APIC", 5);
    madt.append(platform.map.local_apic.start as u32);
    madt.append(PCAT_COMPAT);
    for id in 0..platform.cpus {
        if id < X2APIC_FROM {
            // Processor Local APIC (5.2.12.2)
            madt.append_slice(&[0, 8, id as u8, id as u8]);
            madt.append(ENABLED);
        } else {
            // Processor Local x2APIC (5.2.12.12)
            madt.append_slice(&[9, 16, 0, 0]);
            madt.append(id);
            madt.append(ENABLED);
            madt.append(id);
        }
    }
    // I/O APIC (5.2.12.3), for global system interrupts from 0
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append(platform.map.ioapic.start as u32);
    madt.append(0u32);
    // Interrupt Source Overrides (5.2.12.5): the 8254 is wired to pin 2, the SCI is a level.
    let overrides =
        [(0u8, 2u32, AS_BUS_SAYS), (platform.sci, platform.sci.into(), ACTIVE_HIGH | LEVEL)];
    for (source, gsi, flags) in overrides {
        madt.append_slice(&[2, 10, ISA, source]);
        madt.append(gsi);
        madt.append(flags);
    }
    // Local APIC NMI (5.2.12.7)
    madt.append_slice(&[4, 6, ALL_PROCESSORS_8]);
    madt.append(AS_BUS_SAYS);
    madt.append(LINT1);
    if platform.cpus > X2APIC_FROM {
        // Local x2APIC NMI (5.2.12.13)
        madt.append_slice(&[10, 12]);
        madt.append(AS_BUS_SAYS);
        madt.append(ALL_PROCESSORS_32);
        madt.append_slice(&[LINT1, 0, 0, 0]);
    }
    madt
}

/// PCI Express memory-mapped configuration space (PCI Firmware Specification 3.3, 4.1.2).
pub(super) fn mcfg(platform: &Platform) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(platform.map.ecam.start, 0, 0, 0);
    mcfg
}
