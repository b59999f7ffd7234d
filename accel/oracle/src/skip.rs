//! What is not compared, and why.

use iced_x86::{Code, Instruction, Mnemonic};

/// Why an instruction is not run at all, or `None` if it is.
pub fn reason(code: Code) -> Option<&'static str> {
    let op = code.op_code();
    if !op.is_instruction() {
        return Some("not an instruction");
    }
    if op.fwait() {
        return Some("two instructions: WAIT and another one");
    }
    Some(match code.mnemonic() {
        Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Sysret | Mnemonic::Sysexit => {
            "enters the host's kernel"
        }
        Mnemonic::Sysretq | Mnemonic::Sysexitq => "enters the host's kernel",
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => {
            "enters the host's kernel"
        }
        Mnemonic::Vmcall | Mnemonic::Vmmcall | Mnemonic::Vmgexit | Mnemonic::Pvalidate => {
            "calls the host's hypervisor"
        }
        Mnemonic::Cpuid => "the guest has a CPUID of its own",
        Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdpmc | Mnemonic::Rdpru => "time",
        Mnemonic::Rdpid => "processor numbers differ",
        Mnemonic::Rdrand | Mnemonic::Rdseed => "random",
        Mnemonic::In | Mnemonic::Out => "Linux may have opened ports",
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => "Linux may have opened ports",
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => "Linux may have opened ports",
        Mnemonic::Cli | Mnemonic::Sti => "Linux emulates them for ports",
        Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Smsw | Mnemonic::Sldt | Mnemonic::Str => {
            "UMIP: Linux emulates them"
        }
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw => {
            "descriptor tables differ"
        }
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            "loads a segment register"
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Retf => {
            "loads a segment register"
        }
        Mnemonic::Mov | Mnemonic::Pop if loads_segment(code) => "loads a segment register",
        Mnemonic::Call | Mnemonic::Jmp if is_far(code) => "loads a segment register",
        Mnemonic::Xbegin | Mnemonic::Xend | Mnemonic::Xabort | Mnemonic::Xtest => {
            "TSX aborts at will"
        }
        Mnemonic::Monitor | Mnemonic::Mwait | Mnemonic::Monitorx | Mnemonic::Mwaitx => "waits",
        Mnemonic::Umonitor | Mnemonic::Umwait | Mnemonic::Tpause => "waits",
        Mnemonic::Vmrun
        | Mnemonic::Vmload
        | Mnemonic::Vmsave
        | Mnemonic::Stgi
        | Mnemonic::Clgi
        | Mnemonic::Skinit
        | Mnemonic::Invlpga
        | Mnemonic::Invlpgb => "not offered to guests: SVM",
        Mnemonic::Movdiri | Mnemonic::Movdir64b => "the host may have them and not say so",
        Mnemonic::Rdpkru | Mnemonic::Wrpkru => "not offered to guests",
        _ => return None,
    })
}

fn loads_segment(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as Kind;
    matches!(
        code.op_code().op0_kind(),
        Kind::seg_reg
            | Kind::es
            | Kind::cs
            | Kind::ss
            | Kind::ds
            | Kind::fs
            | Kind::gs
            | Kind::cr_reg
            | Kind::dr_reg
            | Kind::tr_reg
    )
}

fn is_far(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as Kind;
    let insn = {
        let mut insn = Instruction::default();
        insn.set_code(code);
        insn
    };
    insn.is_call_far()
        || insn.is_call_far_indirect()
        || insn.is_jmp_far()
        || insn.is_jmp_far_indirect()
        || matches!(code.op_code().op0_kind(), Kind::farbr2_2 | Kind::farbr4_2)
}
