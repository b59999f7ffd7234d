//! Block requests (5.2.6): header, data, status.

use std::io;
use std::sync::Arc;

use block::Disk;
use mem::GuestMemory;

use super::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR, spec};
use crate::chain::Chain;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

const HEADER: usize = 16;
const STATUS: usize = 1;
/// `struct virtio_blk_discard_write_zeroes`.
const SEGMENT: usize = 16;
/// Data goes between guest and disk in pieces of this many bytes, whatever the guest asks for.
const PIECE: usize = 256 * 1024;

/// Why a request failed, as the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    IoError = 1,
    Unsupported = 2,
}

/// A request either breaks the queue, or is refused, or succeeds.
#[derive(Debug)]
enum Failure {
    Queue(QueueError),
    Refused(Refusal),
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Serves the requests of one queue, one after the other.
pub(super) struct BlockTask {
    requests: Requests,
}

struct Requests {
    disk: Arc<dyn Disk>,
    id: [u8; spec::ID_LEN],
    write_through: bool,
    piece: Vec<u8>,
    complained: bool,
}

impl BlockTask {
    pub fn new(disk: Arc<dyn Disk>, id: [u8; spec::ID_LEN], write_through: bool) -> Self {
        let requests =
            Requests { disk, id, write_through, piece: vec![0; PIECE], complained: false };
        Self { requests }
    }
}

impl QueueTask for BlockTask {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, chain| self.requests.serve(memory, chain))?;
        Ok(Wake::Doorbell)
    }
}

impl Requests {
    /// Serves one request and returns how many bytes of the writable part were written, counted
    /// from its start.
    fn serve(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<u32, QueueError> {
        // The status is the last byte that the device may write. Without it there is no answer.
        let data_len = chain.writable.len().checked_sub(STATUS).ok_or(QueueError::TooShort)?;
        let (status, written) = match self.execute(memory, chain, data_len) {
            // GET_ID may leave data unwritten, and then the status is not counted.
            Ok(written) => (0, written + if written == data_len { STATUS } else { 0 }),
            Err(Failure::Refused(refusal)) => {
                (refusal as u8, if data_len == 0 { STATUS } else { 0 })
            }
            Err(Failure::Queue(error)) => return Err(error),
        };
        chain.writable.write(memory, data_len, &[status])?;
        Ok(written as u32) // a chain has less than 2^32 bytes
    }

    /// Carries a request out and returns how many bytes of data were written.
    fn execute(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        data_len: usize,
    ) -> Result<usize, Failure> {
        let mut header = [0; HEADER];
        if chain.readable.len() < HEADER {
            return Err(Refusal::IoError.into());
        }
        chain.readable.read(memory, 0, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            spec::T_IN => self.read(memory, chain, sector, data_len),
            spec::T_OUT => self.write(memory, chain, sector),
            spec::T_FLUSH => {
                let result = self.disk.flush();
                self.host(result)
            }
            spec::T_GET_ID => {
                let len = data_len.min(self.id.len());
                chain.writable.write(memory, 0, &self.id[..len])?;
                return Ok(len);
            }
            kind @ (spec::T_DISCARD | spec::T_WRITE_ZEROES) => self.unmap(memory, chain, kind),
            _ => Err(Refusal::Unsupported.into()),
        }?;
        Ok(data_len)
    }

    fn read(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        sector: u64,
        data_len: usize,
    ) -> Result<(), Failure> {
        let start = self.checked_start(sector, data_len as u64)?;
        for at in (0..data_len).step_by(PIECE) {
            let len = PIECE.min(data_len - at);
            let result = self.disk.read_at(start + at as u64, &mut self.piece[..len]);
            self.host(result)?;
            chain.writable.write(memory, at, &self.piece[..len])?;
        }
        Ok(())
    }

    fn write(&mut self, memory: &GuestMemory, chain: &Chain, sector: u64) -> Result<(), Failure> {
        self.check_writable()?;
        let data_len = chain.readable.len() - HEADER; // checked by the caller
        let start = self.checked_start(sector, data_len as u64)?;
        for at in (0..data_len).step_by(PIECE) {
            let len = PIECE.min(data_len - at);
            chain.readable.read(memory, HEADER + at, &mut self.piece[..len])?;
            let result = self.disk.write_at(start + at as u64, &self.piece[..len]);
            self.host(result)?;
        }
        self.after_write()
    }

    /// Discard and write zeroes, whose data is one segment.
    fn unmap(&mut self, memory: &GuestMemory, chain: &Chain, kind: u32) -> Result<(), Failure> {
        self.check_writable()?;
        if chain.readable.len() != HEADER + SEGMENT {
            return Err(Refusal::IoError.into());
        }
        let mut segment = [0; SEGMENT];
        chain.readable.read(memory, HEADER, &mut segment)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        let (known_flags, max_sectors) = match kind {
            spec::T_DISCARD => (0, MAX_DISCARD_SECTORS),
            _ => (spec::FLAG_UNMAP, MAX_WRITE_ZEROES_SECTORS),
        };
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported.into());
        }
        if sectors > max_sectors {
            return Err(Refusal::IoError.into());
        }
        let len = u64::from(sectors) * SECTOR;
        let start = self.checked_start(sector, len)?;
        if kind == spec::T_DISCARD {
            let result = self.disk.discard(start, len);
            self.host(result)
        } else {
            let result = self.disk.write_zeroes(start, len, flags & spec::FLAG_UNMAP != 0);
            self.host(result)?;
            self.after_write()
        }
    }

    fn after_write(&mut self) -> Result<(), Failure> {
        if self.write_through {
            let result = self.disk.flush();
            self.host(result)?;
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.disk.is_readonly() { Err(Refusal::IoError) } else { Ok(()) }
    }

    /// Where a request begins in bytes, if it is whole sectors and on the disk.
    fn checked_start(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let start = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
        let end = start.checked_add(len).ok_or(Refusal::IoError)?;
        let whole = len.is_multiple_of(SECTOR) && end <= self.disk.size();
        whole.then_some(start).ok_or(Refusal::IoError)
    }

    /// An error of the host: logged, once per worker, and the guest sees an I/O error.
    fn host(&mut self, result: io::Result<()>) -> Result<(), Failure> {
        result.map_err(|error| {
            if !std::mem::replace(&mut self.complained, true) {
                tracing::warn!("a disk request of the guest failed: {error}");
            }
            Refusal::IoError.into()
        })
    }
}
