//! A 32-bit program on a 64-bit Debian: it computes what it should, and as translated code.

use std::thread;
use std::time::Duration;

use guest_tests::{Lab, compile32, note, sha256};
use serde_json::Value;

const PROGRAM: &str = "code32";
/// How many blocks of 64 bytes the program hashes.
const BLOCKS: usize = 1 << 15;
/// Which Fibonacci number it computes, and the number.
const FIBONACCI: (u32, u64) = (27, 196_418);

#[test]
fn a_32_bit_program() {
    let Some(lab) = Lab::debian() else { return };
    let defines = [("BLOCKS", BLOCKS as u64), ("FIBONACCI", FIBONACCI.0.into())];
    let Some(program) = compile32(&lab, PROGRAM, &defines) else { return };
    let mut guest = lab
        .guest("code32")
        .cpus(1)
        .memory("512M")
        .disk(&program, "program", ",format=raw,readonly")
        .start();
    guest.log_in();
    guest.run("cat /dev/disk/by-id/virtio-program > /tmp/program; chmod +x /tmp/program");
    let before = interpreted(&lab);
    assert_eq!(guest.run("/tmp/program"), expected());
    let executed = interpreted(&lab) - before;
    note(&format!("{executed} instructions were interpreted meanwhile"));
    // Hashing alone takes about two thousand instructions for each block of data.
    assert!(executed < 1000 * BLOCKS as u64, "{executed} instructions were interpreted");
    // Programs of both kinds at once, which take turns.
    guest.run(
        "for i in 1 2 3; do /tmp/program > /tmp/out$i & done
         seq 1 20000 | gzip | gunzip | sha256sum > /dev/null; wait",
    );
    for i in 1..=3 {
        assert_eq!(guest.run(&format!("cat /tmp/out{i}")), expected());
    }
    guest.assert_no_complaints();
    guest.power_off();
    lab.close();
}

/// How many instructions the guest's processor has interpreted.
fn interpreted(lab: &Lab) -> u64 {
    loop {
        let output =
            lab.lodge().args(["stats", "code32", "--json"]).output().expect("lodge starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let look: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let processor = &look["processors"][0];
        // A busy processor may need more time to answer than `lodge stats` gives it.
        if processor["current"] == true {
            let count = &processor["counts"]["interpreted_instructions"];
            return count.as_u64().unwrap_or_else(|| panic!("no such count: {look:#}"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What the program prints.
fn expected() -> String {
    let mut number = 1u32;
    let bytes: Vec<u8> = (0..BLOCKS * 64)
        .map(|_| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (number >> 24) as u8
        })
        .collect();
    let pointers = (0..300_000u64).fold(1u64, |value, i| match i % 3 {
        0 => value.wrapping_add(i << 7),
        1 => value.wrapping_sub(i * 3),
        _ => (value ^ i).wrapping_mul(0x5851_f42d_4c95_7f2d),
    });
    let thread = 0x1111_1111u32 ^ 0x2222_2222 ^ (0x3333_3333 + 3 * 1000);
    // As processors have it.
    let old = 0x8626_2af6u32;
    format!(
        "sha256 {}\nfibonacci {:016x}\npointers {pointers:016x}\nthread {thread:016x}\nold {old:016x}\n",
        sha256(bytes.as_slice()),
        FIBONACCI.1
    )
}
