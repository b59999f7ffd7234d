//! The bounded buffer between a console device and its worker.

use std::collections::VecDeque;

/// Bytes in order, at most `capacity` of them.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Whether there is so much room that a writer who found none should try again.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.room() >= self.capacity / 2
    }

    /// Appends as much of `data` as there is room for, and returns how much that was.
    pub(crate) fn push(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.room());
        self.bytes.extend(&data[..taken]);
        taken
    }

    /// Appends all of `data`; the oldest bytes make room.
    pub(crate) fn push_over(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(self.capacity)..];
        self.consume(data.len().saturating_sub(self.room()));
        self.bytes.extend(data);
    }

    /// Copies the oldest bytes to `to`, and returns how many.
    pub(crate) fn peek(&self, to: &mut [u8]) -> usize {
        let (head, tail) = self.bytes.as_slices();
        let first = head.len().min(to.len());
        to[..first].copy_from_slice(&head[..first]);
        let second = tail.len().min(to.len() - first);
        to[first..first + second].copy_from_slice(&tail[..second]);
        first + second
    }

    /// Drops the `n` oldest bytes.
    pub(crate) fn consume(&mut self, n: usize) {
        self.bytes.drain(..n.min(self.bytes.len()));
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(ring: &Ring) -> Vec<u8> {
        let mut to = [0; 16];
        let n = ring.peek(&mut to);
        to[..n].to_vec()
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let mut ring = Ring::new(4);
        assert_eq!(ring.push(b"abc"), 3);
        assert_eq!(ring.push(b"def"), 1);
        assert_eq!(ring.push(b"x"), 0);
        assert!(!ring.is_half_empty());
        assert_eq!(content(&ring), b"abcd");
        ring.consume(2);
        assert!(ring.is_half_empty());
        assert_eq!(ring.push(b"efg"), 2);
        assert_eq!(content(&ring), b"cdef");
        let mut short = [0; 3];
        assert_eq!(ring.peek(&mut short), 3);
        assert_eq!(&short, b"cde");
    }

    #[test]
    fn the_newest_bytes_stay_when_pushing_over() {
        let mut ring = Ring::new(4);
        ring.push_over(b"abc");
        ring.push_over(b"de");
        assert_eq!(content(&ring), b"bcde");
        ring.push_over(b"0123456789");
        assert_eq!(content(&ring), b"6789");
        ring.consume(100);
        assert!(ring.is_empty());
    }
}
