//! What makes one message different from every other: its identifiers, its times and its numbers.

use super::random::{Random, mix, mixed, mixed_nonzero};

// Streams of the seed that must not be mistaken for each other.
const TRACE_HIGH: u64 = 1 << 56;
const TRACE_LOW: u64 = 2 << 56;
const SPAN: u64 = 3 << 56;
const VALUES: u64 = 4 << 56;

/// Spans of one trace. Real traces reach further than a message; to a pipeline that matters little.
pub const SPANS_PER_TRACE: u64 = 6;
/// Length of an order number.
pub const ORDER_DIGITS: usize = 10;
/// Length of an address.
pub const ADDRESS_CHARS: usize = 14;

/// The identity of one message, from which all that is distinct in it is computed, each value without the others.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    time_ns: u64,
    time_step_ns: u64,
    records: u64,
    /// Number of the message's first record among all records of the run.
    first_record: u64,
    /// The message's own random stream.
    stream: u64,
    trace_high: u64,
    trace_low: u64,
    span: u64,
    values: u64,
}

/// Where a message stands in its run.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The run's seed.
    pub seed: u64,
    /// The message's number in the run.
    pub index: u64,
    /// Records in each message of the run.
    pub records: u64,
    /// The message's first event time, in Unix nanoseconds.
    pub time_ns: u64,
    /// Nanoseconds until the next message's first event time.
    pub time_step_ns: u64,
}

impl Stamp {
    /// The identity of the message at `place`.
    pub fn new(place: Place) -> Self {
        let Place { seed, index, records, time_ns, time_step_ns } = place;
        Stamp {
            time_ns,
            time_step_ns,
            records: records.max(1),
            first_record: index.wrapping_mul(records),
            stream: mixed(mix(seed), index),
            trace_high: mix(seed ^ TRACE_HIGH),
            trace_low: mix(seed ^ TRACE_LOW),
            span: mix(seed ^ SPAN),
            values: mix(seed ^ VALUES),
        }
    }

    /// Number of record `local` of this message among all records of the run.
    #[inline]
    fn counter(&self, local: u64) -> u64 {
        self.first_record.wrapping_add(local)
    }

    /// The identifier of trace `local` of this message: no other trace of the run has it.
    #[inline]
    pub fn trace_id(&self, local: u64) -> [u8; 16] {
        let counter = self.counter(local);
        let (high, low) = (mixed(self.trace_high, counter), mixed_nonzero(self.trace_low, counter));
        ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
    }

    /// The identifier of span `local` of this message: no other span of the run has it.
    #[inline]
    pub fn span_id(&self, local: u64) -> [u8; 8] {
        mixed_nonzero(self.span, self.counter(local)).to_be_bytes()
    }

    /// The event time of record `local`: the message's records are spread evenly up to the next message.
    #[inline]
    pub fn time_ns(&self, local: u64) -> u64 {
        self.time_ns.wrapping_add(self.time_step_ns.wrapping_mul(local) / self.records)
    }

    #[inline]
    fn bits(&self, local: u64) -> u64 {
        mixed(self.values, self.counter(local))
    }

    /// A number of record `local`, such as a size: its varint is three bytes long, which keeps the layout of messages.
    #[inline]
    pub fn amount(&self, local: u64) -> u64 {
        (1 << 14) + (self.bits(local) >> 46)
    }

    /// An address in 10.0.0.0/8 for record `local`, its octets from 100 to 255: always of the same length.
    #[inline]
    pub fn address(&self, local: u64) -> [u8; ADDRESS_CHARS] {
        let bits = self.bits(local);
        let mut address = *b"10.000.000.000";
        for octet in 0..3 {
            let number = 100 + ((u32::from((bits >> (8 * octet)) as u8) * 156) >> 8) as u8;
            let start = 3 + 4 * octet;
            address[start..start + 3].copy_from_slice(&[b'0' + number / 100, b'0' + number / 10 % 10, b'0' + number % 10]);
        }
        address
    }

    /// An order number for record `local`.
    #[inline]
    pub fn order(&self, local: u64) -> [u8; ORDER_DIGITS] {
        let mut rest = self.bits(local) >> 24;
        [(); ORDER_DIGITS].map(|()| {
            let digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            digit
        })
    }

    /// Random numbers that are this message's own.
    pub fn random(&self) -> Random {
        Random::of_stream(self.stream)
    }
}
