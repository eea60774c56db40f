//! Traffic control: queues that hold packets back, and the redirection of what comes in to an interface that has one.

use std::time::Duration;

use estiba_network::Netlink;
use estiba_network::cni::Failure;
use netlink_packet_core::{DefaultNla, Emitable, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

/// How long a packet waits at most (as the reference plugin has it).
const LATENCY: Duration = Duration::from_millis(25);
/// A tick of the kernel's packet scheduler in nanoseconds (`PSCHED_SHIFT`).
const TICK: u64 = 64;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_PBURST` of linux/pkt_sched.h.
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
/// `ETH_P_ALL`.
const ALL: u16 = 3;

/// A token bucket: bytes a second on average, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) rate: u64,
    pub(crate) limit: u32,
    /// How long it takes to send the burst, in ticks.
    pub(crate) buffer: u32,
}

impl Bucket {
    /// Of bits a second, and bits at once.
    pub(crate) fn new(rate: u64, burst: u64) -> Self {
        let (rate, burst) = (rate / 8, burst / 8);
        let wait = u128::from(burst) * 1_000_000_000 / u128::from(rate.max(1)) / u128::from(TICK);
        let queued = u128::from(rate) * LATENCY.as_nanos() / 1_000_000_000 + u128::from(burst);
        Self { rate, limit: u32::try_from(queued).unwrap_or(u32::MAX), buffer: u32::try_from(wait).unwrap_or(u32::MAX) }
    }

    /// `struct tc_tbf_qopt`: two `tc_ratespec`s, limit, buffer, MTU.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        // cell_log, linklayer (Ethernet), overhead, cell_align, mpu
        bytes.extend([0, 1]);
        bytes.extend([0; 6]);
        bytes.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend([0; 12]);
        for number in [self.limit, self.buffer, 0] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes
    }

    fn parse(parms: &[u8], rate64: Option<u64>) -> Option<Self> {
        let number = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        Some(Self { rate: rate64.unwrap_or(u64::from(number(8)?)), limit: number(24)?, buffer: number(28)? })
    }
}

fn message(index: u32, handle: u32, parent: u32, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = TcHandle::from(handle);
    message.header.parent = TcHandle::from(parent);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// Holds back what an interface sends.
pub(crate) fn token_bucket(index: u32, bucket: Bucket) -> RouteNetlinkMessage {
    let mut message = message(index, 0x1_0000, TcHandle::ROOT.into(), "tbf");
    let mut options = vec![TcOption::Other(DefaultNla::new(TBF_PARMS, bucket.bytes()))];
    if bucket.rate >= u64::from(u32::MAX) {
        options.push(TcOption::Other(DefaultNla::new(TBF_RATE64, bucket.rate.to_ne_bytes().to_vec())));
    }
    message.attributes.push(TcAttribute::Options(options));
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// Lets filters see what comes in by an interface.
pub(crate) fn ingress(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewQueueDiscipline(message(index, 0xffff_0000, 0xffff_fff1, "ingress"))
}

/// Has all that comes in by an interface sent through another: a `u32` filter that matches everything, and the action `mirred`.
pub(crate) fn redirect(index: u32, to: u32) -> RouteNetlinkMessage {
    // `struct tc_u32_sel` with one key of no bits: flags TC_U32_TERMINAL, one key.
    let mut select = vec![1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    select.extend([0; 16]);
    // `struct tc_mirred`: index, capab, action TC_ACT_STOLEN, refcnt, bindcnt, eaction TCA_EGRESS_REDIR, ifindex.
    let mut mirred = Vec::new();
    for number in [0, 0, 4, 0, 0, 1, to] {
        mirred.extend(number.to_ne_bytes());
    }
    let action = nest(&[
        DefaultNla::new(1, b"mirred\0".to_vec()),
        DefaultNla::new(2 | NESTED, nest(&[DefaultNla::new(2, mirred)])),
    ]);
    let mut message = message(index, 0, 0xffff_0000, "u32");
    // The priority, and the protocol in the network's order.
    message.header.info = 1 << 16 | u32::from(ALL.to_be());
    let options = nest(&[
        DefaultNla::new(5, select),
        DefaultNla::new(1, 0x0001_0001_u32.to_ne_bytes().to_vec()),
        DefaultNla::new(7 | NESTED, nest(&[DefaultNla::new(1 | NESTED, action)])),
    ]);
    message.attributes.push(TcAttribute::Other(DefaultNla::new(2, options)));
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

fn nest(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

/// What an interface's token bucket is like, if it has one.
pub(crate) fn bucket_of(netlink: &mut Netlink, index: u32) -> Result<Option<Bucket>, Failure> {
    let mut found = None;
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed()));
    netlink.dump("list the queues", question, |answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return };
        if message.header.index.cast_unsigned() != index {
            return;
        }
        let is_tbf = message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "tbf"));
        for attribute in message.attributes.iter().filter(|_| is_tbf) {
            // What a queue is like lies in one attribute, which this kind's parser leaves as it is.
            let TcAttribute::Options(options) = attribute else { continue };
            let Some(TcOption::Other(all)) = options.first() else { continue };
            let all = value(all);
            let part = |kind: u16| {
                let parts = NlasIterator::new(all.as_slice()).flatten();
                parts.into_iter().find(|part| part.kind() == kind).map(|part| part.value().to_vec())
            };
            let rate64 = part(TBF_RATE64).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
            found = part(TBF_PARMS).and_then(|bytes| Bucket::parse(&bytes, rate64));
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_read_as_written() {
        let bucket = Bucket::new(8_000_000, 800_000);
        assert_eq!(bucket.rate, 1_000_000);
        assert_eq!(bucket.limit, 125_000);
        assert_eq!(bucket.buffer, 1_562_500);
        assert_eq!(bucket.bytes().len(), 36);
        assert_eq!(Bucket::parse(&bucket.bytes(), None), Some(bucket));
        assert_eq!(Bucket::new(u64::MAX, u64::MAX).limit, u32::MAX);
    }
}
