//! What makes one message different from every other: its identifiers, its times and its random numbers.

use super::random::{Random, keyed, keyed_nonzero};

// Streams of the seed that must not be mistaken for each other.
const TRACE_HIGH: u64 = 1;
const TRACE_LOW: u64 = 2;
const SPAN: u64 = 3;
const VALUES: u64 = 4;

/// Spans of one trace. Real traces reach further than a message; to a pipeline that matters little.
pub const SPANS_PER_TRACE: u64 = 6;

/// The identity of one message, from which all that is distinct in it is computed.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
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
    /// Number of record `local` of this message among all records of the run.
    fn counter(&self, local: u64) -> u64 {
        self.index.wrapping_mul(self.records).wrapping_add(local)
    }

    /// The identifier of trace `local` of this message: no other trace of the run has it.
    pub fn trace_id(&self, local: u64) -> [u8; 16] {
        let counter = self.counter(local);
        let high = keyed(self.seed ^ TRACE_HIGH.rotate_right(8), counter);
        let low = keyed_nonzero(self.seed ^ TRACE_LOW.rotate_right(8), counter);
        ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
    }

    /// The identifier of span `local` of this message: no other span of the run has it.
    pub fn span_id(&self, local: u64) -> [u8; 8] {
        keyed_nonzero(self.seed ^ SPAN.rotate_right(8), self.counter(local)).to_be_bytes()
    }

    /// The event time of record `local`: the message's records are spread evenly up to the next message.
    pub fn time_ns(&self, local: u64) -> u64 {
        let step = u128::from(self.time_step_ns) * u128::from(local) / u128::from(self.records.max(1));
        self.time_ns.wrapping_add(step as u64)
    }

    /// Random numbers that are this message's own.
    pub fn random(&self) -> Random {
        Random::new(self.seed ^ VALUES.rotate_right(8), self.index)
    }
}
