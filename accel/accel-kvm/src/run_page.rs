//! The page that a processor shares with KVM.

use std::ptr::{addr_of, addr_of_mut};
use std::sync::atomic::AtomicU8;

use kvm_bindings::{KVM_EXIT_HYPERV_HCALL, kvm_run};
use kvm_ioctls::VcpuFd;

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

    /// After KVM_EXIT_HYPERV: the guest is told that there is no such hypercall, if it was one.
    ///
    /// # Safety
    ///
    /// As with [`io_size`](Self::io_size).
    pub unsafe fn refuse_hypercall(self) {
        const HV_STATUS_INVALID_HYPERCALL_CODE: u64 = 2;
        // SAFETY: as the caller promises; the type says which part of the union is valid, and every
        // bit pattern of it is an integer.
        unsafe {
            let exit = addr_of_mut!((*self.0).__bindgen_anon_1.hyperv);
            if addr_of!((*exit).type_).read_volatile() == KVM_EXIT_HYPERV_HCALL {
                let result = addr_of_mut!((*exit).u.hcall.result);
                result.write_volatile(HV_STATUS_INVALID_HYPERCALL_CODE);
            }
        }
    }
}
