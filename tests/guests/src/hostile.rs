//! A guest that writes nonsense wherever a guest can write.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::tiny::{START, multiboot};

/// Where it keeps things, all below 640 KiB.
const STACK: u32 = 0x8_0000;
const IDT: u32 = 0x6_0000;
/// How many virtio devices there are, and behind it the address of each.
const DEVICES: u32 = 0x5_0000;
/// Where it has queues: RAM that nothing else is in.
const QUEUES: u32 = 0x20_0000;

/// Addresses of registers, and which bits to vary: local APIC, I/O APIC, PCI Express configuration
/// space, the window of PCI memory, HPET and its like, the test device, the last of ROM.
const MMIO: [(u32, u32); 8] = [
    (0xfee0_0000, 0xfff),
    (0xfec0_0000, 0xfff),
    (0xe000_0000, 0xf_ffff),
    (0xe000_8000, 0xfff),
    (0xc000_0000, 0x1fff_ffff),
    (0xfed0_0000, 0xffff),
    (0xff00_0000, 0xffff),
    (0xffff_0000, 0xffff),
];

/// The first of 256 model-specific registers each: P6's, APIC base and timers, MTRRs, x2APIC, KVM's
/// paravirtual ones, those of AMD.
const MSRS: [u32; 8] = [0, 0x100, 0x200, 0x800, 0x4b56_4d00, 0xc000_0080, 0xc001_0000, 0x4000_0000];

/// Ports of devices: both PICs, PIT, keyboard controller, RTC, COM1, PCI, fw_cfg, ACPI.
const PORTS: [u16; 16] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x60, 0x70, 0x71, 0x3f8, 0x3f9, 0xcf8, 0xcfc, 0x510, 0x514,
    0x608,
];

/// `struct virtio_pci_common_cfg` (virtio 1.2, 4.1.4.3), and where Lodge has the doorbells.
mod virtio {
    pub const FEATURE_SELECT: u32 = 0x08;
    pub const FEATURES: u32 = 0x0c;
    pub const STATUS: u32 = 0x14;
    pub const QUEUE_SELECT: u32 = 0x16;
    pub const QUEUE_SIZE: u32 = 0x18;
    pub const QUEUE_ENABLE: u32 = 0x1c;
    pub const QUEUE_DESC: u32 = 0x20;
    pub const DOORBELLS: u32 = 0x3000;
}

/// After so many rounds, it writes a full stop to the debug console; a power of two.
pub const HEARTBEAT: u32 = 1 << 10;

/// A multiboot kernel that does this for ever, or until it happens to switch itself off. Another
/// seed makes another course.
///
/// # Panics
///
/// If this module has a mistake.
#[must_use]
pub fn kernel(seed: u32) -> Vec<u8> {
    multiboot(&program(seed).expect("instructions that exist"))
}

/// The data that the code uses, and the address of each piece.
struct Data {
    bytes: Vec<u8>,
    gdtr: u32,
    idtr: u32,
    mmio: u32,
    msrs: u32,
    ports: u32,
}

impl Data {
    /// The data as it is to lie at this address.
    fn at(start: u32) -> Data {
        let mut bytes = Vec::new();
        let mut put = |piece: &[u8]| {
            let address = start + bytes.len() as u32;
            bytes.extend(piece);
            address
        };
        // Null, flat code, flat data (SDM Vol. 3, 3.4.5).
        let gdt = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64].map(u64::to_le_bytes);
        let gdt = put(gdt.as_flattened());
        let register = |limit: u16, base: u32| {
            let mut register = limit.to_le_bytes().to_vec();
            register.extend(base.to_le_bytes());
            register
        };
        let gdtr = put(&register(3 * 8 - 1, gdt));
        let idtr = put(&register(256 * 8 - 1, IDT));
        let mmio = put(MMIO
            .map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()])
            .as_flattened()
            .as_flattened());
        let msrs = put(MSRS.map(u32::to_le_bytes).as_flattened());
        let ports = put(PORTS.map(u16::to_le_bytes).as_flattened());
        Data { gdtr, idtr, mmio, msrs, ports, bytes }
    }
}

/// `jmp rel32`.
const JUMP: u8 = 0xe9;
const JUMP_LEN: u32 = 5;

fn program(seed: u32) -> Result<Vec<u8>, IcedError> {
    let data = Data::at(START + JUMP_LEN);
    let len = data.bytes.len() as u32;
    let code = code(seed, &data, START + JUMP_LEN + len)?;
    Ok([&[JUMP], &len.to_le_bytes()[..], &data.bytes, &code].concat())
}

fn code(seed: u32, data: &Data, start: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let (mut random, mut value) = (a.create_label(), a.create_label());
    let (mut next, mut begin) = (a.create_label(), a.create_label());

    // What is called for is the address behind the call.
    a.cli()?;
    a.mov(esp, STACK)?;
    a.call(begin)?;
    // Every vector leads here: whatever happens, it goes on.
    a.mov(esp, STACK)?;
    a.jmp(next)?;

    a.set_label(&mut begin)?;
    a.pop(eax)?;
    a.lgdt(fword_ptr(data.gdtr))?;
    a.mov(edi, IDT)?;
    a.mov(ecx, 256)?;
    let mut gate = a.create_label();
    a.set_label(&mut gate)?;
    // A 32-bit interrupt gate for code segment 8 (SDM Vol. 3, 6.11).
    a.mov(word_ptr(edi), ax)?;
    a.mov(word_ptr(edi + 2), 8)?;
    a.mov(word_ptr(edi + 4), 0x8e00)?;
    a.mov(edx, eax)?;
    a.shr(edx, 16)?;
    a.mov(word_ptr(edi + 6), dx)?;
    a.add(edi, 8)?;
    a.loop_(gate)?;
    a.lidt(fword_ptr(data.idtr))?;
    // A restart by its own doing takes another course, too.
    a.rdtsc()?;
    a.lea(ebx, ptr(eax + seed as i32))?;
    a.or(ebx, 1)?;
    find_devices(&mut a)?;

    a.set_label(&mut next)?;
    a.sti()?;
    let mut silent = a.create_label();
    a.inc(ebp)?;
    a.test(ebp, (HEARTBEAT - 1) as i32)?;
    a.jne(silent)?;
    a.mov(al, i32::from(b'.'))?;
    a.mov(edx, 0xe9)?;
    a.out(dx, al)?;
    a.set_label(&mut silent)?;
    a.call(random)?;
    let mut ways = [(); 8].map(|()| a.create_label());
    for (number, way) in ways.iter().enumerate().skip(1) {
        a.mov(edx, eax)?;
        a.shr(edx, 29)?;
        a.cmp(edx, number as i32)?;
        a.je(*way)?;
    }

    // A port, any or a device's.
    a.set_label(&mut ways[0])?;
    a.call(random)?;
    a.mov(edx, eax)?;
    let mut any = a.create_label();
    a.test(eax, 0x10_0000)?;
    a.je(any)?;
    a.and(eax, 15)?;
    a.movzx(edx, word_ptr(eax * 2 + data.ports))?;
    a.set_label(&mut any)?;
    a.call(value)?;
    a.test(ebx, 0x200)?;
    let mut read = a.create_label();
    a.je(read)?;
    a.out(dx, al)?;
    a.out(dx, ax)?;
    a.out(dx, eax)?;
    a.set_label(&mut read)?;
    a.in_(al, dx)?;
    a.in_(ax, dx)?;
    a.in_(eax, dx)?;
    a.jmp(next)?;

    // A memory-mapped register.
    a.set_label(&mut ways[1])?;
    a.call(random)?;
    a.and(eax, 7)?;
    a.mov(edi, dword_ptr(eax * 8 + data.mmio))?;
    a.mov(esi, dword_ptr(eax * 8 + (data.mmio + 4)))?;
    a.call(random)?;
    a.and(eax, esi)?;
    a.add(edi, eax)?;
    a.call(value)?;
    a.test(ebx, 0x400)?;
    let mut odd = a.create_label();
    a.jne(odd)?;
    a.and(edi, !3)?;
    a.mov(dword_ptr(edi), eax)?;
    a.mov(eax, dword_ptr(edi))?;
    a.jmp(next)?;
    a.set_label(&mut odd)?;
    a.mov(byte_ptr(edi), al)?;
    a.mov(word_ptr(edi), ax)?;
    a.lock().xadd(dword_ptr(edi), eax)?;
    a.mov(ecx, 20)?;
    a.rep().movsd()?;
    a.jmp(next)?;

    // A model-specific register, and a leaf of CPUID.
    a.set_label(&mut ways[2])?;
    a.call(random)?;
    a.mov(edx, eax)?;
    a.and(eax, 7)?;
    a.mov(ecx, dword_ptr(eax * 4 + data.msrs))?;
    a.shr(edx, 8)?;
    a.and(edx, 0xff)?;
    a.add(ecx, edx)?;
    a.call(value)?;
    a.mov(edx, eax)?;
    a.call(value)?;
    a.test(ebx, 0x800)?;
    let mut rdmsr = a.create_label();
    a.je(rdmsr)?;
    a.wrmsr()?;
    a.set_label(&mut rdmsr)?;
    a.rdmsr()?;
    a.jmp(next)?;

    // A register in configuration space, seldom: it moves devices away.
    a.set_label(&mut ways[3])?;
    a.test(ebx, 0xff_0000)?;
    a.jne(next)?;
    a.call(random)?;
    a.and(eax, 0x3f_fffc)?;
    a.or(eax, 0x8000_0000_u32 as i32)?;
    a.mov(edx, 0xcf8)?;
    a.out(dx, eax)?;
    a.call(value)?;
    a.mov(edx, 0xcfc)?;
    a.out(dx, eax)?;
    a.jmp(next)?;

    // Any register of a virtio device.
    a.set_label(&mut ways[4])?;
    pick_device(&mut a, random, next)?;
    a.call(random)?;
    a.and(eax, 0x7fff)?;
    a.add(edi, eax)?;
    a.call(value)?;
    a.test(ebx, 0x1000)?;
    let mut byte = a.create_label();
    a.jne(byte)?;
    a.mov(dword_ptr(edi), eax)?;
    a.jmp(next)?;
    a.set_label(&mut byte)?;
    a.mov(byte_ptr(edi), al)?;
    a.jmp(next)?;

    // A virtio device set up as a driver would, but for the odd address.
    a.set_label(&mut ways[5])?;
    a.test(ebx, 0xf_0000)?;
    a.jne(next)?;
    pick_device(&mut a, random, next)?;
    set_up_device(&mut a, random, value)?;
    a.jmp(next)?;

    // Nonsense in the queues: a descriptor, and an entry of the ring of available ones.
    a.set_label(&mut ways[6])?;
    a.call(random)?;
    a.and(eax, 0x1_f3ff)?;
    a.and(eax, !15)?;
    a.lea(edi, ptr(eax + QUEUES))?;
    a.call(value)?;
    a.mov(dword_ptr(edi), eax)?;
    a.call(value)?;
    a.test(ebx, 0x7000)?;
    let mut high = a.create_label();
    a.je(high)?;
    a.xor(eax, eax)?;
    a.set_label(&mut high)?;
    a.mov(dword_ptr(edi + 4), eax)?;
    a.call(value)?;
    a.mov(dword_ptr(edi + 8), eax)?;
    a.call(random)?;
    // Flags and the next descriptor, mostly one that exists.
    a.and(eax, 0x1f_0007)?;
    a.mov(dword_ptr(edi + 12), eax)?;
    a.and(edi, !0x3fff)?;
    a.call(random)?;
    a.movzx(ecx, al)?;
    a.and(ecx, 0x1f)?;
    a.shr(eax, 27)?;
    a.mov(word_ptr(edi + ecx * 2 + 0x1004), ax)?;
    a.jmp(next)?;

    // A doorbell, with something or nothing to fetch.
    a.set_label(&mut ways[7])?;
    pick_device(&mut a, random, next)?;
    a.call(random)?;
    a.mov(ecx, eax)?;
    a.and(ecx, 3)?;
    a.mov(esi, ecx)?;
    a.shl(esi, 14)?;
    a.shr(eax, 28)?;
    a.add(word_ptr(esi + (QUEUES + 0x1002)), ax)?;
    a.mov(dword_ptr(edi + ecx * 4 + virtio::DOORBELLS), ecx)?;
    a.jmp(next)?;

    // The next number of the course, in EAX (Marsaglia, "Xorshift RNGs").
    a.set_label(&mut random)?;
    for (shift, left) in [(13, true), (17, false), (5, true)] {
        a.mov(eax, ebx)?;
        if left {
            a.shl(eax, shift)?
        } else {
            a.shr(eax, shift)?
        }
        a.xor(ebx, eax)?;
    }
    a.mov(eax, ebx)?;
    a.ret()?;

    // A number of any magnitude, in EAX.
    a.set_label(&mut value)?;
    a.push(ecx)?;
    a.call(random)?;
    a.mov(ecx, eax)?;
    a.call(random)?;
    a.shr(eax, cl)?;
    a.pop(ecx)?;
    a.ret()?;

    a.assemble(start.into())
}

/// Gives each virtio device on bus 0 a place below 4 GiB, and notes it.
fn find_devices(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut device, mut skip) = (a.create_label(), a.create_label());
    a.mov(dword_ptr(DEVICES), 0)?;
    a.xor(esi, esi)?;
    a.set_label(&mut device)?;
    // Configuration mechanism #1: bus 0, device ESI, function 0, register 0.
    a.mov(edi, esi)?;
    a.shl(edi, 11)?;
    a.or(edi, 0x8000_0000_u32 as i32)?;
    let select = |a: &mut CodeAssembler, register: u32| -> Result<(), IcedError> {
        a.lea(eax, ptr(edi + register))?;
        a.mov(edx, 0xcf8)?;
        a.out(dx, eax)?;
        a.mov(edx, 0xcfc)
    };
    select(a, 0)?;
    a.in_(eax, dx)?;
    a.cmp(ax, 0x1af4)?;
    a.jne(skip)?;
    select(a, 0x10)?;
    a.mov(eax, esi)?;
    a.shl(eax, 20)?;
    a.add(eax, 0xc000_0000_u32 as i32)?;
    a.mov(ecx, dword_ptr(DEVICES))?;
    a.mov(dword_ptr(ecx * 4 + (DEVICES + 4)), eax)?;
    a.inc(dword_ptr(DEVICES))?;
    a.out(dx, eax)?;
    select(a, 0x14)?;
    a.xor(eax, eax)?;
    a.out(dx, eax)?;
    select(a, 0x04)?;
    // Memory and bus mastering.
    a.mov(eax, 6)?;
    a.out(dx, eax)?;
    a.set_label(&mut skip)?;
    a.inc(esi)?;
    a.cmp(esi, 32)?;
    a.jb(device)
}

/// The address of one of the devices, in EDI.
fn pick_device(a: &mut CodeAssembler, random: CodeLabel, none: CodeLabel) -> Result<(), IcedError> {
    a.cmp(dword_ptr(DEVICES), 0)?;
    a.je(none)?;
    a.call(random)?;
    a.mul(dword_ptr(DEVICES))?;
    a.mov(edi, dword_ptr(edx * 4 + (DEVICES + 4)))
}

/// Resets the device at EDI, accepts what it offers, and gives it four queues.
fn set_up_device(
    a: &mut CodeAssembler,
    random: CodeLabel,
    value: CodeLabel,
) -> Result<(), IcedError> {
    use virtio::*;
    // ACKNOWLEDGE, DRIVER (virtio 1.2, 3.1.1).
    for status in [0, 1, 3] {
        a.mov(byte_ptr(edi + STATUS), status)?;
    }
    for half in [0, 1] {
        a.mov(dword_ptr(edi), half)?;
        a.mov(dword_ptr(edi + FEATURE_SELECT), half)?;
        a.mov(eax, dword_ptr(edi + 4))?;
        a.mov(dword_ptr(edi + FEATURES), eax)?;
    }
    // FEATURES_OK.
    a.mov(byte_ptr(edi + STATUS), 0xb)?;
    for queue in 0..4_u32 {
        a.mov(word_ptr(edi + QUEUE_SELECT), queue)?;
        a.mov(word_ptr(edi + QUEUE_SIZE), 32)?;
        let queue = QUEUES + queue * 0x4000;
        for (part, address) in [queue, queue + 0x1000, queue + 0x2000].into_iter().enumerate() {
            let register = QUEUE_DESC + part as u32 * 8;
            a.mov(dword_ptr(edi + register), address)?;
            a.mov(dword_ptr(edi + register + 4), 0)?;
        }
        // Now and then, one of the parts is elsewhere.
        let mut usual = a.create_label();
        a.call(random)?;
        a.test(eax, 0xf00)?;
        a.jne(usual)?;
        a.and(eax, 4)?;
        a.mov(ecx, eax)?;
        a.call(value)?;
        a.mov(dword_ptr(edi + ecx * 4 + QUEUE_DESC), eax)?;
        a.set_label(&mut usual)?;
        a.mov(word_ptr(edi + QUEUE_ENABLE), 1)?;
    }
    // DRIVER_OK.
    a.mov(byte_ptr(edi + STATUS), 0xf)
}
