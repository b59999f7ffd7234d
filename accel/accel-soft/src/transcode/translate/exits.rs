//! Ways out of a block, and the code behind it.

use super::*;

impl Translator {
    pub(super) fn exit(&mut self, exit: Exit) -> usize {
        self.exits.push(exit);
        self.exits.len() - 1
    }

    pub(super) fn cold_exit(&mut self, exit: Exit) -> Label {
        let exit = self.exit(exit);
        let from = self.asm.label();
        self.cold.push(Cold::Exit { from, exit });
        from
    }

    pub(super) fn leave_by(&mut self, exit: usize, common: Common) {
        self.asm.mov_imm(INDEX, (self.first_exit + exit as u32) as i32);
        let from = self.base as i32 + self.asm.code.len() as i32 + 5;
        self.asm.jmp_by(common.leave as i32 - from);
    }

    /// Emits what comes behind the block and resolves all jumps.
    pub(super) fn finish(&mut self, common: Common) -> Option<()> {
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Exit { from, exit } => {
                    self.asm.bind(from);
                    self.leave_by(exit, common);
                }
                Cold::Miss { from, exit, write, start } => {
                    let view = self.setting.view;
                    self.asm.bind(from);
                    self.asm.push_imm((self.first_exit + exit as u32) as i32);
                    let from = self.base as i32 + self.asm.code.len() as i32 + 5;
                    let second = common.second_level[view as usize][usize::from(write)];
                    self.asm.call_by(second as i32 - from);
                    self.asm.jmp(start);
                }
            }
        }
        for (exit, label) in std::mem::take(&mut self.resumes) {
            let to = self.base + self.asm.position(label)? as u32;
            match &mut self.exits[exit] {
                Exit::Interpret { resume: place, .. } | Exit::Miss { retry: place, .. } => {
                    *place = to;
                }
                _ => {}
            }
        }
        self.asm.resolve().then_some(())
    }
}
