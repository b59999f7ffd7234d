//! The tables by their own rules, and as ACPICA reads them.

use std::path::Path;
use std::process::Command;

use super::*;

fn platform(map: &MemoryMap, cpus: u32) -> Platform<'_> {
    Platform {
        cpus,
        map,
        pm: PmRegisters {
            pm1a_event: 0x600,
            pm1a_control: 0x604,
            timer: 0x608,
            timer_is_32bit: true,
            gpe0: 0x620,
            gpe0_len: 16,
            reset: 0xcf9,
            reset_value: 6,
            soft_off: 5,
            cmos_century: 0x32,
        },
        sci: 9,
        pci_intx: [16, 17, 18, 19],
        serial: vec![(0x3f8, 4), (0x2f8, 3)],
        fw_cfg: 0x510,
        slots: 0x640,
        generation_event: 0,
    }
}

fn tables(cpus: u32) -> Tables {
    let map = MemoryMap::new(6 << 30, 40).unwrap();
    Tables::build(&platform(&map, cpus)).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A table by its address, cut to its own length.
fn at(tables: &Tables, address: u64) -> &[u8] {
    let bytes = &tables.bytes[(address - tables.address) as usize..];
    &bytes[..u32_at(bytes, 4) as usize]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

#[test]
fn the_tables_are_found_from_the_root_and_sum_to_zero() {
    let tables = tables(4);
    assert_eq!(tables.address % 16, 0);
    assert_eq!(&tables.bytes[..8], b"RSD PTR ");
    assert_eq!((sum(&tables.bytes[..20]), sum(&tables.bytes[..36])), (0, 0));
    let xsdt = at(&tables, u64_at(&tables.bytes, 24));
    assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
    let entries: Vec<_> = xsdt[36..].chunks(8).map(|e| at(&tables, u64_at(e, 0))).collect();
    let names: Vec<_> = entries.iter().map(|e| &e[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
    for table in &entries {
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
    }
    let fadt = entries[0];
    let dsdt = at(&tables, u64_at(fadt, 140));
    assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    let facs = u32_at(fadt, 36);
    assert_eq!(facs % 64, 0);
    assert_eq!(&at(&tables, facs.into())[..4], b"FACS");
}

#[test]
fn every_processor_is_listed_once() {
    for cpus in [1, 64, 300] {
        let tables = tables(cpus);
        let (_, start) = tables.index.iter().find(|(name, _)| name == b"APIC").unwrap();
        let madt = at(&tables, tables.address + *start as u64);
        let mut ids = Vec::new();
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            match rest[0] {
                0 => ids.push(u32::from(rest[3])),
                9 => ids.push(u32_at(rest, 4)),
                _ => {}
            }
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
    }
}

#[test]
fn too_many_processors_are_refused() {
    let map = MemoryMap::new(6 << 30, 40).unwrap();
    for cpus in [4000, 5000, u32::MAX] {
        assert!(Tables::build(&platform(&map, cpus)).is_err());
    }
}

/// Disassembles every table, and compiles the DSDT again: ACPICA finds no fault.
#[test]
fn acpica_reads_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl is not installed (Debian: acpica-tools)");
        return;
    }
    let tables = tables(2);
    let dir = tempfile::tempdir().unwrap();
    for (signature, start) in &tables.index {
        let name = String::from_utf8(signature.to_vec()).unwrap();
        let file = dir.path().join(format!("{name}.aml"));
        std::fs::write(&file, at(&tables, tables.address + *start as u64)).unwrap();
        let text = iasl(&["-d"], &file);
        assert!(!text.contains("rror") && !text.contains("arning"), "{name}: {text}");
    }
    let source = dir.path().join("DSDT.dsl");
    let text = iasl(&["-we", "-p", dir.path().join("again").to_str().unwrap()], &source);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    let text = std::fs::read_to_string(source).unwrap();
    for part in ["PNP0A08", "ACPI0007", "PNP0501", "_S5", "PNP0C02", "_EJ0", "_E01"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}

fn iasl(args: &[&str], file: &Path) -> String {
    let output = Command::new("iasl").args(args).arg(file).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    String::from_utf8_lossy(&text).into_owned()
}
