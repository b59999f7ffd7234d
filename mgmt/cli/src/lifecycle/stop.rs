//! `lodge stop`, `kill` and `restart`.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_open, pidfd_send_signal};
use vmm_api::{Failure, StopRequest};
use vmm_client::Error;

use super::each;
use crate::args::lifecycle::{Names, StopArgs};
use crate::guests::{self, lock};
use crate::run;

/// How long a VMM may take to end after the guest has, or after it was asked to end it at once.
const END_PATIENCE: Duration = Duration::from_secs(15);
/// How long a VMM may take to answer before it is ended itself.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// `lodge stop`; the value is the exit status.
pub fn stop(args: &StopArgs) -> Result<u8, Failure> {
    // All are asked first, so that they switch themselves off at the same time.
    let mut asked = Vec::new();
    let status = each(&args.guests, |name| {
        asked.push((name.to_owned(), ask(name, args.timeout)?));
        Ok(())
    })?;
    let names = Names { names: asked.iter().map(|(name, _)| name.clone()).collect() };
    let mut asked = asked.into_iter().map(|(_, asked)| asked);
    let ended = each(&names, |name| match asked.next() {
        Some(Asked::Runs { deadline }) => end(name, deadline),
        Some(Asked::DoesNotRun) | None => Ok(()),
    })?;
    Ok(if status != 0 { status } else { ended })
}

/// `lodge kill`.
pub fn kill(args: &Names) -> Result<u8, Failure> {
    each(args, |name| {
        let Asked::Runs { deadline } = ask(name, 0)? else {
            return Err(Failure::configuration(format!("the guest {name} does not run")));
        };
        end(name, deadline)
    })
}

/// `lodge restart`.
pub fn restart(args: &StopArgs) -> Result<u8, Failure> {
    each(&args.guests, |name| {
        if let Asked::Runs { deadline } = ask(name, args.timeout)? {
            end(name, deadline)?;
        }
        run::start(name, false).map(drop)
    })
}

/// Ends the guest at once, if it runs.
pub fn end_now(name: &str) -> Result<(), Failure> {
    match ask(name, 0)? {
        Asked::Runs { deadline } => end(name, deadline),
        Asked::DoesNotRun => Ok(()),
    }
}

enum Asked {
    /// It runs, and has been asked to end until then.
    Runs {
        deadline: Instant,
    },
    DoesNotRun,
}

/// Asks a guest to end.
fn ask(name: &str, timeout_s: u32) -> Result<Asked, Failure> {
    let directory = guests::existing(name)?;
    if !lock::is_held(&directory) {
        return Ok(Asked::DoesNotRun);
    }
    let patience = Duration::from_secs(timeout_s.into()).saturating_add(END_PATIENCE);
    let deadline = Instant::now() + patience;
    // One that is just starting listens already, and one that ends needs not be asked.
    let answer = match guests::client(name) {
        Ok(client) => client.with_patience(ANSWER_PATIENCE).stop(StopRequest { timeout_s }),
        Err(_) => Ok(()),
    };
    match answer {
        Ok(()) | Err(Error::Gone) => Ok(Asked::Runs { deadline }),
        // It is ended by force then.
        Err(Error::Late | Error::Language(_) | Error::Io(_)) => {
            Ok(Asked::Runs { deadline: Instant::now() })
        }
        Err(error) => Err(error.about(name)),
    }
}

/// Waits for the end of a guest that was asked to end, and ends its VMM by force if it does not.
fn end(name: &str, deadline: Instant) -> Result<(), Failure> {
    let directory = guests::directory_of(name)?;
    if wait(&directory, deadline) {
        return Ok(());
    }
    let Some(vmm) = guests::vmm(&directory) else {
        return Err(Failure::host(format!(
            "the guest {name} does not end, and its lodge-vmm cannot be found among the processes \
             of this host; perhaps it runs in another container"
        )));
    };
    let no_kill = |error: rustix::io::Errno| {
        Failure::host(format!("the lodge-vmm of the guest {name} cannot be ended: {error}"))
    };
    // The number could become another process's: so it is looked at again through a descriptor.
    let process = pidfd_open(vmm, rustix::process::PidfdFlags::empty()).map_err(no_kill)?;
    if guests::vmm(&directory) == Some(vmm) {
        pidfd_send_signal(&process, Signal::KILL).map_err(no_kill)?;
        eprintln!("lodge: the lodge-vmm of the guest {name} did not answer and was ended by force");
    }
    if wait(&directory, Instant::now() + END_PATIENCE) {
        return Ok(());
    }
    Err(Failure::host(format!(
        "the guest {name} does not end: its lodge-vmm waits for a device of this host"
    )))
}

/// Waits until nobody runs the guest; false if that takes too long.
fn wait(directory: &Path, deadline: Instant) -> bool {
    loop {
        if !lock::is_held(directory) {
            guests::clean();
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
