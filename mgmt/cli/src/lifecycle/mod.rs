//! What is done with guests that are there.

pub mod balloon;
pub mod console;
pub mod events;
pub mod inspect;
pub mod list;
pub mod logs;
pub mod remove;
pub mod stop;

use vmm_api::Failure;

use crate::args::lifecycle::{Names, StartArgs};
use crate::{guests, run};

/// `lodge start`; the value is the exit status.
pub fn start(args: &StartArgs) -> Result<u8, Failure> {
    if args.attach {
        return match args.guests.names.as_slice() {
            [name] => run::start(name, true),
            _ => Err(Failure::configuration("--attach connects to one guest only: name one")),
        };
    }
    each(&args.guests, |name| run::start(name, false).map(drop))
}

/// `lodge pause`.
pub fn pause(args: &Names) -> Result<u8, Failure> {
    each(args, |name| guests::client(name)?.pause().map_err(|error| error.about(name)))
}

/// `lodge resume`.
pub fn resume(args: &Names) -> Result<u8, Failure> {
    each(args, |name| guests::client(name)?.resume().map_err(|error| error.about(name)))
}

/// Does something with each guest, and says what fails; the exit status is the first failure's.
fn each(args: &Names, mut act: impl FnMut(&str) -> Result<(), Failure>) -> Result<u8, Failure> {
    let mut first = None;
    for name in &args.names {
        if let Err(failure) = act(name) {
            eprintln!("lodge: {failure}");
            first.get_or_insert(failure.kind.exit_status());
        }
    }
    Ok(first.unwrap_or(0))
}
