//! What a guest says on its console before its program begins.

use agent_protocol::program::BEGIN;

/// So much is kept, to explain a program that never began.
const KEPT: usize = 64 << 10;

/// Keeps back what comes before the program's own output.
#[derive(Debug, Default)]
pub struct Preamble {
    said: Vec<u8>,
}

impl Preamble {
    /// Takes output. `Some`: the program has begun, and this is its first.
    pub fn take(&mut self, output: &[u8]) -> Option<Vec<u8>> {
        self.said.extend_from_slice(output);
        let begin = self.said.windows(BEGIN.len()).position(|window| window == BEGIN);
        if let Some(begin) = begin {
            return Some(self.said.split_off(begin + BEGIN.len()));
        }
        let too_much = self.said.len().saturating_sub(KEPT);
        self.said.drain(..too_much);
        None
    }

    /// What was said instead of a beginning.
    pub fn said(&self) -> &[u8] {
        &self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_begins_with_the_program() {
        let whole = [b"[    0.1] words\n", BEGIN, b"a\0b"].concat();
        for split in 0..whole.len() {
            let mut preamble = Preamble::default();
            let (one, two) = whole.split_at(split);
            let mut output = preamble.take(one).unwrap_or_default();
            match preamble.take(two) {
                Some(rest) => output.extend(rest),
                None => output.extend(two),
            }
            assert_eq!(output, b"a\0b", "{split}");
        }
        let mut preamble = Preamble::default();
        assert_eq!(preamble.take(b"no such thing\n"), None);
        assert_eq!(preamble.said(), b"no such thing\n");
        assert_eq!(preamble.take(&[b'x'; KEPT]), None);
        assert_eq!(preamble.said().len(), KEPT);
    }
}
