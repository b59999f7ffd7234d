//! Ways out of a block, and the code behind it.

use super::super::second_level::MERGED;
use super::*;

impl Translator {
    pub(super) fn exit(&mut self, exit: Exit) -> usize {
        debug_assert!(self.stack == 0, "RSP is behind at {exit:?}");
        let back = if self.status == Status::Lost { self.back } else { 0 };
        self.is_lost |= self.status == Status::Lost && back == 0;
        self.exits.push(Departure { exit, back });
        self.exits.len() - 1
    }

    pub(super) fn cold_exit(&mut self, exit: Exit) -> Label {
        let exit = self.exit(exit);
        let from = self.asm.label();
        self.cold.push(Cold::Exit { from, exit });
        from
    }

    pub(super) fn leave_by(&mut self, exit: usize) {
        let leave = match self.exits[exit].exit {
            _ if !self.setting.mirrored => self.common.leave,
            Exit::Chain { .. } | Exit::FarChain { .. } => self.common.leave_with_flags,
            _ => self.common.leave_mirrored,
        };
        self.go_with_exit(exit, leave);
    }

    /// Calls common code with the number of an exit in EBP.
    pub(super) fn call_with_exit(&mut self, exit: usize, stub: u32) {
        self.asm.mov_imm(INDEX, (self.first_exit + exit as u32) as i32);
        let from = self.base as i32 + self.asm.code.len() as i32 + 5;
        self.asm.call_by(stub as i32 - from);
    }

    /// Goes to common code with the number of an exit in EBP.
    fn go_with_exit(&mut self, exit: usize, to: u32) {
        self.asm.mov_imm(INDEX, (self.first_exit + exit as u32) as i32);
        let from = self.base as i32 + self.asm.code.len() as i32 + 5;
        self.asm.jmp_by(to as i32 - from);
    }

    /// Emits what comes behind the block and resolves all jumps.
    pub(super) fn finish(&mut self) -> Option<()> {
        let mut done = 0;
        while let Some(&cold) = self.cold.get(done) {
            done += 1;
            match cold {
                Cold::Side { from, is_kept, target, at } => {
                    self.asm.bind(from);
                    self.status = if is_kept { Status::Kept } else { Status::Host };
                    self.jump_to(target, at);
                }
                Cold::Exit { from, exit } => {
                    self.asm.bind(from);
                    self.leave_by(exit);
                }
                Cold::Branch { from, exit } => {
                    self.asm.bind(from);
                    let by = self.common.second_jumps[self.setting.jumps()];
                    self.go_with_exit(exit, by);
                }
                Cold::Miss { from, exit, write, start, merged, entry } => {
                    let view = self.setting.view;
                    self.asm.bind(from);
                    if let Entry::Slot(slot) = entry {
                        self.asm.mov_imm(INDEX, slot_index(slot));
                    }
                    let number = self.first_exit + exit as u32;
                    let flag = if merged { MERGED } else { 0 };
                    self.asm.push_imm((number | flag) as i32);
                    let from = self.base as i32 + self.asm.code.len() as i32 + 5;
                    let second = self.common.second_level[view as usize][usize::from(write)];
                    self.asm.call_by(second as i32 - from);
                    self.asm.jmp(start);
                    if merged && let Exit::Miss { at, .. } = self.exits[exit].exit {
                        let from = self.base as i32 + self.asm.code.len() as i32 + 5;
                        self.asm.jmp_by(self.common.crossing as i32 - from);
                        let link = self.asm.code.len() as u32 - 4;
                        self.links.push(Link { at: link, target: at, narrow: true });
                    }
                }
            }
        }
        for (exit, label) in std::mem::take(&mut self.resumes) {
            let to = self.base + self.asm.position(label)? as u32;
            match &mut self.exits[exit].exit {
                Exit::Interpret { resume: place, .. } | Exit::Miss { retry: place, .. } => {
                    *place = to;
                }
                _ => {}
            }
        }
        // What was given up cannot be told at some exit.
        if self.is_lost {
            return None;
        }
        self.asm.resolve().then_some(())
    }
}
