//! Processor models: what CPUID tells, made from what the host has and the engine can honour.

use super::{CpuidResult, CpuidTable};
use crate::MAX_PHYSICAL_BITS;

/// Which processor a guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// All that the host has and can be honoured.
    Host,
    /// The baseline of the psABI, x86-64: up to SSE2. It is the same on all hosts.
    V1,
    /// The x86-64-v2 level of the psABI: up to SSE4.2 and POPCNT.
    V2,
    /// The x86-64-v3 level of the psABI: AVX2, BMI, FMA.
    V3,
}

/// The host has not got what a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingFeature {
    /// CPUID leaf of the first feature that is missing.
    pub leaf: u32,
    /// The bits of it that are missing, by register: EBX, ECX, EDX.
    pub bits: [u32; 3],
}

/// Bits by name (SDM Vol. 2, CPUID; AMD APM Vol. 3, appendix E).
mod bits {
    const fn mask(bits: &[u32]) -> u32 {
        let mut mask = 0;
        let mut i = 0;
        while i < bits.len() {
            mask |= 1 << bits[i];
            i += 1;
        }
        mask
    }

    /// Leaf 1, EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH
    /// MMX FXSR SSE SSE2. Not VME, DS, ACPI, TM, PBE.
    pub const L1_EDX: u32 =
        mask(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
    /// Leaf 1, ECX: SSE3 PCLMUL SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT
    /// TSC-deadline AES XSAVE AVX F16C RDRAND. Not MONITOR, VMX, DS-CPL, PDCM, DCA.
    pub const L1_ECX: u32 =
        mask(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30]);
    pub const L1_ECX_HYPERVISOR: u32 = 1 << 31;
    pub const L1_ECX_X2APIC: u32 = 1 << 21;
    pub const L1_ECX_TSC_DEADLINE: u32 = 1 << 24;
    /// What the engine does on every host: PCID, and what KVM does on every host as well.
    pub const L1_ECX_OWN: u32 = 1 << 17 | L1_ECX_EVERYWHERE;
    pub const L1_ECX_EVERYWHERE: u32 = L1_ECX_HYPERVISOR | L1_ECX_X2APIC | L1_ECX_TSC_DEADLINE;
    /// Leaf 1, ECX of level v2: SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT.
    pub const L1_ECX_V2: u32 = mask(&[0, 9, 13, 19, 20, 23]);
    /// And of level v3: FMA MOVBE XSAVE AVX F16C.
    pub const L1_ECX_V3: u32 = L1_ECX_V2 | mask(&[12, 22, 26, 28, 29]);
    /// Leaf 7, EBX: FSGSBASE TSC_ADJUST BMI1 AVX2 SMEP BMI2 ERMS INVPCID AVX512F/DQ RDSEED ADX
    /// SMAP IFMA CLFLUSHOPT CLWB AVX512CD SHA AVX512BW/VL. Not SGX, HLE, RTM, MPX, PQM, PQE, PT.
    pub const L7_EBX: u32 =
        mask(&[0, 1, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
    /// What the engine does on every host: FSGSBASE TSC_ADJUST SMEP ERMS INVPCID SMAP.
    pub const L7_EBX_OWN: u32 = mask(&[0, 1, 7, 9, 10, 20]);
    /// TSC_ADJUST is KVM's everywhere as well.
    pub const L7_EBX_EVERYWHERE: u32 = 1 << 1;
    /// Level v3: BMI1 AVX2 BMI2.
    pub const L7_EBX_V3: u32 = mask(&[3, 5, 8]);
    /// Leaf 7, ECX: AVX512VBMI UMIP VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ RDPID.
    pub const L7_ECX: u32 = mask(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 22]);
    /// UMIP and RDPID are the engine's.
    pub const L7_ECX_OWN: u32 = mask(&[2, 22]);
    /// Leaf 7, EDX: FSRM AVX512_VP2INTERSECT.
    pub const L7_EDX: u32 = mask(&[4, 8]);
    /// The same: IA32_ARCH_CAPABILITIES, which AMD's processors do not have.
    pub const L7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
    /// Leaf 8000_0008H, EBX: BTC_NO, no branch type confusion, as of the flaws that
    /// IA32_ARCH_CAPABILITIES denies.
    pub const X8_EBX_BTC_NO: u32 = 1 << 29;
    /// Leaf 7 subleaf 1, EAX: AVX-VNNI AVX512_BF16.
    pub const L7_1_EAX: u32 = mask(&[4, 5]);
    /// Leaf 0DH subleaf 1, EAX: XSAVEOPT XSAVEC XGETBV(1) XSAVES.
    pub const LD_1_EAX: u32 = mask(&[0, 1, 2, 3]);
    /// XCR0: x87 SSE AVX opmask ZMM_Hi256 Hi16_ZMM.
    pub const XCR0: u32 = mask(&[0, 1, 2, 5, 6, 7]);
    /// Leaf 8000_0001H, ECX: LAHF64 CMP_LEGACY ABM SSE4A 3DNowPrefetch. Not SVM, MISALIGNSSE,
    /// XOP, FMA4, TBM, IBS, WDT, topology extensions, performance counters, MWAITX.
    pub const X1_ECX: u32 = mask(&[0, 5, 6, 8]);
    /// LAHF64, LZCNT.
    pub const X1_ECX_V3: u32 = mask(&[0, 5]);
    /// Leaf 8000_0001H, EDX that Intel has, too: SYSCALL NX 1GB RDTSCP LM.
    pub const X1_EDX: u32 = mask(&[11, 20, 26, 27, 29]);
    /// Of these, what every processor has: SYSCALL NX LM.
    pub const X1_EDX_EVERYWHERE: u32 = mask(&[11, 20, 29]);
    /// AMD repeats leaf 1's bits, and adds MMXEXT.
    pub const X1_EDX_AMD: u32 = (L1_EDX & 0x0183_f3ff) | 1 << 22;
    /// Leaf 8000_0008H, EBX: CLZERO XSAVEERPTR WBNOINVD.
    pub const X8_EBX: u32 = mask(&[0, 2, 9]);
}

/// "KVMKVMKVM\0\0\0": the engine offers KVM's paravirtual clock (Linux,
/// Documentation/virt/kvm/x86/cpuid.rst).
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// The leaf with KVM's paravirtual features.
pub const KVM_FEATURES: u32 = 0x4000_0001;
/// KVM's timing leaf: EAX and EBX are the rates of the TSC and of the local APIC's timer in kHz.
pub const KVM_TIMING: u32 = 0x4000_0010;
/// Features that every accelerator has: CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE.
pub const PARAVIRTUAL_CLOCK: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;
/// Those that Linux makes good use of and that need nothing of the VMM: the above, ASYNC_PF,
/// STEAL_TIME, PV_EOI, PV_UNHALT, PV_TLB_FLUSH, ASYNC_PF_VMEXIT, PV_SEND_IPI, PV_SCHED_YIELD,
/// ASYNC_PF_INT. Not POLL_CONTROL, with which a guest asks the host not to poll, which costs one exit
/// more than it saves on a host that is shared.
pub const PARAVIRTUAL: u32 = 0x0100_6efb;

/// Builds a model's table. `host` is the host's CPUID, `tsc_hz` the frequency of its TSC.
/// Leaves that differ between processors are left for [`CpuidTable::for_processor`].
pub fn build(
    model: Model,
    host: impl Fn(u32, u32) -> CpuidResult,
    tsc_hz: u64,
) -> Result<CpuidTable, MissingFeature> {
    let vendor = host(0, 0);
    let is_amd = vendor.names_amd();
    let host1 = host(1, 0);
    let host7 = host(7, 0);
    let host71 = if host7.eax >= 1 { host(7, 1) } else { CpuidResult::default() };
    let hostx1 = host(0x8000_0001, 0);

    let (l1_ecx, l7_ebx, l7_ecx, l7_edx, l71_eax, x1_ecx) = match model {
        Model::Host => (
            host1.ecx & bits::L1_ECX,
            host7.ebx & bits::L7_EBX,
            host7.ecx & bits::L7_ECX,
            host7.edx & bits::L7_EDX,
            host71.eax & bits::L7_1_EAX,
            hostx1.ecx & bits::X1_ECX,
        ),
        Model::V1 => (0, 0, 0, 0, 0, 0),
        Model::V2 => (bits::L1_ECX_V2, 0, 0, 0, 0, 1),
        Model::V3 => (bits::L1_ECX_V3, bits::L7_EBX_V3, 0, 0, 0, bits::X1_ECX_V3),
    };
    // What the engine does itself needs nothing of the host. A guest that may go on elsewhere has only
    // what KVM does there, too.
    let own = |bits: u32, everywhere: u32, host: u32| match model {
        Model::Host => bits,
        Model::V1 => bits & everywhere,
        Model::V2 | Model::V3 => bits & (everywhere | host),
    };
    let own1 = own(bits::L1_ECX_OWN, bits::L1_ECX_EVERYWHERE, host1.ecx);
    let own7 = own(bits::L7_EBX_OWN, bits::L7_EBX_EVERYWHERE, host7.ebx);
    let l1_ecx = l1_ecx | own1;
    let l7_ebx = l7_ebx | own7;
    let l7_ecx = l7_ecx | own(bits::L7_ECX_OWN, 0, host7.ecx);
    // It must not do without workarounds that it may need there.
    let denies_flaws = model == Model::Host;
    let l7_edx = l7_edx | if denies_flaws && !is_amd { bits::L7_EDX_ARCH_CAPABILITIES } else { 0 };
    let missing = [
        (1, [0, l1_ecx & !own1 & !host1.ecx, 0]),
        (7, [l7_ebx & !own7 & !host7.ebx, 0, 0]),
        (0x8000_0001, [0, x1_ecx & !hostx1.ecx, 0]),
    ];
    if let Some((leaf, bits)) = missing.into_iter().find(|(_, b)| *b != [0; 3]) {
        return Err(MissingFeature { leaf, bits });
    }

    let mut table = CpuidTable::new();
    let mut set = |leaf, subleaf, eax, ebx, ecx, edx| {
        table.set(leaf, subleaf, CpuidResult { eax, ebx, ecx, edx });
    };
    let xcr0 = xcr0(&host, l1_ecx, l7_ebx);
    let last_basic = if xcr0 != 0 { 0xd } else { 0xb };
    set(0, None, last_basic, vendor.ebx, vendor.ecx, vendor.edx);
    // Family, model and stepping are the host's; EBX: CLFLUSH line of 64 bytes.
    set(1, None, host1.eax & 0x0fff_3fff, 8 << 8, l1_ecx, host1.edx & bits::L1_EDX);
    if is_amd {
        set(2, None, 0, 0, 0, 0);
    } else {
        let caches = host(2, 0);
        set(2, None, caches.eax, caches.ebx, caches.ecx, caches.edx);
    }
    set(7, Some(0), u32::from(l71_eax != 0), l7_ebx, l7_ecx, l7_edx);
    set(7, Some(1), l71_eax, 0, 0, 0);
    if xcr0 != 0 {
        let optional = if model == Model::Host { host(0xd, 1).eax & bits::LD_1_EAX } else { 0 };
        let area = (2..8)
            .filter(|i| xcr0 >> i & 1 != 0)
            .map(|i| host(0xd, i))
            .map(|c| c.eax.saturating_add(c.ebx))
            .fold(576, u32::max);
        set(0xd, Some(0), xcr0, 576, area, 0);
        set(0xd, Some(1), optional, 0, 0, 0);
        for i in (2..8).filter(|i| xcr0 >> i & 1 != 0) {
            let component = host(0xd, i);
            set(0xd, Some(i), component.eax, component.ebx, component.ecx & 2, 0);
        }
    }

    set(0x4000_0000, None, 0x4000_0010, KVM_SIGNATURE[0], KVM_SIGNATURE[1], KVM_SIGNATURE[2]);
    // A model of its own makes guests that can go on under another accelerator.
    let paravirtual = if model == Model::Host { PARAVIRTUAL } else { PARAVIRTUAL_CLOCK };
    set(KVM_FEATURES, None, paravirtual, 0, 0, 0);
    // Frequencies of the TSC and of the local APIC's timer in kHz.
    let tsc_khz = u32::try_from(tsc_hz / 1000).unwrap_or(u32::MAX);
    set(KVM_TIMING, None, tsc_khz, APIC_TIMER_KHZ, 0, 0);

    set(0x8000_0000, None, 0x8000_0008, vendor.ebx, vendor.ecx, vendor.edx);
    let mut x1_edx =
        own(bits::X1_EDX, bits::X1_EDX_EVERYWHERE, hostx1.edx) & (hostx1.edx | 1 << 27);
    if is_amd {
        x1_edx |= hostx1.edx & bits::X1_EDX_AMD;
    }
    let signature = if is_amd { host1.eax & 0x0fff_3fff } else { 0 };
    set(0x8000_0001, None, signature, 0, x1_ecx, x1_edx);
    for leaf in 0x8000_0002..=0x8000_0006 {
        let h = host(leaf, 0);
        set(leaf, None, h.eax, h.ebx, h.ecx, h.edx);
    }
    // The TSC runs at a constant rate, whatever the host's power state.
    set(0x8000_0007, None, 0, 0, 0, 1 << 8);
    let x8_ebx =
        if is_amd && model == Model::Host { host(0x8000_0008, 0).ebx & bits::X8_EBX } else { 0 };
    // Linux asks Intel's processors for it as well.
    let x8_ebx = x8_ebx | if denies_flaws { bits::X8_EBX_BTC_NO } else { 0 };
    set(0x8000_0008, None, physical_bits(&host) | 48 << 8, x8_ebx, 0, 0);
    Ok(table)
}

/// How wide physical addresses are: no wider than the host's, since under hardware virtualization
/// guests' page tables may not have what that cannot address.
fn physical_bits(host: &impl Fn(u32, u32) -> CpuidResult) -> u32 {
    match host(0x8000_0008, 0).eax & 0xff {
        // Without the leaf (SDM Vol. 3, 4.1.4).
        0 => 36,
        bits => bits.min(MAX_PHYSICAL_BITS),
    }
}

/// The local APIC's timer counts nanoseconds.
const APIC_TIMER_KHZ: u32 = 1_000_000;

/// Which state components XSAVE manages for these features.
fn xcr0(host: &impl Fn(u32, u32) -> CpuidResult, l1_ecx: u32, l7_ebx: u32) -> u32 {
    const XSAVE: u32 = 1 << 26;
    const AVX: u32 = 1 << 28;
    const AVX512F: u32 = 1 << 16;
    if l1_ecx & XSAVE == 0 {
        return 0;
    }
    let mut wanted = 0b011;
    if l1_ecx & AVX != 0 {
        wanted |= 0b100;
    }
    if l7_ebx & AVX512F != 0 {
        wanted |= 0b1110_0000;
    }
    wanted & bits::XCR0 & host(0xd, 0).eax
}

impl CpuidTable {
    /// The table of processor `index` of `count`: one socket with `count` cores of one thread,
    /// whose APIC IDs are their numbers.
    pub fn for_processor(&self, index: u32, count: u32) -> Self {
        let mut table = self.clone();
        let count = count.max(1);
        let id_bits = count.next_power_of_two().trailing_zeros();
        let mut change = |leaf, f: &dyn Fn(&mut CpuidResult)| {
            if let Some(mut result) = table.get(leaf, 0) {
                f(&mut result);
                table.set(leaf, None, result);
            }
        };
        change(1, &|r| {
            r.ebx |= index << 24 | count.min(255) << 16;
            if count > 1 {
                r.edx |= 1 << 28; // HTT: EBX[23:16] is valid
            }
        });
        change(0x8000_0001, &|r| {
            // CmpLegacy: the logical processors are cores.
            if count > 1 && r.eax != 0 {
                r.ecx |= 1 << 1;
            }
        });
        change(0x8000_0008, &|r| r.ecx = id_bits << 12 | (count - 1));
        // Extended topology: one thread a core, `count` cores.
        let topology = |eax, ebx, ecx| CpuidResult { eax, ebx, ecx, edx: index };
        table.set(0xb, Some(0), topology(0, 1, 1 << 8));
        table.set(0xb, Some(1), topology(id_bits, count, 2 << 8 | 1));
        table.set(0xb, Some(2), topology(0, 0, 2));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with every feature.
    fn rich(leaf: u32, subleaf: u32) -> CpuidResult {
        match leaf {
            0 => CpuidResult {
                eax: 0x1f,
                ebx: u32::from_le_bytes(*b"Auth"),
                ecx: u32::from_le_bytes(*b"cAMD"),
                edx: u32::from_le_bytes(*b"enti"),
            },
            0xd if subleaf >= 2 => CpuidResult { eax: 64, ebx: 576, ..Default::default() },
            _ => CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_never_offered() {
        let table = build(Model::Host, rich, 2_000_000_000).unwrap();
        let l1 = table.get(1, 0).unwrap();
        assert_eq!(l1.ecx & (1 << 3 | 1 << 5), 0, "MONITOR, VMX");
        let l7 = table.get(7, 0).unwrap();
        assert_eq!(l7.ebx & (1 << 4 | 1 << 11), 0, "HLE, RTM");
        assert_eq!(l7.ecx & (1 << 3 | 1 << 16), 0, "PKU, LA57");
        assert_eq!(table.get(0x8000_0001, 0).unwrap().ecx & (1 << 2), 0, "SVM");
    }

    #[test]
    fn a_poor_host_is_refused_a_rich_model() {
        let poor = |leaf, subleaf| match leaf {
            7 => CpuidResult::default(),
            _ => rich(leaf, subleaf),
        };
        assert_eq!(build(Model::V3, poor, 1).unwrap_err().leaf, 7);
        assert!(build(Model::V2, poor, 1).is_ok());
    }

    #[test]
    fn addresses_are_no_wider_than_the_hosts() {
        let bits = |host: u32| {
            let host = move |leaf, subleaf| match leaf {
                0x8000_0008 => CpuidResult { eax: host | 48 << 8, ..Default::default() },
                _ => rich(leaf, subleaf),
            };
            build(Model::Host, host, 1).unwrap().get(0x8000_0008, 0).unwrap().eax
        };
        assert_eq!(bits(36), 36 | 48 << 8);
        assert_eq!(bits(39), 39 | 48 << 8);
        assert_eq!(bits(52), MAX_PHYSICAL_BITS | 48 << 8);
        assert_eq!(bits(0), 36 | 48 << 8);
    }

    #[test]
    fn what_may_go_on_elsewhere_has_what_others_have() {
        // A processor of 2003, for which KVM does nothing but what it always does.
        let old = |leaf, subleaf| match leaf {
            1 => CpuidResult { ecx: 0, ..rich(1, 0) },
            7 => CpuidResult::default(),
            0x8000_0001 => CpuidResult { ecx: 0, edx: 1 << 11 | 1 << 20 | 1 << 29, ..rich(1, 0) },
            0x8000_0008 => CpuidResult { eax: 40 | 48 << 8, ..Default::default() },
            _ => rich(leaf, subleaf),
        };
        let features = |table: &CpuidTable| {
            let leaf = |n| table.get(n, 0).unwrap();
            let extended = leaf(0x8000_0001);
            (leaf(1).ecx, leaf(7), extended.ecx, extended.edx & 0x3c10_0800, leaf(0x8000_0008).ebx)
        };
        let here = build(Model::V1, rich, 1).unwrap();
        assert_eq!(features(&here), features(&build(Model::V1, old, 1).unwrap()));
        assert_eq!(features(&here).0, bits::L1_ECX_EVERYWHERE);
        assert!(build(Model::V2, old, 1).is_err());
        // One without what only newer ones have.
        let nehalem = |leaf, subleaf| match leaf {
            7 => CpuidResult::default(),
            1 => CpuidResult { ecx: bits::L1_ECX_V2, ..rich(1, 0) },
            _ => rich(leaf, subleaf),
        };
        let table = build(Model::V2, nehalem, 1).unwrap();
        assert_eq!(table.get(7, 0).unwrap().ebx, bits::L7_EBX_EVERYWHERE);
        assert_eq!(table.get(1, 0).unwrap().ecx, bits::L1_ECX_V2 | bits::L1_ECX_EVERYWHERE);
    }

    #[test]
    fn only_intels_have_architectural_capabilities() {
        let intel = |leaf, subleaf| match leaf {
            0 => CpuidResult { ebx: u32::from_le_bytes(*b"Genu"), ..rich(0, 0) },
            _ => rich(leaf, subleaf),
        };
        let flag = |table: CpuidTable| table.get(7, 0).unwrap().edx >> 29 & 1;
        assert_eq!(flag(build(Model::Host, intel, 1).unwrap()), 1);
        assert_eq!(flag(build(Model::Host, rich, 1).unwrap()), 0);
        // Elsewhere there may be the flaws that it would deny.
        for model in [Model::V1, Model::V2, Model::V3] {
            assert_eq!(flag(build(model, intel, 1).unwrap()), 0);
        }
    }

    #[test]
    fn processors_are_told_apart() {
        let table = build(Model::V2, rich, 1).unwrap();
        let third = table.for_processor(2, 4);
        assert_eq!(third.get(1, 0).unwrap().ebx >> 24, 2);
        assert_eq!(third.get(0xb, 0).unwrap().edx, 2);
        assert_eq!(third.get(0xb, 1).unwrap().ebx, 4);
        assert_eq!(third.get(0x8000_0008, 0).unwrap().ecx, 2 << 12 | 3);
    }
}
