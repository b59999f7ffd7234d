//! What a debugger outside of the guest wants, by KVM_SET_GUEST_DEBUG.

use accel::{DebugControl, DebugStop, Fault, PointKind};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;
use x86::vector;

use crate::host::failed;

/// DR7 with nothing enabled: bit 10 is always set (SDM Vol. 3, 17.2.4).
const DR7_NONE: u64 = 1 << 10;
/// DR6: an access to a debug register that DR7.GD guards.
const DR6_GUARDED: u64 = 1 << 13;
/// DR6: a single step.
const DR6_STEP: u64 = 1 << 14;
/// DR6: a task switch to a TSS with its T flag set.
const DR6_TASK: u64 = 1 << 15;

/// KVM's form of what is wanted. Interrupts are held back during steps if `block` says that KVM can.
fn guest_debug(control: &DebugControl, block: bool) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    if *control == DebugControl::default() {
        return debug;
    }
    debug.control = KVM_GUESTDBG_ENABLE;
    if control.step {
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
        debug.control |= if block { KVM_GUESTDBG_BLOCKIRQ } else { 0 };
    }
    if control.int3 {
        debug.control |= KVM_GUESTDBG_USE_SW_BP;
    }
    let mut dr7 = DR7_NONE;
    for (number, point) in control.points.iter().enumerate() {
        let Some(point) = point else { continue };
        debug.control |= KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[number] = point.linear;
        let kind = match point.kind {
            PointKind::Execute => 0,
            PointKind::Write => 1,
            PointKind::Access => 3,
        };
        let len = match (point.kind, point.len) {
            (PointKind::Execute, _) | (_, 1) => 0,
            (_, 2) => 1,
            (_, 8) => 2,
            _ => 3,
        };
        dr7 |= 2 << (number * 2) | (kind | len << 2) << (16 + number * 4);
    }
    debug.arch.debugreg[7] = dr7;
    debug
}

/// Has the processor stop where `control` says.
pub fn set(vcpu: &VcpuFd, control: &DebugControl, block: bool) -> Result<(), Fault> {
    vcpu.set_guest_debug(&guest_debug(control, block))
        .map_err(|e| failed("this host's KVM lets no debugger at a guest", e))
}

/// Why the processor stopped; `None` if it was for none of the reasons asked for.
pub fn reason(exit: &kvm_debug_exit_arch, control: &DebugControl) -> Option<DebugStop> {
    if exit.exception == u32::from(vector::BP) {
        return Some(DebugStop::Int3);
    }
    let point = (0u8..4).find(|&number| {
        exit.dr6 >> number & 1 != 0 && control.points[usize::from(number)].is_some()
    });
    match point {
        Some(number) => Some(DebugStop::Point(number)),
        None => (control.step && exit.dr6 & DR6_STEP != 0).then_some(DebugStop::Step),
    }
}

/// What of DR6 the guest is to see of a debug exception that is none of the debugger's: its own
/// single step, say. Its breakpoints are not armed meanwhile.
pub fn guests_own(exit: &kvm_debug_exit_arch) -> Option<u64> {
    let cause = exit.dr6 & (DR6_GUARDED | DR6_STEP | DR6_TASK);
    (exit.exception == u32::from(vector::DB) && cause != 0).then_some(cause)
}

/// Whether nothing is said to have caused it, not even a breakpoint that is no more.
pub fn has_no_cause(exit: &kvm_debug_exit_arch) -> bool {
    exit.exception == u32::from(vector::DB) && guests_own(exit).is_none() && exit.dr6 & 15 == 0
}

#[cfg(test)]
mod tests {
    use accel::DebugPoint;

    use super::*;

    fn point(linear: u64, len: u8, kind: PointKind) -> Option<DebugPoint> {
        Some(DebugPoint { linear, len, kind })
    }

    #[test]
    fn points_become_debug_registers() {
        let control = DebugControl {
            step: false,
            int3: true,
            points: [
                point(0x1000, 1, PointKind::Execute),
                None,
                point(0x2000, 8, PointKind::Write),
                point(0x3004, 4, PointKind::Access),
            ],
        };
        let debug = guest_debug(&control, true);
        assert_eq!(
            debug.control,
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP
        );
        assert_eq!(debug.arch.debugreg[..4], [0x1000, 0, 0x2000, 0x3004]);
        // G0, G2, G3; R/W and LEN of 2 and 3.
        assert_eq!(debug.arch.debugreg[7], 0x400 | 0b1010_0010 | 0b1001 << 24 | 0b1111 << 28);
        assert_eq!(guest_debug(&DebugControl::default(), true).control, 0);
    }

    #[test]
    fn steps_hold_interrupts_back_where_kvm_can() {
        let control = DebugControl { step: true, ..DebugControl::default() };
        assert_ne!(guest_debug(&control, true).control & KVM_GUESTDBG_BLOCKIRQ, 0);
        assert_eq!(guest_debug(&control, false).control & KVM_GUESTDBG_BLOCKIRQ, 0);
    }

    #[test]
    fn stops_are_told_apart() {
        let mut control = DebugControl { step: true, ..DebugControl::default() };
        control.points[1] = point(0x1000, 1, PointKind::Execute);
        let exit = |exception, dr6| kvm_debug_exit_arch { exception, dr6, ..Default::default() };
        assert_eq!(reason(&exit(3, 0), &control), Some(DebugStop::Int3));
        assert_eq!(reason(&exit(1, 0x4002), &control), Some(DebugStop::Point(1)));
        assert_eq!(reason(&exit(1, 0x4000), &control), Some(DebugStop::Step));
        assert_eq!(reason(&exit(1, 0x0004), &DebugControl::default()), None);
        assert_eq!(guests_own(&exit(1, 0xffff_4ff0)), Some(0x4000));
        assert_eq!(guests_own(&exit(1, 0xffff_2ff0)), Some(0x2000));
        assert_eq!(guests_own(&exit(1, 0xffff_0ff1)), None);
        // INT1, also while it is stepped over.
        assert_eq!(reason(&exit(1, 0xffff_0ff0), &control), None);
        assert!(has_no_cause(&exit(1, 0xffff_0ff0)));
        assert!(!has_no_cause(&exit(1, 0xffff_0ff1)) && !has_no_cause(&exit(1, 0xffff_4ff0)));
        control.step = false;
        assert_eq!(reason(&exit(1, 0xffff_4ff0), &control), None);
    }
}
