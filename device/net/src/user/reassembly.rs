//! Putting a guest's IP fragments together again (RFC 791 section 3.2, RFC 8200 section 4.5).

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The most packets under reassembly. The oldest makes room for a new one.
const MAX_PACKETS: usize = 16;

/// The most fragments of one packet: a full packet at the smallest MTU, twice over.
const MAX_FRAGMENTS: usize = 256;

/// How long a packet's fragments wait for the rest.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The most payload that a packet may have.
const MAX_PAYLOAD: usize = u16::MAX as usize;

/// To which packet a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// The packet's source.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
    /// The protocol of its payload.
    pub protocol: u8,
    /// Its identification.
    pub id: u32,
}

/// Packets of which fragments are missing.
#[derive(Debug, Default)]
pub struct Reassembly {
    packets: Vec<Partial>,
}

#[derive(Debug)]
struct Partial {
    key: FragmentKey,
    since: Instant,
    payload: Vec<u8>,
    /// What has come, in order and without overlap.
    ranges: Vec<(usize, usize)>,
    /// The payload's length, once the last fragment has come.
    len: Option<usize>,
}

impl Reassembly {
    /// Takes a fragment, and returns the whole payload if it was the last one missing.
    pub fn add(
        &mut self,
        now: Instant,
        key: FragmentKey,
        offset: usize,
        more: bool,
        data: &[u8],
    ) -> Option<Vec<u8>> {
        self.packets.retain(|packet| now.saturating_duration_since(packet.since) < TIMEOUT);
        let index = self.packets.iter().position(|packet| packet.key == key).unwrap_or_else(|| {
            if self.packets.len() >= MAX_PACKETS {
                self.packets.remove(0);
            }
            let empty = Vec::new();
            let ranges = Vec::new();
            self.packets.push(Partial { key, since: now, payload: empty, ranges, len: None });
            self.packets.len() - 1
        });
        match self.packets.get_mut(index)?.add(offset, more, data) {
            Progress::Incomplete => None,
            Progress::Complete => Some(self.packets.remove(index).payload),
            Progress::Invalid => {
                self.packets.remove(index);
                None
            }
        }
    }
}

enum Progress {
    Incomplete,
    Complete,
    /// The fragments contradict each other.
    Invalid,
}

impl Partial {
    fn add(&mut self, offset: usize, more: bool, data: &[u8]) -> Progress {
        let end = offset + data.len();
        let known = self.ranges.last().map_or(0, |&(_, end)| end);
        let fits = !data.is_empty()
            && end <= MAX_PAYLOAD
            && self.ranges.len() < MAX_FRAGMENTS
            && if more {
                data.len().is_multiple_of(8) && self.len.is_none_or(|len| end <= len)
            } else {
                known <= end && self.len.is_none_or(|len| len == end)
            };
        if !fits {
            return Progress::Invalid;
        }
        let index = self.ranges.partition_point(|&(start, _)| start < offset);
        if self.ranges.get(index) == Some(&(offset, end)) {
            // The same fragment again.
            return Progress::Incomplete;
        }
        // Overlaps serve nobody but attackers (RFC 5722): the whole packet goes.
        let before = index.checked_sub(1).and_then(|index| self.ranges.get(index));
        let after = self.ranges.get(index);
        if before.is_some_and(|&(_, before)| before > offset)
            || after.is_some_and(|&(after, _)| after < end)
        {
            return Progress::Invalid;
        }
        self.ranges.insert(index, (offset, end));
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        if let Some(room) = self.payload.get_mut(offset..end) {
            room.copy_from_slice(data);
        }
        if !more {
            self.len = Some(end);
        }
        let covered: usize = self.ranges.iter().map(|&(start, end)| end - start).sum();
        if self.len == Some(covered) { Progress::Complete } else { Progress::Incomplete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(id: u32) -> FragmentKey {
        let address = IpAddr::from([10, 0, 2, 15]);
        FragmentKey { from: address, to: address, protocol: 17, id }
    }

    proptest! {
        #[test]
        fn any_order_gives_the_payload(
            len in 1..5000_usize,
            order in proptest::collection::vec(any::<u32>(), 64),
        ) {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut fragments: Vec<(usize, &[u8])> =
                payload.chunks(80).enumerate().map(|(i, data)| (i * 80, data)).collect();
            fragments.sort_by_key(|&(offset, _)| order.get(offset / 80).copied());
            let (last, rest) = fragments.split_last().unwrap();
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for &(offset, data) in rest {
                let more = offset + data.len() < len;
                prop_assert_eq!(reassembly.add(now, key(1), offset, more, data), None);
                // A repeated fragment does no harm.
                prop_assert_eq!(reassembly.add(now, key(1), offset, more, data), None);
            }
            let more = last.0 + last.1.len() < len;
            prop_assert_eq!(reassembly.add(now, key(1), last.0, more, last.1), Some(payload));
            prop_assert!(reassembly.packets.is_empty());
        }

        #[test]
        fn nonsense_stays_bounded(
            fragments in proptest::collection::vec(
                (0..40_u32, 0..8192_usize, any::<bool>(), 0..2000_usize), 0..200),
        ) {
            let mut reassembly = Reassembly::default();
            for (id, offset, more, len) in fragments {
                let whole =
                    reassembly.add(Instant::now(), key(id), offset * 8, more, &vec![0; len]);
                prop_assert!(whole.is_none_or(|whole| whole.len() <= MAX_PAYLOAD));
                prop_assert!(reassembly.packets.len() <= MAX_PACKETS);
            }
        }
    }

    #[test]
    fn overlaps_and_late_fragments_are_dropped() {
        let mut reassembly = Reassembly::default();
        let now = Instant::now();
        assert_eq!(reassembly.add(now, key(1), 0, true, &[1; 16]), None);
        assert_eq!(reassembly.add(now, key(1), 8, false, &[2; 16]), None);
        assert!(reassembly.packets.is_empty());
        assert_eq!(reassembly.add(now, key(2), 0, true, &[1; 16]), None);
        assert_eq!(reassembly.add(now + TIMEOUT, key(2), 16, false, &[2; 16]), None);
    }
}
