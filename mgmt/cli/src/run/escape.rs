//! The key that leaves the guest's console.

/// Ctrl-], telnet's escape key: rarely of use to a guest.
const ESCAPE: u8 = 0x1d;

/// Finds the escape key in what a person types.
#[derive(Debug, Default)]
pub struct Escape {
    /// The last byte was the escape key.
    pending: bool,
}

/// What a person wants besides typing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Stop the guest.
    Quit,
    /// Say which keys there are.
    Help,
}

impl Escape {
    /// Passes typed bytes on to `guest`, without the escape sequences. Stops at the first wish;
    /// bytes behind it are dropped.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Wish> {
        for &byte in typed {
            if !std::mem::take(&mut self.pending) {
                if byte == ESCAPE {
                    self.pending = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            match byte {
                ESCAPE => guest.push(ESCAPE),
                b'q' | b'Q' => return Some(Wish::Quit),
                _ => return Some(Wish::Help),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]]) -> (Vec<u8>, Option<Wish>) {
        let mut escape = Escape::default();
        let mut guest = Vec::new();
        for chunk in chunks {
            if let Some(wish) = escape.filter(chunk, &mut guest) {
                return (guest, Some(wish));
            }
        }
        (guest, None)
    }

    #[test]
    fn all_but_the_escape_key_goes_to_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|&byte| byte != ESCAPE).collect();
        assert_eq!(filter(&[&all]), (all, None));
    }

    #[test]
    fn sequences_may_come_in_pieces() {
        assert_eq!(filter(&[b"ab\x1dq"]), (b"ab".to_vec(), Some(Wish::Quit)));
        assert_eq!(filter(&[b"ab\x1d", b"Q"]), (b"ab".to_vec(), Some(Wish::Quit)));
        assert_eq!(filter(&[b"\x1d", b"\x1dq"]), (b"\x1dq".to_vec(), None));
        assert_eq!(filter(&[b"\x1dx"]), (vec![], Some(Wish::Help)));
        assert_eq!(filter(&[b"q\x1d"]), (b"q".to_vec(), None));
    }
}
