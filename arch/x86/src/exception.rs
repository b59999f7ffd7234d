//! Exceptions (SDM Vol. 3, chapter 6).

/// Vectors of the exceptions that the architecture defines.
#[allow(missing_docs)] // the names are the manual's
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception, ready to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, where the vector has one.
    pub error_code: Option<u32>,
    /// What CR2 becomes (#PF only).
    pub address: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self { vector, error_code: None, address: 0 }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self { vector, error_code: Some(code), address: 0 }
    }

    /// #UD.
    pub const UD: Self = Self::new(vector::UD);
    /// #NM.
    pub const NM: Self = Self::new(vector::NM);
    /// #DE.
    pub const DE: Self = Self::new(vector::DE);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_code(vector::SS, 0);

    /// #GP with a selector (or IDT vector) as its error code.
    pub const fn gp(code: u32) -> Self {
        Self::with_code(vector::GP, code)
    }

    /// #PF.
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(code), address }
    }
}

/// An exception was raised; the processor holds which. It is zero-sized, so that the results of
/// hot functions stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised(pub(crate) ());

/// The result of anything that may raise an exception.
pub type Exec<T = ()> = Result<T, Raised>;
