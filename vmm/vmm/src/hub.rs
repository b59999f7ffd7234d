//! The console of a guest whose VMM serves an API: one serial port, any number of people.
//!
//! ```text
//!   serial port <-> socket pair <-> relay <-> who started the guest (may make the guest wait)
//!                                         <-> who attached by the API (misses what it is slow for)
//!                                          -> log
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc};

use crate::bounded_file::BoundedFile;

/// Output goes on in pieces of this size at most.
const PIECE: usize = 4096;
/// So many pieces may wait for a reader that is slow; then it misses the older ones.
const WAITING: usize = 256;
/// So many pieces of input may wait for the guest; then those who type wait.
const TYPED: usize = 16;

/// What of a console everybody can reach.
pub struct Hub {
    state: Mutex<State>,
    typed: mpsc::Sender<Bytes>,
}

struct State {
    log: BoundedFile,
    /// `None` once the console has ended.
    readers: Option<broadcast::Sender<Bytes>>,
}

/// The streams that a console is between, for [`relay`].
pub struct Ends {
    guest: StdStream,
    starter: Option<StdStream>,
    typed: mpsc::Receiver<Bytes>,
}

impl Hub {
    /// A console that is logged to `log`. `starter`: the stream of whoever started the guest. The
    /// descriptor is for the serial port.
    pub fn new(
        log: BoundedFile,
        starter: Option<OwnedFd>,
    ) -> io::Result<(Arc<Self>, Ends, OwnedFd)> {
        let (near, far) = StdStream::pair()?;
        let starter = starter.map(StdStream::from);
        for stream in [Some(&far), starter.as_ref()].into_iter().flatten() {
            stream.set_nonblocking(true)?;
        }
        let (sender, typed) = mpsc::channel(TYPED);
        let readers = Some(broadcast::Sender::new(WAITING));
        let hub = Self { state: Mutex::new(State { log, readers }), typed: sender };
        Ok((Arc::new(hub), Ends { guest: far, starter, typed }, near.into()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines of the log, at most so many, and the way to what follows them, without a
    /// gap. `None`: the console has ended.
    pub fn follow(&self, lines: u64) -> io::Result<(Vec<u8>, Option<broadcast::Receiver<Bytes>>)> {
        let state = self.state();
        Ok((state.log.last_lines(lines)?, state.readers.as_ref().map(broadcast::Sender::subscribe)))
    }

    /// Where to put what is typed.
    pub fn keyboard(&self) -> mpsc::Sender<Bytes> {
        self.typed.clone()
    }

    fn show(&self, output: &Bytes) {
        let mut state = self.state();
        if let Err(e) = state.log.append(output) {
            tracing::debug!("the console's log cannot be written: {e}");
        }
        if let Some(readers) = &state.readers {
            // Nobody may read.
            let _ = readers.send(output.clone());
        }
    }
}

/// Moves bytes until the guest's end is closed and everything of it has been passed on.
pub async fn relay(hub: Arc<Hub>, ends: Ends) {
    if let Err(e) = try_relay(&hub, ends).await {
        tracing::warn!("the guest's console failed: {e}");
    }
    hub.state().readers = None;
}

async fn try_relay(hub: &Hub, ends: Ends) -> io::Result<()> {
    let (mut output, input) = UnixStream::from_std(ends.guest)?.into_split();
    let keys = tokio::spawn(type_in(ends.typed, input));
    let (starter_keys, mut screen) = match ends.starter {
        None => (None, None),
        Some(starter) => {
            let (reader, writer) = UnixStream::from_std(starter)?.into_split();
            (Some(tokio::spawn(read_keys(reader, hub.keyboard()))), Some(writer))
        }
    };
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match output.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let piece = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        hub.show(&piece);
        if let Some(writer) = &mut screen
            && writer.write_all(&piece).await.is_err()
        {
            screen = None;
        }
    }
    keys.abort();
    if let Some(keys) = starter_keys {
        keys.abort();
    }
    Ok(())
}

async fn type_in(mut typed: mpsc::Receiver<Bytes>, mut guest: OwnedWriteHalf) {
    while let Some(bytes) = typed.recv().await {
        if guest.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_keys(mut from: OwnedReadHalf, keyboard: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        if keyboard.send(bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn everybody_sees_the_output_and_may_type() {
        let (mut starter, theirs) = StdStream::pair().unwrap();
        let log = BoundedFile::in_memory(1 << 20).unwrap();
        let (hub, ends, guest) = Hub::new(log, Some(theirs.into())).unwrap();
        let mut guest = StdStream::from(guest);
        let relayed = std::thread::spawn({
            let hub = hub.clone();
            move || block_on(relay(hub, ends))
        });
        let (_, reader) = hub.follow(0).unwrap();
        let mut reader = reader.unwrap();
        guest.write_all(b"hello").unwrap();
        let mut seen = [0; 5];
        starter.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        assert_eq!(reader.blocking_recv().unwrap().as_ref(), b"hello");
        assert_eq!(hub.follow(1).unwrap().0, b"hello");

        starter.write_all(b"one").unwrap();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).unwrap();
        hub.keyboard().blocking_send(Bytes::from_static(b"two")).unwrap();
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"two");

        drop(guest);
        relayed.join().unwrap();
        assert!(reader.blocking_recv().is_err());
        assert!(hub.follow(0).unwrap().1.is_none());
        assert_eq!(starter.read(&mut seen).unwrap(), 0);
    }

    #[test]
    fn a_reader_that_sleeps_does_not_hold_up_the_guest() {
        let log = BoundedFile::in_memory(1 << 16).unwrap();
        let (hub, ends, guest) = Hub::new(log, None).unwrap();
        let (_, sleeper) = hub.follow(0).unwrap();
        let relayed = std::thread::spawn({
            let hub = hub.clone();
            move || block_on(relay(hub, ends))
        });
        let mut guest = StdStream::from(guest);
        guest.write_all(&vec![b'x'; PIECE * WAITING * 2]).unwrap();
        drop(guest);
        relayed.join().unwrap();
        let lagged = sleeper.unwrap().blocking_recv();
        assert!(matches!(lagged, Err(broadcast::error::RecvError::Lagged(_))), "{lagged:?}");
    }
}
