//! A guest whose memory is of huge pages.

mod common;

use accel::{Exit, StoredPages};
use accel_kvm::KvmAccelerator;
use common::{Board, CODE, END, has_kvm, machine, memory, model, start};
use iced_x86::code_asm::*;
use mem::vm_memory::{Bytes, GuestMemoryBackend};
use mem::{GuestAddress, RamRange};

/// Where the second huge page begins.
const SECOND: u64 = 4 << 20;

#[test]
fn a_guest_runs_in_huge_pages() {
    if !has_kvm() {
        return;
    }
    let ranges = [RamRange { start: 0, len: 0xa_0000 }, RamRange { start: 0xc_0000, len: 6 << 20 }];
    let huge = match mem::allocate_huge(&ranges) {
        Ok(huge) => huge,
        Err(error @ (mem::Error::HugePages { .. } | mem::Error::NoHugePages { .. })) => {
            eprintln!("SKIPPED: {error}");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    // One store to each side of where they begin, and one in the second.
    let small = memory(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, 7)?;
        for place in [(2 << 20) - 4, 2 << 20, SECOND as u32 + 0x5008] {
            a.mov(ebx, place)?;
            a.inc(dword_ptr(rbx))?;
        }
        a.out(u32::from(END), eax)?;
        a.jmp(again)
    });
    let mut low = vec![0; common::RAM as usize];
    small.read_slice(&mut low, GuestAddress(0)).unwrap();
    huge.write_slice(&low, GuestAddress(0)).unwrap();
    // Page tables for the first 6 MiB, where the others have 2 MiB.
    for page in [1u64, 2] {
        let entry = page << 21 | 0x83;
        huge.write_slice(&entry.to_le_bytes(), GuestAddress(common::TABLES + 0x2000 + page * 8))
            .unwrap();
    }
    assert!(huge.num_regions() > 2 && CODE < common::RAM);
    let kvm = KvmAccelerator::open().unwrap();
    let (vm, mut vcpu) = machine(&kvm, &model(), &huge);
    start(vcpu.as_mut());
    let board = Board::default();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    // A page of 4 KiB is what is noted, also here.
    vm.log_stores(true).unwrap();
    assert_eq!(board.run(vcpu.as_mut()), Exit::Kicked);
    let stored = vm.take_stores().unwrap();
    let stored: Vec<u64> = stored.iter().flat_map(StoredPages::addresses).collect();
    assert_eq!(stored, [(2 << 20) - 0x1000, 2 << 20, SECOND + 0x5000]);
    for place in [(2 << 20) - 4, 2 << 20, SECOND + 0x5008] {
        assert_eq!(huge.read_obj::<u32>(GuestAddress(place)).unwrap(), 2);
    }
}
