//! Where the status flags are.

use super::*;

impl Translator {
    /// AX holds the flags from here on.
    pub(super) fn keep_flags(&mut self) {
        if self.status == Status::Host {
            self.asm.save_status();
            self.status = Status::Both;
        }
    }

    /// Puts the flags where the next block expects them.
    pub(super) fn hand_flags_over(&mut self) {
        if self.setting.mirrored {
            self.need_flags();
            self.status = Status::Host;
        } else {
            self.keep_flags();
            self.status = Status::Kept;
        }
    }

    /// The host's flags may be destroyed from here on.
    pub(super) fn destroy_flags(&mut self) {
        if self.status == Status::Host && self.back != 0 {
            self.status = Status::Lost;
        }
        if self.status != Status::Lost {
            self.keep_flags();
            self.status = Status::Kept;
        }
    }

    /// The host's flags hold the guest's from here on.
    pub(super) fn need_flags(&mut self) {
        debug_assert!(self.status != Status::Lost);
        if self.status == Status::Kept {
            self.asm.restore_status();
            self.status = Status::Both;
        }
    }

    /// RAX is free from here on, until flags are kept again.
    pub(super) fn free_status(&mut self) {
        if self.status != Status::Lost {
            self.need_flags();
            self.status = Status::Host;
        }
    }
}
