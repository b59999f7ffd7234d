//! Descriptor chains, checked.

use std::fs::File;
use std::io;

use mem::{GuestAddress, GuestMemory};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryBackend};

use crate::queue::QueueError;

/// The buffers of one request: what the device may read, then what it may write (2.7.4.2).
///
/// Made only of memory that exists. The guest may still change the contents at any time.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// What the driver has to say.
    pub readable: Buffer,
    /// Where the answer goes.
    pub writable: Buffer,
}

/// Pieces of guest memory, seen as one run of bytes.
#[derive(Debug, Default)]
pub struct Buffer {
    segments: Vec<Segment>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    start: GuestAddress,
    len: usize,
}

impl Chain {
    /// Walks a chain of at most `limit` descriptors.
    pub(crate) fn new(
        memory: &GuestMemory,
        descriptors: DescriptorChain<&GuestMemory>,
        limit: u16,
    ) -> Result<Self, QueueError> {
        let head = descriptors.head_index();
        let mut chain = Self { head, readable: Buffer::default(), writable: Buffer::default() };
        let mut left = limit;
        // The walk ends silently where the chain is broken or comes round to itself; then the
        // last descriptor still promises another.
        let mut expects_more = true;
        for descriptor in descriptors {
            left = left.checked_sub(1).ok_or(QueueError::TooLong { head })?;
            expects_more = descriptor.has_next();
            let buffer = if descriptor.is_write_only() {
                &mut chain.writable
            } else if chain.writable.segments.is_empty() {
                &mut chain.readable
            } else {
                return Err(QueueError::Disorder { head });
            };
            buffer.append(memory, descriptor.addr(), descriptor.len())?;
        }
        if expects_more {
            return Err(QueueError::Broken { head });
        }
        Ok(chain)
    }

    /// The index of its first descriptor, by which the driver knows it.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }
}

impl Buffer {
    /// How many bytes there are; at most 4 GiB.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `data` from byte `offset` on. Fails if the buffer ends before.
    pub fn read(
        &self,
        memory: &GuestMemory,
        offset: usize,
        data: &mut [u8],
    ) -> Result<(), QueueError> {
        let mut rest = data;
        self.each(offset, rest.len(), |start, len| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            memory.read_slice(piece, start).map_err(|_| QueueError::NotMemory(start.0))
        })
    }

    /// Writes `data` from byte `offset` on. Fails if the buffer ends before.
    pub fn write(
        &self,
        memory: &GuestMemory,
        offset: usize,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let mut rest = data;
        self.each(offset, data.len(), |start, len| {
            let (piece, after) = rest.split_at(len);
            rest = after;
            memory.write_slice(piece, start).map_err(|_| QueueError::NotMemory(start.0))
        })
    }

    /// Fills `len` bytes from byte `offset` on with what `file` holds from `place` on, and zeroes beyond its
    /// end. Fails if the buffer ends before.
    pub fn fill_from_file(
        &self,
        memory: &GuestMemory,
        (offset, len): (usize, usize),
        file: &File,
        place: u64,
    ) -> io::Result<()> {
        let mut runs = Vec::with_capacity(self.segments.len());
        self.each(offset, len, |start, len| {
            runs.push((start, len));
            Ok(())
        })
        .map_err(io::Error::other)?;
        mem::fill_from_file(memory, runs.into_iter(), file, place)
    }

    /// The runs of memory that it consists of, in their order.
    pub fn pieces(&self) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.segments.iter().map(|segment| (segment.start, segment.len))
    }

    /// Calls `act` for each run of memory in `offset..offset + len`.
    fn each(
        &self,
        offset: usize,
        len: usize,
        mut act: impl FnMut(GuestAddress, usize) -> Result<(), QueueError>,
    ) -> Result<(), QueueError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(QueueError::TooShort);
        }
        let (mut skip, mut left) = (offset, len);
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            let piece = (segment.len - skip).min(left);
            // Inside a segment that exists, so this does not overflow.
            act(GuestAddress(segment.start.0 + skip as u64), piece)?;
            skip = 0;
            left -= piece;
        }
        Ok(())
    }

    fn append(
        &mut self,
        memory: &GuestMemory,
        start: GuestAddress,
        len: u32,
    ) -> Result<(), QueueError> {
        let len = len as usize;
        if !GuestMemoryBackend::check_range(memory, start, len) {
            return Err(QueueError::NotMemory(start.0));
        }
        // A segment of no bytes counts for the order of the chain, so it is kept.
        self.segments.push(Segment { start, len });
        self.len += len; // a chain has less than 2^32 bytes
        Ok(())
    }
}
