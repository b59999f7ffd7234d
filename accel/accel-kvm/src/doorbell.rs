//! Doorbells: stores of the guest that KVM turns into events (ioeventfd).

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use runtime::{Doorbells, Event};
use vmm_sys_util::eventfd::EventFd;

/// The doorbells of a machine.
pub struct KvmDoorbells(pub Arc<VmFd>);

/// The same event, as kvm-ioctls wants it.
fn event_fd(event: &Event) -> io::Result<EventFd> {
    let fd = event.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is open, an eventfd, and given away here.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, address: u64, event: &Event) -> io::Result<()> {
        // A store of any length rings, whatever it stores.
        let fd = event_fd(event)?;
        Ok(self.0.register_ioevent(&fd, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn detach(&self, address: u64, event: &Event) {
        let done = event_fd(event).and_then(|fd| {
            let address = IoEventAddress::Mmio(address);
            Ok(self.0.unregister_ioevent(&fd, &address, NoDatamatch)?)
        });
        if let Err(error) = done {
            tracing::error!("KVM does not let go of the doorbell at {address:#x}: {error}");
        }
    }
}
