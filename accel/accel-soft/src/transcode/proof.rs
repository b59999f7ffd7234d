//! Has blocks checked before they run.

use std::sync::atomic::{AtomicU64, Ordering};

use checker::{Block, Checker, Retry, Stubs, Violation};
use x86::View;
use x86::state::Rflags;

use super::context;
use super::translate::{Common, Exit, Setting, Translated, Translator};

/// Blocks that were refused in this process.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// How many translated blocks were refused by the checker, in this process. Each is a defect of
/// the translator or the checker.
pub fn refused_blocks() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// A checker, and memory for what it is told of a block.
pub struct Proof {
    checker: Checker,
    resumes: Vec<u32>,
    retries: Vec<Retry>,
    branches: Vec<u32>,
    links: Vec<u32>,
    sites: Vec<u32>,
}

impl Proof {
    /// Ready to check.
    pub fn new() -> Self {
        Self {
            checker: Checker::new(context::layout()),
            resumes: Vec::new(),
            retries: Vec::new(),
            branches: Vec::new(),
            links: Vec::new(),
            sites: Vec::new(),
        }
    }

    /// Checks what `translator` has just translated, for offset `base` of the code memory, with
    /// exits numbered from `first_exit`.
    pub fn check(
        &mut self,
        translator: &Translator,
        translated: &Translated,
        setting: Setting,
        base: u32,
        first_exit: u32,
        common: Common,
    ) -> Result<(), Violation> {
        self.resumes.clear();
        self.retries.clear();
        self.branches.clear();
        for (exit, number) in translator.exits.iter().zip(first_exit..) {
            match exit.exit {
                Exit::Miss { retry, .. } => {
                    self.retries.push(Retry { exit: number, at: retry.wrapping_sub(base) });
                }
                Exit::Interpret { resume, .. } if resume != 0 => {
                    self.resumes.push(resume.wrapping_sub(base));
                }
                Exit::Branch { .. } | Exit::FarChain { .. } => self.branches.push(number),
                _ => {}
            }
        }
        self.links.clear();
        self.links.extend(translator.links.iter().map(|link| link.at));
        self.links.extend(&translator.far_links);
        self.sites.clear();
        self.sites.extend(translator.sites.iter().map(|site| site.host));
        /// No code is there.
        const NOWHERE: u64 = u64::MAX;
        let flags = match setting.view {
            _ if setting.mirrored => Rflags::empty(),
            View::User => Rflags::DF,
            _ => Rflags::DF | Rflags::IF,
        };
        let strings = common.strings[setting.view as usize].map(u64::from);
        let verdict = self.checker.check(&Block {
            code: &translator.asm.code,
            address: base.into(),
            far: 0,
            near: translated.near,
            resumes: &self.resumes,
            retries: &self.retries,
            exits: first_exit..first_exit + translator.exits.len() as u32,
            branches: &self.branches,
            links: &self.links,
            targets: &[],
            view: setting.jumps(),
            mirrored: setting.mirrored.then_some(&self.sites),
            flags: flags.bits(),
            time: setting.time,
            stubs: match setting.mirrored {
                true => Stubs {
                    leave: common.leave_mirrored.into(),
                    leave_with_flags: common.leave_with_flags.into(),
                    crossing: NOWHERE,
                    load_vectors: NOWHERE,
                    branch: common.second_jumps[setting.jumps()].into(),
                    misses: [NOWHERE; 2],
                    strings: &[],
                },
                false => Stubs {
                    leave: common.leave.into(),
                    leave_with_flags: NOWHERE,
                    crossing: common.crossing.into(),
                    load_vectors: common.load_vectors.into(),
                    branch: common.second_jumps[setting.jumps()].into(),
                    misses: common.second_level[setting.view as usize].map(u64::from),
                    strings: &strings,
                },
            },
        });
        if verdict.is_err() {
            REFUSED.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }
}
