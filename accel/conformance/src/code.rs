//! Short sequences that many cases use.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::guest::Guest;
use crate::layout::{self, port, sel};

type Result = std::result::Result<(), IcedError>;

impl Guest {
    /// Ends the case.
    pub fn exit(&mut self) -> Result {
        let a = &mut self.a;
        let mut here = a.create_label();
        a.out(u32::from(port::EXIT), al)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    }

    /// Writes EAX to the debug port.
    pub fn out_eax(&mut self) -> Result {
        self.a.out(u32::from(port::OUT), eax)
    }

    /// Writes a number to the debug port.
    pub fn out(&mut self, value: u32) -> Result {
        self.a.mov(eax, value)?;
        self.out_eax()
    }

    /// Calls the host.
    pub fn host(&mut self, value: u32) -> Result {
        self.a.mov(eax, value)?;
        self.a.out(u32::from(port::HOST), eax)
    }

    /// The next exception goes on at what is marked `name`. Clobbers AX in 16-bit code, nothing
    /// else.
    pub fn recover(&mut self, name: &'static str) -> Result {
        let target = self.addr32(name);
        self.set_shared(layout::RECOVER, target)
    }

    /// Stores to a word that is shared with the handlers. In real mode DS is 0.
    pub fn set_shared(&mut self, at: u64, value: u32) -> Result {
        let at = if self.is_user() { at + layout::USER_SHARED } else { at };
        self.a.mov(dword_ptr(at), value)
    }

    /// Records the exception that the code of `f` raises at its first instruction, and goes on
    /// after it.
    pub fn expect_fault(
        &mut self,
        name: &'static str,
        after: &'static str,
        f: impl FnOnce(&mut CodeAssembler) -> Result,
    ) -> Result {
        self.recover(after)?;
        self.mark(name)?;
        f(&mut self.a)?;
        self.mark(after)
    }

    /// Goes to ring 3 and goes on there, in 64-bit or 32-bit code as before.
    pub fn enter_user(&mut self) -> Result {
        self.enter_user_with_flags(2)
    }

    /// The same with these flags.
    pub fn enter_user_with_flags(&mut self, flags: u32) -> Result {
        let code = layout::USER_CODE;
        if self.a.bitness() == 64 {
            self.iret_frame64(sel::UCODE64, code, flags, sel::UDATA, layout::USER_STACK)?;
            self.a.iretq()?;
            self.section(64, code, code)
        } else {
            self.a.mov(eax, u32::from(sel::UDATA))?;
            self.a.mov(ds, eax)?;
            self.a.mov(es, eax)?;
            self.a.push(i32::from(sel::UDATA))?;
            self.a.push(layout::USER_STACK as i32)?;
            self.a.push(flags as i32)?;
            self.a.push(i32::from(sel::UCODE32))?;
            self.a.push(code as i32)?;
            self.a.iretd()?;
            self.section(32, code, code)
        }
    }

    /// Pushes what IRETQ pops. Clobbers RAX if the address is large.
    pub fn iret_frame64(
        &mut self,
        code: u16,
        target: u64,
        flags: u32,
        stack: u16,
        top: u64,
    ) -> Result {
        self.a.push(i32::from(stack))?;
        self.a.mov(rax, top)?;
        self.a.push(rax)?;
        self.a.push(flags as i32)?;
        self.a.push(i32::from(code))?;
        self.a.mov(rax, target)?;
        self.a.push(rax)
    }

    /// WRMSR. Clobbers RAX, RCX and RDX.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Result {
        self.a.mov(ecx, index)?;
        self.a.mov(eax, value as u32)?;
        self.a.mov(edx, (value >> 32) as u32)?;
        self.a.wrmsr()
    }

    /// RDMSR into EDX:EAX. Clobbers RCX.
    pub fn rdmsr(&mut self, index: u32) -> Result {
        self.a.mov(ecx, index)?;
        self.a.rdmsr()
    }

    /// Sets and clears bits of CR4. Clobbers RAX.
    pub fn change_cr4(&mut self, set: u32, clear: u32) -> Result {
        if self.a.bitness() == 64 {
            self.a.mov(rax, cr4)?;
        } else {
            self.a.mov(eax, cr4)?;
        }
        self.a.or(eax, set as i32)?;
        self.a.and(eax, !clear as i32)?;
        if self.a.bitness() == 64 { self.a.mov(cr4, rax) } else { self.a.mov(cr4, eax) }
    }

    /// Sets and clears bits of CR0. Clobbers RAX.
    pub fn change_cr0(&mut self, set: u32, clear: u32) -> Result {
        if self.a.bitness() == 64 {
            self.a.mov(rax, cr0)?;
        } else {
            self.a.mov(eax, cr0)?;
        }
        self.a.or(eax, set as i32)?;
        self.a.and(eax, !clear as i32)?;
        if self.a.bitness() == 64 { self.a.mov(cr0, rax) } else { self.a.mov(cr0, eax) }
    }
}
