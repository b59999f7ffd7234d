//! What slows down a guest that resets itself again and again.

use std::time::Duration;

/// A machine that lives no longer than this has not got anywhere.
const SHORT: Duration = Duration::from_secs(2);

/// How many such lives there may be in a row: firmware and boot loaders do reset a machine once
/// or twice on their way.
const TOLERATED: u32 = 5;

/// How long a machine then stays off before it starts anew.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Notices when a guest gets nowhere. Real machines, and QEMU, reset as fast as they can, which
/// nobody has any use of: it takes a whole processor, and what the guest said scrolls away.
#[derive(Debug, Default)]
pub struct Brake {
    short_lives: u32,
}

/// What is to be done before the machine starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing.
    GoOn,
    /// To [`PAUSE`], and the first time to tell a person.
    Pause {
        /// It is the first time.
        first: bool,
    },
}

impl Brake {
    /// Takes note of a machine that was reset after having run for `lived`.
    pub fn after(&mut self, lived: Duration) -> Advice {
        if lived > SHORT {
            self.short_lives = 0;
            return Advice::GoOn;
        }
        self.short_lives = self.short_lives.saturating_add(1);
        match self.short_lives {
            0..TOLERATED => Advice::GoOn,
            lives => Advice::Pause { first: lives == TOLERATED },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_gets_nowhere_is_slowed_down() {
        let mut brake = Brake::default();
        let mut after = |seconds| brake.after(Duration::from_secs(seconds));
        for _ in 0..3 {
            for _ in 1..TOLERATED {
                assert_eq!(after(0), Advice::GoOn);
            }
            assert_eq!(after(1), Advice::Pause { first: true });
            assert_eq!(after(0), Advice::Pause { first: false });
            assert_eq!(after(60), Advice::GoOn, "it got somewhere");
        }
    }
}
