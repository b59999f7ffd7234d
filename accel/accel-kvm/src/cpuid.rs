//! What CPUID tells: the processor model, less what the host's KVM does not offer.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use accel::CpuidTable;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use x86::cpuid::{CpuidResult, KVM_FEATURES, KVM_TIMING, VIRT_SSBD};

/// One of the registers that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Registers whose bits are features, so that KVM has a say in each: leaf, subleaf, register, and
/// the bits that are the model's alone.
const FEATURES: &[(u32, u32, Register, u32)] = &[
    // A guest on a hypervisor may know it, and has the TSC's deadline by another capability.
    (1, 0, Ecx, HYPERVISOR | TSC_DEADLINE),
    // HTT says that EBX has a number of processors.
    (1, 0, Edx, 1 << 28),
    (7, 0, Ebx, 0),
    (7, 0, Ecx, 0),
    (7, 0, Edx, 0),
    (7, 1, Eax, 0),
    (7, 2, Edx, 0),
    (0xd, 0, Eax, 0),
    (0xd, 1, Eax, 0),
    // CmpLegacy describes the topology.
    (0x8000_0001, 0, Ecx, 1 << 1),
    // The bits that AMD repeats from leaf 1.
    (0x8000_0001, 0, Edx, 0),
    // The TSC's rate is constant if the host's is: the model has seen to that.
    (0x8000_0008, 0, Ebx, 0),
    (0x8000_0021, 0, Eax, 0),
    (0x8000_0021, 0, Ecx, 0),
];

/// What the model says of itself, not of the host: BTC_NO, that branch types are not confused, and
/// VIRT_SSBD, which is KVM's to serve. Where KVM does not say so, guests know better than to miss it.
const UNTOLD: (u32, u32, Register, u32) = (0x8000_0008, 0, Ebx, 1 << 29 | VIRT_SSBD);

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;

/// A feature of the processor model that the host's KVM does not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u32,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let &Self { leaf, subleaf, register, bit } = self;
        let name =
            NAMES.iter().find(|(l, s, r, b, _)| (*l, *s, *r, *b) == (leaf, subleaf, register, bit));
        match name {
            Some((.., name)) => f.write_str(name),
            None => write!(f, "{leaf:x}.{subleaf:x}:{register:?}[{bit}]"),
        }
    }
}

/// What the manuals call the features that one misses first.
#[rustfmt::skip]
const NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (1, 0, Ecx, 0, "SSE3"), (1, 0, Ecx, 1, "PCLMULQDQ"), (1, 0, Ecx, 9, "SSSE3"),
    (1, 0, Ecx, 12, "FMA"), (1, 0, Ecx, 13, "CX16"), (1, 0, Ecx, 17, "PCID"),
    (1, 0, Ecx, 19, "SSE4.1"), (1, 0, Ecx, 20, "SSE4.2"), (1, 0, Ecx, 21, "x2APIC"),
    (1, 0, Ecx, 22, "MOVBE"), (1, 0, Ecx, 23, "POPCNT"), (1, 0, Ecx, 24, "TSC-deadline"),
    (1, 0, Ecx, 25, "AES"), (1, 0, Ecx, 26, "XSAVE"), (1, 0, Ecx, 28, "AVX"),
    (1, 0, Ecx, 29, "F16C"), (1, 0, Ecx, 30, "RDRAND"),
    (7, 0, Ebx, 0, "FSGSBASE"), (7, 0, Ebx, 1, "TSC_ADJUST"), (7, 0, Ebx, 3, "BMI1"),
    (7, 0, Ebx, 5, "AVX2"), (7, 0, Ebx, 7, "SMEP"), (7, 0, Ebx, 8, "BMI2"), (7, 0, Ebx, 9, "ERMS"),
    (7, 0, Ebx, 10, "INVPCID"), (7, 0, Ebx, 16, "AVX512F"), (7, 0, Ebx, 17, "AVX512DQ"),
    (7, 0, Ebx, 18, "RDSEED"), (7, 0, Ebx, 19, "ADX"), (7, 0, Ebx, 20, "SMAP"),
    (7, 0, Ebx, 21, "AVX512_IFMA"), (7, 0, Ebx, 23, "CLFLUSHOPT"), (7, 0, Ebx, 24, "CLWB"),
    (7, 0, Ebx, 28, "AVX512CD"), (7, 0, Ebx, 29, "SHA"), (7, 0, Ebx, 30, "AVX512BW"),
    (7, 0, Ebx, 31, "AVX512VL"), (7, 0, Ecx, 1, "AVX512_VBMI"), (7, 0, Ecx, 2, "UMIP"),
    (7, 0, Ecx, 6, "AVX512_VBMI2"), (7, 0, Ecx, 8, "GFNI"), (7, 0, Ecx, 9, "VAES"),
    (7, 0, Ecx, 10, "VPCLMULQDQ"), (7, 0, Ecx, 11, "AVX512_VNNI"), (7, 0, Ecx, 12, "AVX512_BITALG"),
    (7, 0, Ecx, 14, "AVX512_VPOPCNTDQ"), (7, 0, Ecx, 22, "RDPID"), (7, 0, Edx, 4, "FSRM"),
    (7, 1, Eax, 4, "AVX_VNNI"), (7, 1, Eax, 5, "AVX512_BF16"), (0xd, 1, Eax, 0, "XSAVEOPT"),
    (0xd, 1, Eax, 1, "XSAVEC"), (0xd, 1, Eax, 2, "XGETBV(1)"), (0xd, 1, Eax, 3, "XSAVES"),
    (0x8000_0001, 0, Ecx, 5, "LZCNT"), (0x8000_0001, 0, Ecx, 6, "SSE4A"),
    (0x8000_0001, 0, Ecx, 8, "PREFETCHW"), (0x8000_0001, 0, Edx, 26, "1-GiB pages"),
    (0x8000_0001, 0, Edx, 27, "RDTSCP"), (0x8000_0008, 0, Ebx, 0, "CLZERO"),
    (7, 0, Edx, 10, "MD_CLEAR"), (7, 0, Edx, 26, "IBRS"), (7, 0, Edx, 27, "STIBP"),
    (7, 0, Edx, 28, "L1D_FLUSH"), (7, 0, Edx, 29, "ARCH_CAPABILITIES"), (7, 0, Edx, 31, "SSBD"),
    (7, 2, Edx, 0, "PSFD"), (7, 2, Edx, 1, "IPRED_CTRL"), (7, 2, Edx, 2, "RRSBA_CTRL"),
    (7, 2, Edx, 3, "DDPD_U"), (7, 2, Edx, 4, "BHI_CTRL"), (7, 2, Edx, 5, "MCDT_NO"),
    (0x8000_0008, 0, Ebx, 12, "IBPB"), (0x8000_0008, 0, Ebx, 14, "IBRS"),
    (0x8000_0008, 0, Ebx, 15, "STIBP"), (0x8000_0008, 0, Ebx, 17, "STIBP always on"),
    (0x8000_0008, 0, Ebx, 24, "SSBD"), (0x8000_0008, 0, Ebx, 26, "SSB_NO"),
    (0x8000_0008, 0, Ebx, 28, "PSFD"), (0x8000_0008, 0, Ebx, 30, "IBPB_RET"),
    (0x8000_0021, 0, Eax, 2, "LFENCE_RDTSC"), (0x8000_0021, 0, Eax, 5, "VERW_CLEAR"),
    (0x8000_0021, 0, Eax, 27, "SBPB"), (0x8000_0021, 0, Eax, 28, "IBPB_BRTYPE"),
    (0x8000_0021, 0, Eax, 29, "SRSO_NO"), (0x8000_0021, 0, Eax, 30, "SRSO_USER_KERNEL_NO"),
    (0x8000_0021, 0, Ecx, 1, "TSA_SQ_NO"), (0x8000_0021, 0, Ecx, 2, "TSA_L1_NO"),
];

/// What KVM offers, from KVM_GET_SUPPORTED_CPUID.
pub struct Supported {
    table: CpuidTable,
    /// KVM_CAP_TSC_DEADLINE_TIMER, which older kernels do not show in CPUID.
    pub tsc_deadline: bool,
}

impl Supported {
    /// Takes KVM's answer.
    pub fn new(cpuid: &CpuId, tsc_deadline: bool) -> Self {
        let mut table = CpuidTable::new();
        for e in cpuid.as_slice() {
            let subleaf = (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(e.index);
            table.set(
                e.function,
                subleaf,
                CpuidResult { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx },
            );
        }
        Self { table, tsc_deadline }
    }

    /// What it says of a leaf; nothing, if it is not there.
    pub fn get(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.table.get(leaf, subleaf).unwrap_or_default()
    }

    /// What of `model` guests can have: the rest of it, and what is missing. `tsc_khz` is the rate
    /// of their TSC, if it is not the model's.
    pub fn restrict(&self, model: &CpuidTable, tsc_khz: Option<u32>) -> (CpuidTable, Vec<Refused>) {
        let mut table = model.clone();
        let mut refused = Vec::new();
        for &(leaf, subleaf, register, always) in FEATURES {
            let Some(mut answer) = table.get(leaf, subleaf) else { continue };
            let mut offered = *field(&mut self.get(leaf, subleaf), register) | always;
            if (leaf, register) == (1, Ecx) && !self.tsc_deadline {
                offered &= !(TSC_DEADLINE & !self.get(1, 0).ecx);
            }
            let word = field(&mut answer, register);
            let mut missing = *word & !offered;
            *word &= offered;
            if (leaf, subleaf, register) == (UNTOLD.0, UNTOLD.1, UNTOLD.2) {
                missing &= !UNTOLD.3;
            }
            refused.extend((0..32).filter(|bit| missing >> bit & 1 != 0).map(|bit| Refused {
                leaf,
                subleaf,
                register,
                bit,
            }));
            replace(&mut table, leaf, subleaf, answer);
        }
        fit_xsave(&mut table);
        if let Some(mut features) = table.get(KVM_FEATURES, 0) {
            features.eax &= self.get(KVM_FEATURES, 0).eax;
            table.set(KVM_FEATURES, None, features);
        }
        if let (Some(mut timing), Some(tsc_khz)) = (table.get(KVM_TIMING, 0), tsc_khz) {
            timing.eax = tsc_khz;
            table.set(KVM_TIMING, None, timing);
        }
        (table, refused)
    }
}

/// XSAVE's leaf says no more than is left of the state components.
fn fit_xsave(table: &mut CpuidTable) {
    let has_xsave = table.get(1, 0).is_some_and(|l| l.ecx & XSAVE != 0);
    let Some(mut area) = table.get(0xd, 0) else { return };
    if !has_xsave {
        let none: Vec<_> = table.iter().filter(|(leaf, ..)| *leaf == 0xd).collect();
        for (leaf, subleaf, _) in none {
            table.set(leaf, subleaf, CpuidResult::default());
        }
        return;
    }
    let xcr0 = area.eax;
    let mut size = 576;
    for i in 2..32 {
        match table.get(0xd, i) {
            Some(component) if xcr0 >> i & 1 != 0 => {
                size = size.max(component.eax.saturating_add(component.ebx));
            }
            Some(_) => table.set(0xd, Some(i), CpuidResult::default()),
            None => {}
        }
    }
    area.ecx = size;
    replace(table, 0xd, 0, area);
}

fn field(answer: &mut CpuidResult, register: Register) -> &mut u32 {
    match register {
        Eax => &mut answer.eax,
        Ebx => &mut answer.ebx,
        Ecx => &mut answer.ecx,
        Edx => &mut answer.edx,
    }
}

/// Changes an answer that is there, whether its leaf has subleaves or not.
fn replace(table: &mut CpuidTable, leaf: u32, subleaf: u32, answer: CpuidResult) {
    let has_subleaves = table.iter().any(|(l, s, _)| l == leaf && s.is_some());
    table.set(leaf, has_subleaves.then_some(subleaf), answer);
}

/// Says what is missing, each feature once in the life of this process.
pub fn say(refused: &[Refused]) {
    static TOLD: Mutex<BTreeSet<Refused>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let new: Vec<String> =
        refused.iter().filter(|r| told.insert(**r)).map(ToString::to_string).collect();
    if !new.is_empty() {
        tracing::warn!(
            "this host's KVM does not offer all of the processor model; guests do without {}",
            new.join(", ")
        );
    }
}

/// The table as KVM_SET_CPUID2 wants it.
pub fn to_kvm(table: &CpuidTable) -> Option<CpuId> {
    let entries: Vec<kvm_cpuid_entry2> = table
        .iter()
        .map(|(function, subleaf, r)| kvm_cpuid_entry2 {
            function,
            index: subleaf.unwrap_or(0),
            flags: if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).ok()
}

/// Whether guests with this CPUID have IA32_ARCH_CAPABILITIES.
pub fn has_arch_capabilities(table: &CpuidTable) -> bool {
    table.get(7, 0).is_some_and(|leaf| leaf.edx >> 29 & 1 != 0)
}

/// State components that a guest with this CPUID can have, and whether it has XSAVE to do so.
pub fn components(table: &CpuidTable) -> (u64, bool) {
    let xsave = table.get(1, 0).is_some_and(|l| l.ecx & XSAVE != 0);
    let xcr0 = table.get(0xd, 0).unwrap_or_default();
    if xsave { (u64::from(xcr0.eax) | u64::from(xcr0.edx) << 32 | 3, true) } else { (3, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
        CpuidResult { eax, ebx, ecx, edx }
    }

    /// XSAVE, AVX, x2APIC, hypervisor, TSC-deadline, one feature of leaf 7, three components.
    fn model() -> CpuidTable {
        let mut table = CpuidTable::new();
        table.set(1, None, result(0, 0, XSAVE | 1 << 28 | 1 << 21 | HYPERVISOR | TSC_DEADLINE, 1));
        table.set(7, Some(0), result(0, 1 << 20, 0, 0));
        table.set(0xd, Some(0), result(7, 576, 832, 0));
        table.set(0xd, Some(1), result(1, 0, 0, 0));
        table.set(0xd, Some(2), result(256, 576, 0, 0));
        table.set(KVM_FEATURES, None, result(0x0100_000b, 0, 0, 0));
        table.set(KVM_TIMING, None, result(1, 2, 0, 0));
        table
    }

    fn supported(l1_ecx: u32, xcr0: u32) -> Supported {
        let mut table = CpuidTable::new();
        table.set(1, None, result(0, 0, l1_ecx, 1));
        table.set(7, Some(0), result(0, 1 << 20, 0, 0));
        table.set(0xd, Some(0), result(xcr0, 0, 0, 0));
        table.set(KVM_FEATURES, None, result(0x0100_7efb, 0, 0, 0));
        Supported { table, tsc_deadline: true }
    }

    fn names(refused: &[Refused]) -> Vec<String> {
        refused.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_kvm_offers_stays() {
        let all = supported(XSAVE | 1 << 28 | 1 << 21, 7);
        let (table, refused) = all.restrict(&model(), Some(2_000_000));
        assert_eq!(names(&refused), ["XSAVEOPT"]);
        assert_eq!(table.get(1, 0), model().get(1, 0));
        assert_eq!(table.get(0xd, 0), model().get(0xd, 0));
        assert_eq!(table.get(KVM_TIMING, 0).unwrap(), result(2_000_000, 2, 0, 0));
        assert_eq!(table.get(KVM_FEATURES, 0).unwrap().eax, 0x0100_000b & 0x0100_7efb);
        assert_eq!(components(&table), (7, true));
    }

    #[test]
    fn what_kvm_refuses_is_named_and_gone() {
        let (table, refused) = supported(XSAVE | 1 << 21, 3).restrict(&model(), Some(1));
        assert_eq!(names(&refused), ["AVX", "d.0:Eax[2]", "XSAVEOPT"]);
        assert_eq!(table.get(0xd, 0).unwrap(), result(3, 576, 576, 0));
        assert_eq!(table.get(0xd, 2).unwrap(), CpuidResult::default());
        assert_eq!(components(&table), (3, true));
    }

    #[test]
    fn what_is_no_feature_goes_without_a_word() {
        let mut model = model();
        model.set(0x8000_0008, None, result(46, 1 << 29 | 1, 0, 0));
        let (table, refused) = supported(XSAVE | 1 << 28 | 1 << 21, 7).restrict(&model, Some(1));
        assert_eq!(names(&refused), ["XSAVEOPT", "CLZERO"]);
        assert_eq!(table.get(0x8000_0008, 0).unwrap(), result(46, 0, 0, 0));
    }

    #[test]
    fn controls_over_speculation_are_as_kvm_has_them() {
        let mut model = model();
        let amd = u32::from_le_bytes(*b"Auth");
        let has = |leaf, subleaf| match (leaf, subleaf) {
            (0x8000_0008, _) => result(0, 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0, 0),
            (0x8000_0000, _) => result(0x8000_0021, 0, 0, 0),
            (0x8000_0021, _) => result(1 << 27 | 1 << 28, 0, 0, 0),
            _ => CpuidResult::default(),
        };
        model.set(0, None, result(0xd, amd, 0, 0));
        model.set(0x8000_0008, None, result(46, 0, 0, 0));
        x86::cpuid::add_speculation_controls(&mut model, has);
        let mut kvm = supported(XSAVE | 1 << 28 | 1 << 21, 7);
        kvm.table.set(0x8000_0008, None, result(0, 1 << 12 | 1 << 14 | VIRT_SSBD, 0, 0));
        kvm.table.set(0x8000_0021, None, result(1 << 28 | 1 << 6, 0, 0, 0));
        let (table, refused) = kvm.restrict(&model, Some(1));
        assert_eq!(names(&refused), ["XSAVEOPT", "STIBP", "SSBD", "SBPB"]);
        assert_eq!(table.get(0x8000_0008, 0).unwrap().ebx, 1 << 12 | 1 << 14 | VIRT_SSBD);
        assert_eq!(table.get(0x8000_0021, 0).unwrap().eax, 1 << 28);
    }

    #[test]
    fn without_xsave_there_are_no_components() {
        let (table, _) = supported(0, 7).restrict(&model(), Some(1));
        assert_eq!(table.get(0xd, 0).unwrap(), CpuidResult::default());
        assert_eq!(components(&table), (3, false));
        assert_ne!(table.get(1, 0).unwrap().ecx & HYPERVISOR, 0);
    }

    #[test]
    fn the_deadline_timer_is_a_capability_of_its_own() {
        let mut old = supported(0, 0);
        let deadline =
            |s: &Supported| s.restrict(&model(), Some(1)).0.get(1, 0).unwrap().ecx & TSC_DEADLINE;
        assert_ne!(deadline(&old), 0);
        old.tsc_deadline = false;
        assert_eq!(deadline(&old), 0);
    }
}
