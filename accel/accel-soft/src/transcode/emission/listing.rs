//! Guest and host code as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, Register,
    SymbolResolver, SymbolResult,
};

use x86::state::SegReg;

use super::{BASE, COMMON, FIRST_EXIT};
use crate::transcode::context::{TLB_ENTRIES, TLB_SLOTS, offset};
use crate::transcode::second_level::MERGED;
use crate::transcode::strings::StringOp;
use crate::transcode::translate::{Departure, Exit, Setting, Translated, Translator};

/// Names for what the code refers to, so that listings depend on no layout.
struct Names {
    /// Of the context, by offset from the stack pointer.
    fields: BTreeMap<u64, String>,
    /// Of places in code memory.
    places: BTreeMap<u64, String>,
}

impl Names {
    fn new(setting: Setting) -> Self {
        let view = setting.view;
        let mut fields = BTreeMap::new();
        let mut field = |at: i32, name: &str| {
            fields.entry(at as u64).or_insert_with(|| name.to_owned());
        };
        for (at, name) in [
            (offset::ATTENTION, "attention"),
            (offset::VECTORS_LIVE, "vectors_live"),
            (offset::CODE_BASE, "code_base"),
            (offset::RFLAGS, "rflags"),
            (offset::SPILL, "spill"),
            (offset::STATUS, "status"),
            (offset::FS_BASE, "fs_base"),
            (offset::GS_BASE, "gs_base"),
            (offset::is_limited(SegReg::Fs), "fs_is_limited"),
            (offset::is_limited(SegReg::Gs), "gs_is_limited"),
            (offset::KERNEL_GS_BASE, "kernel_gs_base"),
            (offset::CR2, "cr2"),
            (offset::TSC_AUX, "tsc_aux"),
            (offset::TSC_OFFSET, "tsc_offset"),
            (offset::tlb_tag(view, false), "tlb.read.tag"),
            (offset::tlb_host(view, false), "tlb.read.host"),
            (offset::tlb_tag(view, true), "tlb.write.tag"),
            (offset::tlb_host(view, true), "tlb.write.host"),
            (offset::jump_guest(setting.jumps()), "jump.guest"),
            (offset::jump_host(setting.jumps()), "jump.host"),
        ] {
            field(at, name);
        }
        for n in 0..TLB_SLOTS {
            let from_start = (TLB_ENTRIES + n) as i32 * 16;
            for (way, write) in [("read", false), ("write", true)] {
                field(offset::tlb_tag(view, write) + from_start, &format!("slot{n}.{way}.tag"));
                field(offset::tlb_host(view, write) + from_start, &format!("slot{n}.{way}.host"));
            }
        }
        for n in 0..6 {
            field(offset::selector(n), ["es", "cs", "ss", "ds", "fs", "gs"][n]);
        }
        for n in 8..12 {
            field(offset::gpr(n), &format!("guest_r{n}"));
        }
        let [read, write] = COMMON.second_level[view as usize];
        let strings = StringOp::ALL.map(|op| {
            let name = if op.moves { "repeat_movs" } else { "repeat_stos" };
            let at = COMMON.strings[view as usize][op.number()];
            (u64::from(at), format!("{name}{}", 1 << op.scale))
        });
        let places = [
            (COMMON.leave, "leave"),
            (COMMON.leave_mirrored, "leave_mirrored"),
            (COMMON.leave_with_flags, "leave_with_flags"),
            (COMMON.crossing, "crossing"),
            (COMMON.load_vectors, "load_vectors"),
            (read, "missed_load"),
            (write, "missed_store"),
            (COMMON.second_jumps[setting.jumps()], "branch"),
        ];
        let places = places.into_iter().map(|(at, name)| (at.into(), name.to_owned()));
        let places = places.chain(strings).collect();
        Self { fields, places }
    }
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        insn: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _size: u32,
    ) -> Option<SymbolResult<'_>> {
        let is_branch = insn.op0_kind() == OpKind::NearBranch64;
        let is_memory =
            instruction_operand.is_some_and(|operand| insn.op_kind(operand) == OpKind::Memory);
        let name = if is_branch {
            self.places.get(&address)?
        } else if is_memory && insn.memory_base() == Register::RSP {
            self.fields.get(&address)?
        } else {
            return None;
        };
        Some(SymbolResult::with_str(address, name))
    }
}

fn formatter(names: Option<Names>) -> IntelFormatter {
    let resolver = names.map(|names| Box::new(names) as Box<dyn SymbolResolver>);
    let mut formatter = IntelFormatter::with_options(resolver, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    formatter
}

fn text(formatter: &mut IntelFormatter, insn: &Instruction) -> String {
    let mut text = String::new();
    formatter.format(insn, &mut text);
    text
}

/// The guest's instructions in one line.
pub fn guest(insns: &[Instruction]) -> String {
    let mut formatter = formatter(None);
    let lines: Vec<String> = insns.iter().map(|insn| text(&mut formatter, insn)).collect();
    lines.join("; ") + "\n"
}

/// The host's, each in a line, without what all blocks begin with: their entries, the look at
/// `attention` and the exit for it.
pub fn host(translator: &Translator, translated: &Translated, setting: Setting) -> String {
    let code = &translator.asm.code;
    let insns: Vec<Instruction> =
        Decoder::with_ip(64, code, BASE.into(), DecoderOptions::NONE).into_iter().collect();
    let is_near = |insn: &&Instruction| insn.ip() < u64::from(BASE + translated.near);
    // CMP, JNE.
    let start = insns.iter().take_while(is_near).count() + 2;
    let attention = insns[start - 1].near_branch_target();

    // Labels in the order of their places.
    let inside = u64::from(BASE)..u64::from(BASE) + code.len() as u64;
    let mut labels: Vec<u64> = insns[start..]
        .iter()
        .filter(|insn| insn.op0_kind() == OpKind::NearBranch64)
        .map(Instruction::near_branch_target)
        .chain(translator.exits.iter().filter_map(|departure| resumed_at(departure.exit)))
        .filter(|target| inside.contains(target))
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let mut names = Names::new(setting);
    for (number, &at) in labels.iter().enumerate() {
        names.places.insert(at, format!("L{number}"));
    }
    let mut formatter = formatter(Some(names));

    let number_of = |at: u64| labels.binary_search(&at).ok();
    let exit = |number: u64| -> Option<String> {
        let index = (number as u32 & !MERGED).checked_sub(FIRST_EXIT)? as usize;
        let &departure = translator.exits.get(index)?;
        let resumed = resumed_at(departure.exit).and_then(number_of);
        Some(describe(departure, resumed))
    };
    let branch = COMMON.second_jumps[setting.jumps()];
    let mut lines = String::new();
    let mut rest = insns[start..].iter().peekable();
    while let Some(insn) = rest.next() {
        if let Some(number) = number_of(insn.ip()) {
            let _ = writeln!(lines, "  L{number}:");
        }
        // The number of an exit, and where it goes with that.
        let target = rest.peek().map(|next| next.near_branch_target());
        let way = match insn.mnemonic() {
            Mnemonic::Push => Some(("push", 0)),
            Mnemonic::Mov if insn.op0_register() != Register::EBP => None,
            Mnemonic::Mov if target == Some(u64::from(COMMON.leave)) => Some(("leave by", 1)),
            Mnemonic::Mov if target == Some(u64::from(branch)) => Some(("branch or leave by", 1)),
            _ => None,
        };
        let described =
            way.and_then(|(way, operand)| Some((way, exit(insn.try_immediate(operand).ok()?)?)));
        match described {
            Some((way, exit)) => {
                if insn.ip() != attention {
                    let _ = writeln!(lines, "    {way} {exit}");
                }
                if way != "push" {
                    rest.next();
                }
            }
            None => {
                let _ = writeln!(lines, "    {}", text(&mut formatter, insn));
            }
        }
    }
    lines
}

/// Where translated code goes on behind an exit.
fn resumed_at(exit: Exit) -> Option<u64> {
    match exit {
        Exit::Miss { retry: at, .. } | Exit::Interpret { resume: at, .. } if at != 0 => {
            Some(at.into())
        }
        _ => None,
    }
}

fn describe(Departure { exit, back }: Departure, resumed: Option<usize>) -> String {
    let mut text = match exit {
        Exit::Attention { at } => format!("attention at {at:#x}"),
        Exit::Chain { at } => format!("chain to {at:#x}"),
        Exit::Branch { at, stack: 0 } => format!("branch at {at:#x}"),
        Exit::Branch { at, stack } => format!("branch at {at:#x}, stack moved by {stack}"),
        Exit::FarChain { at, stack: 0, .. } => format!("far chain at {at:#x}"),
        Exit::FarChain { at, stack, .. } => {
            format!("far chain at {at:#x}, stack moved by {stack}")
        }
        Exit::Miss { at, size, write, merged, .. } => {
            let what = if write { "store" } else { "load" };
            let merged = if merged { ", merged" } else { "" };
            format!("miss at {at:#x}: {what} of {size}{merged}")
        }
        Exit::Interpret { at, .. } => format!("interpret at {at:#x}"),
        Exit::Fault => unreachable!("no block has this exit"),
    };
    if let Some(label) = resumed {
        let _ = write!(text, ", then L{label}");
    }
    if back != 0 {
        let _ = write!(text, ", flags from {back} bytes before");
    }
    text
}

/// The blocks of two listings that differ, with the lines that do.
pub fn difference(expected: &str, found: &str) -> String {
    let split = |text: &str| -> Vec<(String, Vec<String>)> {
        text.split("\n\n")
            .filter_map(|block| {
                let mut lines = block.lines().map(str::to_owned);
                Some((lines.next()?, lines.collect()))
            })
            .collect()
    };
    let (expected, found) = (split(expected), split(found));
    let mut text = String::new();
    let mut all = |mark: &str, name: &str, lines: &[String]| {
        let _ = writeln!(text, "{mark}{name}");
        for line in lines {
            let _ = writeln!(text, "{mark}{line}");
        }
    };
    for (name, lines) in &expected {
        match found.iter().find(|block| block.0 == *name) {
            None => all("-", name, lines),
            Some((_, new)) if new != lines => {
                all("", name, &[]);
                let before = lines.iter().zip(new).take_while(|(a, b)| a == b).count();
                let (old_rest, new_rest) = (&lines[before..], &new[before..]);
                let pairs = old_rest.iter().rev().zip(new_rest.iter().rev());
                let after = pairs.take_while(|(a, b)| a == b).count();
                let (old_end, new_end) = (old_rest.len() - after, new_rest.len() - after);
                let same = &old_rest[old_end..];
                for (mark, lines) in [
                    (" ", &lines[..before]),
                    ("-", &old_rest[..old_end]),
                    ("+", &new_rest[..new_end]),
                    (" ", same),
                ] {
                    if let Some((first, others)) = lines.split_first() {
                        all(mark, first, others);
                    }
                }
            }
            Some(_) => {}
        }
    }
    for (name, lines) in found.iter().filter(|(name, _)| !expected.iter().any(|e| e.0 == *name)) {
        all("+", name, lines);
    }
    text
}
