//! Block requests (5.2.6): header, data, status.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::Disk;
use mem::GuestMemory;
use runtime::thread::Role;

use super::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, Meters, SECTOR, WhenFull, spec};
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

/// A request either breaks the queue, or is refused, or is left off, or succeeds.
#[derive(Debug)]
enum Failure {
    Queue(QueueError),
    Refused(Refusal),
    /// The queue is called home: a driver may ask for 4 GiB at once, for which nobody waits. Or the host
    /// has no room, and somebody has been told.
    LeftOff,
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
    when_full: Option<WhenFull>,
    meters: Meters,
    piece: Vec<u8>,
    complained: bool,
}

impl BlockTask {
    pub fn new(
        disk: Arc<dyn Disk>,
        id: [u8; spec::ID_LEN],
        write_through: bool,
        meters: Meters,
        when_full: Option<WhenFull>,
    ) -> Self {
        let (piece, complained) = (vec![0; PIECE], false);
        Self {
            requests: Requests { disk, id, write_through, when_full, meters, piece, complained },
        }
    }
}

impl QueueTask for BlockTask {
    fn role(&self) -> Role {
        Role::Disk
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        let stop = queue.stop_flag();
        let mut wait = None;
        queue.drain(|memory, chain| {
            wait = self.requests.meters.wait();
            match wait {
                Some(_) => Ok(None),
                None => self.requests.serve(memory, chain, &stop),
            }
        })?;
        Ok(wait.map_or(Wake::Doorbell, Wake::After))
    }
}

impl Requests {
    /// Serves one request and returns how many bytes of the writable part were written, counted
    /// from its start; `None` if it was left off because of `stop`, to be served anew.
    fn serve(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        stop: &AtomicBool,
    ) -> Result<Option<u32>, QueueError> {
        // The status is the last byte that the device may write. Without it there is no answer.
        let data_len = chain.writable.len().checked_sub(STATUS).ok_or(QueueError::TooShort)?;
        let asked = data_len + chain.readable.len().saturating_sub(HEADER);
        let (status, written) = match self.execute(memory, chain, data_len, stop) {
            // GET_ID may leave data unwritten, and then the status is not counted.
            Ok(written) => (0, written + if written == data_len { STATUS } else { 0 }),
            Err(Failure::Refused(refusal)) => {
                self.meters.counters.failed.add(1);
                (refusal as u8, if data_len == 0 { STATUS } else { 0 })
            }
            Err(Failure::Queue(error)) => return Err(error),
            Err(Failure::LeftOff) => return Ok(None),
        };
        self.meters.passed(asked);
        chain.writable.write(memory, data_len, &[status])?;
        Ok(Some(written as u32)) // a chain has less than 2^32 bytes
    }

    /// Carries a request out and returns how many bytes of data were written.
    fn execute(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        data_len: usize,
        stop: &AtomicBool,
    ) -> Result<usize, Failure> {
        let mut header = [0; HEADER];
        if chain.readable.len() < HEADER {
            return Err(Refusal::IoError.into());
        }
        chain.readable.read(memory, 0, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            spec::T_IN => {
                self.read(memory, chain, sector, data_len, stop)?;
                self.meters.counters.reads.count(data_len as u64);
                Ok(())
            }
            spec::T_OUT => {
                self.write(memory, chain, sector, stop)?;
                self.meters.counters.writes.count((chain.readable.len() - HEADER) as u64);
                Ok(())
            }
            spec::T_FLUSH => {
                let result = self.disk.flush();
                self.host(result)?;
                self.meters.counters.flushes.add(1);
                Ok(())
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
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        let start = self.checked_start(sector, data_len as u64)?;
        for at in pieces(data_len, stop) {
            let at = at?;
            let len = PIECE.min(data_len - at);
            let from = start + at as u64;
            let done = self.disk.read_in_file(from, len as u64, &mut |file, place| {
                chain.writable.fill_from_file(memory, (at, len), file, place)
            });
            if !self.host(done)? {
                let result = self.disk.read_at(from, &mut self.piece[..len]);
                self.host(result)?;
                chain.writable.write(memory, at, &self.piece[..len])?;
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        sector: u64,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        self.check_writable()?;
        let data_len = chain.readable.len() - HEADER; // checked by the caller
        let start = self.checked_start(sector, data_len as u64)?;
        for at in pieces(data_len, stop) {
            let at = at?;
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
            self.host(result)?;
        } else {
            let result = self.disk.write_zeroes(start, len, flags & spec::FLAG_UNMAP != 0);
            self.host(result)?;
            self.after_write()?;
        }
        self.meters.counters.discards.count(len);
        Ok(())
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

    /// An error of the host: logged, once per worker, and the guest sees an I/O error, unless the host has no
    /// room and that can wait.
    fn host<T>(&mut self, result: io::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| {
            let is_full =
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if let Some(WhenFull(tell)) = self.when_full.as_ref().filter(|_| is_full) {
                tell();
                return Failure::LeftOff;
            }
            if !std::mem::replace(&mut self.complained, true) {
                tracing::warn!("a disk request of the guest failed: {error}");
            }
            Refusal::IoError.into()
        })
    }
}

/// Where the pieces of a request begin, until the queue is called home.
fn pieces(len: usize, stop: &AtomicBool) -> impl Iterator<Item = Result<usize, Failure>> {
    (0..len).step_by(PIECE).map(|at| match stop.load(Ordering::Acquire) {
        true => Err(Failure::LeftOff),
        false => Ok(at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Shared;
    use mem::{GuestAddress, RamRange};
    use std::sync::Mutex;
    use virtio_queue::{Queue, QueueState};
    use vm_memory::Bytes;

    /// A disk that calls the queue home while it is read or written.
    struct CallsHome {
        stop: Arc<AtomicBool>,
        requests: Mutex<Vec<(u64, usize)>>,
    }

    impl CallsHome {
        fn request(&self, offset: u64, len: usize) -> io::Result<()> {
            self.requests.lock().unwrap().push((offset, len));
            self.stop.store(true, Ordering::Release);
            Ok(())
        }
    }

    impl Disk for CallsHome {
        fn size(&self) -> u64 {
            1 << 30
        }
        fn is_readonly(&self) -> bool {
            false
        }
        fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
            self.request(offset, data.len())
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.request(offset, data.len())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
    }

    /// One request with `kind` and three pieces of data, in a queue.
    fn queue(kind: u32, stop: Arc<AtomicBool>) -> (VirtQueue, GuestMemory) {
        const DATA: u32 = 2 * PIECE as u32 + 512;
        let memory = mem::allocate(&[RamRange { start: 0, len: 1 << 20 }]).unwrap();
        let write = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let writable = if kind == spec::T_IN { 2 } else { 0 };
        for (n, (addr, len, flags)) in
            [(0x4000u64, 16u32, 1u16), (0x1_0000, DATA, 1 | writable), (0x5000, 1, 2)]
                .into_iter()
                .enumerate()
        {
            let at = 0x1000 + 16 * n as u64;
            write(at, &addr.to_le_bytes());
            write(at + 8, &len.to_le_bytes());
            write(at + 12, &flags.to_le_bytes());
            write(at + 14, &(n as u16 + 1).to_le_bytes());
        }
        write(0x2002, &1u16.to_le_bytes());
        write(0x4000, &kind.to_le_bytes());

        let state = QueueState {
            max_size: 4,
            size: 4,
            ready: true,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            ..QueueState::default()
        };
        let queue = Queue::try_from(state).unwrap();
        (VirtQueue::new(queue, memory.clone(), Arc::new(Shared::new(1)), 0, stop), memory)
    }

    fn task(disk: Arc<dyn Disk>, when_full: Option<WhenFull>) -> BlockTask {
        BlockTask::new(disk, [0; spec::ID_LEN], false, Meters::default(), when_full)
    }

    /// The same on a disk that calls the queue home.
    fn run(kind: u32) -> (Vec<(u64, usize)>, QueueState) {
        let stop = Arc::<AtomicBool>::default();
        let disk = Arc::new(CallsHome { stop: stop.clone(), requests: Mutex::default() });
        let (mut queue, _) = queue(kind, stop);
        task(disk.clone(), None).serve(&mut queue).unwrap();
        let requests = disk.requests.lock().unwrap().clone();
        (requests, queue.into_state())
    }

    /// A disk that takes this many pieces.
    struct Room(Mutex<usize>);

    impl Disk for Room {
        fn size(&self) -> u64 {
            1 << 30
        }
        fn is_readonly(&self) -> bool {
            false
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            let mut room = self.0.lock().unwrap();
            *room = room.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_request_without_room_is_served_when_there_is() {
        let disk = Arc::new(Room(Mutex::new(1)));
        let told = Arc::new(Mutex::new(0));
        let when_full = WhenFull::new({
            let told = told.clone();
            move || *told.lock().unwrap() += 1
        });
        let (mut queue, memory) = queue(spec::T_OUT, Arc::default());
        let status = || memory.read_obj::<u8>(GuestAddress(0x5000)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(0x5000)).unwrap();
        task(disk.clone(), Some(when_full.clone())).serve(&mut queue).unwrap();
        assert_eq!((*told.lock().unwrap(), status()), (1, 0xff));
        *disk.0.lock().unwrap() = 3;
        task(disk, Some(when_full)).serve(&mut queue).unwrap();
        assert_eq!((*told.lock().unwrap(), status()), (1, 0));
        let state = queue.into_state();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
    }

    #[test]
    fn without_anybody_to_tell_the_guest_is_told() {
        let (mut queue, memory) = queue(spec::T_OUT, Arc::default());
        task(Arc::new(Room(Mutex::new(1))), None).serve(&mut queue).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), Refusal::IoError as u8);
    }

    #[test]
    fn a_large_request_is_left_off_when_the_queue_is_called_home() {
        for kind in [spec::T_IN, spec::T_OUT] {
            let (requests, state) = run(kind);
            assert_eq!(requests, [(0, PIECE)]);
            // It is still to be served.
            assert_eq!((state.next_avail, state.next_used), (0, 0));
        }
    }
}
