//! What becomes of accesses to memory that is not mirrored: the host faults, and translated code leaves.

use std::cell::Cell;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::OnceLock;

use super::super::cache::FAULT_EXIT;
use super::super::context::{Context, MirrorFault};
use super::super::entry;

/// Bytes of a thread's stack for signals. A frame with all of AVX-512's and AMX's registers has 11 KiB.
const SIGNAL_STACK: usize = 64 << 10;

/// What a thread runs for mirrored memory.
#[derive(Clone, Copy)]
struct Prepared {
    code_start: u64,
    code_end: u64,
    context: *mut Context,
}

thread_local! {
    static PREPARED: Cell<Option<Prepared>> = const { Cell::new(None) };
    /// Whether the thread can run such code, once that was tried.
    static IS_FIT: Cell<Option<bool>> = const { Cell::new(None) };
}

/// What an access may end in: a page fault or general-protection fault, or a stack fault, which is what an
/// address that is not canonical is through RBP.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Who handled each of them before.
static PREVIOUS: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Makes the calling thread one that may run code for mirrored memory. `false` if it must not.
pub fn prepare_thread(code: Range<u64>, context: *mut Context) -> bool {
    PREVIOUS.get_or_init(install);
    let is_fit = IS_FIT.get().unwrap_or_else(|| {
        give_signal_stack();
        stop_restartable_sequences()
    });
    IS_FIT.set(Some(is_fit));
    let prepared = Prepared { code_start: code.start, code_end: code.end, context };
    PREPARED.set(is_fit.then_some(prepared));
    is_fit
}

/// The calling thread runs no code for mirrored memory any more.
pub fn release_thread() {
    PREPARED.set(None);
}

/// Installs the handler; returns those before.
fn install() -> [libc::sigaction; 2] {
    // SAFETY: zero is a value of every field.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    SIGNALS.map(|signal| {
        // SAFETY: as above.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both structures are valid; the handler passes on what does not concern it.
        unsafe { libc::sigaction(signal, &action, &mut previous) };
        previous
    })
}

/// Linux writes to a thread's area for restartable sequences whenever it was preempted, and ends the
/// process where that is under a locked key. glibc registers one for each thread, and does without if
/// there is none. `false` if it is still there.
fn stop_restartable_sequences() -> bool {
    // SAFETY: weak symbols of glibc 2.35 and later; with others there is no area.
    let (offset, size) = unsafe {
        let symbol = |name: &CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (symbol(c"__rseq_offset").cast::<isize>(), symbol(c"__rseq_size").cast::<u32>())
    };
    // SAFETY: glibc's variables, which do not change after the program's start.
    let Some((offset, _)) = (unsafe { offset.as_ref().zip(size.as_ref()) }).filter(|at| *at.1 != 0)
    else {
        return true;
    };
    let thread: u64;
    // SAFETY: the first word of a thread's own storage is its address.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly)) };
    let area = thread.wrapping_add_signed(*offset as i64);
    /// What glibc registers, and what it does where the kernel knows more fields (AT_RSEQ_FEATURE_SIZE).
    const SIZE: u64 = 32;
    const FEATURE_SIZE: u64 = 27;
    const UNREGISTER: i32 = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    // SAFETY: `getauxval` touches no memory of ours.
    let features = unsafe { libc::getauxval(FEATURE_SIZE) };
    [SIZE, features.next_multiple_of(SIZE)].into_iter().any(|size| {
        // SAFETY: the kernel compares the area with the one that it has; nobody uses that afterwards.
        0 == unsafe { libc::syscall(libc::SYS_rseq, area, size as u32, UNREGISTER, SIGNATURE) }
    })
}

/// Gives the thread a stack for signals, which lasts as long as the process: it is in use while the
/// thread lives, and threads of processors live as long as their machine.
fn give_signal_stack() {
    let stack = Box::leak(vec![0u8; SIGNAL_STACK].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
    // SAFETY: the memory is never freed.
    unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
}

/// The handler of these signals.
///
/// # Safety
/// The kernel calls it, with valid arguments.
unsafe extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    ucontext: *mut libc::c_void,
) {
    const PAGE_FAULT: i64 = 14;
    const WRITE: i64 = 2;
    // SAFETY: the kernel's frame, which nobody else uses meanwhile.
    let registers = unsafe { &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    if let Some(prepared) = PREPARED.get()
        && (prepared.code_start..prepared.code_end).contains(&rip)
    {
        // SAFETY: the context belongs to this thread, which is in translated code, so that no
        // reference to it is in use.
        let context = unsafe { &mut *prepared.context };
        let is_page_fault = registers[libc::REG_TRAPNO as usize] == PAGE_FAULT;
        context.fault = MirrorFault {
            rip,
            linear: registers[libc::REG_CR2 as usize] as u64,
            has_address: is_page_fault,
            write: registers[libc::REG_ERR as usize] & WRITE != 0,
            status: context.status,
            rax: registers[libc::REG_RAX as usize] as u64,
            rbx: registers[libc::REG_RBX as usize] as u64,
            rbp: registers[libc::REG_RBP as usize] as u64,
            rflags: registers[libc::REG_EFL as usize] as u64,
        };
        registers[libc::REG_RIP as usize] = entry::leave_mirrored as *const () as i64;
        registers[libc::REG_RBP as usize] = FAULT_EXIT.into();
        return;
    }
    // SAFETY: whoever was there before gets the signal as the kernel gave it; without a handler, the
    // fault comes again and ends the process.
    unsafe {
        let at = SIGNALS.iter().position(|&known| known == signal);
        match PREVIOUS.get().zip(at).map(|(previous, at)| &previous[at]) {
            Some(previous) if previous.sa_sigaction > libc::SIG_IGN => {
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(previous.sa_sigaction);
                handler(signal, info, ucontext);
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
