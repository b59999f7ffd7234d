//! The ways into translated code and out of it.

use std::arch::naked_asm;
use std::mem::offset_of;

use x86::state::{VectorState, X87State};

use super::context::Context;

const GPR: usize = offset_of!(Context, gpr);
const X87: usize = offset_of!(VectorState, x87);
const MXCSR: usize = X87 + offset_of!(X87State, mxcsr);
const K: usize = offset_of!(VectorState, k);

/// Whether this host lets programs set the GS base, without which translated code cannot run.
pub fn is_possible() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: a look at the auxiliary vector.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    hwcap2 & HWCAP2_FSGSBASE != 0 && is_x86_feature_detected!("bmi2")
}

/// Runs translated code from `context.target` until it leaves. The registers come from and go
/// to `context`.
///
/// # Safety
/// `context` is valid and not otherwise in use; `context.target` is an entry of a block or a
/// place to resume at; `context.vectors` is valid. All asynchronous signals are blocked or have
/// handlers that do not use the GS base.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(context: *mut Context) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov [rdi + {host_sp}], rsp",
        "wrgsbase rdi",
        "mov rax, [rdi + {status}]",
        "mov r8, [rdi + {gpr} + 0*8]",
        "mov rcx, [rdi + {gpr} + 1*8]",
        "mov rdx, [rdi + {gpr} + 2*8]",
        "mov r9, [rdi + {gpr} + 3*8]",
        "mov r10, [rdi + {gpr} + 4*8]",
        "mov r11, [rdi + {gpr} + 5*8]",
        "mov rsi, [rdi + {gpr} + 6*8]",
        "mov r12, [rdi + {gpr} + 12*8]",
        "mov r13, [rdi + {gpr} + 13*8]",
        "mov r14, [rdi + {gpr} + 14*8]",
        "mov r15, [rdi + {gpr} + 15*8]",
        "mov rbx, [rdi + {code_base}]",
        "mov rdi, [rdi + {gpr} + 7*8]",
        "jmp qword ptr gs:[{target}]",
        gpr = const GPR,
        host_sp = const offset_of!(Context, host_sp),
        status = const offset_of!(Context, status),
        code_base = const offset_of!(Context, code_base),
        target = const offset_of!(Context, target),
    )
}

/// The same with the guest's vector registers loaded first.
///
/// # Safety
/// As for [`enter`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter_with_vectors(context: *mut Context) {
    naked_asm!(
        "wrgsbase rdi",
        "push rbx",
        "call {load}",
        "pop rbx",
        "jmp {enter}",
        load = sym load_vectors,
        enter = sym enter,
    )
}

/// Where translated code jumps to leave: EBP holds the number of the exit, RBX what it is about.
/// Not a function: it returns to whom called [`enter`].
#[unsafe(naked)]
pub unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "mov gs:[{status}], rax",
        "mov gs:[{gpr} + 0*8], r8",
        "mov gs:[{gpr} + 1*8], rcx",
        "mov gs:[{gpr} + 2*8], rdx",
        "mov gs:[{gpr} + 3*8], r9",
        "mov gs:[{gpr} + 4*8], r10",
        "mov gs:[{gpr} + 5*8], r11",
        "mov gs:[{gpr} + 6*8], rsi",
        "mov gs:[{gpr} + 7*8], rdi",
        "mov gs:[{gpr} + 12*8], r12",
        "mov gs:[{gpr} + 13*8], r13",
        "mov gs:[{gpr} + 14*8], r14",
        "mov gs:[{gpr} + 15*8], r15",
        "mov gs:[{scratch}], rbx",
        "mov gs:[{exit}], ebp",
        "mov rsp, gs:[{host_sp}]",
        "mov ebp, gs:[{vectors_live}]",
        "mov gs:[{vectors_left}], ebp",
        "test ebp, ebp",
        "jz 2f",
        "call {save}",
        "2:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        gpr = const GPR,
        status = const offset_of!(Context, status),
        scratch = const offset_of!(Context, scratch),
        exit = const offset_of!(Context, exit),
        host_sp = const offset_of!(Context, host_sp),
        vectors_live = const offset_of!(Context, vectors_live),
        vectors_left = const offset_of!(Context, vectors_left),
        save = sym save_vectors,
    )
}

/// Stores the live vector registers. Clobbers RBX.
#[unsafe(naked)]
unsafe extern "sysv64" fn save_vectors() {
    naked_asm!(
        "mov rbx, gs:[{vectors}]",
        "stmxcsr [rbx + {mxcsr}]",
        "ldmxcsr gs:[{host_mxcsr}]",
        "mov dword ptr gs:[{live}], 0",
        "cmp dword ptr gs:[{width}], 1",
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
        vectors = const offset_of!(Context, vectors),
        width = const offset_of!(Context, width),
        live = const offset_of!(Context, vectors_live),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        mxcsr = const MXCSR,
        k = const K,
    )
}

/// Loads the vector registers and makes them live. Blocks call it; it clobbers RBX and flags.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn load_vectors() {
    naked_asm!(
        "mov rbx, gs:[{vectors}]",
        "ldmxcsr [rbx + {mxcsr}]",
        "mov dword ptr gs:[{live}], 1",
        "cmp dword ptr gs:[{width}], 1",
        "je 3f",
        "ja 4f",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movups xmm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        "3:",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "vmovups ymm\\i, [rbx + \\i * 64]",
        ".endr",
        "ret",
        "4:",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
        "vmovups zmm\\i, [rbx + \\i * 64]",
        ".endr",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
        "kmovq k\\i, [rbx + {k} + \\i * 8]",
        ".endr",
        "ret",
        vectors = const offset_of!(Context, vectors),
        width = const offset_of!(Context, width),
        live = const offset_of!(Context, vectors_live),
        mxcsr = const MXCSR,
        k = const K,
    )
}
