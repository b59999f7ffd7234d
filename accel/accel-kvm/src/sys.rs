//! System calls that kvm-ioctls does not have.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_cpuid_entry2, kvm_cpuid2, kvm_device_attr, kvm_sregs2,
};
use kvm_ioctls::{Error, VcpuFd, VmFd};

/// `_IOR(KVMIO, 0xcc, struct kvm_sregs2)`.
const GET_SREGS2: libc::c_ulong = 0x8000_0000 | (size_of::<kvm_sregs2>() as u64) << 16 | 0xaecc;
/// `_IOW(KVMIO, 0xcd, struct kvm_sregs2)`.
const SET_SREGS2: libc::c_ulong = 0x4000_0000 | (size_of::<kvm_sregs2>() as u64) << 16 | 0xaecd;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const SET_DEVICE_ATTR: libc::c_ulong =
    0x4000_0000 | (size_of::<kvm_device_attr>() as u64) << 16 | 0xaee1;
/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const GET_DEVICE_ATTR: libc::c_ulong =
    0x4000_0000 | (size_of::<kvm_device_attr>() as u64) << 16 | 0xaee2;

/// `_IOW(KVMIO, 0x9c, __u64)`, KVM_X86_SETUP_MCE.
const SETUP_MCE: libc::c_ulong = 0x4008_ae9c;

/// Gives a processor so many banks of machine checks, and none of what is optional (IA32_MCG_CAP).
pub fn set_machine_check_banks(vcpu: &VcpuFd, banks: u8) -> Result<(), Error> {
    let capabilities = u64::from(banks);
    // SAFETY: the request reads eight bytes.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), SETUP_MCE, &raw const capabilities) };
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

/// The attribute KVM_VCPU_TSC_OFFSET, whose value is where `value` points.
fn tsc_offset_attribute(value: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value as u64,
    }
}

/// What is added to the host's TSC to give the guest's.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut value = 0u64;
    let attribute = tsc_offset_attribute(&raw mut value);
    // SAFETY: the request reads the structure and writes eight bytes where it points, which is how
    // long this attribute is (Documentation/virt/kvm/devices/vcpu.rst, 4.1).
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_DEVICE_ATTR, &raw const attribute) };
    if result == 0 { Ok(value) } else { Err(Error::last()) }
}

/// Sets what is added to the host's TSC to give the guest's.
pub fn set_tsc_offset(vcpu: &VcpuFd, value: u64) -> Result<(), Error> {
    let attribute = tsc_offset_attribute(&raw const value);
    // SAFETY: the request reads the structure, and eight bytes where it points.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_DEVICE_ATTR, &raw const attribute) };
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

/// KVM_GET_SREGS2.
pub fn get_sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the request writes one structure of this type, whose size is part of its number.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_SREGS2, &raw mut sregs) };
    if result == 0 { Ok(sregs) } else { Err(Error::last()) }
}

/// KVM_SET_SREGS2.
pub fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: the request reads one structure of this type, whose size is part of its number.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_SREGS2, &raw const *sregs) };
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`.
const CLEAR_DIRTY_LOG: libc::c_ulong =
    0xc000_0000 | (size_of::<kvm_clear_dirty_log>() as u64) << 16 | 0xaec0;
/// `_IOWR(KVMIO, 0xc1, struct kvm_cpuid2)`.
const GET_SUPPORTED_HV_CPUID: libc::c_ulong =
    0xc000_0000 | (size_of::<kvm_cpuid2>() as u64) << 16 | 0xaec1;
/// `_IO(KVMIO, 0xc7)`.
const RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// KVM_CLEAR_DIRTY_LOG: has stores noted anew that `words` has, for `pages` pages from `first` on.
pub fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first: u64,
    pages: u32,
    words: &[u64],
) -> Result<(), Error> {
    if words.len() < pages.div_ceil(64) as usize {
        return Err(Error::new(libc::EINVAL));
    }
    let clear = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the request reads the structure and, where it points, a bit for each page.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), CLEAR_DIRTY_LOG, &raw const clear) };
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

/// KVM_RESET_DIRTY_RINGS: has stores noted anew that were taken from rings.
pub fn reset_dirty_rings(vm: &VmFd) -> Result<(), Error> {
    // SAFETY: the request has no argument.
    let result = unsafe { libc::ioctl(vm.as_raw_fd(), RESET_DIRTY_RINGS, 0) };
    if result >= 0 { Ok(()) } else { Err(Error::last()) }
}

/// KVM_GET_SUPPORTED_HV_CPUID: the enlightenments of Hyper-V that a processor serves.
pub fn supported_hv_cpuid(vcpu: &VcpuFd) -> Result<CpuId, Error> {
    let room = [kvm_cpuid_entry2::default(); KVM_MAX_CPUID_ENTRIES];
    let mut cpuid = CpuId::from_entries(&room).map_err(|_| Error::new(libc::E2BIG))?;
    let list = cpuid.as_mut_fam_struct_ptr();
    // SAFETY: the request writes no more entries than the structure says it has room for.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_SUPPORTED_HV_CPUID, list) };
    if result != 0 {
        return Err(Error::last());
    }
    // SAFETY: the structure is there, and KVM has written how many entries it has filled.
    let count = unsafe { (*list).nent } as usize;
    let entries = cpuid.as_slice().get(..count).unwrap_or_default().to_vec();
    CpuId::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))
}
