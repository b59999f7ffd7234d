//! The I/O APIC and the 8259 pair as the router joins them.
#![no_main]

use arbitrary::Arbitrary;
use irqchip::{PicPort, Router};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::registers::{Access, Bus};

#[derive(Arbitrary, Debug)]
enum Step {
    Access(Access),
    /// A write to the register that is selected by the first number.
    Register(u8, u32),
    Gsi(u32, bool),
    Eoi(u8),
    Pic(u8, u8),
    AcknowledgePic,
    Reset,
}

fuzz_target!(|steps: Vec<Step>| {
    let mut router = Router::new();
    for step in &steps {
        let _ = match *step {
            Step::Access(access) => {
                access.perform(
                    &mut router,
                    (0x1000, Bus::Memory),
                    |router, offset, data| router.read_ioapic(offset, data),
                    |router, offset, data| drop(router.write_ioapic(offset, data)),
                );
                continue;
            }
            Step::Register(select, value) => {
                let _ = router.write_ioapic(0, &[select, 0, 0, 0]);
                router.write_ioapic(0x10, &value.to_le_bytes())
            }
            Step::Gsi(gsi, level) => router.set_gsi(gsi, level),
            Step::Eoi(vector) => router.eoi(vector),
            Step::Pic(port, value) => {
                let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
                let port = PicPort::from_port(ports[usize::from(port) % 6]).unwrap();
                router.write_pic(port, value)
            }
            Step::AcknowledgePic => router.acknowledge_pic().1,
            Step::Reset => router.reset(),
        };
    }
});
