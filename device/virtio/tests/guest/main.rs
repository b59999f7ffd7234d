//! The devices as a guest's driver sees them: found on the bus, negotiated with, and used through
//! registers, rings and interrupts.

mod balloon;
mod block;
mod console;
mod driver;
mod fs;
mod hostile;
mod image;
mod net;
mod rng;
mod saved;
mod transport;
mod vsock;
