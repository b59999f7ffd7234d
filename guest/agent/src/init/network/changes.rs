//! Cards that become others: a guest that is cloned gets other Ethernet addresses.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::interface::Interface;

/// The group of those who want to hear of interfaces (rtnetlink(7)).
const RTMGRP_LINK: u32 = 1;

/// Tells that something has changed about an interface; what it is, is looked up.
pub struct Changes(Option<OwnedFd>);

impl Changes {
    /// From now on. Where the kernel does not tell, nothing ever changes.
    pub fn watch() -> Changes {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The first of its protocols, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None);
        Changes(
            socket
                .ok()
                .filter(|socket| bind(socket, &SocketAddrNetlink::new(0, RTMGRP_LINK)).is_ok()),
        )
    }

    /// Waits so long, or until the interface has another Ethernet address and is on: whether it has.
    pub fn wait(&self, interface: &Interface, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let (Some(socket), Ok(before)) = (&self.0, interface.hardware_address()) else {
            thread::sleep(time);
            return false;
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let left = Timespec::try_from(left).ok();
            let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], left.as_ref());
            // News that did not fit in the socket's buffer are news, too.
            let mut news = [0; 4096];
            while matches!(
                recv(socket, &mut news[..], RecvFlags::empty()),
                Ok(_) | Err(Errno::NOBUFS)
            ) {}
            let is_another = interface.hardware_address().is_ok_and(|now| now != before);
            if is_another && interface.is_up() {
                return true;
            }
        }
    }
}
