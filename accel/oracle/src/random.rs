//! Random numbers, and values that instructions find interesting.

/// A small generator (SplitMix64): cases need many seeds, not many numbers of one.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator for case `number` of `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        rng.0 = rng.next();
        rng
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// True in `n` percent of all cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// One of `values`.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// A number from -`n` to `n`.
    pub fn around_zero(&mut self, n: u64) -> u64 {
        self.below(2 * n + 1).wrapping_sub(n)
    }
}

/// An integer that likely lies at some edge.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 | 1 => rng.next(),
        2 => rng.around_zero(16),
        3 => {
            // Around the sign and carry boundaries of each width.
            let bits = rng.pick(&[7, 8, 15, 16, 31, 32, 63]);
            (1u64 << bits).wrapping_add(rng.around_zero(2))
        }
        4 => 1u64.rotate_left(rng.below(64) as u32),
        5 => !(1u64.rotate_left(rng.below(64) as u32)),
        6 => u64::MAX << rng.below(64),
        _ => rng.next() >> rng.below(64),
    }
}

/// What the lanes of a vector hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Flavour {
    Random,
    Zero,
    Ones,
    Bytes,
    Words,
    Doublewords,
    Quadwords,
    Small,
    Text,
    Half,
    Single,
    Double,
    Extended,
    Decimal,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Random,
        Self::Zero,
        Self::Ones,
        Self::Bytes,
        Self::Words,
        Self::Doublewords,
        Self::Quadwords,
        Self::Small,
        Self::Text,
        Self::Half,
        Self::Single,
        Self::Double,
        Self::Extended,
        Self::Decimal,
    ];

    /// Fills whole lanes of 16 bytes.
    pub fn fill(self, rng: &mut Rng, lanes: &mut [[u64; 2]]) {
        for lane in lanes {
            *lane = match self {
                Self::Extended => extended(rng),
                Self::Decimal => decimal(rng),
                _ => [self.quadword(rng), self.quadword(rng)],
            };
        }
    }

    fn quadword(self, rng: &mut Rng) -> u64 {
        fn repeat(rng: &mut Rng, bits: u32, f: impl Fn(&mut Rng) -> u64) -> u64 {
            (0..64 / bits).fold(0, |v, _| v << (bits & 63) | f(rng) & u64::MAX >> (64 - bits))
        }
        match self {
            Self::Zero => 0,
            Self::Ones => u64::MAX,
            Self::Bytes => repeat(rng, 8, |r| edge(r, 8)),
            Self::Words => repeat(rng, 16, |r| edge(r, 16)),
            Self::Doublewords => repeat(rng, 32, |r| edge(r, 32)),
            Self::Quadwords => integer(rng),
            Self::Small => repeat(rng, 32, |r| r.around_zero(32)),
            Self::Text => repeat(rng, 8, |r| r.pick(b"aabcABC01xyz\0\x7f\x80") as u64),
            Self::Half => repeat(rng, 16, |r| float(r, 5, 10)),
            Self::Single => repeat(rng, 32, |r| float(r, 8, 23)),
            Self::Double => float(rng, 11, 52),
            _ => rng.next(),
        }
    }
}

/// An integer of `bits` bits at one of its edges.
fn edge(rng: &mut Rng, bits: u32) -> u64 {
    let sign = 1u64 << (bits - 1);
    match rng.below(4) {
        0 => rng.next(),
        1 => rng.around_zero(2),
        2 => sign.wrapping_add(rng.around_zero(2)),
        _ => rng.next() >> rng.below(64),
    }
}

/// A floating-point number of the given format: specials, denormals, numbers of like size.
fn float(rng: &mut Rng, exponent_bits: u32, fraction_bits: u32) -> u64 {
    let infinite = (1u64 << exponent_bits) - 1;
    let bias = infinite >> 1;
    let mask = (1u64 << fraction_bits) - 1;
    let fraction = match rng.below(4) {
        0 => rng.next() & mask,
        1 => rng.around_zero(3) & mask,
        2 => 0,
        _ => rng.next() << rng.below(u64::from(fraction_bits)) & mask,
    };
    let (exponent, fraction) = match rng.below(16) {
        0 => (0, 0),
        1 => (0, fraction),
        2 => (infinite, 0),
        3 => (infinite, fraction),
        4 => (infinite, 1 << (fraction_bits - 1)),
        5 => (1, fraction),
        6 => (infinite - 1, fraction),
        7 => (bias, 0),
        8 | 9 => (rng.below(infinite + 1), fraction),
        10 => (bias + 31 + rng.below(3), fraction), // around the ends of integers
        11 => (bias + 63 + rng.below(3), fraction),
        _ => ((bias + rng.below(24)).wrapping_sub(12), fraction),
    };
    (rng.below(2) << exponent_bits | exponent & infinite) << fraction_bits | fraction
}

/// A number in double extended precision, formats included that no operation makes.
pub fn extended(rng: &mut Rng) -> [u64; 2] {
    let integer_bit = 1u64 << 63;
    let mut significand = integer_bit | rng.next() << rng.below(64);
    let exponent = match rng.below(16) {
        0 => {
            significand = 0;
            0
        }
        1 => {
            significand &= !integer_bit;
            0
        }
        2 => rng.pick(&[0, 1, 0x7ffe]),
        3 => {
            significand = integer_bit;
            0x7fff
        }
        4 => 0x7fff,
        5 => {
            significand |= 1 << 62;
            0x7fff
        }
        6 => {
            // Unnormal, pseudo-infinity, pseudo-NaN.
            significand &= !integer_bit;
            rng.pick(&[1, 0x3fff, 0x4000, 0x7fff])
        }
        7 => rng.below(0x8000),
        8 => 0x3fff + rng.below(70),
        _ => (0x3fff + rng.below(24)).wrapping_sub(12),
    };
    [significand, exponent | rng.below(2) << 15]
}

/// Eighteen decimal digits as FBLD loads them.
fn decimal(rng: &mut Rng) -> [u64; 2] {
    let digits = |rng: &mut Rng, n: u32| (0..n).fold(0, |v, _| v << 4 | rng.below(10));
    [digits(rng, 16), digits(rng, 2) | rng.below(2) << 15 | rng.next() << 16]
}
