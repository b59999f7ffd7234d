//! Which files can be opened, by Landlock (Documentation/userspace-api/landlock.rst).

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::{Error, Needs};

/// What is known of Landlock here. Kernels that know less do what they can.
const KNOWN: ABI = ABI::V7;

/// What may be done with a file, or with all below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read files and directories.
    Read,
    /// All that can be done with data: files are made, written, renamed and removed. None can be run.
    Write,
    /// The same, and all else that a guest may make in a folder: links and pipes. No devices.
    Share,
    /// Remove files, in a directory.
    Remove,
}

/// A file or directory that remains within reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where it is. What does not exist is not granted.
    pub path: PathBuf,
    /// What may be done.
    pub rights: Rights,
}

impl Grant {
    /// For reading.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rights: Rights::Read }
    }

    /// For writing, too.
    pub fn write(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rights: Rights::Write }
    }

    /// For a guest to work in.
    pub fn share(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rights: Rights::Share }
    }

    /// For removing what is in it.
    pub fn remove(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rights: Rights::Remove }
    }

    fn access(&self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = read
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSock
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
        let wanted = match self.rights {
            Rights::Read => read,
            Rights::Write => write,
            Rights::Share => write | AccessFs::MakeSym | AccessFs::MakeFifo,
            Rights::Remove => AccessFs::RemoveFile.into(),
        };
        match is_directory(&self.path) {
            true => wanted,
            false => wanted & AccessFs::from_file(KNOWN),
        }
    }
}

fn is_directory(path: &Path) -> bool {
    path.metadata().is_ok_and(|it| it.is_dir())
}

/// Restricts the calling thread, and those that it starts, to the grants. The value says what is missing
/// of that on this host.
pub fn restrict(grants: &[Grant], needs: Needs) -> Result<Option<String>, Error> {
    let failed = |error: RulesetError| Error::Landlock(error.to_string());
    let mut ruleset =
        Ruleset::default().handle_access(AccessFs::from_all(KNOWN)).map_err(failed)?;
    if !needs.network {
        ruleset = ruleset.handle_access(AccessNet::from_all(KNOWN)).map_err(failed)?;
    }
    let ruleset = ruleset.scope(Scope::from_all(KNOWN)).map_err(failed)?;
    let mut ruleset = ruleset.create().map_err(failed)?;
    for grant in grants {
        // What is not there cannot be granted, and need not.
        let Ok(place) = PathFd::new(&grant.path) else { continue };
        let access = grant.access();
        if !access.is_empty() {
            ruleset = ruleset.add_rule(PathBeneath::new(place, access)).map_err(failed)?;
        }
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some(
            "this host's kernel has an early Landlock: of what the VMM could do to files, connections \
             and signals, some is left to file permissions"
                .to_owned(),
        ),
        RulesetStatus::NotEnforced => Some(
            "this host's kernel has no Landlock (Linux 5.13 with lsm=landlock): the VMM can open all \
             files that its user can"
                .to_owned(),
        ),
    })
}
