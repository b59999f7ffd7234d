//! What every VMM process runs on: the guest's clock, its timers, and wake-ups for workers.

mod clock;
mod doorbell;
mod event;
pub mod heap;
mod kernel_tsc;
pub mod thread;
mod timer;
pub mod tsc;

pub use clock::Clock;
pub use doorbell::Doorbells;
pub use event::Event;
pub use timer::{Expire, Timer, TimerTarget, Timers};
