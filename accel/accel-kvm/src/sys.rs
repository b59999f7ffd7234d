//! System calls that kvm-ioctls does not have, and the page that a processor shares with KVM.

use std::os::fd::AsRawFd;
use std::ptr::addr_of;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_run, kvm_sregs2};
use kvm_ioctls::{Error, VcpuFd};

/// `KVM_CAP_SREGS2`: special registers together with the PDPTEs (api.rst, 4.132).
pub const CAP_SREGS2: libc::c_ulong = 200;
/// `KVM_CAP_EXIT_ON_EMULATION_FAILURE` (api.rst, 7.29).
pub const CAP_EXIT_ON_EMULATION_FAILURE: u32 = 204;
/// `KVM_CAP_VCPU_ATTRIBUTES`: the TSC's offset can be read and set.
pub const CAP_VCPU_ATTRIBUTES: libc::c_ulong = 127;

/// `KVM_CAP_SET_GUEST_DEBUG2`: which of `KVM_GUESTDBG_*` there are.
pub const CAP_SET_GUEST_DEBUG2: libc::c_ulong = 195;

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

/// The page that a processor shares with KVM. It stays as long as the processor's `VcpuFd`.
#[derive(Clone, Copy)]
pub struct RunPage(*mut kvm_run);

// SAFETY: the page belongs to the processor, with which it goes from thread to thread.
unsafe impl Send for RunPage {}

/// What KVM says about an instruction that it cannot emulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_EMULATION` is 1.
    pub suberror: u32,
    /// Further words, of which `count` mean something.
    pub data: [u64; 16],
    /// See `data`.
    pub count: u32,
}

impl RunPage {
    /// The page of `vcpu`.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        Self(vcpu.get_kvm_run())
    }

    /// Whether KVM shall return at once.
    pub fn immediate_exit(self) -> *const AtomicU8 {
        // SAFETY: only the address of a field is computed.
        unsafe { addr_of!((*self.0).immediate_exit).cast() }
    }

    /// Bytes of each item of the last port access.
    ///
    /// # Safety
    ///
    /// The processor's `VcpuFd` is there, and nobody uses the page meanwhile.
    pub unsafe fn io_size(self) -> usize {
        // SAFETY: as the caller promises; every bit pattern of the union is an integer.
        unsafe { addr_of!((*self.0).__bindgen_anon_1.io.size).read_volatile().into() }
    }

    /// Details of the last KVM_EXIT_INTERNAL_ERROR.
    ///
    /// # Safety
    ///
    /// As with [`io_size`](Self::io_size).
    pub unsafe fn internal_error(self) -> InternalError {
        // SAFETY: as the caller promises; every bit pattern of the union is integers.
        let internal = unsafe { addr_of!((*self.0).__bindgen_anon_1.internal).read_volatile() };
        InternalError {
            suberror: internal.suberror,
            data: internal.data,
            count: internal.ndata.min(16),
        }
    }
}
