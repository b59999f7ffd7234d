//! Where generated code finds things in [`Context`]: offsets from the stack pointer.

use super::*;

const fn from_stack(offset: usize) -> i32 {
    offset as i32 - STACK as i32
}

pub const ATTENTION: i32 = from_stack(offset_of!(Context, attention));
pub const POLL: i32 = from_stack(offset_of!(Context, poll));
pub const VECTORS_LIVE: i32 = from_stack(offset_of!(Context, vectors_live));
pub const CODE_BASE: i32 = from_stack(offset_of!(Context, code_base));
pub const RFLAGS: i32 = from_stack(offset_of!(Context, rflags));
pub const SPILL: i32 = from_stack(offset_of!(Context, spill));
pub const FS_BASE: i32 = from_stack(offset_of!(Context, fs_base));
pub const GS_BASE: i32 = from_stack(offset_of!(Context, gs_base));
pub const KERNEL_GS_BASE: i32 = from_stack(offset_of!(Context, kernel_gs_base));
pub const CR2: i32 = from_stack(offset_of!(Context, cr2));
pub const TSC_AUX: i32 = from_stack(offset_of!(Context, tsc_aux));
pub const TSC_OFFSET: i32 = from_stack(offset_of!(Context, tsc_offset));
pub const MISSED: i32 = from_stack(offset_of!(Context, missed));
pub const SCRATCH: i32 = from_stack(offset_of!(Context, scratch));
pub const STATUS: i32 = from_stack(offset_of!(Context, status));
pub const EXIT: i32 = from_stack(offset_of!(Context, exit));
pub const TARGET: i32 = from_stack(offset_of!(Context, target));
pub const LEAVE_MIRRORED: i32 = from_stack(offset_of!(Context, leave_mirrored));
pub const WRITE_EPOCH: i32 = from_stack(offset_of!(Context, write_epoch));

/// Of FS or GS.
pub fn is_limited(segment: SegReg) -> i32 {
    from_stack(offset_of!(Context, is_limited)) + (segment as i32 - SegReg::Fs as i32) * 4
}

pub fn selector(number: usize) -> i32 {
    from_stack(offset_of!(Context, selectors) + number * 4)
}

pub fn gpr(number: usize) -> i32 {
    from_stack(offset_of!(Context, gpr) + number * 8)
}

pub fn second(view: View) -> i32 {
    from_stack(offset_of!(Context, second) + view as usize * 8)
}

pub fn tlb_journal(view: View) -> i32 {
    from_stack(offset_of!(Context, tlb_journals) + view as usize * size_of::<Journal>())
}

pub fn jump_journal(view: usize) -> i32 {
    from_stack(offset_of!(Context, jump_journals) + view * size_of::<Journal>())
}

pub fn space(view: View) -> i32 {
    from_stack(offset_of!(Context, spaces) + view as usize * 8)
}

pub const MIRRORED_JOURNAL: i32 = from_stack(offset_of!(Context, mirrored_journal));
pub const PLAIN_SP: i32 = from_stack(offset_of!(Context, plain_sp));
pub const MIRRORED_SP: i32 = from_stack(offset_of!(Context, mirrored_sp));
pub const HOST_PKRU: i32 = from_stack(offset_of!(Context, host_pkru));
pub const MIRRORED_PKRU: i32 = from_stack(offset_of!(Context, mirrored_pkru));

pub fn jump_setting(cache: usize) -> i32 {
    from_stack(offset_of!(Context, jump_settings) + cache * 8)
}

/// The tags of a code TLB, and the pages that belong to them.
pub fn code_tag(cache: usize) -> i32 {
    let tlb = offset_of!(Context, code_tlb) + cache * size_of::<CodeTlb>();
    from_stack(tlb + offset_of!(CodePage, tag))
}

pub fn code_gpa(cache: usize) -> i32 {
    const TO_GPA: usize = offset_of!(CodePage, gpa) - offset_of!(CodePage, tag);
    code_tag(cache) + TO_GPA as i32
}

/// The keys of blocks, and their far entries.
pub const PLACED_KEY: i32 =
    from_stack(offset_of!(Context, placed_jumps) + offset_of!(PlacedJump, key));
pub const PLACED_HOST: i32 =
    from_stack(offset_of!(Context, placed_jumps) + offset_of!(PlacedJump, host));

/// The tags that loads or stores look at.
pub fn tlb_tag(view: View, write: bool) -> i32 {
    let field = if write { offset_of!(TlbView, write) } else { offset_of!(TlbView, read) };
    let tlb = offset_of!(Context, tlb) + view as usize * size_of::<TlbView>();
    from_stack(tlb + field + offset_of!(TlbEntry, tag))
}

/// The pages that belong to these tags.
pub fn tlb_host(view: View, write: bool) -> i32 {
    const TO_HOST: usize = offset_of!(TlbEntry, host) - offset_of!(TlbEntry, tag);
    tlb_tag(view, write) + TO_HOST as i32
}

pub fn jump_guest(cache: usize) -> i32 {
    let jump = match cache {
        MIRRORED_JUMPS => offset_of!(Context, mirrored_jump),
        view => offset_of!(Context, jump) + view * size_of::<JumpView<{ JUMP_ENTRIES[0] }>>(),
    };
    from_stack(jump + offset_of!(JumpEntry, guest))
}

pub fn jump_host(cache: usize) -> i32 {
    const TO_HOST: usize = offset_of!(JumpEntry, host) - offset_of!(JumpEntry, guest);
    jump_guest(cache) + TO_HOST as i32
}
