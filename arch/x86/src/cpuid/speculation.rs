//! Controls over speculation, by which a system protects its kernel and programs from each other on a
//! processor of hardware (Intel, "Speculative Execution Side Channel Mitigations"; AMD APM Vol. 3,
//! appendix E). Lodge's own engine needs none of them: see `system/arch_capabilities.rs`.

use super::{CpuidResult, CpuidTable};

/// Leaf 7, EDX: MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, SSBD.
const L7_EDX: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 31;
/// Leaf 7 subleaf 2, EDX: PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL, MCDT_NO.
const L7_2_EDX: u32 = 0x3f;
/// Leaf 8000_0008H, EBX: IBPB, IBRS, STIBP, STIBP always on, SSBD, SSB_NO, PSFD, IBPB_RET.
const X8_EBX: u32 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 24 | 1 << 26 | 1 << 28 | 1 << 30;
/// The same: VIRT_SSBD, which no processor has: hypervisors serve it where SSBD is in a register
/// that differs from model to model.
pub const VIRT_SSBD: u32 = 1 << 25;
/// Leaf 8000_0021H, EAX: LFENCE serializes, VERW_CLEAR, SBPB, IBPB_BRTYPE, SRSO_NO, SRSO_USER_KERNEL_NO.
const X21_EAX: u32 = 1 << 2 | 1 << 5 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 30;
/// The same, ECX: TSA_SQ_NO, TSA_L1_NO.
const X21_ECX: u32 = 1 << 1 | 1 << 2;

/// Adds to a processor model what `host`, a CPUID instruction, has of them. What the guest uses of
/// them is in IA32_SPEC_CTRL and IA32_PRED_CMD (on AMD's processors as well), IA32_FLUSH_CMD and
/// VIRT_SPEC_CTRL.
pub fn add_speculation_controls(table: &mut CpuidTable, host: impl Fn(u32, u32) -> CpuidResult) {
    let change =
        |table: &mut CpuidTable, leaf, subleaf: Option<u32>, f: &dyn Fn(&mut CpuidResult)| {
            let mut answer = table.get(leaf, subleaf.unwrap_or(0)).unwrap_or_default();
            f(&mut answer);
            table.set(leaf, subleaf, answer);
        };
    if table.get(0, 0).is_some_and(CpuidResult::names_amd) {
        let controls = host(0x8000_0008, 0).ebx & X8_EBX | VIRT_SSBD;
        change(table, 0x8000_0008, None, &|r| r.ebx |= controls);
        if host(0x8000_0000, 0).eax >= 0x8000_0021 {
            let (eax, ecx) =
                (host(0x8000_0021, 0).eax & X21_EAX, host(0x8000_0021, 0).ecx & X21_ECX);
            change(table, 0x8000_0000, None, &|r| r.eax = r.eax.max(0x8000_0021));
            change(table, 0x8000_0021, None, &|r| (r.eax, r.ecx) = (eax, ecx));
        }
        return;
    }
    let host7 = host(7, 0);
    change(table, 7, Some(0), &|r| r.edx |= host7.edx & L7_EDX);
    let more = if host7.eax >= 2 { host(7, 2).edx & L7_2_EDX } else { 0 };
    if more != 0 {
        change(table, 7, Some(0), &|r| r.eax = r.eax.max(2));
        change(table, 7, Some(2), &|r| r.edx = more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::{Model, build};

    fn host(vendor: &'static [u8; 4]) -> impl Fn(u32, u32) -> CpuidResult {
        move |leaf, subleaf| match (leaf, subleaf) {
            (0, _) => {
                CpuidResult { eax: 0x1f, ebx: u32::from_le_bytes(*vendor), ..Default::default() }
            }
            (0x8000_0000, _) => CpuidResult { eax: 0x8000_0028, ..Default::default() },
            (0xd, 2..) => CpuidResult { eax: 64, ebx: 576, ..Default::default() },
            _ => CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        }
    }

    #[test]
    fn intels_are_in_leaf_7() {
        let mut table = build(Model::Host, host(b"Genu"), 1).unwrap();
        let before = table.clone();
        assert_eq!(table.get(7, 0).unwrap().edx & L7_EDX, 0, "the engine needs none");
        add_speculation_controls(&mut table, host(b"Genu"));
        let leaf = table.get(7, 0).unwrap();
        assert_eq!(leaf.edx & 0xbc00_0400, 0xbc00_0400, "with ARCH_CAPABILITIES");
        assert_eq!(leaf.edx & !L7_EDX, before.get(7, 0).unwrap().edx);
        assert_eq!((leaf.eax, table.get(7, 2).unwrap().edx), (2, 0x3f));
        assert_eq!(table.get(0x8000_0008, 0), before.get(0x8000_0008, 0));
    }

    #[test]
    fn amds_are_in_the_extended_leaves() {
        let mut table = build(Model::Host, host(b"Auth"), 1).unwrap();
        let before = table.clone();
        add_speculation_controls(&mut table, host(b"Auth"));
        let of = |t: &CpuidTable| t.get(0x8000_0008, 0).unwrap().ebx;
        assert_eq!(of(&table), of(&before) | 0x5702_d000);
        assert_eq!(table.get(7, 0), before.get(7, 0));
        assert_eq!(table.get(0x8000_0000, 0).unwrap().eax, 0x8000_0021);
        let leaf = table.get(0x8000_0021, 0).unwrap();
        assert_eq!((leaf.eax, leaf.ecx), (X21_EAX, X21_ECX));
    }

    #[test]
    fn what_a_host_does_not_have_is_not_added() {
        for vendor in [b"Genu", b"Auth"] {
            let poor = |leaf, subleaf| match leaf {
                0 | 1 | 0x8000_0001 => host(vendor)(leaf, subleaf),
                0x8000_0000 => CpuidResult { eax: 0x8000_0008, ..Default::default() },
                _ => CpuidResult::default(),
            };
            let mut table = build(Model::Host, poor, 1).unwrap();
            let mut same = table.clone();
            add_speculation_controls(&mut table, poor);
            if vendor == b"Auth" {
                // As KVM has it or not, whatever the processor says.
                let mut leaf = same.get(0x8000_0008, 0).unwrap();
                leaf.ebx |= VIRT_SSBD;
                same.set(0x8000_0008, None, leaf);
            }
            assert_eq!(table, same);
        }
    }
}
