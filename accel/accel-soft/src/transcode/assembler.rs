//! An assembler for the few instruction forms that templates are made of.
//!
//! Guest instructions go through iced's encoder; what surrounds them is the same few forms over
//! and over, for which that is too slow.

/// A general-purpose register of the host, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

#[allow(missing_docs)]
impl Reg {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RBX: Self = Self(3);
    pub const RSP: Self = Self(4);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R8: Self = Self(8);
    pub const R9: Self = Self(9);
    pub const R10: Self = Self(10);
    pub const R11: Self = Self(11);
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub enum Mem {
    /// `[rsp + disp]`
    Context(i32),
    /// `[rsp + index*8 + disp]`
    ContextIndexed(Reg, i32),
    /// `[base + disp]`
    Base(Reg, i32),
    /// `[base + index*2^scale + disp]`; either may be missing. The index is not RSP.
    Sum { base: Option<Reg>, index: Option<(Reg, u8)>, disp: i32 },
}

/// An arithmetic operation by its number in the opcode map.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Conditions as Jcc encodes them.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Cond {
    Below = 2,
    AboveEqual = 3,
    Equal = 4,
    NotEqual = 5,
    BelowEqual = 6,
    Above = 7,
}

/// A place in the code that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Code as it grows.
#[derive(Default)]
pub struct Assembler {
    pub code: Vec<u8>,
    labels: Vec<Option<usize>>,
    /// Where a distance of 32 bits to a label is to be put.
    fixups: Vec<(usize, Label)>,
    /// REX.W if addresses of the guest's code have 64 bits, else 0.
    word: u8,
}

const W: u8 = 8;

impl Assembler {
    /// Starts anew, keeping the memory.
    pub fn clear(&mut self) {
        self.code.clear();
        self.labels.clear();
        self.fixups.clear();
    }

    /// Says how many bytes an address has in the guest's code: 8 or 4.
    pub fn set_word(&mut self, bytes: i32) {
        self.word = if bytes == 8 { W } else { 0 };
    }

    /// Takes back everything from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.code.truncate(length);
        self.fixups.retain(|&(at, _)| at < length);
    }

    pub fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    // --- Labels -----------------------------------------------------------------------------

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Says that the label is here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// Where a bound label is.
    pub fn position(&self, label: Label) -> Option<usize> {
        self.labels[label.0]
    }

    /// Fills in the distances of all jumps. `false` if a label was never bound.
    pub fn resolve(&mut self) -> bool {
        for &(at, label) in &self.fixups {
            let Some(to) = self.labels[label.0] else { return false };
            let distance = to as i32 - (at as i32 + 4);
            self.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        true
    }

    /// JMP; returns where its distance stands.
    pub fn jmp(&mut self, to: Label) -> usize {
        self.byte(0xe9);
        self.distance(to)
    }

    /// Jcc; returns where its distance stands.
    pub fn jcc(&mut self, condition: u8, to: Label) -> usize {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.distance(to)
    }

    pub fn jump_if(&mut self, condition: Cond, to: Label) {
        self.jcc(condition as u8, to);
    }

    fn distance(&mut self, to: Label) -> usize {
        let at = self.code.len();
        self.fixups.push((at, to));
        self.imm32(0);
        at
    }

    /// JMP or CALL to a place `distance` bytes from the end of the instruction.
    pub fn jmp_by(&mut self, distance: i32) {
        self.byte(0xe9);
        self.imm32(distance);
    }

    pub fn call_by(&mut self, distance: i32) {
        self.byte(0xe8);
        self.imm32(distance);
    }

    // --- Operands -----------------------------------------------------------------------------

    /// An instruction with a register (or opcode extension) and a memory operand.
    fn with_mem(&mut self, w: u8, opcode: &[u8], reg: u8, mem: Mem) {
        let (base, index, scale, disp) = match mem {
            Mem::Context(disp) => (Some(Reg::RSP), None, 0, disp),
            Mem::ContextIndexed(index, disp) => (Some(Reg::RSP), Some(index), 3, disp),
            Mem::Base(base, disp) => (Some(base), None, 0, disp),
            Mem::Sum { base, index, disp } => {
                (base, index.map(|(i, _)| i), index.map_or(0, |(_, s)| s), disp)
            }
        };
        let b = base.map_or(0, |r| r.0 >> 3);
        let x = index.map_or(0, |r| r.0 >> 3);
        let rex = w | (reg >> 3) << 2 | x << 1 | b;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.bytes(opcode);
        let r = (reg & 7) << 3;
        let Some(base) = base else {
            // No base: a SIB byte that says so, and 32 bits of displacement.
            self.byte(r | 4);
            self.byte(scale << 6 | index.map_or(4, |i| i.0 & 7) << 3 | 5);
            self.imm32(disp);
            return;
        };
        let needs_sib = index.is_some() || base.0 & 7 == 4;
        let mode = match i8::try_from(disp) {
            Ok(0) if base.0 & 7 != 5 => 0x00,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        self.byte(mode | r | if needs_sib { 4 } else { base.0 & 7 });
        if needs_sib {
            self.byte(scale << 6 | index.map_or(4, |i| i.0 & 7) << 3 | base.0 & 7);
        }
        match mode {
            0x00 => {}
            0x40 => self.byte(disp as u8),
            _ => self.imm32(disp),
        }
    }

    fn with_reg(&mut self, w: u8, opcode: &[u8], reg: u8, rm: Reg) {
        let rex = w | (reg >> 3) << 2 | rm.0 >> 3;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.bytes(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm.0 & 7);
    }

    // --- Instructions; 64 bits wide unless the name says otherwise ------------------------------

    pub fn mov(&mut self, to: Reg, from: Reg) {
        if to != from {
            self.with_reg(W, &[0x8b], to.0, from);
        }
    }

    pub fn mov32(&mut self, to: Reg, from: Reg) {
        self.with_reg(0, &[0x8b], to.0, from);
    }

    pub fn load(&mut self, to: Reg, from: Mem) {
        self.with_mem(W, &[0x8b], to.0, from);
    }

    /// Sign-extends 32 bits.
    pub fn movsxd(&mut self, to: Reg, from: Reg) {
        self.with_reg(W, &[0x63], to.0, from);
    }

    pub fn load32(&mut self, to: Reg, from: Mem) {
        self.with_mem(0, &[0x8b], to.0, from);
    }

    pub fn store(&mut self, to: Mem, from: Reg) {
        self.with_mem(W, &[0x89], from.0, to);
    }

    pub fn store32(&mut self, to: Mem, from: Reg) {
        self.with_mem(0, &[0x89], from.0, to);
    }

    /// PUSH on the host's stack.
    pub fn push_imm(&mut self, value: i32) {
        self.byte(0x68);
        self.imm32(value);
    }

    pub fn neg(&mut self, reg: Reg) {
        self.with_reg(W, &[0xf7], 3, reg);
    }

    /// MOV of a zero-extended immediate.
    pub fn mov32_imm(&mut self, to: Reg, value: i32) {
        if to.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0xb8 | to.0 & 7);
        self.imm32(value);
    }

    /// MOV of a sign-extended immediate.
    pub fn mov_imm(&mut self, to: Reg, value: i32) {
        if value >= 0 {
            return self.mov32_imm(to, value);
        }
        self.with_reg(W, &[0xc7], 0, to);
        self.imm32(value);
    }

    pub fn lea(&mut self, to: Reg, mem: Mem) {
        self.with_mem(W, &[0x8d], to.0, mem);
    }

    pub fn lea32(&mut self, to: Reg, mem: Mem) {
        self.with_mem(0, &[0x8d], to.0, mem);
    }

    pub fn alu(&mut self, op: Alu, to: Reg, from: Reg) {
        self.with_reg(W, &[(op as u8) << 3 | 3], to.0, from);
    }

    pub fn alu32(&mut self, op: Alu, to: Reg, from: Reg) {
        self.with_reg(0, &[(op as u8) << 3 | 3], to.0, from);
    }

    pub fn alu_mem(&mut self, op: Alu, to: Reg, from: Mem) {
        self.with_mem(W, &[(op as u8) << 3 | 3], to.0, from);
    }

    pub fn alu_imm(&mut self, op: Alu, to: Reg, value: i32) {
        self.alu_imm_sized(W, op, to, value);
    }

    pub fn alu32_imm(&mut self, op: Alu, to: Reg, value: i32) {
        self.alu_imm_sized(0, op, to, value);
    }

    fn alu_imm_sized(&mut self, w: u8, op: Alu, to: Reg, value: i32) {
        match i8::try_from(value) {
            Ok(value) => {
                self.with_reg(w, &[0x83], op as u8, to);
                self.byte(value as u8);
            }
            Err(_) => {
                self.with_reg(w, &[0x81], op as u8, to);
                self.imm32(value);
            }
        }
    }

    /// AND, OR or CMP of 32 bits in memory with an immediate.
    pub fn alu32_mem_imm(&mut self, op: Alu, to: Mem, value: i32) {
        match i8::try_from(value) {
            Ok(value) => {
                self.with_mem(0, &[0x83], op as u8, to);
                self.byte(value as u8);
            }
            Err(_) => {
                self.with_mem(0, &[0x81], op as u8, to);
                self.imm32(value);
            }
        }
    }

    /// CMP of 64 bits in memory with 0.
    pub fn cmp_mem_zero(&mut self, mem: Mem) {
        self.with_mem(W, &[0x83], Alu::Cmp as u8, mem);
        self.byte(0);
    }

    pub fn shr32(&mut self, reg: Reg, count: u8) {
        self.with_reg(0, &[0xc1], 5, reg);
        self.byte(count);
    }

    pub fn sar32(&mut self, reg: Reg, count: u8) {
        self.with_reg(0, &[0xc1], 7, reg);
        self.byte(count);
    }

    pub fn sar(&mut self, reg: Reg, count: u8) {
        self.with_reg(W, &[0xc1], 7, reg);
        self.byte(count);
    }

    pub fn shl(&mut self, reg: Reg, count: u8) {
        self.with_reg(W, &[0xc1], 4, reg);
        self.byte(count);
    }

    pub fn shl32(&mut self, reg: Reg, count: u8) {
        self.with_reg(0, &[0xc1], 4, reg);
        self.byte(count);
    }

    /// MOVZX of AH or AL into RBX or RBP.
    pub fn movzx_ah(&mut self, to: Reg) {
        self.bytes(&[0x0f, 0xb6, 0xc4 | (to.0 & 7) << 3]);
    }

    pub fn movzx_al(&mut self, to: Reg) {
        self.bytes(&[0x0f, 0xb6, 0xc0 | (to.0 & 7) << 3]);
    }

    /// RORX, which leaves the flags alone (BMI2).
    pub fn rorx(&mut self, to: Reg, from: Reg, count: u8) {
        let r = if to.0 < 8 { 0x80 } else { 0 };
        let b = if from.0 < 8 { 0x20 } else { 0 };
        self.bytes(&[0xc4, r | 0x40 | b | 3, 0xfb, 0xf0]);
        self.bytes(&[0xc0 | (to.0 & 7) << 3 | from.0 & 7, count]);
    }

    /// TEST of RBX's low byte.
    pub fn test_bl(&mut self, value: u8) {
        self.bytes(&[0xf6, 0xc3, value]);
    }

    /// LAHF, SETO AL: the status flags into AX.
    pub fn save_status(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// The status flags out of AX, which keeps them: CMP AL, 81h overflows just if AL is 1.
    pub fn restore_status(&mut self) {
        self.bytes(&[0x3c, 0x81, 0x9e]);
    }

    /// REP MOVS, or REP STOS, of 2^`scale` bytes.
    pub fn repeat(&mut self, moves: bool, scale: u8) {
        self.byte(0xf3);
        if scale == 3 {
            self.byte(0x48);
        }
        let opcode = if moves { 0xa4 } else { 0xaa };
        self.byte(opcode | u8::from(scale > 0));
    }

    pub fn ret(&mut self) {
        self.byte(0xc3);
    }

    /// JMP to the address in a register.
    pub fn jmp_reg(&mut self, to: Reg) {
        self.with_reg(0, &[0xff], 4, to);
    }

    /// JMP through memory.
    pub fn jmp_mem(&mut self, to: Mem) {
        self.with_mem(0, &[0xff], 4, to);
    }

    // --- As wide as addresses are in the guest's code: see `set_word` -----------------------------

    /// MOV, which cuts 32-bit words off.
    pub fn mov_word(&mut self, to: Reg, from: Reg) {
        if self.word == W { self.mov(to, from) } else { self.mov32(to, from) }
    }

    pub fn load_word(&mut self, to: Reg, from: Mem) {
        self.with_mem(self.word, &[0x8b], to.0, from);
    }

    pub fn store_word(&mut self, to: Mem, from: Reg) {
        self.with_mem(self.word, &[0x89], from.0, to);
    }

    /// Stores an immediate, sign-extended to 64 bits.
    pub fn store_imm_word(&mut self, to: Mem, value: i32) {
        self.with_mem(self.word, &[0xc7], 0, to);
        self.imm32(value);
    }

    /// MOV of an immediate, sign-extended to 64 bits.
    pub fn mov_imm_word(&mut self, to: Reg, value: i32) {
        if self.word == W { self.mov_imm(to, value) } else { self.mov32_imm(to, value) }
    }

    pub fn lea_word(&mut self, to: Reg, mem: Mem) {
        self.with_mem(self.word, &[0x8d], to.0, mem);
    }

    pub fn add_mem_word(&mut self, to: Reg, from: Mem) {
        self.with_mem(self.word, &[(Alu::Add as u8) << 3 | 3], to.0, from);
    }
}
