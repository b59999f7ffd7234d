//! What has happened to the guest, for whoever asks, now or later.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use vmm_api::{Event, EventRecord};

use crate::bounded_file::BoundedFile;

/// So many events are remembered for clients that come later.
const REMEMBERED: usize = 256;
/// So many may wait for a client that is slow; it misses the older ones otherwise.
const WAITING: usize = 64;

/// The events of a guest, in their order. Any thread may call.
#[derive(Debug)]
pub struct Journal {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    count: u64,
    remembered: VecDeque<EventRecord>,
    /// `None` once no more events come.
    followers: Option<broadcast::Sender<EventRecord>>,
    file: Option<BoundedFile>,
}

impl Default for Journal {
    fn default() -> Self {
        let followers = Some(broadcast::Sender::new(WAITING));
        let state = State { count: 0, remembered: VecDeque::new(), followers, file: None };
        Self { state: Mutex::new(state) }
    }
}

impl Journal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes events to `file` as well, as lines, from now on.
    pub fn keep_in(&self, file: BoundedFile) {
        self.state().file = Some(file);
    }

    /// Takes note of something that happened now.
    pub fn record(&self, event: &Event) {
        let mut state = self.state();
        state.count += 1;
        let record = EventRecord { number: state.count, time_ms: unix_ms(), event: event.clone() };
        if let Some(file) = &mut state.file
            && let Ok(mut line) = serde_json::to_vec(&record)
        {
            line.push(b'\n');
            if let Err(e) = file.append(&line) {
                tracing::warn!("an event cannot be written to the guest's directory: {e}");
            }
        }
        if state.remembered.len() == REMEMBERED {
            state.remembered.pop_front();
        }
        state.remembered.push_back(record.clone());
        if let Some(followers) = &state.followers {
            // Nobody may follow.
            let _ = followers.send(record);
        }
    }

    /// What has happened, and the way to what will, without a gap. `None`: nothing more will.
    pub fn follow(&self) -> (Vec<EventRecord>, Option<broadcast::Receiver<EventRecord>>) {
        let state = self.state();
        let past = state.remembered.iter().cloned().collect();
        (past, state.followers.as_ref().map(broadcast::Sender::subscribe))
    }

    /// Tells followers that no more events come.
    pub fn end(&self) {
        self.state().followers = None;
    }
}

/// The time of day in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_miss_nothing() {
        let journal = Journal::default();
        journal.record(&Event::Reset);
        let (past, future) = journal.follow();
        journal.record(&Event::Paused { reason: None });
        journal.end();
        journal.record(&Event::Resumed);
        let mut future = future.unwrap();
        assert_eq!(past.iter().map(|r| r.number).collect::<Vec<_>>(), [1]);
        let record = future.blocking_recv().unwrap();
        assert_eq!((record.number, record.event), (2, Event::Paused { reason: None }));
        assert!(future.blocking_recv().is_err());
        let (past, future) = journal.follow();
        assert_eq!(past.len(), 3);
        assert!(future.is_none());
    }

    #[test]
    fn events_are_kept_as_lines() {
        let file = tempfile::tempfile().unwrap();
        let journal = Journal::default();
        journal.keep_in(BoundedFile::new(file.try_clone().unwrap(), 1000).unwrap());
        for _ in 0..REMEMBERED + 5 {
            journal.record(&Event::Reset);
        }
        let text = BoundedFile::new(file, 1000).unwrap().tail(u64::MAX).unwrap();
        let last = text.split(|&b| b == b'\n').rfind(|line| !line.is_empty()).unwrap();
        let last: EventRecord = serde_json::from_slice(last).unwrap();
        assert_eq!(last.number, REMEMBERED as u64 + 5);
        assert_eq!(journal.follow().0.len(), REMEMBERED);
    }
}
