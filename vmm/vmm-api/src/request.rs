//! What a running VMM can be asked.
//!
//! `lodge-vmm --api-fd N` answers at N, a Unix stream socket that listens. Whoever connects writes
//! one [`Request`] as JSON per line and reads one [`Answer`] as a line for each, in their order, as
//! often as it likes. `lodge run` has the socket in the guest's directory, for the user alone.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::{Accelerator, Failure, line};

/// The number in [`ProcessorStatistics::counts`] that each accelerator's processors have: for how
/// many nanoseconds the thread that runs the processor has had one of the host's.
pub const PROCESSOR_TIME_NS: &str = "processor_time_ns";

/// What a VMM is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What was counted until now.
    Statistics,
}

/// What a VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Statistics`].
    Statistics(Statistics),
    /// The request cannot be answered.
    Error(Failure),
}

/// What was counted about a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// The guest's name.
    pub name: String,
    /// What runs its processors: never [`Accelerator::Auto`].
    pub accelerator: Accelerator,
    /// How often the machine was reset. A reset makes it anew, and all counts begin at zero.
    pub resets: u64,
    /// For how many nanoseconds of the host's time the machine has been there since it was started
    /// or last reset. The difference between two answers is what rates are made from.
    pub running_ns: u64,
    /// Each processor, in order.
    pub processors: Vec<ProcessorStatistics>,
}

/// What was counted about one processor. docs/stats.md says what each name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorStatistics {
    /// The numbers are from now. If not, the processor could not be asked, because it waits for a
    /// device or for a processor of the host, and they are what it said last.
    pub current: bool,
    /// Numbers that only grow: how often something happened.
    pub counts: BTreeMap<String, u64>,
    /// Numbers that grow and shrink: how much there is of something, or may be.
    pub levels: BTreeMap<String, u64>,
}

impl Request {
    /// Writes the request as one line and flushes it.
    ///
    /// # Errors
    ///
    /// The writer's own.
    pub fn write_line(&self, writer: &mut impl Write) -> io::Result<()> {
        line::write(self, writer)
    }

    /// Reads the next request; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The reader's own, and `InvalidData` for a line that is no request.
    pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
        line::read(reader)
    }
}

impl Answer {
    /// Writes the answer as one line and flushes it.
    ///
    /// # Errors
    ///
    /// The writer's own; a broken pipe means that whoever asked is gone.
    pub fn write_line(&self, writer: &mut impl Write) -> io::Result<()> {
        line::write(self, writer)
    }

    /// Reads the next answer; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The reader's own, and `InvalidData` for a line that is no answer.
    pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Answer>> {
        line::read(reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics() -> Statistics {
        let counts = BTreeMap::from([("entries".to_owned(), u64::MAX)]);
        let processor = ProcessorStatistics { current: true, counts, levels: BTreeMap::new() };
        Statistics {
            name: "web".into(),
            accelerator: Accelerator::Soft,
            resets: 0,
            running_ns: 5,
            processors: vec![processor],
        }
    }

    #[test]
    fn answers_travel_as_lines() {
        let answers =
            [Answer::Statistics(statistics()), Answer::Error(Failure::configuration("two\nlines"))];
        let mut bytes = Vec::new();
        for answer in &answers {
            answer.write_line(&mut bytes).unwrap();
        }
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), answers.len());
        let mut reader = bytes.as_slice();
        for answer in &answers {
            assert_eq!(Answer::read_line(&mut reader).unwrap().as_ref(), Some(answer));
        }
        assert_eq!(Answer::read_line(&mut reader).unwrap(), None);
    }

    #[test]
    fn the_wire_form_is_stable() {
        let mut bytes = Vec::new();
        Request::Statistics.write_line(&mut bytes).unwrap();
        assert_eq!(bytes, b"{\"request\":\"statistics\"}\n");
        assert_eq!(
            serde_json::to_string(&Answer::Statistics(statistics())).unwrap(),
            r#"{"answer":"statistics","name":"web","accelerator":"soft","resets":0,"#.to_owned()
                + r#""running_ns":5,"processors":[{"current":true,"#
                + r#""counts":{"entries":18446744073709551615},"levels":{}}]}"#
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let endless = vec![b' '; 2 << 20];
        for line in [&b"hello\n"[..], b"{\"request\":\"walk\"}\n", b"\xff\n", b"\n", &endless] {
            let error = Request::read_line(&mut &line[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        let cut = Request::read_line(&mut b"{\"request\":".as_slice()).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
