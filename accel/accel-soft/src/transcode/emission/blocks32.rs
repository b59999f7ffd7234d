//! The same of 32-bit code.

use iced_x86::code_asm::*;
use x86::View;

use super::{KERNEL32, Setting, USER32};

golden! {
    plain32, USER32 => {
        mov(ecx, edx);
        mov(eax, 0x1234_5678);
        mov(esp, ebp);
        mov(al, bl);
        mov(ah, cl);
        mov(dh, bh);
        movzx(eax, dh);
        xchg(eax, ecx);
        add(eax, 0x1234_5678);
        add(al, 1);
        sub(esp, 0x20);
        inc(eax);
        inc(esp);
        dec(ebp);
        inc(cx);
        dec(ax);
        db(&[0xff, 0xc0]);
        lea(ecx, ptr(edx + 8));
        lea(ecx, ptr(edx + esi * 4 + 0x100));
        lea(esp, ptr(esp - 16));
        lea(edi, ptr(0x8765_4321u32));
        cdq();
        mul(ecx);
        div(ecx);
        idiv(dword_ptr(ecx));
        aaa();
        daa();
        aam(10);
        arpl(cx, dx);
        bound(ecx, ptr(edx));
        db(&[0xce]);
        salc();
        mov(ecx, edx), das(), mov(edx, ecx);
    }

    // Addresses are cut to 32 bits.
    memory32, USER32 => {
        mov(ecx, ptr(edx));
        mov(eax, ptr(ebx + 8));
        mov(al, ptr(ebp - 4));
        mov(ptr(edi), esi);
        mov(ecx, ptr(edx + esi * 8 - 16));
        mov(eax, ptr(0x1234));
        mov(eax, ptr(0x8765_4321u32));
        mov(ptr(0x8765_4321u32), eax);
        mov(al, ptr(0x1234));
        mov(ptr(0x1234), ax);
        mov(ecx, ptr(0x8765_4321u32));
        mov(ecx, ptr(ecx * 4 - 0x789a_bcdf));
        mov(ecx, dword_ptr(edx).es());
        mov(ecx, dword_ptr(edx).cs());
        mov(ecx, dword_ptr(0x14).gs());
        mov(dword_ptr(edx + 4).fs(), ecx);
        add(ecx, 1), mov(edx, dword_ptr(0x14).gs());
        db(&[0x67, 0x8b, 0x07]);
        db(&[0x67, 0x8d, 0x07]);
        inc(dword_ptr(ecx));
        bt(dword_ptr(ecx), edx);
        lock().cmpxchg8b(qword_ptr(edi));
        mov(ecx, ptr(edx)), mov(esi, ptr(edx - 8));
        mov(ecx, ptr(edx)), add(edx, 8), mov(esi, ptr(edx));
        movaps(xmm0, ptr(ecx));
        movups(xmm0, ptr(esi)), movups(ptr(esi + 16), xmm0);
        vzeroupper();
        rep().movsd();
        les(eax, ptr(ecx));
    }

    stack32, USER32 => {
        push(ecx);
        push(esp);
        push(5);
        push(-1);
        push(0x8765_4321u32 as i32);
        push(dword_ptr(ecx));
        push(es);
        push(cx);
        pop(ecx);
        pop(esp);
        pop(dword_ptr(ecx));
        pop(es);
        pushad();
        popad();
        pushfd();
        popfd();
        leave();
        enter(16, 0);
        push(ebp), mov(ebp, esp), sub(esp, 0x18), push(esi), push(edi);
        push(ebx), push(esi), call(0x40u64);
        pop(esi), pop(ebx), pop(ebp), ret();
        mov(ecx, ptr(esp + 4)), push(ebx), mov(edx, ptr(esp + 12));
    }

    branches32, USER32 => {
        jmp(0x40u64);
        jmp(0x1040u64);
        db(&[0xe9, 0x3b, 0xef, 0xff, 0xff]);
        je(0x40u64);
        jbe(0x1040u64);
        cmp(ecx, edx), db(&[0x0f, 0x8c, 0x38, 0xef, 0xff, 0xff]);
        test(eax, eax), js(0x1040u64), mov(ecx, edx);
        call(0x40u64);
        call(0x1040u64);
        db(&[0xe8, 0x3b, 0xef, 0xff, 0xff]);
        call(eax);
        call(dword_ptr(ecx + 8));
        jmp(ecx);
        jmp(dword_ptr(eax * 4 + 0x1000));
        ret();
        ret_1(16);
        retf();
        jecxz(0x110u64);
        loop_(0x110u64);
        int(0x80);
        sysenter();
        iretd();
        db(&[0x66, 0xc3]);
        db(&[0xea, 0, 0, 0, 0, 8, 0]);
    }

    kernel32, KERNEL32 => {
        cli();
        sti(), nop();
        pushfd(), cli(), pop(ecx);
        mov(eax, cr3);
        mov(ecx, fs);
        mov(ds, ecx);
        mov(ecx, dword_ptr(0x14).fs());
        call(eax);
    }

    // As after a check for several accesses crossed a page.
    narrow32, Setting { narrow: true, ..USER32 } => {
        mov(ecx, ptr(edx)), mov(esi, ptr(edx + 8));
        push(ebx), push(ebp), push(esi);
    }

    // With what lets a kernel access what is its programs'.
    kernel32_with_ac, Setting { view: View::SupervisorAc, ..USER32 } => {
        mov(ecx, ptr(edx));
        jmp(ecx);
    }
}
