extern crate std;

use super::*;
use PicPort::{MasterCommand, MasterData, MasterElcr, SlaveCommand, SlaveData, SlaveElcr};
use proptest::prelude::*;

const EOI: u8 = 0x20;

/// As Linux sets it up: vectors 0x30 and 0x38, nothing masked.
fn pair() -> PicPair {
    let mut pic = PicPair::new();
    for (command, data, base, icw3) in
        [(MasterCommand, MasterData, 0x30, 4), (SlaveCommand, SlaveData, 0x38, 2)]
    {
        pic.write(command, 0x11);
        pic.write(data, base);
        pic.write(data, icw3);
        pic.write(data, 0x01);
    }
    pic
}

fn isr(pic: &mut PicPair, port: PicPort) -> u8 {
    pic.write(port, 0x0b);
    let value = pic.read(port);
    pic.write(port, 0x0a);
    value
}

#[test]
fn silent_until_initialised() {
    let mut pic = PicPair::new();
    pic.set_irq(1, true);
    assert!(!pic.output());
    pic.write(MasterCommand, 0x11);
    pic.write(MasterData, 0x30);
    pic.write(MasterData, 4);
    assert!(!pic.output());
    pic.write(MasterData, 1);
    assert!(!pic.output(), "ICW1 forgets edges");
    pic.set_irq(1, false);
    pic.set_irq(1, true);
    assert!(pic.output());
}

#[test]
fn an_edge_is_kept_and_taken_once() {
    let mut pic = pair();
    pic.set_irq(4, true);
    pic.set_irq(4, false);
    assert_eq!(pic.read(MasterCommand), 1 << 4);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.output());
    assert_eq!(isr(&mut pic, MasterCommand), 1 << 4);
    pic.write(MasterCommand, EOI);
    assert_eq!(isr(&mut pic, MasterCommand), 0);
}

#[test]
fn a_level_requests_as_long_as_it_lasts() {
    let mut pic = pair();
    pic.write(SlaveElcr, 0xff);
    assert_eq!(pic.read(SlaveElcr), ELCR_SLAVE);
    pic.set_irq(11, true);
    assert_eq!(pic.acknowledge(), 0x3b);
    assert!(!pic.output());
    pic.write(SlaveCommand, EOI);
    pic.write(MasterCommand, EOI);
    assert!(pic.output());
    pic.set_irq(11, false);
    assert!(!pic.output());
}

#[test]
fn elcr_protects_the_boards_edges() {
    let mut pic = pair();
    pic.write(MasterElcr, 0xff);
    assert_eq!(pic.read(MasterElcr), ELCR_MASTER);
    pic.set_irq(0, true);
    pic.acknowledge();
    pic.write(MasterCommand, EOI);
    assert!(!pic.output());
}

#[test]
fn an_edge_is_forgotten_when_its_input_becomes_level_sensitive() {
    let mut pic = pair();
    pic.set_irq(5, true);
    pic.set_irq(5, false);
    pic.write(MasterElcr, 1 << 5);
    assert!(!pic.output());
    pic.write(MasterElcr, 0);
    assert!(!pic.output());
}

#[test]
fn higher_priorities_nest() {
    let mut pic = pair();
    pic.set_irq(4, true);
    assert_eq!(pic.acknowledge(), 0x34);
    pic.set_irq(5, true);
    assert!(!pic.output());
    pic.set_irq(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.write(MasterCommand, EOI);
    assert!(!pic.output(), "IRQ 4 is still in service");
    pic.write(MasterCommand, EOI);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn the_slave_comes_between_irq_1_and_3() {
    let mut pic = pair();
    for irq in [3, 8, 15, 1] {
        pic.set_irq(irq, true);
    }
    let mut order = std::vec::Vec::new();
    while pic.output() {
        let vector = pic.acknowledge();
        order.push(vector);
        if vector >= 0x38 {
            pic.write(SlaveCommand, EOI);
        }
        pic.write(MasterCommand, EOI);
    }
    assert_eq!(order, [0x31, 0x38, 0x3f, 0x33]);
}

#[test]
fn masks() {
    let mut pic = pair();
    pic.write(MasterData, 1 << 3);
    pic.set_irq(3, true);
    assert!(!pic.output());
    pic.write(MasterData, 0);
    assert!(pic.output());
    pic.write(MasterData, 1 << 2);
    pic.acknowledge();
    pic.set_irq(9, true);
    pic.write(MasterCommand, EOI);
    assert!(!pic.output());
    assert_eq!(pic.read(MasterData), 4);
}

#[test]
fn spurious_interrupts() {
    let mut pic = pair();
    pic.write(SlaveElcr, 1 << 3);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, MasterCommand), 0);
    pic.set_irq(11, true);
    pic.set_irq(11, false);
    assert_eq!(pic.acknowledge(), 0x37, "the whole request is gone");
}

#[test]
fn a_spurious_interrupt_of_the_slave_leaves_the_masters_level_in_service() {
    let mut pic = pair();
    // A slave that raises INT and drops it during the acknowledge, as only a race can.
    pic.master.set_line(CASCADE, true);
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!(isr(&mut pic, MasterCommand), 1 << CASCADE);
    assert_eq!(isr(&mut pic, SlaveCommand), 0);
}

#[test]
fn specific_eoi() {
    let mut pic = pair();
    pic.set_irq(4, true);
    pic.acknowledge();
    pic.set_irq(1, true);
    pic.acknowledge();
    pic.write(MasterCommand, 0x60 | 4);
    assert_eq!(isr(&mut pic, MasterCommand), 1 << 1);
}

#[test]
fn auto_eoi() {
    let mut pic = pair();
    pic.write(MasterCommand, 0x11);
    pic.write(MasterData, 0x30);
    pic.write(MasterData, 4);
    pic.write(MasterData, 0x03);
    pic.set_irq(4, true);
    pic.acknowledge();
    assert_eq!(isr(&mut pic, MasterCommand), 0);
    // Rotation: IRQ 4 now comes last.
    pic.write(MasterCommand, 0x80);
    pic.set_irq(6, true);
    assert_eq!(pic.acknowledge(), 0x36);
    pic.set_irq(5, true);
    pic.set_irq(7, true);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn rotation() {
    let mut pic = pair();
    // IRQ 3 becomes the lowest, so IRQ 4 the highest.
    pic.write(MasterCommand, 0xc0 | 3);
    pic.set_irq(0, true);
    pic.set_irq(5, true);
    assert_eq!(pic.acknowledge(), 0x35);
    // Rotate on non-specific EOI: IRQ 5 becomes the lowest.
    pic.write(MasterCommand, 0xa0);
    pic.set_irq(5, false);
    pic.set_irq(5, true);
    pic.set_irq(6, true);
    assert_eq!(pic.acknowledge(), 0x36);
    // Rotate on specific EOI: IRQ 6 becomes the lowest, IRQ 0 comes before 5.
    pic.write(MasterCommand, 0xe0 | 6);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn special_mask_mode_lets_lower_priorities_pass() {
    let mut pic = pair();
    pic.set_irq(3, true);
    pic.acknowledge();
    pic.set_irq(6, true);
    assert!(!pic.output());
    pic.write(MasterData, 1 << 3);
    assert!(!pic.output(), "a mask alone does not help");
    pic.write(MasterCommand, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
    pic.write(MasterCommand, EOI);
    assert_eq!(isr(&mut pic, MasterCommand), 1 << 3, "non-specific EOI spares masked levels");
    pic.write(MasterCommand, 0x48);
    pic.write(MasterCommand, EOI);
    assert_eq!(isr(&mut pic, MasterCommand), 0);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let mut pic = pair();
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_irq(8, true);
    assert!(!pic.output());

    let mut pic = pair();
    pic.write(MasterCommand, 0x11);
    pic.write(MasterData, 0x30);
    pic.write(MasterData, 4);
    pic.write(MasterData, 0x11);
    pic.set_irq(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_irq(8, true);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn poll() {
    let mut pic = pair();
    pic.write(MasterCommand, 0x0c);
    assert_eq!(pic.read(MasterCommand), 0);
    pic.set_irq(6, true);
    pic.write(MasterCommand, 0x0c);
    assert_eq!(pic.read(MasterCommand), 0x86);
    assert_eq!(isr(&mut pic, MasterCommand), 1 << 6);
    assert!(!pic.output());
}

#[test]
fn reset_keeps_lines() {
    let mut pic = pair();
    pic.write(MasterElcr, 1 << 5);
    pic.set_irq(5, true);
    pic.reset();
    assert!(!pic.output());
    assert_eq!(pic.read(MasterElcr), 0);
}

proptest! {
    /// As long as software ends what it takes, in whatever order interrupts come, each edge is
    /// taken exactly once and the pair ends idle.
    #[test]
    fn no_edge_is_lost_or_doubled(ops in prop::collection::vec((0u8..16, any::<bool>()), 0..80)) {
        let mut pic = pair();
        let mut wanted = [0u32; 16];
        let mut taken = [0u32; 16];
        let mut waiting = [false; 16];
        let serve = |pic: &mut PicPair, taken: &mut [u32; 16], waiting: &mut [bool; 16]| {
            while pic.output() {
                let irq = pic.acknowledge() - 0x30;
                taken[usize::from(irq)] += 1;
                waiting[usize::from(irq)] = false;
                if irq >= 8 { pic.write(SlaveCommand, EOI); }
                pic.write(MasterCommand, EOI);
            }
        };
        for (irq, now) in ops {
            if irq == CASCADE { continue; }
            pic.set_irq(irq, true);
            pic.set_irq(irq, false);
            // Edges that come before the first is taken merge.
            if !std::mem::replace(&mut waiting[usize::from(irq)], true) {
                wanted[usize::from(irq)] += 1;
            }
            if now { serve(&mut pic, &mut taken, &mut waiting); }
        }
        serve(&mut pic, &mut taken, &mut waiting);
        prop_assert_eq!(wanted, taken);
        prop_assert_eq!(isr(&mut pic, MasterCommand), 0);
        prop_assert_eq!(isr(&mut pic, SlaveCommand), 0);
    }

    #[test]
    fn hostile_accesses_do_no_harm(ops: std::vec::Vec<(u8, u8)>) {
        let ports = [MasterCommand, MasterData, SlaveCommand, SlaveData, MasterElcr, SlaveElcr];
        let mut pic = pair();
        for (op, value) in ops {
            let port = ports[usize::from(op) % ports.len()];
            match op >> 6 {
                0 | 1 => pic.write(port, value),
                2 => { pic.read(port); }
                _ => pic.set_irq(value, op & 1 != 0),
            }
            if pic.output() && op & 2 != 0 {
                pic.acknowledge();
            }
        }
    }
}
