//! The ways into translated code and out of it.

use std::arch::naked_asm;
use std::mem::offset_of;

use x86::state::{VectorState, X87State};

use super::context::{Context, MirrorFault, STACK};

const GPR: usize = offset_of!(Context, gpr) - STACK;
const X87: usize = offset_of!(VectorState, x87);
const MXCSR: usize = X87 + offset_of!(X87State, mxcsr);
const K: usize = offset_of!(VectorState, k);

/// Where a field of the context is, seen from the stack pointer.
const fn at(offset: usize) -> usize {
    offset - STACK
}

/// Whether this host has what translated code needs.
pub fn is_possible() -> bool {
    is_x86_feature_detected!("bmi2")
}

/// Begins a way in: saves what functions keep, and the stack pointer, which then points at the context.
macro_rules! leave_rust {
    () => {
        "push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        sub rsp, 8
        mov [rdi + {stack} + {host_sp}], rsp
        lea rsp, [rdi + {stack}]"
    };
}

/// Makes vector registers live, and says in `host_pkru` how PKRU is. ECX is zero then, as WRPKRU wants
/// it, and so is EDX.
macro_rules! prepare_mirrored {
    () => {
        "call {load}
        xor ecx, ecx
        rdpkru
        mov [rsp + {host_pkru}], eax"
    };
}

/// Locks all keys but the mirror's. From here on, the context is seen at its other place.
macro_rules! lock {
    () => {
        "mov eax, [rsp + {mirrored_pkru}]
        mov rsp, [rsp + {mirrored_sp}]
        wrpkru"
    };
}

/// Loads the guest's registers that live in the host's.
macro_rules! load_registers {
    () => {
        "mov r8, [rsp + {gpr} + 0*8]
        mov rcx, [rsp + {gpr} + 1*8]
        mov rdx, [rsp + {gpr} + 2*8]
        mov r9, [rsp + {gpr} + 3*8]
        mov r10, [rsp + {gpr} + 4*8]
        mov r11, [rsp + {gpr} + 5*8]
        mov rsi, [rsp + {gpr} + 6*8]
        mov rdi, [rsp + {gpr} + 7*8]
        mov r12, [rsp + {gpr} + 12*8]
        mov r13, [rsp + {gpr} + 13*8]
        mov r14, [rsp + {gpr} + 14*8]
        mov r15, [rsp + {gpr} + 15*8]"
    };
}

/// Ends a way in to an entry of a block.
macro_rules! enter_block {
    () => {
        "mov rax, [rsp + {status}]
        mov rbx, [rsp + {code_base}]
        jmp qword ptr [rsp + {target}]"
    };
}

/// The same to one of a block for mirrored memory, which expects the status flags in the host's.
macro_rules! enter_mirrored_block {
    () => {
        "mov rax, [rsp + {status}]
        mov rbx, [rsp + {code_base}]
        cmp al, 0x81
        sahf
        jmp qword ptr [rsp + {target}]"
    };
}

/// Runs translated code from `context.target` until it leaves. The registers come from and go
/// to `context`.
///
/// # Safety
/// `context` is valid and not otherwise in use; `context.target` is an entry of a block or a
/// place to resume at; `context.vectors` is valid. The stack pointer points into the context
/// meanwhile: handlers of signals run on stacks of their own, or with what lies below it there.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(context: *mut Context) {
    naked_asm!(
        leave_rust!(),
        load_registers!(),
        enter_block!(),
        stack = const STACK,
        gpr = const GPR,
        host_sp = const at(offset_of!(Context, host_sp)),
        status = const at(offset_of!(Context, status)),
        code_base = const at(offset_of!(Context, code_base)),
        target = const at(offset_of!(Context, target)),
    )
}

/// The same with the guest's vector registers loaded first.
///
/// # Safety
/// As for [`enter`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter_with_vectors(context: *mut Context) {
    naked_asm!(
        "push rbx",
        "mov rax, rsp",
        "lea rsp, [rdi + {stack}]",
        "call {load}",
        "mov rsp, rax",
        "pop rbx",
        "jmp {enter}",
        stack = const STACK,
        load = sym load_vectors,
        enter = sym enter,
    )
}

/// Where translated code jumps to leave: EBP holds the number of the exit, RBX what it is about.
/// Not a function: it returns to whom called [`enter`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "mov [rsp + {status}], rax",
        "mov [rsp + {gpr} + 0*8], r8",
        "mov [rsp + {gpr} + 1*8], rcx",
        "mov [rsp + {gpr} + 2*8], rdx",
        "mov [rsp + {gpr} + 3*8], r9",
        "mov [rsp + {gpr} + 4*8], r10",
        "mov [rsp + {gpr} + 5*8], r11",
        "mov [rsp + {gpr} + 6*8], rsi",
        "mov [rsp + {gpr} + 7*8], rdi",
        "mov [rsp + {gpr} + 12*8], r12",
        "mov [rsp + {gpr} + 13*8], r13",
        "mov [rsp + {gpr} + 14*8], r14",
        "mov [rsp + {gpr} + 15*8], r15",
        "mov [rsp + {scratch}], rbx",
        "mov [rsp + {exit}], ebp",
        "mov ebp, [rsp + {vectors_live}]",
        "mov [rsp + {vectors_left}], ebp",
        "test ebp, ebp",
        "jz 2f",
        "call {save}",
        "2:",
        "mov rsp, [rsp + {host_sp}]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        gpr = const GPR,
        status = const at(offset_of!(Context, status)),
        scratch = const at(offset_of!(Context, scratch)),
        exit = const at(offset_of!(Context, exit)),
        host_sp = const at(offset_of!(Context, host_sp)),
        vectors_live = const at(offset_of!(Context, vectors_live)),
        vectors_left = const at(offset_of!(Context, vectors_left)),
        save = sym save_vectors,
    )
}

/// Stores the live vector registers. Called with the stack pointer at the context; clobbers RBX.
#[unsafe(naked)]
unsafe extern "sysv64" fn save_vectors() {
    naked_asm!(
        "mov rbx, [rsp + 8 + {vectors}]",
        "stmxcsr [rbx + {mxcsr}]",
        "ldmxcsr [rsp + 8 + {host_mxcsr}]",
        "mov dword ptr [rsp + 8 + {live}], 0",
        "cmp dword ptr [rsp + 8 + {width}], 1",
        "je 3f",
        "ja 4f",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movups [rbx + \\i * 64], xmm\\i",
        ".endr",
        "ret",
        "3:",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vmovups [rbx + \\i * 64], ymm\\i",
        ".endr",
        "vzeroupper",
        "ret",
        "4:",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
        "vmovups [rbx + \\i * 64], zmm\\i",
        ".endr",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
        "kmovq [rbx + {k} + \\i * 8], k\\i",
        ".endr",
        "vzeroupper",
        "ret",
        vectors = const at(offset_of!(Context, vectors)),
        width = const at(offset_of!(Context, width)),
        live = const at(offset_of!(Context, vectors_live)),
        host_mxcsr = const at(offset_of!(Context, host_mxcsr)),
        mxcsr = const MXCSR,
        k = const K,
    )
}

/// Loads the vector registers and makes them live. Blocks call it, with the stack pointer at the
/// context; it clobbers RBX and flags.
///
/// Where nothing lies above the lower 128 bits of registers 0 to 15, only those are loaded, with
/// instructions that clear the rest: then the processor knows it to be zero. Else each SSE
/// instruction would have to keep it, and wait for whoever wrote its destination last.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn load_vectors() {
    naked_asm!(
        "mov rbx, [rsp + 8 + {vectors}]",
        "ldmxcsr [rbx + {mxcsr}]",
        "mov dword ptr [rsp + 8 + {live}], 1",
        "cmp dword ptr [rsp + 8 + {width}], 1",
        "je 3f",
        "ja 4f",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movups xmm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        "3:",
        "vmovdqu xmm0, [rbx + 16]",
        ".irp i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vpor xmm0, xmm0, [rbx + \\i * 64 + 16]",
        ".endr",
        "vptest xmm0, xmm0",
        "jz 5f",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vmovups ymm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        "4:",
        ".irp i, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
        "vmovups zmm\\i, [rbx + \\i * 64]",
        ".endr",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
        "kmovq k\\i, [rbx + {k} + \\i * 8]",
        ".endr",
        "vmovdqu xmm0, [rbx + 16]",
        "vmovdqu ymm1, [rbx + 32]",
        ".irp i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vpor xmm0, xmm0, [rbx + \\i * 64 + 16]",
        "vpor ymm1, ymm1, [rbx + \\i * 64 + 32]",
        ".endr",
        "vpor ymm0, ymm0, ymm1",
        "vptest ymm0, ymm0",
        "jz 5f",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vmovups zmm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        "5:",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vmovups xmm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        vectors = const at(offset_of!(Context, vectors)),
        width = const at(offset_of!(Context, width)),
        live = const at(offset_of!(Context, vectors_live)),
        mxcsr = const MXCSR,
        k = const K,
    )
}

/// Runs translated code for mirrored memory from `context.target` until it leaves, like [`enter`]. The
/// vector registers are live meanwhile. Such code can access its mirror and the context's other
/// place, and nothing else.
///
/// # Safety
/// As for [`enter`]; besides, `context.mirrored_sp` and `mirrored_pkru` belong to a mirror that was
/// made for this thread: signals are delivered on a stack of their own, and nobody but translated
/// code uses the thread's memory (restartable sequences).
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter_mirrored(context: *mut Context) {
    naked_asm!(
        leave_rust!(),
        prepare_mirrored!(),
        lock!(),
        load_registers!(),
        enter_mirrored_block!(),
        stack = const STACK,
        load = sym load_vectors,
        gpr = const GPR,
        host_sp = const at(offset_of!(Context, host_sp)),
        host_pkru = const at(offset_of!(Context, host_pkru)),
        mirrored_pkru = const at(offset_of!(Context, mirrored_pkru)),
        mirrored_sp = const at(offset_of!(Context, mirrored_sp)),
        status = const at(offset_of!(Context, status)),
        code_base = const at(offset_of!(Context, code_base)),
        target = const at(offset_of!(Context, target)),
    )
}

/// The same in the middle of a block, where `context.fault` came from: all registers and flags are as
/// they were then.
///
/// # Safety
/// As for [`enter_mirrored`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn repeat_mirrored(context: *mut Context) {
    naked_asm!(
        leave_rust!(),
        prepare_mirrored!(),
        "push qword ptr [rsp + {fault} + {rflags}]",
        "popfq",
        lock!(),
        load_registers!(),
        "mov rax, [rsp + {fault} + {rax}]",
        "mov rbx, [rsp + {fault} + {rbx}]",
        "mov rbp, [rsp + {fault} + {rbp}]",
        "jmp qword ptr [rsp + {target}]",
        stack = const STACK,
        load = sym load_vectors,
        gpr = const GPR,
        fault = const at(offset_of!(Context, fault)),
        rflags = const offset_of!(MirrorFault, rflags),
        rax = const offset_of!(MirrorFault, rax),
        rbx = const offset_of!(MirrorFault, rbx),
        rbp = const offset_of!(MirrorFault, rbp),
        host_sp = const at(offset_of!(Context, host_sp)),
        host_pkru = const at(offset_of!(Context, host_pkru)),
        mirrored_pkru = const at(offset_of!(Context, mirrored_pkru)),
        mirrored_sp = const at(offset_of!(Context, mirrored_sp)),
        target = const at(offset_of!(Context, target)),
    )
}

/// Where code for mirrored memory leaves, as other code does at [`leave`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn leave_mirrored() {
    naked_asm!(
        "mov [rsp + {status}], rax",
        "mov [rsp + {gpr} + 1*8], rcx",
        "mov [rsp + {gpr} + 2*8], rdx",
        "mov eax, [rsp + {host_pkru}]",
        // The thread's own PKRU may lock the mirror's key: from here on, the context is where it was.
        "mov rsp, [rsp + {plain_sp}]",
        "xor ecx, ecx",
        "xor edx, edx",
        "wrpkru",
        "mov rax, [rsp + {status}]",
        "mov rcx, [rsp + {gpr} + 1*8]",
        "mov rdx, [rsp + {gpr} + 2*8]",
        "jmp {leave}",
        gpr = const GPR,
        status = const at(offset_of!(Context, status)),
        host_pkru = const at(offset_of!(Context, host_pkru)),
        plain_sp = const at(offset_of!(Context, plain_sp)),
        leave = sym leave,
    )
}
