//! A guest on the user-mode network. All traffic stays on this machine's loopback interface.

mod edge;
mod guest;
mod hostile;
mod services;
mod tcp;
mod udp;
mod wire;
