//! The guest's blocks whose translations are listed.

use iced_x86::code_asm::*;

use super::{KERNEL, MIRRORED, Setting, USER};
use x86::View;

golden! {
    plain, USER => {
        nop();
        endbr64();
        pause();
        mfence();
        mov(ecx, edx);
        mov(rsi, rdi);
        mov(eax, 0x12);
        mov(rbx, 0x1234_5678_9abc_def0u64);
        mov(rsp, rbp);
        mov(al, bl);
        mov(si, di);
        movzx(ecx, dl);
        movzx(eax, sil);
        movsx(rax, bx);
        movsxd(rcx, edx);
        bswap(rax);
        xchg(rcx, rdx);
        xchg(rax, rcx);
        xchg(eax, eax);
        add(rcx, rdx);
        add(eax, 5);
        add(rax, 0x1234_5678);
        add(al, 1);
        add(spl, 1);
        adc(rcx, rdx);
        sbb(eax, eax);
        sub(rsp, 0x20);
        xor(eax, eax);
        cmp(rbx, rbp);
        test(al, 1);
        neg(rdi);
        not(esi);
        inc(rcx);
        dec(ebx);
        imul_2(rcx, rdx);
        imul_3(eax, ebx, 100);
        bsf(rcx, rdx);
        tzcnt(ecx, eax);
        popcnt(rax, rbx);
        bt(rcx, rdx);
        bts(ecx, 5);
        andn(rcx, rdx, rsi);
        pdep(rax, rbx, rcx);
        sete(cl);
        setg(al);
        cmovne(rcx, rdx);
        cmovb(eax, ebx);
        clc();
        cmc();
        lea(rcx, ptr(rdx + 8));
        lea(rcx, ptr(rdx + rsi * 4 + 0x100));
        lea(eax, ptr(rbx + rbp));
        lea(rdi, ptr(0x1234));
        db(&[0x48, 0x8d, 0x0d, 0x00, 0x10, 0, 0]);
        crc32(ecx, dl);
    }

    // R8 to R11 of the guest live in the context.
    in_context, USER => {
        mov(r8, rcx);
        mov(rcx, r9);
        mov(r8, r9);
        mov(r10d, r11d);
        mov(r11b, cl);
        add(r8, rcx);
        add(rcx, r8);
        add(r8d, r9d);
        add(r10, r10);
        add(r8, 5);
        cmp(r9, 0x100);
        test(r8, r8);
        test(r9b, r10b);
        inc(r11);
        neg(r8d);
        imul_2(r8, r9);
        shl(r8, 3);
        shl(r8, cl);
        movzx(r9d, r10b);
        cmove(r8, r9);
        sete(r8b);
        xchg(r8, rcx);
        xchg(r8, r9);
        bsr(r8, r9);
        lea(r8, ptr(r9 + r10 * 2 + 3));
        mov(r8, ptr(r9));
        mov(ptr(r8 + r9), r10);
        add(ptr(r8), rcx);
        adc(r8, r9);
        xadd(r8, r9);
        shld(r8, r9, 4);
    }

    high_bytes, USER => {
        mov(ah, cl);
        mov(cl, ah);
        mov(dh, bh);
        mov(ah, al);
        add(ch, 1);
        add(ah, bl);
        cmp(bh, 5);
        test(dh, dl);
        movzx(eax, ah);
        movzx(ecx, dh);
        xchg(ah, al);
        xchg(ch, dl);
        sete(bh);
        mov(ah, byte_ptr(rcx));
        mov(byte_ptr(rcx + 4), dh);
        inc(ah);
        shl(ah, 1);
    }

    implicit, USER => {
        mul(rcx);
        mul(ebx);
        mul(r8);
        imul(rdx);
        mul(cl);
        div(rcx);
        div(r9d);
        idiv(ecx);
        idiv(rbx);
        div(qword_ptr(rcx));
        div(cl);
        cdqe();
        cwde();
        cqo();
        cdq();
        lahf();
        sahf();
        mulx(rcx, rsi, rdi);
        mulx(rax, rbx, r8);
        cmpxchg(rcx, rdx);
        cmpxchg(ptr(rcx), rdx);
        lock().cmpxchg(dword_ptr(rdi), esi);
        lock().cmpxchg8b(qword_ptr(rdi));
        lock().cmpxchg16b(xmmword_ptr(rdi));
        cmpxchg16b(xmmword_ptr(r8 + 16));
        rdtsc();
        rdtscp();
    }

    shifts, USER => {
        shl(rcx, 4);
        shl(eax, 1);
        shr(rbx, 63);
        sar(ecx, 31);
        shl(ecx, 0);
        shl(rdx, cl);
        shr(eax, cl);
        sar(rcx, cl);
        rol(ebx, 8);
        ror(cx, cl);
        rcl(rdx, 1);
        rcr(rdx, cl);
        shld(rcx, rdx, 12);
        shrd(eax, ebx, cl);
        shlx(rcx, rdx, rsi);
        sarx(eax, ebx, ecx);
        rorx(rcx, rdx, 13);
        shl(dword_ptr(rcx), 3);
        shr(qword_ptr(rdx), cl);
    }

    memory, USER => {
        mov(rcx, ptr(rdx));
        mov(eax, ptr(rbx + 8));
        mov(cl, ptr(rsp + 1));
        mov(ptr(rdi), rsi);
        mov(dword_ptr(rax), 7);
        mov(byte_ptr(rbp - 4), al);
        mov(rcx, ptr(rdx + rsi * 8 + 0x1000));
        mov(ptr(rax + rbx), cx);
        mov(rcx, ptr(0x1234));
        db(&[0x48, 0x8b, 0x05, 0x00, 0x10, 0, 0]);
        db(&[0x8b, 0x03, 0x67, 0x8b, 0x03]);
        db(&[0x48, 0xa1, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        mov(rcx, qword_ptr(rdx).fs());
        mov(rax, qword_ptr(0x28).gs());
        movzx(eax, byte_ptr(rcx));
        movsx(rcx, word_ptr(rdx));
        movsxd(rcx, dword_ptr(rdx));
        add(rcx, ptr(rdx));
        add(ptr(rdx), rcx);
        add(dword_ptr(rax + 16), 1);
        cmp(byte_ptr(rcx), 0);
        test(dword_ptr(rcx), 0x100);
        inc(dword_ptr(rcx));
        not(qword_ptr(rax));
        neg(byte_ptr(rdi));
        sete(byte_ptr(rcx));
        cmovne(rcx, ptr(rdx));
        imul_2(ecx, dword_ptr(rdx));
        movbe(rcx, ptr(rdx));
        movnti(ptr(rcx), rdx);
        popcnt(ecx, dword_ptr(rdx));
        bt(dword_ptr(rcx), 5);
        bt(dword_ptr(rcx), edx);
        bts(qword_ptr(rdi + 8), rax);
        lock().btr(dword_ptr(rcx), r9d);
        btc(word_ptr(rcx), dx);
        xchg(ptr(rcx), rdx);
        xchg(byte_ptr(rax), al);
        lock().add(dword_ptr(rcx), 1);
        lock().xadd(qword_ptr(rcx), rax);
        lock().inc(dword_ptr(rbx));
        prefetcht0(byte_ptr(rcx));
    }

    // Several accesses under one check.
    merged, USER => {
        mov(rcx, ptr(rdx)), mov(rsi, ptr(rdx + 8));
        mov(ptr(rdi), rcx), mov(ptr(rdi + 8), rdx), mov(ptr(rdi + 16), rsi), mov(dword_ptr(rdi + 24), 0);
        mov(rcx, ptr(rdx)), add(rcx, 1), mov(ptr(rdx), rcx);
        mov(rcx, ptr(rdx)), mov(rsi, ptr(rdx + 0x200));
        mov(rcx, ptr(rdx)), mov(rdx, ptr(rdx + 8)), mov(rsi, ptr(rdx + 16));
        mov(rcx, ptr(rdx)), add(rdx, 8), mov(rsi, ptr(rdx));
        mov(rcx, ptr(rdx)), lea(rdx, ptr(rdx - 16)), mov(rsi, ptr(rdx + 24));
        mov(rcx, ptr(r8)), mov(rsi, ptr(r8 + 8));
        mov(rcx, ptr(r8)), add(r8, 8), mov(rsi, ptr(r8));
        mov(rcx, ptr(rdx)), mov(rsi, ptr(rdi)), mov(rax, ptr(rdx + 8));
        mov(rcx, ptr(rdx)), test(rcx, rcx), jne(0x40u64), mov(rsi, ptr(rdx + 8));
        mov(rcx, ptr(rdx)), mov(rsi, ptr(rdx + rax)), mov(rdi, ptr(rdx + 8));
        movups(xmm0, ptr(rsi)), movups(xmm1, ptr(rsi + 16)), movups(ptr(rsi + 32), xmm0);
        push(rbx), push(rbp), push(r12), sub(rsp, 0x10);
        add(rsp, 0x10), pop(r12), pop(rbp), pop(rbx), ret();
        push(rbx), mov(rcx, ptr(rsp + 16)), pop(rbx);
    }

    // As after a check for several accesses crossed a page.
    narrow, Setting { narrow: true, ..USER } => {
        mov(rcx, ptr(rdx)), mov(rsi, ptr(rdx + 8));
        mov(rcx, ptr(rdx)), add(rcx, 1), mov(ptr(rdx), rcx);
        push(rbx), push(rbp), push(r12);
    }

    // As a program's that runs much.
    mirrored, MIRRORED => {
        mov(rcx, ptr(rdx));
        mov(ptr(rax + rbx * 4 + 8), ecx);
        mov(r9, ptr(r8 + r10 * 8));
        mov(ah, ptr(rsi));
        mov(rcx, ptr(rsp + 8));
        mov(rax, ptr(0x1234_5678));
        mov(rcx, ptr(0x28).fs());
        mov(rcx, ptr(rdx + r8 * 2 + 4).gs());
        add(rcx, 1), mov(ptr(rdx), rcx), adc(rsi, 0);
        lock().cmpxchg(ptr(rdi), rsi);
        lock().cmpxchg16b(ptr(rdi));
        bts(ptr(rcx), rdx);
        div(qword_ptr(rcx));
        movaps(xmm0, ptr(rsi));
        vaddps(zmm1, zmm2, ptr(rsi + 64));
        push(rcx);
        push(qword_ptr(rcx));
        pop(rcx);
        pop(r9);
        leave(), ret();
        call(rcx);
        jmp(qword_ptr(rax + rcx * 8));
        jmp(0x1040u64);
        call(0x1040u64);
        jbe(0x1040u64);
        cld();
        std();
        rep().movsb();
        rep().stosq();
        rep().stosw();
    }

    stack, USER => {
        push(rcx);
        push(rax);
        push(rsp);
        push(r8);
        push(5);
        push(-1);
        push(qword_ptr(rcx));
        push(fs);
        pop(rcx);
        pop(rsp);
        pop(r9);
        pop(qword_ptr(rcx));
        leave();
        leave(), ret();
        enter(16, 0);
        pushfq();
        popfq();
        push(cx);
    }

    branches, USER => {
        jmp(0x40u64);
        jmp(0x1040u64);
        jmp(0x7000_0000u64);
        je(0x40u64);
        jbe(0x1040u64);
        cmp(rcx, rdx), jl(0x40u64);
        cmp(rcx, rdx), jl(0x1040u64);
        test(eax, eax), js(0x40u64), mov(ecx, edx);
        test(eax, eax), js(0x1040u64), mov(ecx, edx);
        cmp(ecx, 1), je(0x40u64), cmp(ecx, 2), je(0x48u64), cmp(ecx, 3), je(0x50u64);
        cmp(ecx, 1), je(0x40u64), jb(0x48u64), ja(0x1050u64), nop();
        dec(ecx), jne(0x100u64);
        mov(rcx, ptr(rdx)), jo(0x40u64), mov(rsi, ptr(rdx + 8)), ret();
        jrcxz(0x110u64);
        call(0x40u64);
        call(0x1040u64);
        push(rcx), call(0x40u64);
        call(rax);
        call(r8);
        call(qword_ptr(rcx + 8));
        jmp(rcx);
        jmp(r9);
        jmp(qword_ptr(rax * 8 + 0x1000));
        ret();
        ret_1(16);
        retf();
        loop_(0x110u64);
        int3();
        syscall();
        xbegin(0x40u64);
    }

    // Where the status flags are kept, needed, or given up.
    flags, USER => {
        add(rcx, rdx), mov(rsi, ptr(rdi));
        add(rcx, rdx), mov(rsi, ptr(rdi)), adc(rcx, 0);
        add(rcx, rdx), mov(rsi, ptr(rdi)), add(rax, rbx);
        cmp(rcx, rdx), mov(rsi, ptr(rdi)), mov(rcx, ptr(rdi + 0x400)), cmp(rcx, rsi);
        test(rcx, rcx), push(rax), xor(eax, eax);
        imul_2(rcx, rdx), mov(rsi, ptr(rdi)), xor(eax, eax);
        inc(ecx), mov(rsi, ptr(rdi)), add(rax, rbx);
        inc(ecx), inc(edx), jne(0x40u64);
        sub(rcx, 1), mov(rsi, ptr(rdi)), jne(0x40u64);
        sub(rcx, 1), lea(rsi, ptr(rdi + 1)), jne(0x40u64);
        shl(rcx, cl), mov(rsi, ptr(rdi)), adc(rax, 0);
        cmp(rcx, rdx), sete(al), movzx(eax, al);
        cmp(rcx, rdx), sete(byte_ptr(rdi));
        cmp(rcx, ptr(rdi)), cmovb(rax, ptr(rdi + 8));
        cmp(eax, ebx), ja(0x40u64), mov(rcx, ptr(rdi)), add(rcx, 1);
        add(rax, rcx), mul(rcx);
        add(rcx, rdx), mul(rbx);
        add(rcx, rdx), call(0x40u64);
        add(rcx, rdx), cpuid(), jb(0x40u64);
        add(rcx, rdx), std();
    }

    vectors, USER => {
        movaps(xmm0, xmm1);
        paddb(xmm0, xmm1);
        pxor(xmm8, xmm8);
        movd(xmm0, eax);
        movq(xmm0, rcx);
        movq(r8, xmm0);
        movd(eax, xmm3);
        pmovmskb(eax, xmm0);
        pextrw(ecx, xmm0, 3);
        pinsrd(xmm0, r9d, 1);
        cvtsi2sd(xmm0, rax);
        cvttsd2si(rcx, xmm0);
        cvttss2si(eax, dword_ptr(rcx));
        movups(xmm0, ptr(rcx));
        movaps(xmm0, ptr(rcx));
        movaps(ptr(rsp + 16), xmm0);
        paddd(xmm0, ptr(rcx));
        addsd(xmm0, qword_ptr(rcx));
        movntdq(ptr(rcx), xmm1);
        ucomisd(xmm0, xmm1), jb(0x40u64);
        ptest(xmm0, xmm1);
        pcmpistri(xmm0, ptr(rsi), 0x1a);
        pcmpestri(xmm0, xmm1, 0);
        pshufb(xmm0, ptr(rax));
        aesenc(xmm0, xmm1);
        sha256rnds2(xmm1, xmm2);
        gf2p8mulb(xmm0, xmm1);
        vzeroupper();
        vpaddb(ymm0, ymm1, ymm2);
        vpxor(xmm0, xmm1, ptr(rcx));
        vmovdqa(ymm0, ptr(rcx));
        vmovdqu(ptr(rdi), ymm1);
        vpmovmskb(eax, ymm0);
        vfmadd231pd(ymm0, ymm1, ptr(rdx));
        vcvtph2ps(xmm0, xmm1);
        vpgatherdd(xmm0.k1(), ptr(rcx + xmm1 * 4));
        vmaskmovps(xmm0, xmm1, ptr(rcx));
        vpaddd(zmm0, zmm1, zmm2);
        vpaddd(zmm30.k1(), zmm1, ptr(rcx + 64));
        vpaddd(zmm0, zmm1, dword_bcst(rcx));
        vmovdqu8(ptr(rdi).k2(), ymm16);
        vpcompressd(ptr(rdi).k1(), zmm0);
        vpternlogq(zmm0, zmm1, zmm2, 0x96);
        kmovq(rax, k1);
        kmovw(k1, r8d);
        kandq(k1, k2, k3);
        vpcmpeqb(k1, zmm0, ptr(rsi));
        movups(xmm0, ptr(rsi)), cpuid(), movups(ptr(rdi), xmm0);
        addss(xmm0, xmm1), mulss(xmm0, xmm2), movss(ptr(rcx), xmm0);
        ldmxcsr(dword_ptr(rcx));
        fld1();
    }

    // Where the guest may not use vector registers, or only SSE.
    no_vectors, Setting { vectors: 0, ..USER } => {
        paddb(xmm0, xmm1);
        mov(rcx, rdx), paddb(xmm0, xmm1), mov(rdx, rcx);
    }
    sse_only, Setting { vectors: 1, ..USER } => {
        paddb(xmm0, xmm1);
        vpaddb(xmm0, xmm1, xmm2);
        kmovq(rax, k1);
    }

    system, USER => {
        mov(eax, ds);
        mov(rcx, fs);
        mov(r8d, ss);
        cld();
        std();
        cpuid();
        mov(rcx, rdx), cpuid(), mov(rdx, rcx);
        rep().movsb();
        rep().stosq();
        rep().movsd();
        repne().stosb();
        rep().stosw();
        rep().lodsb();
        movsq();
        lodsb();
        cli();
        sti(), nop();
        swapgs();
        hlt();
        rdrand(rax);
        xgetbv();
        clflush(byte_ptr(rcx));
        rdfsbase(rax);
        in_(al, dx);
    }
    kernel, KERNEL => {
        cli();
        sti(), nop();
        sti();
        swapgs();
        mov(rax, cr2);
        mov(rcx, cr2);
        mov(r9, cr2);
        mov(rax, cr3);
        mov(rcx, ptr(rdx)), clac(), mov(rsi, ptr(rdx + 8));
        stac();
        mov(cr3, rax);
        invlpg(byte_ptr(rcx));
        wrmsr();
        iretq();
        pushfq(), cli(), pop(rcx);
        mov(rcx, qword_ptr(rdx).gs());
        lock().add(dword_ptr(rcx), 1);
        call(rax);
    }
    // With what lets a kernel access what is its programs'.
    kernel_with_ac, Setting { view: View::SupervisorAc, ..USER } => {
        mov(rcx, ptr(rdx));
        mov(ptr(rdx), rcx);
        jmp(rcx);
        stac();
        clac();
    }
    no_time, Setting { time: false, ..USER } => {
        rdtsc();
    }
}
