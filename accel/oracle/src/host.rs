//! The host's side: a child process whose only activity is to run cases.
//!
//! Every case ends in an exception, which Linux delivers as a signal. The handler records the
//! state that it finds in the signal frame, puts the next case there and returns, which loads
//! it. So the child runs case after case in what looks like one long chain of signals. Between
//! batches the handler waits for a byte from the parent.
//!
//! Nothing in the child may use thread-local storage once it runs cases, as FS is the case's.

use std::arch::{asm, naked_asm};
use std::io;
use std::ops::Range;
use std::ptr::{null_mut, write_volatile};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void};

use crate::case::{Case, Outcome};
use crate::layout::{ALIAS, CODE, CODE_SIZE, DATA, DATA_SIZE, FILL, PAGE, selector};

/// How many cases go to the child at once.
pub const BATCH: usize = 64;
/// How many images of the data pages there are.
pub const IMAGES: usize = 32;
/// A batch that takes longer hangs.
const TIMEOUT_MS: c_int = 60_000;

/// Which components of the registers that cases are about this host has, as XCR0 says: x87, SSE, AVX, opmask,
/// ZMM_Hi256, Hi16_ZMM (SDM Vol. 1, 13.1).
pub fn components() -> u64 {
    const ALL: u64 = 0xe7;
    static PRESENT: OnceLock<u64> = OnceLock::new();
    *PRESENT.get_or_init(|| ALL & u64::from(crate::engine::host_cpuid(0xd, 0).eax))
}

/// What parent and child share.
#[repr(C)]
struct Shared {
    /// How many cases the batch has.
    count: usize,
    /// Which one runs.
    current: usize,
    images: [[u8; DATA_SIZE]; IMAGES],
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

/// The child died or hung at a case of the batch.
#[derive(Clone, Debug)]
pub struct Wreck {
    /// Which one.
    pub index: usize,
    /// What happened.
    pub what: String,
}

/// The parent's end.
pub struct Host {
    shared: *mut Shared,
    /// Code pages, then data pages.
    memory: c_int,
    child: Option<Process>,
}

struct Process {
    pid: libc::pid_t,
    go: c_int,
    done: c_int,
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the process is our own child, not yet waited for; the descriptors are ours.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, null_mut(), 0);
            libc::close(self.go);
            libc::close(self.done);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child = None;
        // SAFETY: the mapping and the descriptor are ours, and the child is gone.
        unsafe {
            libc::munmap(self.shared.cast(), size_of::<Shared>());
            libc::close(self.memory);
        }
    }
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Host {
    /// Makes the shared memory and the child.
    pub fn new(images: &[[u8; DATA_SIZE]]) -> io::Result<Self> {
        // SAFETY: a new mapping, and a new file.
        let (shared, memory) = unsafe {
            let shared = libc::mmap(
                null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if shared == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let memory = checked(libc::memfd_create(c"oracle".as_ptr(), 0))?;
            checked(libc::ftruncate(memory, (CODE_SIZE + DATA_SIZE) as i64))?;
            (shared.cast::<Shared>(), memory)
        };
        let mut host = Self { shared, memory, child: None };
        for (slot, image) in host.shared().images.iter_mut().zip(images) {
            *slot = *image;
        }
        host.child = Some(host.spawn()?);
        Ok(host)
    }

    fn shared(&mut self) -> &mut Shared {
        // SAFETY: all of it is plain data, for which every bit pattern is valid; the child is
        // not running a batch while the parent holds this.
        unsafe { &mut *self.shared }
    }

    fn spawn(&self) -> io::Result<Process> {
        let (mut go, mut done) = ([0; 2], [0; 2]);
        // SAFETY: the arrays have room for two descriptors each.
        unsafe {
            checked(libc::pipe2(go.as_mut_ptr(), libc::O_CLOEXEC))?;
            checked(libc::pipe2(done.as_mut_ptr(), libc::O_CLOEXEC))?;
        }
        // SAFETY: the child calls nothing that needs a lock or allocates.
        let pid = unsafe { checked(libc::fork())? };
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { child::start(self.shared, self.memory, go[0], done[1]) }
        }
        // SAFETY: the child's ends are not needed here.
        unsafe {
            libc::close(go[0]);
            libc::close(done[1]);
        }
        Ok(Process { pid, go: go[1], done: done[0] })
    }

    /// Has the child run `cases`, at most [`BATCH`]. [`finish`](Self::finish) comes next.
    pub fn start(&mut self, cases: &[Case]) -> io::Result<()> {
        let shared = self.shared();
        shared.count = cases.len();
        shared.current = 0;
        for (slot, case) in shared.cases.iter_mut().zip(cases) {
            slot.clone_from(case);
        }
        if self.child.is_none() {
            self.child = Some(self.spawn()?);
        }
        if let Some(child) = &self.child {
            // SAFETY: one byte of a constant.
            let sent = unsafe { libc::write(child.go, [1u8].as_ptr().cast(), 1) };
            if sent != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Waits until the batch is done, and shows what came out of each case. After a wreck, what
    /// lies before it is valid; the next batch runs in a new child.
    pub fn finish(&mut self) -> (&[Outcome], Option<Wreck>) {
        let wreck = self.wait();
        if wreck.is_some() {
            self.child = None;
        }
        let shared = self.shared();
        let valid = wreck.as_ref().map_or(shared.count, |w| w.index).min(BATCH);
        (&shared.outcomes[..valid], wreck)
    }

    fn wait(&mut self) -> Option<Wreck> {
        let Some(child) = &self.child else { return None };
        let mut poll = libc::pollfd { fd: child.done, events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, and one byte of a local buffer.
        let (ready, got) = unsafe {
            let ready = libc::poll(&mut poll, 1, TIMEOUT_MS);
            let mut byte = 0u8;
            let got = if ready > 0 { libc::read(child.done, (&raw mut byte).cast(), 1) } else { 0 };
            (ready, got)
        };
        if got == 1 {
            return None;
        }
        let what = if ready > 0 {
            let mut status = 0;
            // SAFETY: our own child; `Process` waits again, in vain.
            unsafe { libc::waitpid(child.pid, &mut status, 0) };
            format!("the child died (wait status {status:#x})")
        } else {
            "the child hangs".to_owned()
        };
        // One that is over was the last of the batch: what it left behind is what the child died of.
        let Shared { current, count, .. } = *self.shared();
        Some(Wreck { index: current.min(count.saturating_sub(1)), what })
    }
}

mod child {
    use super::*;

    /// What the signal handler works with.
    struct Child {
        shared: *mut Shared,
        /// Code and data pages where they can be written.
        memory: *mut u8,
        go: c_int,
        done: c_int,
        /// A case runs.
        is_running: bool,
        /// The handler runs.
        is_inside: bool,
        next: usize,
        /// Offsets of the extended components in an XSAVE area.
        components: Components,
    }

    #[derive(Clone, Copy)]
    struct Components {
        /// Which of them the host has.
        present: u64,
        avx: usize,
        opmask: usize,
        zmm_hi256: usize,
        hi16_zmm: usize,
    }

    static CHILD: AtomicPtr<Child> = AtomicPtr::new(null_mut());

    unsafe fn map(at: u64, len: usize, protection: c_int, file: c_int, offset: usize) -> *mut u8 {
        // What the child is a copy of may have an engine that mirrors guest memory in these places.
        let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
        // SAFETY: the fixed places are far from where Linux puts programs and libraries; this
        // process uses no engine, so that it misses nothing that may be there.
        let got = unsafe {
            libc::mmap(
                at as *mut c_void,
                len,
                protection,
                libc::MAP_SHARED | fixed,
                file,
                offset as i64,
            )
        };
        if got == libc::MAP_FAILED || (at != 0 && got as u64 != at) {
            fail(10);
        }
        got.cast()
    }

    fn fail(code: i32) -> ! {
        // SAFETY: ends the process.
        unsafe {
            syscall(libc::SYS_exit, code as u64, 0, 0);
            libc::abort()
        }
    }

    /// A system call that touches no thread-local storage.
    unsafe fn syscall(number: i64, a: u64, b: u64, c: u64) -> i64 {
        let result;
        // SAFETY: the caller's.
        unsafe {
            asm!(
                "syscall",
                inout("rax") number => result,
                in("rdi") a,
                in("rsi") b,
                in("rdx") c,
                out("rcx") _,
                out("r11") _,
            );
        }
        result
    }

    /// The child's life.
    pub unsafe fn start(shared: *mut Shared, memory: c_int, go: c_int, done: c_int) -> ! {
        const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;
        let cpuid = |i| crate::engine::host_cpuid(0xd, i).ebx as usize;
        let components = Components {
            present: super::components(),
            avx: cpuid(2),
            opmask: cpuid(5),
            zmm_hi256: cpuid(6),
            hi16_zmm: cpuid(7),
        };
        // SAFETY: maps memory that belongs to nobody, installs handlers for the signals that
        // exceptions make, and gives up everything that a stray case could do harm with.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let writable = map(0, CODE_SIZE + DATA_SIZE, RW, memory, 0);
            map(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC, memory, 0);
            for (i, page) in DATA.iter().enumerate() {
                let protection = if page.is_writable { RW } else { libc::PROT_READ };
                let offset = CODE_SIZE + i * PAGE;
                for at in [page.linear, page.linear + ALIAS] {
                    // Faults shall be about rights, not about a page that Linux has yet to map.
                    map(at, PAGE, protection, memory, offset).read_volatile();
                }
            }
            std::slice::from_raw_parts_mut(writable, CODE_SIZE).fill(FILL);
            let mut child = Child {
                shared,
                memory: writable,
                go,
                done,
                is_running: false,
                is_inside: false,
                next: 0,
                components,
            };
            CHILD.store(&mut child, Ordering::Relaxed);

            let size = 1 << 18;
            let stack =
                libc::mmap(null_mut(), size, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            if stack == libc::MAP_FAILED {
                fail(11);
            }
            let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: size };
            libc::sigaltstack(&stack, null_mut());
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = enter as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                if libc::sigaction(signal, &action, null_mut()) != 0 {
                    fail(12);
                }
                libc::sigdelset(&mut all, signal);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &all, null_mut());
            // From here on only read, write, exit and sigreturn.
            if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) != 0 {
                fail(13);
            }
            asm!(
                "mov ds, {0:e}",
                "mov es, {0:e}",
                "mov fs, {0:e}",
                "mov gs, {0:e}",
                "ud2",
                in(reg) u32::from(selector::USER_DATA),
            );
        }
        fail(14)
    }

    /// The signal handler's entry. Linux leaves AC as the case set it, which our own code could
    /// not bear.
    #[unsafe(naked)]
    unsafe extern "C" fn enter() {
        naked_asm!(
            "push 2",
            "popfq",
            "jmp {handle}",
            handle = sym handle,
        )
    }

    unsafe extern "C" fn handle(
        _: c_int,
        _: *const libc::siginfo_t,
        context: *mut libc::ucontext_t,
    ) {
        // SAFETY: `start` has set the pointer to what outlives every signal; the process has one
        // thread, and the handler does not nest. The context is Linux's.
        unsafe {
            let child = &mut *CHILD.load(Ordering::Relaxed);
            if child.is_inside {
                fail(20);
            }
            child.is_inside = true;
            let context = &mut *context;
            let shared = &mut *child.shared;
            if child.is_running {
                let (case, outcome) = (&shared.cases[child.next], &mut shared.outcomes[child.next]);
                record(child, context, case, outcome);
                child.next += 1;
                if child.next == shared.count {
                    syscall(libc::SYS_write, child.done as u64, (&raw const *child) as u64, 1);
                    child.is_running = false;
                }
            }
            if !child.is_running {
                let mut byte = 0u8;
                if syscall(libc::SYS_read, child.go as u64, (&raw mut byte) as u64, 1) != 1 {
                    fail(0);
                }
                child.next = 0;
                child.is_running = true;
            }
            write_volatile(&mut shared.current, child.next);
            let case = &shared.cases[child.next];
            load(child, context, case, &shared.images);
            child.is_inside = false;
        }
    }

    /// Where `gregs` keeps the general-purpose registers, in encoding order.
    const GREGS: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];

    /// Parts of an XSAVE area.
    const XMM: usize = 160;
    const XSTATE_BV: usize = 512;
    /// The component of mask registers.
    const OPMASK: u32 = 5;

    unsafe fn code_of<'a>(child: &Child, case: &Case) -> &'a mut [u8] {
        let at = ((case.start - CODE) as usize).min(CODE_SIZE);
        let len = case.code.len().min(CODE_SIZE - at);
        // SAFETY: the range lies in the code pages, of which there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(child.memory.add(at), len) }
    }

    unsafe fn data_of<'a>(child: &Child) -> &'a mut [u8; DATA_SIZE] {
        // SAFETY: the data pages follow the code pages; there is no other reference.
        unsafe { &mut *child.memory.add(CODE_SIZE).cast() }
    }

    /// Part of the vector registers in an XSAVE area.
    struct Part {
        /// The component's number.
        bit: u32,
        at: usize,
        registers: Range<usize>,
        qwords: Range<usize>,
    }

    /// The parts that the host has.
    fn parts(c: &Components) -> impl Iterator<Item = Part> + use<> {
        let present = c.present;
        [
            Part { bit: 1, at: XMM, registers: 0..16, qwords: 0..2 },
            Part { bit: 2, at: c.avx, registers: 0..16, qwords: 2..4 },
            Part { bit: 6, at: c.zmm_hi256, registers: 0..16, qwords: 4..8 },
            Part { bit: 7, at: c.hi16_zmm, registers: 16..32, qwords: 0..8 },
        ]
        .into_iter()
        .filter(move |part| present >> part.bit & 1 != 0)
    }

    unsafe fn record(
        child: &Child,
        context: &libc::ucontext_t,
        case: &Case,
        outcome: &mut Outcome,
    ) {
        let gregs = &context.uc_mcontext.gregs;
        let greg = |i: c_int| gregs[i as usize] as u64;
        for (slot, reg) in outcome.gpr.iter_mut().zip(GREGS) {
            *slot = greg(reg);
        }
        outcome.trap = greg(libc::REG_TRAPNO) as u32;
        outcome.error = greg(libc::REG_ERR) as u32;
        outcome.cr2 = if outcome.trap == 14 { greg(libc::REG_CR2) } else { 0 };
        outcome.rip = greg(libc::REG_RIP);
        outcome.rflags = greg(libc::REG_EFL);
        // SAFETY: reads bases; Linux has put a whole XSAVE area into the frame.
        unsafe {
            asm!(
                "rdfsbase {0}",
                "rdgsbase {1}",
                out(reg) outcome.fs_base,
                out(reg) outcome.gs_base,
                options(nomem, nostack),
            );
            let area = context.uc_mcontext.fpregs.cast::<u8>();
            let mask = outcome.vector.x87.mxcsr_mask;
            outcome.vector.x87 = area.cast::<x86::state::X87State>().read_unaligned();
            outcome.vector.x87.mxcsr_mask = mask;
            let in_use = area.add(XSTATE_BV).cast::<u64>().read_unaligned();
            for Part { bit, at, registers, qwords } in parts(&child.components) {
                let mut from = area.add(at).cast::<u64>();
                for reg in registers {
                    for q in qwords.clone() {
                        let value = from.read_unaligned();
                        outcome.vector.zmm[reg][q] = if in_use >> bit & 1 != 0 { value } else { 0 };
                        from = from.add(1);
                    }
                }
            }
            let k = area.add(child.components.opmask).cast::<[u64; 8]>();
            outcome.vector.k = if in_use >> OPMASK & 1 != 0 { k.read_unaligned() } else { [0; 8] };
            if in_use & 1 == 0 {
                let mxcsr = outcome.vector.x87.mxcsr;
                outcome.vector.x87 = x86::state::VectorState::default().x87;
                outcome.vector.x87.fcw = 0x37f;
                outcome.vector.x87.ftw = 0;
                outcome.vector.x87.mxcsr = mxcsr;
                outcome.vector.x87.mxcsr_mask = mask;
            }
            outcome.data = *data_of(child);
            code_of(child, case).fill(FILL);
        }
    }

    unsafe fn load(
        child: &Child,
        context: &mut libc::ucontext_t,
        case: &Case,
        images: &[[u8; DATA_SIZE]; IMAGES],
    ) {
        // SAFETY: the pages are this process's; the frame holds a whole XSAVE area.
        unsafe {
            let data = data_of(child);
            *data = images[case.image as usize % IMAGES];
            for patch in &case.patches {
                patch.apply(data);
            }
            let code = code_of(child, case);
            code.copy_from_slice(&case.code[..code.len()]);

            let gregs = &mut context.uc_mcontext.gregs;
            for (value, reg) in case.gpr.iter().zip(GREGS) {
                gregs[reg as usize] = *value as i64;
            }
            gregs[libc::REG_RIP as usize] = case.start as i64;
            gregs[libc::REG_EFL as usize] = case.rflags as i64;
            let cs = if case.is_32bit != 0 { selector::USER_CODE32 } else { selector::USER_CODE64 };
            let selectors = u64::from(cs) | u64::from(selector::USER_DATA) << 48;
            gregs[libc::REG_CSGSFS as usize] = selectors as i64;

            let area = context.uc_mcontext.fpregs.cast::<u8>();
            let mut x87 = case.vector.x87;
            x87.mxcsr_mask = 0;
            area.cast::<x86::state::X87State>().write_unaligned(x87);
            for Part { at, registers, qwords, .. } in parts(&child.components) {
                let mut to = area.add(at).cast::<u64>();
                for reg in registers {
                    for q in qwords.clone() {
                        to.write_unaligned(case.vector.zmm[reg][q]);
                        to = to.add(1);
                    }
                }
            }
            let Components { present, opmask, .. } = child.components;
            if present >> OPMASK & 1 != 0 {
                area.add(opmask).cast::<[u64; 8]>().write_unaligned(case.vector.k);
            }
            area.add(XSTATE_BV).cast::<u64>().write_unaligned(present);
            asm!(
                "wrfsbase {0}",
                "wrgsbase {1}",
                in(reg) case.fs_base,
                in(reg) case.gs_base,
                options(nomem, nostack),
            );
        }
    }
}
