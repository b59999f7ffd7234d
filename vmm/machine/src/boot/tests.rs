//! The loaders against kernels that are made here, and against hostile ones.

use std::io::Write;
use std::path::Path;

use mem::GuestAddress;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::Bytes;
use vmm_api::{FailureKind, GuestModule};

use super::source::{Fields, Record};
use super::*;

const RSDP: u64 = 0xe_0000;
/// hlt; jmp .-1
const CODE: &[u8] = &[0xf4, 0xeb, 0xfd];

struct Bench {
    dir: TempDir,
    config: BootConfig,
    memory: GuestMemory,
    map: MemoryMap,
}

impl Bench {
    fn new(kernel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let map = MemoryMap::new(64 << 20, 40).unwrap();
        let config = BootConfig {
            kernel: dir.path().join("kernel"),
            initrd: None,
            cmdline: "console=ttyS0".to_owned(),
            modules: Vec::new(),
        };
        std::fs::write(&config.kernel, kernel).unwrap();
        Self { config, memory: mem::allocate(map.ram()).unwrap(), map, dir }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self) -> Result<Entry, BootError> {
        load(&self.config, &BootFiles::open(&self.config)?, &self.memory, &self.map, RSDP)
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn string(&self, addr: u64) -> String {
        let bytes = self.bytes(addr, 200);
        String::from_utf8(bytes.split(|&b| b == 0).next().unwrap().to_vec()).unwrap()
    }
}

/// An ELF file with one segment that holds `code` and then 4 KiB of zeros.
fn elf(is_64bit: bool, paddr: u64, code: &[u8], notes: &[u8]) -> Vec<u8> {
    let header_len = if is_64bit { 64 } else { 52 };
    let program_header_len = if is_64bit { 56 } else { 32 };
    let code_at = header_len + 2 * program_header_len;
    let notes_at = code_at + code.len();
    let mut file = Record::new(code_at);
    file.put(0, &[0x7f, b'E', b'L', b'F', if is_64bit { 2 } else { 1 }, 1, 1]);
    file.put(16, &2u16.to_le_bytes());
    file.put(18, &if is_64bit { 62u16 } else { 3 }.to_le_bytes());
    let segments = [(1u32, code_at, code.len(), code.len() + 4096), (4, notes_at, notes.len(), 0)];
    if is_64bit {
        file.put_u64(24, 0xffff_ffff_8000_0000); // virtual: 0 of the segment
        file.put_u64(32, header_len as u64);
        file.put(54, &56u16.to_le_bytes());
        file.put(56, &2u16.to_le_bytes());
        for (i, (kind, offset, file_len, memory_len)) in segments.into_iter().enumerate() {
            let at = header_len + i * program_header_len;
            file.put_u32(at, kind);
            file.put_u64(at + 8, offset as u64);
            file.put_u64(at + 16, 0xffff_ffff_8000_0000);
            file.put_u64(at + 24, paddr);
            file.put_u64(at + 32, file_len as u64);
            file.put_u64(at + 40, memory_len as u64);
            file.put_u64(at + 48, 4);
        }
    } else {
        file.put_u32(24, paddr as u32);
        file.put_u32(28, header_len as u32);
        file.put(42, &32u16.to_le_bytes());
        file.put(44, &2u16.to_le_bytes());
        for (i, (kind, offset, file_len, memory_len)) in segments.into_iter().enumerate() {
            let at = header_len + i * program_header_len;
            let fields = [
                kind,
                offset as u32,
                paddr as u32,
                paddr as u32,
                file_len as u32,
                memory_len as u32,
            ];
            for (j, field) in fields.into_iter().enumerate() {
                file.put_u32(at + j * 4, field);
            }
        }
    }
    [&file.0, code, notes].concat()
}

fn xen_note(entry: u32) -> Vec<u8> {
    let words = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Where a bzImage has its payload.
const PAYLOAD: usize = 1024 + 0x400;

/// A bzImage of boot protocol 2.15 with `payload`, 64-bit or not.
fn bzimage(payload: &[u8], is_64bit: bool) -> Vec<u8> {
    // The decompressor that follows the payload.
    let end = (PAYLOAD + payload.len()).next_multiple_of(16) + 0x200;
    let mut file = Record::new(PAYLOAD);
    file.put_u8(0x1f1, 1);
    file.put_u32(0x1f4, (end - 1024) as u32 / 16);
    file.put(0x1fe, &0xaa55u16.to_le_bytes());
    file.put(0x200, &[0xeb, 0x66]);
    file.put(0x202, b"HdrS");
    file.put(0x206, &0x20fu16.to_le_bytes());
    file.put_u8(0x211, 1);
    file.put_u32(0x214, 0x10_0000);
    file.put_u32(0x22c, 0x7fff_ffff);
    file.put_u8(0x234, is_64bit.into());
    file.put(0x236, &u16::from(is_64bit).to_le_bytes());
    file.put_u32(0x238, 2047);
    file.put_u32(0x248, 0x400);
    file.put_u32(0x24c, payload.len() as u32);
    file.put_u64(0x258, 0x100_0000);
    file.put_u32(0x260, 0x80_0000);
    file.put(1024 + 0x200, CODE);
    let mut file = [&file.0, payload].concat();
    file.resize(end, 0);
    file
}

fn multiboot_header(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    [0x1bad_b002, flags, checksum].into_iter().chain(addresses).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_compressed_bzimage_is_entered_at_its_vmlinux() {
    let vmlinux = elf(true, 0x100_0000, CODE, &[]);
    let mut bench = Bench::new(&bzimage(&gzip(&vmlinux), true));
    bench.config.initrd = Some(bench.file("initrd", &[0x5a; 5000]));
    let Entry::Linux64 { rip, zero_page, page_table, gdt } = bench.load().unwrap() else {
        panic!("another protocol");
    };
    assert_eq!(rip, 0x100_0000);
    assert_eq!(bench.bytes(rip, 3), CODE);
    assert_eq!(bench.bytes(gdt + 16, 8), 0x00af_9b00_0000_ffff_u64.to_le_bytes());

    let page = bench.bytes(zero_page, 4096);
    assert_eq!(page.u64(0x70), RSDP);
    assert_eq!(page.u32(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(page.u8(0x210), 0xff);
    assert_eq!(bench.string(page.u32(0x228).into()), "console=ttyS0");
    assert_eq!(page.u32(0x21c), 5000);
    let initrd = u64::from(page.u32(0x218));
    assert_eq!(initrd % 4096, 0);
    assert_eq!(bench.bytes(initrd, 5000), [0x5a; 5000]);
    assert_eq!(usize::from(page.u8(0x1e8)), bench.map.e820().len());
    assert_eq!((page.u64(0x2d0), page.u64(0x2d8), page.u32(0x2e0)), (0, 0x9_fc00, 1));

    // A walk of the page tables, as the processor does it.
    for addr in [0u64, 0x100_0123, 0xffff_f000] {
        let pml4e = bench.bytes(page_table + (addr >> 39) * 8, 8).u64(0);
        let pdpte = bench.bytes((pml4e & !0xfff) + (addr >> 30 & 0x1ff) * 8, 8).u64(0);
        let pde = bench.bytes((pdpte & !0xfff) + (addr >> 21 & 0x1ff) * 8, 8).u64(0);
        assert_eq!(pde & 0x83, 0x83);
        assert_eq!(pde & !0x1f_ffff | addr & 0x1f_ffff, addr);
    }
}

#[test]
fn an_unknown_compression_is_left_to_the_kernel() {
    let bench = Bench::new(&bzimage(b"\x89LZO and so on", true));
    let Entry::Linux64 { rip, .. } = bench.load().unwrap() else { panic!("another protocol") };
    assert_eq!(rip, 0x100_0200);
    assert_eq!(bench.bytes(rip, 3), CODE);
}

#[test]
fn a_32_bit_bzimage_is_entered_by_the_32_bit_protocol() {
    let bench = Bench::new(&bzimage(&gzip(b"whatever"), false));
    let Entry::Linux32 { eip, zero_page, gdt } = bench.load().unwrap() else {
        panic!("another protocol");
    };
    assert_eq!(eip, 0x10_0000);
    assert_eq!(bench.bytes(0x10_0200, 3), CODE);
    assert_eq!(bench.bytes(gdt + 16, 8), 0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    assert_eq!(bench.bytes(zero_page, 4096).u64(0x70), RSDP);
}

#[test]
fn an_elf_kernel_with_a_note_is_entered_by_pvh() {
    let mut bench = Bench::new(&elf(true, 0x100_0000, CODE, &xen_note(0x100_0001)));
    bench.config.initrd = Some(bench.file("initrd", b"abc"));
    let Entry::Pvh { eip, start_info } = bench.load().unwrap() else { panic!("other protocol") };
    assert_eq!(eip, 0x100_0001);
    let info = bench.bytes(start_info, 56);
    assert_eq!((info.u32(0), info.u32(4)), (0x336e_c578, 1));
    assert_eq!(bench.string(info.u64(24)), "console=ttyS0");
    assert_eq!(info.u64(32), RSDP);
    assert_eq!(info.u32(12), 1);
    let module = bench.bytes(info.u64(16), 32);
    assert_eq!(bench.bytes(module.u64(0), 3), b"abc");
    assert_eq!(module.u64(8), 3);
    let map = bench.bytes(info.u64(40), info.u32(48) as usize * 24);
    assert_eq!((map.u64(0), map.u64(8), map.u32(16)), (0, 0x9_fc00, 1));
}

#[test]
fn an_elf_kernel_without_a_note_is_entered_by_the_64_bit_protocol() {
    let bench = Bench::new(&elf(true, 0x100_0000, CODE, &[]));
    let Entry::Linux64 { rip, zero_page, .. } = bench.load().unwrap() else {
        panic!("another protocol");
    };
    assert_eq!(rip, 0x100_0000);
    let page = bench.bytes(zero_page, 4096);
    assert_eq!((page.u16(0x1fe), page.u32(0x202)), (0xaa55, u32::from_le_bytes(*b"HdrS")));
}

#[test]
fn a_flat_multiboot_kernel_gets_its_modules_and_memory_map() {
    // The image begins 16 bytes into the file, its header 32 bytes further.
    let header =
        multiboot_header(0x1_0003, [0x10_0020, 0x10_0000, 0x10_0040, 0x10_2000, 0x10_0030]);
    let file = [&[0xee; 16][..], &[0x11; 32], &header, &[0x22; 100]].concat();
    let mut bench = Bench::new(&file);
    bench.config.modules = vec![
        GuestModule { path: bench.file("one", b"first"), cmdline: "a b".to_owned() },
        GuestModule { path: bench.file("two", &[7; 5000]), cmdline: String::new() },
    ];
    let Entry::Multiboot { eip, info } = bench.load().unwrap() else { panic!("other protocol") };
    assert_eq!(eip, 0x10_0030);
    assert_eq!(bench.bytes(0x10_0000, 32), [0x11; 32]);
    assert_eq!(bench.bytes(0x10_0020, 4), 0x1bad_b002u32.to_le_bytes());
    assert_eq!(bench.bytes(0x10_0040, 4), [0; 4], "nothing beyond load_end");

    let info = bench.bytes(info, 116);
    assert_eq!(info.u32(0), 0x24d);
    assert_eq!((info.u32(4), info.u32(8)), (639, 63 << 10));
    let cmdline = bench.string(info.u32(16).into());
    assert_eq!(cmdline, format!("{} console=ttyS0", bench.config.kernel.display()));
    assert_eq!(info.u32(20), 2);
    let modules = bench.bytes(info.u32(24).into(), 32);
    let (start, end) = (modules.u32(0), modules.u32(4));
    assert!(start >= 0x10_2000 && start % 4096 == 0);
    assert_eq!(bench.bytes(start.into(), (end - start) as usize), b"first");
    assert_eq!(bench.string(modules.u32(8).into()), "a b");
    assert_eq!(modules.u32(20) - modules.u32(16), 5000);
    let map = bench.bytes(info.u32(48).into(), info.u32(44) as usize);
    assert_eq!((map.u32(0), map.u64(4), map.u64(12), map.u32(20)), (20, 0, 0x9_fc00, 1));
}

#[test]
fn elf_multiboot_kernels_of_both_widths_are_loaded() {
    for is_64bit in [false, true] {
        let code = [multiboot_header(3, [0; 5]), CODE.to_vec()].concat();
        let bench = Bench::new(&elf(is_64bit, 0x10_0000, &code, &[]));
        let Entry::Multiboot { eip, .. } = bench.load().unwrap() else { panic!("not multiboot") };
        assert_eq!(eip, 0x10_0000);
        assert_eq!(bench.bytes(0x10_0020, 3), CODE);
    }
}

#[track_caller]
fn refused(bench: &Bench, kind: FailureKind, part: &str) {
    let error = bench.load().unwrap_err();
    let text = error.to_string();
    assert!(text.contains(part), "{text}");
    assert_eq!(error.kind(), kind, "{text}");
}

#[test]
fn foreign_and_missing_files_are_refused_by_name() {
    refused(&Bench::new(b""), FailureKind::Artifact, "no known type");
    refused(&Bench::new(&[0; 70_000]), FailureKind::Artifact, "no known type");
    refused(&Bench::new(b"\x7fELF"), FailureKind::Artifact, "ELF");
    let mut arm = elf(true, 0x100_0000, CODE, &[]);
    arm[18] = 183;
    refused(&Bench::new(&arm), FailureKind::Artifact, "another architecture");
    let program = std::fs::read("/bin/sh").unwrap();
    refused(&Bench::new(&program), FailureKind::Artifact, "under an operating system");
    let i386 = elf(false, 0x10_0000, CODE, &[]);
    refused(&Bench::new(&i386), FailureKind::Artifact, "32-bit ELF");

    let mut bench = Bench::new(b"");
    bench.config.kernel = "/nonexistent/vmlinuz".into();
    refused(&bench, FailureKind::Artifact, "/nonexistent/vmlinuz");
    bench.config.kernel = "/".into();
    refused(&bench, FailureKind::Artifact, "not a regular file");
    bench.config.kernel = "/dev/zero".into();
    refused(&bench, FailureKind::Artifact, "not a regular file");
}

#[test]
fn damaged_bzimages_are_refused() {
    let payload = gzip(&elf(true, 0x100_0000, CODE, &[]));
    let good = bzimage(&payload, true);
    for len in [0x210, 0x28f, 0x300, 0x600, PAYLOAD + payload.len(), good.len() - 1] {
        refused(&Bench::new(&good[..len]), FailureKind::Artifact, "damaged");
    }
    let mut bad = good.clone();
    let crc = PAYLOAD + payload.len() - 8;
    bad[crc] ^= 1;
    refused(&Bench::new(&bad), FailureKind::Artifact, "does not decompress");
    let mut old = good;
    old[0x206] = 5;
    refused(&Bench::new(&old), FailureKind::Artifact, "before 2.6.22");
}

#[test]
fn what_finds_no_room_is_refused() {
    let far = elf(true, 0x1000_0000, CODE, &[]);
    refused(&Bench::new(&far), FailureKind::Configuration, "more memory");
    let rom = elf(true, 0xf_0000, CODE, &[]);
    refused(&Bench::new(&rom), FailureKind::Configuration, "0xf0000");

    let mut bench = Bench::new(&elf(true, 0x100_0000, CODE, &[]));
    let initrd = bench.dir.path().join("huge");
    std::fs::File::create(&initrd).unwrap().set_len(1 << 40).unwrap();
    bench.config.initrd = Some(initrd);
    refused(&bench, FailureKind::Configuration, "initial RAM disk");

    let mut bench = Bench::new(&bzimage(&gzip(&elf(true, 0x100_0000, CODE, &[])), true));
    bench.config.cmdline = "x".repeat(2048);
    refused(&bench, FailureKind::Configuration, "at most 2047");
    bench.config.cmdline = "a\0b".to_owned();
    refused(&bench, FailureKind::Configuration, "NUL");
    bench.config.cmdline.clear();
    bench.config.modules = vec![GuestModule { path: bench.file("m", b""), cmdline: String::new() }];
    refused(&bench, FailureKind::Configuration, "multiboot");
}

#[test]
fn overlapping_segments_are_refused() {
    let mut file = elf(true, 0x100_0000, CODE, &[]);
    // The second program header becomes a copy of the first.
    file.copy_within(64..64 + 56, 64 + 56);
    refused(&Bench::new(&file), FailureKind::Configuration, "no room");
}

/// Runs against the kernel that `LODGE_TEST_KERNEL` names, if it names one.
#[test]
fn a_distribution_kernel_is_loaded() {
    let Some(kernel) = std::env::var_os("LODGE_TEST_KERNEL") else {
        eprintln!("SKIPPED: LODGE_TEST_KERNEL names no bzImage");
        return;
    };
    let map = MemoryMap::new(256 << 20, 40).unwrap();
    let memory = mem::allocate(map.ram()).unwrap();
    let config = BootConfig {
        kernel: Path::new(&kernel).to_owned(),
        initrd: None,
        cmdline: String::new(),
        modules: Vec::new(),
    };
    let entry = load(&config, &BootFiles::open(&config).unwrap(), &memory, &map, RSDP).unwrap();
    assert!(matches!(entry, Entry::Linux64 { rip: 0x100_0000, .. }), "{entry:x?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_kernels_never_panic(
        which in 0..6usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = match which {
            0 => bzimage(&gzip(&elf(true, 0x100_0000, CODE, &[])), true),
            1 => bzimage(b"\x89LZO", true),
            2 => bzimage(b"", false),
            3 => elf(true, 0x100_0000, CODE, &xen_note(0x100_0000)),
            4 => elf(false, 0x10_0000, &multiboot_header(3, [0; 5]), &[]),
            _ => multiboot_header(0x1_0003, [0x10_0000, 0x10_0000, 0, 0, 0x10_0020]),
        };
        // Headers are where it hurts: half of the changes go there.
        for (i, (at, byte)) in changes.iter().enumerate() {
            let range = if i % 2 == 0 { file.len() } else { file.len().min(0x290) };
            let at = at.index(range);
            file[at] = *byte;
        }
        if cut.index(4) == 0 {
            file.truncate(cut.index(file.len()));
        }
        let _ = Bench::new(&file).load();
    }
}
