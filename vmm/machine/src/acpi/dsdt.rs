//! The Differentiated System Description Table: devices that cannot be discovered otherwise.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{Platform, slots, table};
use crate::slots as registers;

pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut aml = Vec::new();
    soft_off(platform).to_aml_bytes(&mut aml);
    let mut devices = Vec::new();
    for id in 0..platform.cpus {
        processor(id, &mut devices);
    }
    host_bridge(platform, &mut devices);
    motherboard(platform, &mut devices);
    legacy_devices(platform, &mut devices);
    generation_counter(platform, &mut devices);
    aml.extend(Scope::raw("\\_SB_".into(), devices));
    slots::slots(platform, &mut aml);
    generation_event(platform, &mut aml);
    slots::event(&mut aml);

    let mut dsdt = table(*b"DSDT", 2);
    dsdt.append_slice(&aml);
    dsdt
}

/// `\_S5`: what to write to SLP_TYP to switch the power off (7.4.2.6).
fn soft_off(platform: &Platform) -> Name {
    let value = platform.pm.soft_off;
    Name::new("_S5_".into(), &Package::new(vec![&value, &value, &ZERO, &ZERO]))
}

/// A processor device (8.4); `_UID` is its ID in the MADT.
fn processor(id: u32, out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    Device::new(format!("C{id:03X}").as_str().into(), vec![&hid, &uid]).to_aml_bytes(out);
}

/// The PCI Express host bridge and the windows that it decodes.
fn host_bridge(platform: &Platform, out: &mut Vec<u8>) {
    let map = platform.map;
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let bus = Name::new("_BBN".into(), &ZERO);
    let segment = Name::new("_SEG".into(), &ZERO);

    let mmio32 = map.pci_mmio32;
    let window32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        mmio32.start as u32,
        mmio32.last() as u32,
        None,
    );
    let window64 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        map.pci_mmio64.start,
        map.pci_mmio64.last(),
        None,
    );
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let config = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, CONFIG_PORTS - 1, None);
    let ports_above = AddressSpace::new_io(CONFIG_PORTS + 8, 0xffff, None);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![
            &buses,
            &config,
            &ports_below,
            &ports_above,
            &window32,
            &window64,
        ]),
    );

    let routing = Name::new("_PRT".into(), &interrupt_routing(platform.pci_intx));
    Device::new("PCI0".into(), vec![&hid, &cid, &uid, &bus, &segment, &resources, &routing])
        .to_aml_bytes(out);
}

const CONFIG_PORTS: u16 = 0xcf8;

/// `_PRT` (6.2.13): where the interrupt pins of devices lead.
fn interrupt_routing(gsis: [u32; 4]) -> PackageBuilder {
    const ALL_FUNCTIONS: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for device in 0..32u32 {
        for pin in 0..4u8 {
            let gsi = gsis[(device as usize + usize::from(pin)) % gsis.len()];
            let address = device << 16 | ALL_FUNCTIONS;
            // A zero in place of a link device: the pin is wired to `gsi` for good.
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    table
}

/// Addresses that are taken by the machine itself (PCI Firmware Specification 3.3, 4.1.2: the
/// configuration space must be reserved so).
fn motherboard(platform: &Platform, out: &mut Vec<u8>) {
    let map = platform.map;
    let pm = &platform.pm;
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let uid = Name::new("_UID".into(), &ZERO);
    let ecam = Memory32Fixed::new(true, map.ecam.start as u32, map.ecam.len as u32);
    let event = IO::new(pm.pm1a_event, pm.pm1a_event, 1, 4);
    let control = IO::new(pm.pm1a_control, pm.pm1a_control, 1, 2);
    let timer = IO::new(pm.timer, pm.timer, 1, 4);
    let gpe0 = IO::new(pm.gpe0, pm.gpe0, 1, pm.gpe0_len);
    let slots = IO::new(platform.slots, platform.slots, 1, registers::LEN);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&ecam, &event, &control, &timer, &gpe0, &slots]),
    );
    Device::new("MBRD".into(), vec![&hid, &uid, &resources]).to_aml_bytes(out);
}

/// The generation ID (Microsoft, "Virtual Machine Generation ID", 3.1): `ADDR` says where it is. Some
/// systems know no `_CID` of more than eight characters.
fn generation_counter(platform: &Platform, out: &mut Vec<u8>) {
    let at = platform.map.generation_id();
    let hid = Name::new("_HID".into(), &"LODG0001");
    let cid = Name::new("_CID".into(), &Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]));
    let ddn = Name::new("_DDN".into(), &"VM_Gen_Counter");
    let (low, high) = (at as u32, (at >> 32) as u32);
    let address = Package::new(vec![&low, &high]);
    let address = Name::new("ADDR".into(), &address);
    Device::new("VGEN".into(), vec![&hid, &cid, &ddn, &address]).to_aml_bytes(out);
}

/// `\_GPE._Enn` (5.6.4.1): an edge of the event is news of the generation ID.
fn generation_event(platform: &Platform, out: &mut Vec<u8>) {
    let device = Path::new("\\_SB_.VGEN");
    let value = 0x80u8;
    let notify = Notify::new(&device, &value);
    let name = format!("_E{:02X}", platform.generation_event);
    let method = Method::new(name.as_str().into(), 0, false, vec![&notify]);
    Scope::new("\\_GPE".into(), vec![&method]).to_aml_bytes(out);
}

/// What a PC has had at fixed ports since long ago, and fw_cfg.
fn legacy_devices(platform: &Platform, out: &mut Vec<u8>) {
    isa_device("RTC_", &EISAName::new("PNP0B00"), 0, &[(0x70, 2)], Some(8), out);
    isa_device("KBD_", &EISAName::new("PNP0303"), 0, &[(0x60, 1), (0x64, 1)], Some(1), out);
    for (i, &(port, irq)) in platform.serial.iter().enumerate() {
        let name = format!("COM{:X}", i + 1);
        let uid = (i + 1) as u8;
        isa_device(&name, &EISAName::new("PNP0501"), uid, &[(port, 8)], Some(irq), out);
    }
    isa_device("FWCF", &"QEMU0002", 0, &[(platform.fw_cfg, 12)], None, out);
}

fn isa_device(
    name: &str,
    id: &dyn Aml,
    uid: u8,
    ports: &[(u16, u8)],
    irq: Option<u32>,
    out: &mut Vec<u8>,
) {
    let hid = Name::new("_HID".into(), id);
    let uid = Name::new("_UID".into(), &uid);
    let ports: Vec<_> = ports.iter().map(|&(first, len)| IO::new(first, first, 1, len)).collect();
    // As on ISA: edge-triggered, active high, not shared.
    let irq = irq.map(|irq| Interrupt::new(true, true, false, false, irq));
    let mut list: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    list.extend(irq.as_ref().map(|irq| irq as &dyn Aml));
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(list));
    Device::new(name.into(), vec![&hid, &uid, &resources]).to_aml_bytes(out);
}
