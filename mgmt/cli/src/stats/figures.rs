//! The numbers that accelerators count: their order, and what they mean to a person.

use std::fmt::Write;

/// Numbers that belong together.
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// Each by its name, with what it means and what to do about it.
    pub figures: &'static [(&'static str, &'static str)],
}

/// All numbers, from the most telling to the least.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Time",
        figures: &[(
            "processor_time_ns",
            "How long the threads of the guest's processors had a processor of the host, in \
             nanoseconds; shown as BUSY. Near 100 % while the guest is slow: it computes, and the \
             numbers below say how well. Far below: it waits for its disk, network or timers, or \
             other programs take the host's processors.",
        )],
    },
    Group {
        title: "Translated code, and why it was left",
        figures: &[
            (
                "entries",
                "How often translated code was entered; it was left as often, for one of the \
                 reasons below or because an interrupt came. It costs some hundred cycles each \
                 time: a million a second are a burden.",
            ),
            (
                "exits_interpret",
                "Left, or not entered, for an instruction that is not translated: a privileged or \
                 rare one, or access to a device's port. Many: the guest makes many system calls, \
                 switches processes, or drives a device byte by byte; fewer and larger requests \
                 help.",
            ),
            (
                "resumes",
                "Those of exits_interpret after which translated code went on at once, which \
                 makes them cheap.",
            ),
            (
                "exits_miss",
                "Left because the soft TLB does not have the page of a load or store. Many: the \
                 guest's programs use more memory than the TLB covers (256 MiB) or jump about in \
                 it, or processes are started and ended all the time; huge pages in the guest do \
                 not help.",
            ),
            (
                "tlb_fills",
                "Those of exits_miss that found the page in the guest's page tables. The others \
                 were page faults, devices, stores to pages that have translated code, and \
                 accesses across two pages.",
            ),
            (
                "mirror_fills",
                "Pages of the busiest program that were made visible to translated code at their \
                 own addresses, where the host can do that. Many, all the time: the program keeps \
                 mapping and unmapping memory.",
            ),
            (
                "mirror_faults",
                "Its accesses that the interpreter carried out instead: page faults, stores to \
                 pages that have translated code. Each costs several microseconds.",
            ),
            (
                "exits_branch",
                "Left because the jump cache does not know the target of a branch. Many: the \
                 guest runs very much different code, or switches between many processes.",
            ),
            ("exits_chain", "Left for a jump within a page to code that came to be only later."),
            (
                "attentions",
                "Interrupted from outside: interrupts, other processors' requests, and each \
                 `lodge stats`.",
            ),
        ],
    },
    Group {
        title: "Entering and leaving the guest by KVM",
        figures: &[
            (
                "guest_entries",
                "How often the VMM had the processor's hardware run the guest. Each costs some \
                 microseconds, more on nested hypervisors: ten thousand a second are a burden.",
            ),
            (
                "exits_port_write",
                "Left for OUT: serial port, PCI configuration. Many: the guest's console is its \
                 serial port and it says much; the virtio console is better.",
            ),
            ("exits_port_read", "Left for IN; as above, or a driver that polls."),
            (
                "exits_mmio_write",
                "Left for a store to a device's register. Doorbells of virtio devices are not \
                 among them where KVM has ioeventfd.",
            ),
            ("exits_mmio_read", "Left for a load from a device's register."),
            ("exits_interrupted", "Interrupted from outside: stops, and each `lodge stats`."),
            (
                "exits_assisted",
                "Instructions that KVM gave up on and Lodge's interpreter completed. Many: KVM \
                 emulates the guest's kernel, for want of vmx or svm; the accelerator \"soft\" is \
                 faster there.",
            ),
            ("exits_debug", "Left for a debugger."),
            ("exits_shutdown", "Triple faults."),
            ("exits_other", "Everything else."),
        ],
    },
    Group {
        title: "Translation",
        figures: &[
            (
                "translations",
                "Blocks of code that were translated, which costs as much as to interpret them \
                 fifty times. Many for a long time: the guest's code is ever new (compilers, \
                 JITs, short programs), or is forgotten again and again, see below.",
            ),
            (
                "invalidations",
                "Pages of code that were forgotten because something was written to them. Many: \
                 the guest changes its code (JITs, tracing, loading of modules) or has data \
                 beside it.",
            ),
            (
                "code_flushes",
                "How often the memory for code was full and all was forgotten. Once in a while \
                 does not matter; several a minute do: run fewer different programs per guest.",
            ),
            (
                "jump_cache_flushes",
                "How often the targets of branches were forgotten because code was mapped \
                 elsewhere. Many go along with exits_branch: programs are started all the time.",
            ),
            (
                "translations_deferred",
                "Attempts that had to wait until other processors knew that a page holds code. \
                 Many: several processors of the guest load programs at once.",
            ),
            (
                "translations_refused",
                "Translations that the checker of LODGE_CHECK_CODE did not prove safe, which are \
                 interpreted. More than none is a mistake in Lodge: please report it.",
            ),
        ],
    },
    Group {
        title: "Memory for translated code",
        figures: &[
            (
                "code_bytes",
                "Bytes of translated code, of code_bytes_capacity for each processor. When it is \
                 full, all is forgotten (code_flushes).",
            ),
            ("code_exits", "Places where translated code is left, of code_exits_capacity."),
            ("code_blocks", "Blocks that are there, those that must be interpreted among them."),
        ],
    },
    Group {
        title: "The interpreter",
        figures: &[
            (
                "interpreted_instructions",
                "Instructions that were not run as translated code, tens of times slower: some \
                 hundred millions a second take all of a processor's time. Many: the guest runs \
                 16-bit or 32-bit code, code that is always new (cold_runs), or code that is not \
                 translated (exits_interpret).",
            ),
            ("cold_runs", "Runs of code that was not entered often enough to be translated."),
            ("interpreted_blocks", "Blocks of code that the interpreter entered."),
            (
                "decoded_blocks",
                "Those that it had not seen before, or that had changed. Many: the guest's code \
                 is ever new.",
            ),
            (
                "interpreter_tlb_misses",
                "Accesses by the interpreter that its own TLB did not have.",
            ),
            (
                "exceptions",
                "Exceptions of the guest: page faults above all. Many: its programs touch new \
                 memory all the time, or it has too little (--memory).",
            ),
        ],
    },
];

const INTRODUCTION: &str = "\
Shows what the guest's processors did since the machine was started
or last reset, and how often per second while this command looked.
Nothing is slowed down by counting; to look interrupts each processor
once.

Begin at the top: is the guest busy? Does it interpret much? What
makes it leave translated code? docs/stats.md has examples.";

const EXAMPLES: &str = "\
Examples:
  lodge stats web
  lodge stats web --interval 10          rates over ten seconds
  watch lodge stats web                  again and again
  lodge stats web --json | jq '.processors[].counts.entries'";

/// As much as a manual page has room for on a terminal of 80 columns.
const LINE: usize = 70;

/// What `lodge stats --help` teaches.
pub fn help() -> String {
    let mut text = format!("{INTRODUCTION}\n\n{EXAMPLES}\n");
    for group in GROUPS {
        let _ = write!(text, "\n{}:\n", group.title);
        for (name, meaning) in group.figures {
            let _ = writeln!(text, "  {name}");
            for line in wrap(meaning, LINE - 6) {
                let _ = writeln!(text, "      {line}");
            }
        }
    }
    text
}

/// Breaks a text into lines of so many characters at most.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_and_the_documentation_know_every_number() {
        let documentation = include_str!("../../../../docs/stats.md");
        let help = help();
        assert!(help.lines().all(|line| line.len() <= LINE));
        for (name, _) in GROUPS.iter().flat_map(|group| group.figures) {
            assert!(help.contains(&format!("\n  {name}\n")), "{name}");
            assert!(documentation.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("aa bb  cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("longer than", 3), ["longer", "than"]);
        assert!(wrap("", 3).is_empty());
    }
}
