//! The little of DNS messages (RFC 1035) that a server of names needs: one question, and answers of three kinds. What is
//! forwarded goes on as the bytes that came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More than any server sends in a datagram without being asked to (RFC 6891 recommends 4096 at most).
pub(super) const LONGEST_DATAGRAM: usize = 4096 + 512;

/// What a client takes in a datagram without saying so.
pub(super) const LONGEST_PLAIN_ANSWER: usize = 512;

const HEADER: usize = 12;
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
pub(super) const NAME_ERROR: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;

const A: u16 = 1;
const POINTER: u16 = 12;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const INTERNET: u16 = 1;

/// How long, in seconds, an answer holds: not long, since containers come and go.
const LIFETIME: u32 = 5;

/// The one question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// In lower case, without a dot at its end.
    pub(super) name: String,
    kind: u16,
    class: u16,
    /// Where it ends in the message.
    end: usize,
}

/// Why there is nothing to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no query.
    Silence,
    /// It is answered by this code.
    Code(u8),
}

impl Question {
    pub(super) fn parse(query: &[u8]) -> Result<Self, Refusal> {
        let header = query.get(..HEADER).ok_or(Refusal::Silence)?;
        if header[2] & 0x80 != 0 {
            return Err(Refusal::Silence);
        }
        if header[2] & 0x78 != 0 {
            return Err(Refusal::Code(NOT_IMPLEMENTED));
        }
        let malformed = Refusal::Code(FORMAT_ERROR);
        if header[4..6] != [0, 1] {
            return Err(malformed);
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*query.get(at).ok_or(malformed)?);
            at += 1;
            if length == 0 {
                break;
            }
            // The two highest bits are for pointers, and in a question there is nothing to point to.
            if length > 63 {
                return Err(malformed);
            }
            let label = query.get(at..at + length).ok_or(malformed)?;
            at += length;
            if at - HEADER > 254 {
                return Err(malformed);
            }
            if !name.is_empty() {
                name.push('.');
            }
            // Bytes that are no letters are told apart from the dots between labels, and match no name of ours.
            name.extend(label.iter().map(|byte| match byte {
                b'.' => '\u{fffd}',
                byte => char::from(byte.to_ascii_lowercase()),
            }));
        }
        let rest = query.get(at..at + 4).ok_or(malformed)?;
        let number = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        Ok(Self { name, kind: number(0), class: number(2), end: at + 4 })
    }

    pub(super) fn is_internet(&self) -> bool {
        self.class == INTERNET || self.class == ANY
    }

    /// The address whose name is asked for (RFC 1035, 3.5, and RFC 3596, 2.5).
    pub(super) fn reverse(&self) -> Option<IpAddr> {
        if self.kind != POINTER || !self.is_internet() {
            return None;
        }
        if let Some(four) = self.name.strip_suffix(".in-addr.arpa") {
            let address: Ipv4Addr = four.split('.').rev().collect::<Vec<_>>().join(".").parse().ok()?;
            return Some(address.into());
        }
        let six = self.name.strip_suffix(".ip6.arpa")?;
        let digits: Vec<&str> = six.split('.').collect();
        if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
            return None;
        }
        let digits: String = digits.into_iter().rev().collect();
        let bits =
            u128::from_str_radix(&digits, 16).ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        Some(Ipv6Addr::from(bits).into())
    }
}

/// Whether a message is the answer to a query: the same number, and the same question.
pub(super) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let Ok(question) = Question::parse(query) else { return false };
    let is_answer = answer.len() >= question.end && answer[2] & 0x80 != 0 && answer[..2] == query[..2];
    // Some servers leave the question out when they fail.
    is_answer
        && (answer[4..6] == [0, 0] || answer[HEADER..question.end].eq_ignore_ascii_case(&query[HEADER..question.end]))
        || answer.len() == HEADER && answer[2] & 0x80 != 0 && answer[..2] == query[..2] && answer[3] & 0xf != 0
}

/// Makes answers.
pub(super) struct Reply;

impl Reply {
    /// That the servers do not answer.
    pub(super) fn failure(query: &[u8]) -> Vec<u8> {
        Self::code(query, SERVER_FAILURE)
    }

    /// Nothing but a code. The query has a header.
    pub(super) fn code(query: &[u8], code: u8) -> Vec<u8> {
        let end = Question::parse(query).map_or(HEADER, |question| question.end);
        Self::header(query, end, code, 0, false)
    }

    /// A header, and the question that goes before `end`.
    fn header(query: &[u8], end: usize, code: u8, answers: u16, truncated: bool) -> Vec<u8> {
        let mut reply = query[..end].to_vec();
        // An answer, authoritative; the operation and whether recursion is desired as in the query; recursion is available.
        reply[2] = 0x84 | query[2] & 0x79 | if truncated { 2 } else { 0 };
        reply[3] = 0x80 | code;
        reply[4..6].copy_from_slice(&u16::from(end > HEADER).to_be_bytes());
        reply[6..8].copy_from_slice(&answers.to_be_bytes());
        reply[8..12].fill(0);
        reply
    }

    fn record(reply: &mut Vec<u8>, kind: u16, data: &[u8]) {
        // The name is the question's, which begins behind the header.
        reply.extend([0xc0, HEADER as u8]);
        reply.extend(kind.to_be_bytes());
        reply.extend(INTERNET.to_be_bytes());
        reply.extend(LIFETIME.to_be_bytes());
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }

    /// The addresses that are of the kind that is asked for, as many as there is room for, beginning with another one
    /// each time.
    pub(super) fn addresses(query: &[u8], question: &Question, all: &[IpAddr], room: usize) -> Vec<u8> {
        let wanted = |address: &&IpAddr| {
            matches!((question.kind, address), (A, IpAddr::V4(_)) | (AAAA, IpAddr::V6(_)) | (ANY, _))
        };
        let mut wanted: Vec<&IpAddr> = all.iter().filter(wanted).collect();
        if !wanted.is_empty() {
            let first = usize::from(query[1]) % wanted.len();
            wanted.rotate_left(first);
        }
        let mut records = Vec::new();
        let mut count: u16 = 0;
        let mut truncated = false;
        for address in wanted {
            let before = records.len();
            match address {
                IpAddr::V4(address) => Self::record(&mut records, A, &address.octets()),
                IpAddr::V6(address) => Self::record(&mut records, AAAA, &address.octets()),
            }
            if question.end + records.len() > room {
                records.truncate(before);
                truncated = true;
                break;
            }
            count += 1;
        }
        let mut reply = Self::header(query, question.end, 0, count, truncated);
        reply.extend(records);
        reply
    }

    /// The name of an address.
    pub(super) fn pointer(query: &[u8], question: &Question, name: &str) -> Vec<u8> {
        let mut data = Vec::new();
        for label in name.split('.') {
            let label = &label.as_bytes()[..label.len().min(63)];
            data.push(label.len() as u8);
            data.extend(label);
        }
        data.push(0);
        let mut reply = Self::header(query, question.end, 0, 1, false);
        Self::record(&mut reply, POINTER, &data);
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        bytes
    }

    #[test]
    fn questions() {
        let question = Question::parse(&query("Web.Example", A)).expect("a question");
        assert_eq!(question.name, "web.example");
        let of = |name: &str| Question::parse(&query(name, POINTER)).expect("a question").reverse();
        assert_eq!(of("2.0.77.10.in-addr.arpa"), Some("10.77.0.2".parse().expect("an address")));
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.7.d.f.ip6.arpa";
        assert_eq!(of(six), Some("fd77::2".parse().expect("an address")));
        for wrong in ["x.in-addr.arpa", "1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "10.ip6.arpa", "arpa"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hostile_queries() {
        let good = query("a", A);
        assert_eq!(Question::parse(&good[..11]), Err(Refusal::Silence));
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Question::parse(&bytes)
        };
        assert_eq!(with(2, 0x81), Err(Refusal::Silence), "an answer");
        assert_eq!(with(2, 0x28), Err(Refusal::Code(NOT_IMPLEMENTED)), "an update");
        assert_eq!(with(5, 2), Err(Refusal::Code(FORMAT_ERROR)), "two questions");
        assert_eq!(with(12, 0xc0), Err(Refusal::Code(FORMAT_ERROR)), "a pointer to itself");
        assert_eq!(with(12, 63), Err(Refusal::Code(FORMAT_ERROR)), "a label that goes beyond the end");
        let long = vec!["a".repeat(63); 5].join(".");
        assert_eq!(Question::parse(&query(&long, A)), Err(Refusal::Code(FORMAT_ERROR)), "300 bytes");
        // A dot inside a label is no separator.
        let mut dotted = query("a-b", A);
        dotted[14] = b'.';
        assert_ne!(Question::parse(&dotted).expect("a question").name, "a.b");
    }

    /// Every prefix, and every byte in every place: no panic, and never more than there is room for.
    #[test]
    fn mangled_queries() {
        let addresses: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let good = query("web.example", ANY);
        let try_one = |bytes: &[u8]| {
            if let Ok(question) = Question::parse(bytes) {
                assert!(Reply::addresses(bytes, &question, &addresses, 512).len() <= 512);
                let _ = question.reverse();
                Reply::pointer(bytes, &question, "a.b");
            }
            if bytes.len() >= HEADER {
                Reply::code(bytes, 2);
            }
            answers(bytes, &good);
            answers(&good, bytes);
        };
        for length in 0..good.len() {
            try_one(&good[..length]);
        }
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = byte;
                try_one(&bytes);
            }
        }
    }

    #[test]
    fn answers_are_complete_or_say_so() {
        let bytes = query("web", A);
        let question = Question::parse(&bytes).expect("a question");
        let addresses: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let reply = Reply::addresses(&bytes, &question, &addresses, 512);
        assert!(reply[2] & 2 == 2 && reply.len() <= 512 && reply.len() > 480);
        let whole = Reply::addresses(&bytes, &question, &addresses, 65535);
        assert_eq!((whole[2] & 2, whole[6..8].to_vec()), (0, vec![0, 100]));
        assert!(answers(&whole, &bytes));
        assert!(!answers(&whole, &query("other", A)));
        let nothing = Reply::addresses(&query("web", AAAA), &Question { kind: AAAA, ..question }, &addresses, 512);
        assert_eq!((nothing[3] & 15, nothing[6..8].to_vec()), (0, vec![0, 0]), "no error, and no answer");
    }
}
