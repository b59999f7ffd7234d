//! DNS messages (RFC 1035 section 4), as far as a forwarder must understand them.

/// The length of a message's header.
const HEADER: usize = 12;

/// The longest name in wire format (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;

/// Bits of the header's third and fourth byte (RFC 1035 section 4.1.1).
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// The class of the Internet.
const CLASS_IN: u16 = 1;

/// How long the guest may keep the local answers, in seconds.
const TTL: u32 = 60;

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// There is an answer, perhaps an empty one.
    NoError = 0,
    /// The query cannot be understood.
    FormatError = 1,
    /// Nobody could be asked.
    ServerFailure = 2,
    /// The name does not exist.
    NameError = 3,
}

/// Types of records.
pub mod record {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name for an address.
    pub const PTR: u16 = 12;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// All of them, as a question.
    pub const ANY: u16 = 255;
}

/// A query with one question, as all are in practice.
#[derive(Debug)]
pub struct Query<'a> {
    message: &'a [u8],
    /// The name that is asked for, in lower case and without the final dot.
    pub name: String,
    /// The type of record that is asked for.
    pub kind: u16,
    /// Whether it is asked for in the Internet's class.
    pub internet: bool,
    /// Where the question ends.
    end: usize,
}

/// Whether a message claims to be a query.
pub fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER && message.get(2).is_some_and(|flags| flags & RESPONSE == 0)
}

/// Sets a message's number.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}

/// Checks that `answer` answers the query `original`, which was asked under number `id`, and
/// gives it the original's number.
pub fn adopt(answer: &mut [u8], id: u16, original: &[u8]) -> bool {
    let is_answer =
        answer.len() >= HEADER && answer.get(2).is_some_and(|flags| flags & RESPONSE != 0);
    let (Some(found), Some(&wanted)) = (answer.first_chunk_mut(), original.first_chunk()) else {
        return false;
    };
    if !is_answer || *found != id.to_be_bytes() {
        return false;
    }
    *found = wanted;
    true
}

/// An answer to `query` that has nothing but a reason.
pub fn error(query: &[u8], rcode: Rcode) -> Vec<u8> {
    match Query::parse(query) {
        Some(query) => query.answer(rcode, &[]),
        None => {
            let mut answer = query.get(..HEADER).unwrap_or_default().to_vec();
            answer.resize(HEADER, 0);
            set_flags(&mut answer, rcode, false);
            set_counts(&mut answer, 0, 0);
            answer
        }
    }
}

fn set_flags(answer: &mut [u8], rcode: Rcode, authoritative: bool) {
    if let Some([_, _, high, low, ..]) = answer.first_chunk_mut::<HEADER>() {
        *high &= OPCODE | RECURSION_DESIRED;
        *high |= RESPONSE | if authoritative { AUTHORITATIVE } else { 0 };
        *low = RECURSION_AVAILABLE | rcode as u8;
    }
}

fn set_counts(answer: &mut [u8], questions: u8, answers: u8) {
    if let Some(counts) = answer.get_mut(4..HEADER) {
        counts.copy_from_slice(&[0, questions, 0, answers, 0, 0, 0, 0]);
    }
}

impl<'a> Query<'a> {
    /// Reads a standard query with one question; `None` if the message is something else.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, mut rest) = message.split_first_chunk::<HEADER>()?;
        let [_, _, flags, _, q1, q0, ..] = *header;
        if flags & (RESPONSE | OPCODE) != 0 || [q1, q0] != [0, 1] {
            return None;
        }
        let mut name = String::new();
        loop {
            let (&len, after) = rest.split_first()?;
            if len == 0 {
                rest = after;
                break;
            }
            // Only an answer's names can point to earlier ones: there are none in a question.
            if len > 63 {
                return None;
            }
            let (label, after) = after.split_at_checked(len.into())?;
            if !name.is_empty() {
                name.push('.');
            }
            // Bytes that no host name has become characters that none has either.
            name.extend(label.iter().map(|&byte| match byte.to_ascii_lowercase() {
                b'.' => '\\',
                byte => char::from(byte),
            }));
            rest = after;
            if message.len() - rest.len() - HEADER >= MAX_NAME {
                return None;
            }
        }
        let ([k1, k0, c1, c0], rest) = rest.split_first_chunk()?;
        Some(Self {
            message,
            name,
            kind: u16::from_be_bytes([*k1, *k0]),
            internet: u16::from_be_bytes([*c1, *c0]) == CLASS_IN,
            end: message.len() - rest.len(),
        })
    }

    /// An answer from our own knowledge: the records' types and data.
    pub fn answer(&self, rcode: Rcode, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut answer = self.message.get(..self.end).unwrap_or_default().to_vec();
        set_flags(&mut answer, rcode, rcode != Rcode::ServerFailure);
        let records = records.get(..records.len().min(16)).unwrap_or_default();
        set_counts(&mut answer, 1, u8::try_from(records.len()).unwrap_or(0));
        for (kind, data) in records {
            // The name: a pointer to the question's (RFC 1035 section 4.1.4).
            answer.extend_from_slice(&[0xc0, 0x0c]);
            answer.extend_from_slice(&kind.to_be_bytes());
            answer.extend_from_slice(&CLASS_IN.to_be_bytes());
            answer.extend_from_slice(&TTL.to_be_bytes());
            answer.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
            answer.extend_from_slice(data);
        }
        answer
    }
}

/// A name in wire format. Its labels must be shorter than 64 bytes.
pub fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes();
        let label = label.get(..label.len().min(63)).unwrap_or_default();
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&encode_name(name));
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn reads_a_query_and_answers_it() {
        let message = query("Host.Lodge", record::A);
        let query = Query::parse(&message).unwrap();
        assert_eq!(query.name, "host.lodge");
        assert_eq!(query.kind, record::A);
        assert!(query.internet);
        let answer = query.answer(Rcode::NoError, &[(record::A, vec![10, 0, 2, 2])]);
        assert_eq!(answer[..4], [0x12, 0x34, 0x85, 0x80]);
        assert_eq!(answer[4..12], [0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..message.len()], message[12..]);
        let record = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 2, 2];
        assert_eq!(answer[message.len()..], record);
    }

    #[test]
    fn only_the_right_answer_is_adopted() {
        let original = query("example.org", record::A);
        let mut answer = original.clone();
        set_id(&mut answer, 77);
        assert!(!adopt(&mut answer, 77, &original), "a query is no answer");
        answer[2] |= RESPONSE;
        assert!(!adopt(&mut answer, 78, &original));
        assert!(adopt(&mut answer, 77, &original));
        assert_eq!(answer[..2], original[..2]);
    }

    #[test]
    fn an_error_keeps_the_question() {
        let message = query("example.org", record::AAAA);
        let answer = error(&message, Rcode::ServerFailure);
        assert_eq!(answer[2..4], [0x81, 0x82]);
        assert_eq!(answer[12..], message[12..]);
    }

    proptest! {
        #[test]
        fn nonsense_is_survived(mut message in proptest::collection::vec(any::<u8>(), 0..600)) {
            error(&message, Rcode::FormatError);
            let original = message.clone();
            adopt(&mut message, 1, &original);
        }

        #[test]
        fn names_survive(labels in proptest::collection::vec("[a-z0-9-]{1,20}", 1..8)) {
            let name = labels.join(".");
            let message = query(&name, record::A);
            prop_assert_eq!(Query::parse(&message).unwrap().name, name);
        }
    }
}
