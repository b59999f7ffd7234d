//! Runs one case and compares.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use accel::{Accelerator, CpuState, CpuidTable, Exit, Kicker, Sections, Vcpu, Vm, VmResources};
use runtime::{Clock, Timers};

use crate::bus::{Signal, TestBus};
use crate::case::{Body, Case};
use crate::expect::{Ending, Event, vector_name};
use crate::guest::{self, Guest, Host};
use crate::layout::WINDOW;
use crate::tables::Paging;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As expected.
    Passed,
    /// The processors lack a feature.
    Skipped(&'static str),
    /// Expected and got.
    Failed(String),
}

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case.
    pub name: String,
    /// Expected and got.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.detail)
    }
}

/// What became of all cases.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// Those that failed.
    pub failures: Vec<Failure>,
    /// Those that could not be run, with the feature that is missing.
    pub skipped: Vec<(String, &'static str)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failures.len())?;
        if self.skipped.is_empty() { Ok(()) } else { write!(f, ", {} skipped", self.skipped.len()) }
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit,
    TripleFault,
    Fault(String),
    Timeout,
}

/// What a guest did.
struct Outcome {
    end: End,
    events: Vec<Event>,
    states: Vec<Option<CpuState>>,
}

/// What came of a run: the verdict, and for a guest that ran what it did and its last state.
pub(crate) struct Ran {
    pub verdict: Verdict,
    pub what: Option<String>,
}

impl From<Verdict> for Ran {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, what: None }
    }
}

/// Runs a case.
pub(crate) fn run_case(accelerator: &dyn Accelerator, cpuid: &CpuidTable, case: &Case) -> Ran {
    let (start, build) = match &case.body {
        Body::Guest(start, build) => (*start, build),
        Body::Host(lacks, check) => {
            let verdict = match lacks(accelerator, cpuid) {
                Ok(Some(feature)) => Ok(Verdict::Skipped(feature)),
                Ok(None) => check(accelerator, cpuid).map(|()| Verdict::Passed),
                Err(problem) => Err(problem),
            };
            return verdict.unwrap_or_else(Verdict::Failed).into();
        }
    };
    let mut guest = match Guest::build(start, cpuid, build) {
        Ok(guest) => guest,
        Err(problem) => return Verdict::Failed(problem).into(),
    };
    if let Some(patience) = case.patience {
        guest.timeout = patience;
    }
    if let Some(feature) = guest.missing {
        return Verdict::Skipped(feature).into();
    }
    let bits = host_address_bits();
    if guest.needs_narrow_addresses && !has_bit_51_reserved(accelerator.name(), bits) {
        return Verdict::Skipped("a physical address of less than 52 bits").into();
    }
    match execute(accelerator, cpuid, &mut guest) {
        Ok(outcome) => Ran { verdict: judge(&guest, &outcome), what: Some(describe(&outcome)) },
        Err(problem) => Verdict::Failed(problem).into(),
    }
}

/// Whether an accelerator refuses page-table entries with bit 51, on a host whose physical addresses have
/// so many bits. The software engine's have 46.
fn has_bit_51_reserved(accelerator: &str, host_bits: u32) -> bool {
    accelerator == "soft" || host_bits < 52
}

/// The width of physical addresses on this host; 36 if it does not say (SDM Vol. 3, 4.1.4).
fn host_address_bits() -> u32 {
    const LEAF: u32 = 0x8000_0008;
    match __cpuid(0x8000_0000).eax {
        LEAF..=0x8000_ffff => __cpuid(LEAF).eax & 0xff,
        _ => 36,
    }
}

/// What a guest did, and where its first processor ended.
fn describe(outcome: &Outcome) -> String {
    let mut what = format!("[{}]", events(outcome));
    if outcome.end != End::Exit {
        what.push_str(&format!(" {:?}", outcome.end));
    }
    if let Some(Some(state)) = outcome.states.first() {
        what.push_str(&format!("; {}", registers(state)));
    }
    what
}

fn events(outcome: &Outcome) -> String {
    let events: Vec<_> = outcome.events.iter().take(50).map(|e| format!("{e:?}")).collect();
    events.join("; ")
}

fn execute(
    accelerator: &dyn Accelerator,
    cpuid: &CpuidTable,
    guest: &mut Guest,
) -> Result<Outcome, String> {
    let vm = create(accelerator, cpuid, guest.memory.clone(), guest.cpus)?;
    let mut vcpus = Vec::new();
    for index in 0..guest.cpus {
        vcpus.push(vm.take_vcpu(index).map_err(|e| e.to_string())?);
    }
    if let Some(first) = vcpus.first_mut() {
        set_up(first.as_mut(), guest).map_err(|e| e.to_string())?;
    }
    let kickers: Vec<Kicker> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
    let (sender, receiver) = channel();
    let bus = Arc::new(TestBus {
        events: Mutex::new(Vec::new()),
        host: Host { memory: guest.memory.clone(), irq: vm.irq_sink() },
        host_call: guest.host.clone(),
        kickers: kickers.clone(),
        signal: Mutex::new(sender),
    });
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = vcpus
        .into_iter()
        .map(|vcpu| {
            let (bus, stop) = (bus.clone(), stop.clone());
            thread::spawn(move || drive(vcpu, &bus, &stop))
        })
        .collect();

    let end = wait(&receiver, guest.timeout);
    stop.store(true, Ordering::SeqCst);
    let mut states = Vec::new();
    let mut problem = None;
    let deadline = Instant::now() + Duration::from_secs(120);
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            kickers.iter().for_each(Kicker::kick);
            thread::sleep(Duration::from_micros(200));
        }
        if !thread.is_finished() {
            return Err("a processor does not stop when it is kicked".to_owned());
        }
        match thread.join() {
            Ok(Ok(state)) => states.push(state),
            Ok(Err(error)) => problem = Some(error),
            Err(_) => problem = Some("the accelerator panicked".to_owned()),
        }
    }
    let end = problem.map_or(end, End::Fault);
    let events = bus.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Outcome { end, events, states })
}

/// Makes a machine's processors.
pub(crate) fn create(
    accelerator: &dyn Accelerator,
    cpuid: &CpuidTable,
    memory: mem::GuestMemory,
    cpus: u32,
) -> Result<Arc<dyn Vm>, String> {
    accelerator.create_vm(resources(cpuid, memory, cpus)?).map_err(|e| e.to_string())
}

/// What a machine is made of.
pub(crate) fn resources(
    cpuid: &CpuidTable,
    memory: mem::GuestMemory,
    cpus: u32,
) -> Result<VmResources, String> {
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).map_err(|e| e.to_string())?);
    Ok(VmResources { memory, clock, timers, cpus, cpuid: cpuid.clone(), hyperv: false })
}

fn wait(signals: &Receiver<Signal>, timeout: Duration) -> End {
    match signals.recv_timeout(timeout) {
        Ok(Signal::Exit) => End::Exit,
        Ok(Signal::TripleFault) => End::TripleFault,
        Ok(Signal::Fault) | Err(RecvTimeoutError::Disconnected) => End::Fault(String::new()),
        Err(RecvTimeoutError::Timeout) => End::Timeout,
    }
}

pub(crate) fn set_up(vcpu: &mut dyn Vcpu, guest: &mut Guest) -> Result<(), accel::Fault> {
    let state = vcpu.load(Sections::all())?;
    guest.start.apply(state, guest.root);
    if guest.start.paging() == Paging::Pae {
        for (i, entry) in (0..).zip(&mut state.pdpte) {
            *entry = guest::read(&guest.memory, guest.root + i * 8, 8);
        }
    }
    for tweak in guest.tweaks.drain(..) {
        tweak(state);
    }
    vcpu.store(Sections::all())
}

/// Tells the runner when a processor's thread ends without a word.
struct Watch<'a>(&'a TestBus);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::Fault);
    }
}

/// Runs a processor until the case is over.
fn drive(
    mut vcpu: Box<dyn Vcpu>,
    bus: &TestBus,
    stop: &AtomicBool,
) -> Result<Option<CpuState>, String> {
    let _watch = Watch(bus);
    while !stop.load(Ordering::SeqCst) {
        match vcpu.run(bus).map_err(|e| e.to_string())? {
            Exit::Kicked | Exit::Debug(_) => thread::yield_now(),
            Exit::TripleFault => {
                bus.signal(Signal::TripleFault);
                break;
            }
        }
    }
    vcpu.load(Sections::all()).map(|state| Some(state.clone())).map_err(|e| e.to_string())
}

fn judge(guest: &Guest, outcome: &Outcome) -> Verdict {
    let address = |name: &str| guest.marked(name);
    let mut problems = Vec::new();
    let fits = match guest.ending {
        Ending::Exit => outcome.end == End::Exit,
        Ending::TripleFault => outcome.end == End::TripleFault,
        Ending::Any => matches!(outcome.end, End::Exit | End::TripleFault),
    };
    if !fits {
        problems.push(format!("expected the end {:?}, got {:?}", guest.ending, outcome.end));
    }
    let differs = guest.wants.len() != outcome.events.len()
        || guest.wants.iter().zip(&outcome.events).any(|(w, e)| !w.matches(e, &address));
    if differs {
        let wants: Vec<_> = guest.wants.iter().map(|w| w.describe(&address)).collect();
        problems.push(format!("expected [{}], got [{}]", wants.join("; "), events(outcome)));
    }
    let state = outcome.states.first().and_then(Option::as_ref);
    for &(register, value) in &guest.registers {
        let got = state.and_then(|s| s.gpr.get(register).copied());
        if got != Some(value) {
            problems.push(format!("expected register {register} = {value:#x}, got {got:x?}"));
        }
    }
    for &(at, len, value) in &guest.words {
        let got = guest.read(at, len);
        if got != value {
            problems.push(format!("expected {value:#x} at {at:#x}, got {got:#x}"));
        }
    }
    if problems.is_empty() {
        return Verdict::Passed;
    }
    problems.extend(last_code(guest, outcome));
    if let Some(state) = state {
        problems.push(registers(state));
    }
    Verdict::Failed(problems.join("; "))
}

/// What the last exception or interrupt was raised at, where code is mapped one to one.
fn last_code(guest: &Guest, outcome: &Outcome) -> Option<String> {
    let last = outcome.events.iter().rev().find_map(|event| match event {
        Event::Fault(record) => Some(record),
        _ => None,
    })?;
    let code = guest.read(last.rip, 8).to_le_bytes();
    let (name, ring) = (vector_name(last.vector), last.cs & 3);
    (last.rip < WINDOW).then(|| format!("{name} in ring {ring} at code {code:02x?}"))
}

fn registers(state: &CpuState) -> String {
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut text = format!(
        "ended at {:#x} cs={:#x} ss={:#x} rflags={:#x} cr0={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
        state.rip,
        state.seg[1].selector,
        state.seg[2].selector,
        state.rflags,
        state.cr0,
        state.cr3,
        state.cr4,
        state.efer
    );
    for (name, value) in names.iter().zip(state.gpr) {
        text.push_str(&format!(" {name}={value:#x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_hosts_have_no_reserved_bit() {
        assert!(has_bit_51_reserved("kvm", 46) && has_bit_51_reserved("kvm", 51));
        assert!(!has_bit_51_reserved("kvm", 52));
        assert!(has_bit_51_reserved("soft", 52));
        assert!((32..=52).contains(&host_address_bits()));
    }
}
