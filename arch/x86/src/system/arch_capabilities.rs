//! IA32_ARCH_CAPABILITIES: which flaws of processors a system need not work around (SDM Vol. 4,
//! table 2-2; Intel's "Speculative Execution Side Channel Mitigations").
//!
//! A system works around them at each entry and exit: it changes page tables, executes VERW, goes
//! through thunks to branch. Here that would cost much and achieve nothing, whichever processor
//! the host has: loads are checked against the soft TLB and never rely on the host's page tables,
//! VERW and the guest's branches are not executed as themselves, and there is no TSX. What is left
//! of a flaw is the host's to work around.

/// Loads cannot go past page protection: no separate page tables for programs.
const RDCL_NO: u64 = 1 << 0;
/// VERW, which would empty buffers, is of no use against these.
const MDS_NO: u64 = 1 << 5;
const TAA_NO: u64 = 1 << 8;
const SBDR_SSDP_NO: u64 = 1 << 13;
const FBSDP_NO: u64 = 1 << 14;
const PSDP_NO: u64 = 1 << 15;
const RFDS_NO: u64 = 1 << 27;
/// Nor is it of use to clear the history of branches, or to place branches with care.
const BHI_NO: u64 = 1 << 20;
const ITS_NO: u64 = 1 << 62;

/// What the register holds.
pub(crate) const VALUE: u64 = RDCL_NO
    | MDS_NO
    | TAA_NO
    | SBDR_SSDP_NO
    | FBSDP_NO
    | PSDP_NO
    | RFDS_NO
    | BHI_NO
    | ITS_NO;
