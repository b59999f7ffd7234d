//! The lists of system calls, as the kernel takes them.

use std::collections::BTreeMap;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{SYS_clone3, c_long};
use runtime::thread::Role;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::rules::{self, Rule};
use crate::{Error, Needs};

/// What threads of this process may do.
pub struct Filters {
    needs: Needs,
    /// The main thread is confined, and threads inherit that.
    is_inherited: AtomicBool,
}

impl Filters {
    /// For a process with these needs.
    pub fn new(needs: Needs) -> Self {
        Self { needs, is_inherited: AtomicBool::new(false) }
    }

    /// Confines the calling thread to what all threads may do together, and to making them.
    pub fn install_main(&self) -> Result<(), Error> {
        refuse(&[SYS_clone3], libc::ENOSYS)?;
        allow(&self.main())?;
        self.is_inherited.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Confines the calling thread to what is done in a role.
    pub fn install(&self, role: Role) -> Result<(), Error> {
        let groups = self.groups(role);
        if !self.is_inherited.load(Ordering::Relaxed) {
            refuse(&[SYS_clone3], libc::ENOSYS)?;
        }
        if !opens_files(role) {
            let names: Vec<c_long> = rules::NAMES.iter().map(Rule::call).collect();
            refuse(&names, libc::EACCES)?;
        }
        allow(&groups)
    }

    fn main(&self) -> Vec<&'static [Rule]> {
        use rules::*;
        let mut groups = vec![
            BASIC,
            NAMES,
            FILES,
            REMOVAL,
            DISK,
            SOCKETS,
            UNIX,
            TERMINAL,
            THREADS,
            AFFINITY,
            CONFINEMENT,
        ];
        groups.extend(self.engine());
        groups.extend(self.needs.network.then_some(INET));
        groups.extend(self.needs.folders.then_some(FOLDER));
        groups.extend(self.needs.debugger.then_some(OWN_END));
        groups
    }

    /// What runs processors.
    fn engine(&self) -> &'static [&'static [Rule]] {
        match self.needs.kvm {
            true => &[rules::KVM, rules::ASSISTANCE, rules::CODE],
            false => &[rules::MIRROR, rules::CODE],
        }
    }

    fn groups(&self, role: Role) -> Vec<&'static [Rule]> {
        use rules::*;
        let interrupts = self.needs.kvm.then_some(INTERRUPTS);
        let mut groups = vec![BASIC, NAMES];
        match role {
            Role::Console => {
                groups.extend([SOCKETS, TERMINAL]);
                groups.extend(self.needs.console_sockets.then_some(REMOVAL));
                groups.extend(interrupts);
            }
            Role::Verification => {}
            Role::Timers | Role::Queue => groups.extend(interrupts),
            Role::Disk => {
                groups.push(DISK);
                groups.extend(interrupts);
            }
            Role::Sockets => {
                groups.extend([SOCKETS, UNIX]);
                groups.extend(interrupts);
            }
            Role::Folder => {
                groups.push(FOLDER);
                groups.extend(interrupts);
            }
            Role::Processor => {
                groups.push(AFFINITY);
                groups.extend(self.engine());
            }
            Role::Network => groups.extend([SOCKETS, INET]),
            Role::Debugger => groups.extend([SOCKETS, OWN_END]),
            Role::Api => {
                groups.extend([FILES, REMOVAL, SOCKETS, UNIX, THREADS]);
                groups.extend(interrupts);
            }
        }
        groups
    }
}

/// Whether threads of this role open files.
fn opens_files(role: Role) -> bool {
    matches!(role, Role::Network | Role::Api | Role::Folder)
}

impl Rule {
    fn call(&self) -> c_long {
        match *self {
            Self::Any(call) | Self::Is(call, ..) | Self::Bits(call, ..) | Self::Own(call, _) => {
                call
            }
        }
    }

    /// What an argument must be; `None`: all may be anything.
    fn condition(&self) -> Option<(u8, Compare, u32)> {
        match *self {
            Self::Any(_) => None,
            Self::Is(_, argument, value) => Some((argument, Compare::Eq, value)),
            Self::Bits(_, argument, mask, value) => {
                Some((argument, Compare::MaskedEq(mask.into()), value))
            }
            Self::Own(_, argument) => Some((argument, Compare::Eq, process::id())),
        }
    }
}

/// Has the calling thread be stopped at all system calls but these.
fn allow(groups: &[&[Rule]]) -> Result<(), Error> {
    let mut calls: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    let mut any = Vec::new();
    for rule in groups.iter().copied().flatten() {
        let conditions = calls.entry(rule.call()).or_default();
        match rule.condition() {
            Some((argument, compare, value)) => {
                let condition =
                    Condition::new(argument, Length::Dword, compare, value.into()).map_err(bad)?;
                conditions.push(SeccompRule::new(vec![condition]).map_err(bad)?);
            }
            None => any.push(rule.call()),
        }
    }
    for call in any {
        // No condition stands for all.
        calls.insert(call, Vec::new());
    }
    install(calls, SeccompAction::Trap, SeccompAction::Allow)
}

/// Has some system calls of the calling thread fail, where programs know what to do then.
fn refuse(calls: &[c_long], error: i32) -> Result<(), Error> {
    let calls = calls.iter().map(|&call| (call, Vec::new())).collect();
    let error = SeccompAction::Errno(error.unsigned_abs());
    install(calls, SeccompAction::Allow, error)
}

/// `otherwise`: of what is not in the list.
fn install(
    calls: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<(), Error> {
    let filter = SeccompFilter::new(calls, otherwise, action, TargetArch::x86_64).map_err(bad)?;
    let program: BpfProgram = filter.try_into().map_err(bad)?;
    apply_filter(&program).map_err(bad)
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::Filter(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 11] = [
        Role::Console,
        Role::Verification,
        Role::Timers,
        Role::Processor,
        Role::Queue,
        Role::Disk,
        Role::Sockets,
        Role::Folder,
        Role::Network,
        Role::Debugger,
        Role::Api,
    ];

    /// Whether a rule allows what another does.
    fn includes(rule: &Rule, other: &Rule) -> bool {
        match (*rule, *other) {
            (Rule::Any(call), _) => call == other.call(),
            (Rule::Bits(call, argument, mask, bits), Rule::Is(same, at, value)) => {
                (call, argument) == (same, at) && value & mask == bits
            }
            (rule, other) => format!("{rule:?}") == format!("{other:?}"),
        }
    }

    /// Filters only add up: a thread can do what its maker can, or less.
    #[test]
    fn the_main_thread_may_do_what_all_may() {
        for bits in 0..64u8 {
            let has = |bit: u8| bits & 1 << bit != 0;
            let needs = Needs {
                kvm: has(0),
                network: has(1),
                low_ports: has(2),
                console_sockets: has(3),
                debugger: has(4),
                folders: has(5),
            };
            let filters = Filters::new(needs);
            let main: Vec<&Rule> = filters.main().into_iter().flatten().collect();
            for role in ROLES {
                let is_there = match role {
                    Role::Network => needs.network,
                    Role::Debugger => needs.debugger,
                    Role::Folder => needs.folders,
                    _ => true,
                };
                for rule in filters.groups(role).into_iter().flatten().filter(|_| is_there) {
                    let may = main.iter().any(|of| includes(of, rule));
                    assert!(may, "{role:?} {rule:?} {needs:?}");
                }
            }
        }
    }
}
