//! The host's time-stamp counter.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::OnceLock;
use std::time::Duration;

use crate::clock::host_nanos;
use crate::kernel_tsc;

/// Reads the host's time-stamp counter.
#[inline]
pub fn read() -> u64 {
    // SAFETY: RDTSC touches no memory; Linux leaves it open to user mode unless a process has
    // asked for PR_SET_TSC, which Lodge does not.
    unsafe { _rdtsc() }
}

/// Begins to measure the frequency, which takes some milliseconds: who calls this first of all has less to
/// wait for in [`frequency_hz`].
pub fn begin_measurement() {
    BEGIN.get_or_init(sample);
}

static BEGIN: OnceLock<(u64, u64)> = OnceLock::new();

/// The frequency of the host's time-stamp counter in Hz, never zero. Where nobody knows it, the
/// first call waits until the measurement ([`begin_measurement`]) has taken some 5 ms; later ones take nothing.
pub fn frequency_hz() -> u64 {
    static FREQUENCY: OnceLock<u64> = OnceLock::new();
    *FREQUENCY.get_or_init(|| {
        if let Some(known) = kernel_hz() {
            return known;
        }
        if let Some(stated) = stated_hz() {
            // Some hypervisors pass on the leaf of a processor that the guest does not run on.
            let measured = measured_hz(Duration::from_millis(2));
            if stated.abs_diff(measured) <= measured / 200 {
                return stated;
            }
            tracing::warn!(
                "CPUID states a TSC frequency of {stated} Hz but it runs at {measured} Hz; \
                 going by the measurement"
            );
        }
        // A guest waits for this to start. Either end is known to some 30 ns (see `sample`), so that
        // this is as exact as a crystal is: some parts in a million.
        measured_hz(Duration::from_millis(5))
    })
}

/// Asks the kernel what it knows of the frequency, and begins to measure it in case that is nothing. A
/// process that confines itself does so before: it may be refused later. It takes microseconds.
pub fn ask_kernel() {
    begin_measurement();
    kernel_hz();
}

fn kernel_hz() -> Option<u64> {
    static KNOWN: OnceLock<Option<u64>> = OnceLock::new();
    *KNOWN.get_or_init(|| if has_kvm_clock() { None } else { kernel_tsc::frequency_hz() })
}

/// Whether KVM gives this host a clock (Documentation/virt/kvm/x86/cpuid.rst, KVM_FEATURE_CLOCKSOURCE and
/// KVM_FEATURE_CLOCKSOURCE2). Linux keeps its scheduler's time by that, and then has nothing to tell of the
/// TSC; to be asked may cost it 12 ms, if nobody else has events.
fn has_kvm_clock() -> bool {
    is_hypervisor(b"KVMKVMKVM\0\0\0") && __cpuid(0x4000_0001).eax & (1 | 1 << 3) != 0
}

/// Whether this host runs under the hypervisor with this signature.
fn is_hypervisor(signature: &[u8; 12]) -> bool {
    let leaf = __cpuid(0x4000_0000);
    let vendor = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    __cpuid(1).ecx & (1 << 31) != 0 && vendor.as_flattened() == signature
}

/// The frequency as CPUID states it: leaf 15h (SDM Vol. 3, "Determining the Processor
/// Base Frequency") or, under VMware and KVM, leaf 40000010h (kHz in EAX).
fn stated_hz() -> Option<u64> {
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        let (denominator, numerator, crystal) = (leaf.eax, leaf.ebx, leaf.ecx);
        if denominator != 0 && numerator != 0 && crystal != 0 {
            return Some(u64::from(crystal) * u64::from(numerator) / u64::from(denominator));
        }
    }
    let knows_leaf = is_hypervisor(b"VMwareVMware") || is_hypervisor(b"KVMKVMKVM\0\0\0");
    if knows_leaf && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = __cpuid(0x4000_0010).eax;
        return (khz != 0).then_some(u64::from(khz) * 1000);
    }
    None
}

/// The TSC's frequency since the measurement began, `span` ago at least.
fn measured_hz(span: Duration) -> u64 {
    /// Longer ago may be before the host was suspended.
    const STALE: Duration = Duration::from_secs(1);
    let begin = *BEGIN.get_or_init(sample);
    let gone = Duration::from_nanos(host_nanos().saturating_sub(begin.1));
    if gone > STALE {
        return measure_hz(span);
    }
    std::thread::sleep(span.saturating_sub(gone));
    between(begin, sample())
}

/// The TSC's frequency against CLOCK_MONOTONIC_RAW over at least `span`.
pub(crate) fn measure_hz(span: Duration) -> u64 {
    let begin = sample();
    std::thread::sleep(span);
    between(begin, sample())
}

fn between((tsc0, ns0): (u64, u64), (tsc1, ns1): (u64, u64)) -> u64 {
    let ticks = u128::from(tsc1.wrapping_sub(tsc0));
    let nanos = u128::from(ns1.wrapping_sub(ns0).max(1));
    u64::try_from(ticks * 1_000_000_000 / nanos).unwrap_or(u64::MAX).max(1)
}

/// TSC and host time of one moment. Of several tries the one counts that was interrupted least.
fn sample() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..32 {
        let before = read();
        let ns = host_nanos();
        let width = read().wrapping_sub(before);
        if width < best.0 {
            best = (width, before.wrapping_add(width / 2), ns);
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (measure_hz(Duration::from_millis(20)), measure_hz(Duration::from_millis(20)));
        assert!(a.abs_diff(b) < a / 1000, "{a} {b}");
        assert!(frequency_hz().abs_diff(a) < a / 200);
        assert_eq!(frequency_hz(), frequency_hz());
    }

    #[test]
    fn the_counter_advances() {
        let first = read();
        std::thread::sleep(Duration::from_millis(1));
        assert!(read() > first);
    }
}
