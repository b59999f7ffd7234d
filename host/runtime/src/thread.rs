//! Threads, each in a role. A process that confines itself gives every role no more than it needs.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, JoinHandle};

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Carries a console's bytes.
    Console,
    /// Compares a file with its checksums.
    Verification,
    /// Calls devices whose timers have expired.
    Timers,
    /// Runs a processor of the guest, and the devices that it accesses.
    Processor,
    /// Serves a queue of a device that needs nothing of the host but what is open.
    Queue,
    /// Serves a queue of a disk.
    Disk,
    /// Serves a queue of the socket device.
    Sockets,
    /// Serves a queue of a shared folder.
    Folder,
    /// Is the user-mode network.
    Network,
    /// Speaks with a debugger.
    Debugger,
    /// Serves the API.
    Api,
}

/// Confines the calling thread, which is to be in this role.
pub type Keeper = dyn Fn(Role) + Send + Sync;

type Birth = Box<dyn FnOnce() + Send>;

/// A process has one, as it has one kernel that keeps its threads.
static KEEPER: OnceLock<Box<Keeper>> = OnceLock::new();
/// The thread that makes all others.
static NURSERY: OnceLock<Sender<Birth>> = OnceLock::new();

/// Has each thread that [`spawn`] starts from now on be confined by `keeper` before it does anything. The
/// first keeper stays.
pub fn keep(keeper: Box<Keeper>) {
    let _ = KEEPER.set(keeper);
}

/// Has threads be made by a thread of their own, which is confined as the calling one is: threads
/// inherit how their maker is confined, and a processor's is not to make all others.
///
/// # Errors
///
/// The host has no thread to give.
pub fn open_nursery() -> io::Result<()> {
    let (sender, births) = mpsc::channel::<Birth>();
    Builder::new().name("threads".to_owned()).spawn(move || {
        births.into_iter().for_each(|birth| birth());
    })?;
    let _ = NURSERY.set(sender);
    Ok(())
}

/// Starts a thread.
///
/// # Errors
///
/// The host has none to give.
pub fn spawn<T: Send + 'static>(
    role: Role,
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let name = name.into();
    let make = move || {
        Builder::new().name(name).spawn(move || {
            if let Some(keeper) = KEEPER.get() {
                keeper(role);
            }
            body()
        })
    };
    let Some(nursery) = NURSERY.get() else { return make() };
    let (sender, made) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that makes threads is gone");
    let birth = Box::new(move || {
        let _ = sender.send(make());
    });
    nursery.send(birth).map_err(|_| gone())?;
    made.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn threads_are_kept_and_made_elsewhere() {
        static SEEN: Mutex<Vec<(Role, Option<String>)>> = Mutex::new(Vec::new());
        let own = |role| {
            let name = std::thread::current().name().map(str::to_owned);
            SEEN.lock().unwrap().push((role, name));
        };
        assert_eq!(spawn(Role::Queue, "early", || 1).unwrap().join().unwrap(), 1);
        keep(Box::new(own));
        open_nursery().unwrap();
        assert_eq!(spawn(Role::Disk, "late", || 2).unwrap().join().unwrap(), 2);
        // Other tests of this program start threads, too.
        let seen = SEEN.lock().unwrap();
        assert!(seen.contains(&(Role::Disk, Some("late".to_owned()))), "{seen:?}");
        assert!(!seen.iter().any(|(role, _)| *role == Role::Queue), "{seen:?}");
    }
}
