//! How a VMM process confines itself, so that whoever takes it over by way of its devices gets hold of
//! little more than the guest's own.
//!
//! Threads are confined one by one, since that is how Linux does it: each when it
//! [starts](runtime::thread::spawn), by its [role](runtime::thread::Role), and the main thread by
//! [`Sandbox::confine`] when it has opened what it needs. What there is:
//!
//! - [seccomp](filter): a list of the system calls that a thread may make, with their arguments where
//!   these matter. Another one [ends the process](violation), which says which it was.
//! - [Landlock](paths): the files that can be opened.
//! - [privileges]: no capabilities, and none to come; limits; nobody looks into the process.

mod filter;
mod paths;
mod privileges;
mod rules;
mod violation;

use std::io;
use std::process;
use std::sync::{Arc, OnceLock};

use runtime::thread::{Role, keep, open_nursery};

use filter::Filters;
pub use paths::{Grant, Rights};

/// What the process has to do, besides what every VMM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Guests run under KVM; else, code is generated and run.
    pub kvm: bool,
    /// There is a user-mode network, which makes connections.
    pub network: bool,
    /// It listens at ports that are for root.
    pub low_ports: bool,
    /// Consoles are at Unix sockets, which are removed in the end.
    pub console_sockets: bool,
    /// There is a debugger, which may want the process to end.
    pub debugger: bool,
    /// Folders of this host are shared with the guest.
    pub folders: bool,
}

/// The process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses a step.
    #[error("cannot confine the VMM: {what}: {source}; --sandbox off does without")]
    Refused {
        /// What it refuses.
        what: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// The kernel has no system call filters.
    #[error(
        "cannot confine the VMM: {0}; the kernel needs CONFIG_SECCOMP_FILTER; --sandbox off does \
         without"
    )]
    Filter(String),
    /// The kernel takes no rule about files.
    #[error("cannot confine the VMM: Landlock: {0}; --sandbox off does without")]
    Landlock(String),
}

/// Confinement that has begun: threads that are started from now on are confined, the main thread is not
/// yet.
#[must_use = "the main thread is not confined yet"]
pub struct Sandbox {
    needs: Needs,
    kept: Arc<Kept>,
}

/// What threads are confined to.
struct Kept {
    filters: Filters,
    /// What threads that serve folders open, and nothing else.
    folders: OnceLock<Vec<Grant>>,
}

/// How far a process is confined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined {
    /// Why some of it is missing, as a sentence for people.
    pub missing: Option<String>,
}

impl Sandbox {
    /// Has the threads that are started from now on be confined. To be called before the first.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn begin(needs: Needs) -> Result<Self, Error> {
        violation::watch().map_err(|source| Error::Refused { what: "handling SIGSYS", source })?;
        privileges::limit().map_err(|source| Error::Refused { what: "limits", source })?;
        let kept = Arc::new(Kept { filters: Filters::new(needs), folders: OnceLock::new() });
        keep(Box::new({
            let kept = kept.clone();
            move |role| enter(needs, &kept, role)
        }));
        Ok(Self { needs, kept })
    }

    /// Confines the calling thread, which is the main one, and those that it or others start from now on.
    /// Beyond `grants` and `folders`, no file can be opened any more, and by threads that serve folders none
    /// beyond `folders`, which they open whenever they start: the paths stay what they are.
    ///
    /// # Errors
    ///
    /// The kernel's. A kernel without Landlock is none.
    pub fn confine(self, grants: &[Grant], folders: Vec<Grant>) -> Result<Confined, Error> {
        let Self { needs, kept } = self;
        privileges::drop_all(needs)
            .map_err(|source| Error::Refused { what: "dropping privileges", source })?;
        let missing = paths::restrict(&[grants, &folders].concat(), needs)?;
        let _ = kept.folders.set(folders);
        kept.filters.install_main()?;
        open_nursery().map_err(|source| Error::Refused { what: "a thread", source })?;
        Ok(Confined { missing })
    }
}

/// Confines a thread in a role, or ends the process.
fn enter(needs: Needs, kept: &Kept, role: Role) {
    let restrict = || match (role, kept.folders.get()) {
        (Role::Folder, Some(folders)) => paths::restrict(folders, needs).map(drop),
        _ => Ok(()),
    };
    let confined = privileges::drop_all(needs)
        .map_err(|source| Error::Refused { what: "dropping privileges", source })
        .and_then(|()| restrict())
        .and_then(|()| kept.filters.install(role));
    if let Err(error) = confined {
        eprintln!("lodge-vmm: {error}");
        process::abort();
    }
}
