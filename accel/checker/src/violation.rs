//! Why a block is refused.

use thiserror::Error;

/// A block that was refused: where, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("translated code at offset {offset:#x}: {problem}; leave it to the interpreter")]
pub struct Violation {
    /// The instruction, as an offset in the block.
    pub offset: u32,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What may be wrong with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The block is longer than any block should be.
    #[error("the block is too long")]
    TooLong,
    /// The layout has no tables for the block's view.
    #[error("the block is for a view without tables")]
    NoSuchView,
    /// No instruction, or one that is cut off.
    #[error("this is no whole instruction")]
    Undecodable,
    /// An entry or a place to resume at is in the middle of an instruction.
    #[error("an entry does not lead to an instruction")]
    EntryIntoMiddle,
    /// What is to be linked is no distance of a jump.
    #[error("a link is not the distance of a jump")]
    NoLink,
    /// Not on the list of what translated code may consist of.
    #[error("this instruction has no place in translated code")]
    NotAllowed,
    /// A branch into the middle of an instruction.
    #[error("a branch leads into the middle of an instruction")]
    IntoMiddle,
    /// A branch out of the block that leads to none of the places listed.
    #[error("a branch leads out of the block")]
    Outside,
    /// The last instruction lets execution go on behind the block.
    #[error("execution falls off the end of the block")]
    FallsOff,
    /// The block is left without the number of one of its exits in EBP.
    #[error("the block is left by an exit that it does not have")]
    WrongExit,
    /// A jump through the jump cache without, or with too little of, a comparison before.
    #[error("a jump through the jump cache is not for the address that was looked up")]
    UncheckedJump,
    /// The stack pointer is used, and not as the base of a memory operand.
    #[error("the stack pointer is used for something else than to reach the context")]
    StackPointer,
    /// A register is written that is neither general-purpose nor a vector or mask.
    #[error("a register is written that belongs to the host")]
    HostRegister,
    /// A vector register is used while it may not hold the guest's value.
    #[error("vector registers are used while they may be the host's")]
    VectorsNotLive,
    /// A context operand that is not within a field, or not to be touched in this way.
    #[error("this is no field of the context that may be accessed so")]
    Context,
    /// A table's entry under an index that may be out of bounds.
    #[error("an index into a table was not masked, or belongs to another table")]
    Index,
    /// A memory operand without a complete check before it.
    #[error("a memory operand's address was not checked")]
    Unchecked,
    /// A checked address with too few bytes behind it.
    #[error("a memory operand reaches beyond what was checked")]
    BeyondCheck,
    /// A checked address that is written without having been checked for that.
    #[error("memory is written that was checked for loads only")]
    ReadOnly,
    /// A bit offset from a register that may select a bit outside of the operand.
    #[error("a bit offset may reach beyond its operand")]
    BitOffset,
    /// A host address, or what may tell of one, gets to where the guest may see it.
    #[error("a host address gets to where the guest may see it")]
    Leak,
}
