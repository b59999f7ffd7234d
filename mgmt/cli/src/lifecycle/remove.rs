//! `lodge rm` and `lodge rename`.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use vmm_api::Failure;

use super::{each, stop};
use crate::args::lifecycle::{RemoveArgs, RenameArgs};
use crate::guests::{self, Guest};
use crate::network;

/// `lodge rm`; the value is the exit status.
pub fn remove(args: &RemoveArgs) -> Result<u8, Failure> {
    let status = each(&args.guests, |name| {
        if args.force {
            stop::end_now(name)?;
            // One that was not to be kept is gone with its end.
            if guests::existing(name).is_err() {
                return Ok(());
            }
        }
        Guest::claim_existing(name)?.remove()
    });
    network::sweep();
    status
}

/// `lodge rename`.
pub fn rename(args: &RenameArgs) -> Result<u8, Failure> {
    let new = guests::directory_of(&args.new_name)?;
    let guest = Guest::claim_existing(&args.name)?;
    let result = renameat_with(CWD, guest.directory(), CWD, &new, RenameFlags::NOREPLACE);
    guest.hand_over();
    match result {
        Ok(()) => network::rename(&args.name, &args.new_name).map(|()| 0),
        Err(Errno::EXIST) => Err(Failure::configuration(format!(
            "there is a guest {} already: choose another name",
            args.new_name
        ))),
        Err(error) => Err(Failure::host(format!("cannot rename {}: {error}", args.name))),
    }
}
