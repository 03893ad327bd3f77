//! What is on its way to Kafka: which parcel is sent next, and what becomes of one that fails. No producer, no clock.
//!
//! ```text
//! push -> ready -> in flight -> delivered: done
//!           ^         |
//!           |         +-> failed, may be tried again -> delayed (backoff) -+-> ready
//!           |         +-> too large, sent among others -> suspect ----> in flight, alone
//!           +--------------------------------------------------------------+   +-> too large alone: bare, or given up
//! ```
//! Kafka refuses a batch as too large as a whole, so parcels that only shared it are refused too. A suspect is therefore sent again
//! with nothing else in flight, and only a parcel refused alone counts as too large. A parcel is in exactly one of these states.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Parcel;

/// The wait before a parcel is tried again, for a start and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub first_ms: u64,
    pub max_ms: u64,
}

impl Backoff {
    /// The wait after `attempt` failures. Half of it is spread by the parcel's id, so that not all come back in one moment.
    fn wait_ms(self, attempt: u32, id: u64) -> u64 {
        let doubled = self.first_ms.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.max_ms);
        let half = doubled / 2;
        half + id.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (half + 1)
    }
}

/// How much of a parcel is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Whole,
    /// Without its payload, and without key and headers where they are large.
    Bare,
}

/// Why a parcel was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may succeed later.
    Passing,
    /// The parcel, or the batch it was in, is too large.
    TooLarge,
    /// It will not succeed.
    Lasting,
}

/// What became of a parcel that was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again, after so many attempts.
    Again(u32),
    /// It is given up, after so many attempts.
    GivenUp(u32),
    /// It is given up as too large for its topic, with its size.
    TooLarge(usize),
    /// It is not in flight: the report is of an earlier attempt.
    Unknown,
}

struct Pending<P> {
    parcel: P,
    form: Form,
    attempts: u32,
    is_in_flight: bool,
}

/// The parcels not yet acked by Kafka.
pub(super) struct Outbox<P> {
    backoff: Backoff,
    may_send_bare: bool,
    parcels: BTreeMap<u64, Pending<P>>,
    ready: VecDeque<u64>,
    delayed: BTreeSet<(u64, u64)>,
    suspects: VecDeque<u64>,
    alone: Option<u64>,
    in_flight: usize,
    bytes: usize,
}

impl<P: Parcel> Outbox<P> {
    pub fn new(backoff: Backoff, may_send_bare: bool) -> Self {
        Outbox {
            backoff,
            may_send_bare,
            parcels: BTreeMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeSet::new(),
            suspects: VecDeque::new(),
            alone: None,
            in_flight: 0,
            bytes: 0,
        }
    }

    /// Parcels held.
    pub fn len(&self) -> usize {
        self.parcels.len()
    }

    /// Bytes of their keys, payloads and headers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a parcel to send.
    pub fn push(&mut self, id: u64, parcel: P) {
        self.bytes += parcel.bytes();
        let replaced = self.parcels.insert(id, Pending { parcel, form: Form::Whole, attempts: 0, is_in_flight: false });
        assert!(replaced.is_none(), "parcel id {id} is used twice");
        self.ready.push_back(id);
    }

    /// The parcel to send now, if one may be sent. It counts as in flight.
    pub fn next(&mut self, now_ms: u64) -> Option<(u64, &P, Form)> {
        while let Some(&(due_ms, id)) = self.delayed.first().filter(|(due_ms, _)| *due_ms <= now_ms) {
            self.delayed.remove(&(due_ms, id));
            self.ready.push_back(id);
        }
        let must_wait = self.alone.is_some() || (!self.suspects.is_empty() && self.in_flight > 0);
        if must_wait {
            return None;
        }
        let suspect = self.suspects.pop_front();
        let id = suspect.or_else(|| self.ready.pop_front())?;
        self.alone = suspect;
        self.in_flight += 1;
        let pending = self.parcels.get_mut(&id).expect("a queued parcel is held");
        pending.is_in_flight = true;
        Some((id, &pending.parcel, pending.form))
    }

    /// Takes back what `next` gave: it could not be handed to the producer now.
    pub fn unsent(&mut self, id: u64) {
        if self.land(id) {
            if self.alone.take_if(|alone| *alone == id).is_some() {
                self.suspects.push_front(id);
            } else {
                self.ready.push_front(id);
            }
        }
    }

    /// True if the parcel was in flight, and so is acked only once.
    pub fn delivered(&mut self, id: u64) -> bool {
        let landed = self.land(id);
        if landed {
            self.alone.take_if(|alone| *alone == id);
            self.remove(id);
        }
        landed
    }

    /// Decides about a parcel that was not delivered.
    pub fn failed(&mut self, id: u64, failure: Failure, now_ms: u64) -> Verdict {
        if !self.land(id) {
            return Verdict::Unknown;
        }
        let was_alone = self.alone.take_if(|alone| *alone == id).is_some();
        let pending = self.parcels.get_mut(&id).expect("a parcel in flight is held");
        pending.attempts += 1;
        let attempts = pending.attempts;
        match failure {
            Failure::Passing => {
                self.delayed.insert((now_ms.saturating_add(self.backoff.wait_ms(attempts, id)), id));
                Verdict::Again(attempts)
            }
            Failure::TooLarge if !was_alone => {
                self.suspects.push_back(id);
                Verdict::Again(attempts)
            }
            Failure::TooLarge if self.may_send_bare && pending.form == Form::Whole => {
                pending.form = Form::Bare;
                self.suspects.push_front(id);
                Verdict::Again(attempts)
            }
            Failure::TooLarge => {
                let bytes = pending.parcel.bytes();
                self.remove(id);
                Verdict::TooLarge(bytes)
            }
            Failure::Lasting => {
                self.remove(id);
                Verdict::GivenUp(attempts)
            }
        }
    }

    /// Forgets what was in flight in a producer that is gone: it is sent again.
    pub fn lose_flight(&mut self) {
        self.in_flight = 0;
        self.alone = None;
        for (&id, pending) in self.parcels.iter_mut().filter(|(_, pending)| pending.is_in_flight) {
            pending.is_in_flight = false;
            self.ready.push_back(id);
        }
    }

    fn land(&mut self, id: u64) -> bool {
        let in_flight = self.parcels.get_mut(&id).filter(|pending| pending.is_in_flight);
        let Some(pending) = in_flight else {
            return false;
        };
        pending.is_in_flight = false;
        self.in_flight -= 1;
        true
    }

    fn remove(&mut self, id: u64) {
        if let Some(pending) = self.parcels.remove(&id) {
            self.bytes -= pending.parcel.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rdkafka::producer::BaseRecord;

    use super::*;

    /// A parcel of nothing but a size.
    struct Sized(usize);

    impl Parcel for Sized {
        fn bytes(&self) -> usize {
            self.0
        }
        fn record<'a>(&'a self, topic: &'a str, id: usize, _form: Form) -> BaseRecord<'a, [u8], [u8], usize> {
            BaseRecord::with_opaque_to(topic, id)
        }
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let backoff = Backoff { first_ms: 100, max_ms: 1_000 };
        for (attempt, most) in [(1, 100), (2, 200), (3, 400), (5, 1_000), (u32::MAX, 1_000)] {
            for id in 0..100 {
                assert!((most / 2..=most).contains(&backoff.wait_ms(attempt, id)), "{attempt} {id}");
            }
        }
    }

    /// Does a random step of a broker; returns what was decided about a parcel.
    fn answer(outbox: &mut Outbox<Sized>, flight: &mut Vec<u64>, step: u8, pick: usize, now_ms: u64) -> Option<(u64, Verdict)> {
        let id = (!flight.is_empty()).then(|| flight.remove(pick % flight.len()))?;
        let failure = match step {
            0 => Failure::Passing,
            1 => Failure::TooLarge,
            _ => {
                assert!(outbox.delivered(id) && !outbox.delivered(id));
                return None;
            }
        };
        Some((id, outbox.failed(id, failure, now_ms)))
    }

    proptest! {
        /// Whatever the broker answers, no parcel is lost, none is in flight twice, and only a parcel refused alone is too large.
        #[test]
        fn every_parcel_is_delivered_in_the_end_or_was_refused_alone(
            steps in proptest::collection::vec((0u8..7, 0usize..50), 0..300), may_send_bare: bool,
        ) {
            let mut outbox = Outbox::new(Backoff { first_ms: 10, max_ms: 100 }, may_send_bare);
            let (mut flight, mut now_ms, mut next, mut lost) = (Vec::new(), 0, 0u64, 0);
            for (step, pick) in steps {
                now_ms += pick as u64;
                let alone = flight.len() == 1;
                match step {
                    0 | 1 => {
                        let answered = answer(&mut outbox, &mut flight, step, pick, now_ms);
                        if let Some((_, Verdict::TooLarge(bytes))) = answered {
                            prop_assert!(alone && bytes == 7);
                            lost += 1;
                        }
                    }
                    2 => prop_assert!(answer(&mut outbox, &mut flight, step, pick, now_ms).is_none()),
                    3 => {
                        outbox.lose_flight();
                        flight.clear();
                    }
                    4 => {
                        if let Some(id) = flight.pop() {
                            outbox.unsent(id);
                        }
                    }
                    5 => {
                        outbox.push(next, Sized(7));
                        next += 1;
                    }
                    _ => flight.extend(outbox.next(now_ms).map(|(id, ..)| id)),
                }
                prop_assert_eq!(outbox.bytes(), outbox.len() * 7);
                prop_assert_eq!(outbox.in_flight, flight.len());
                let queued = outbox.ready.len() + outbox.delayed.len() + outbox.suspects.len();
                prop_assert_eq!(queued + flight.len(), outbox.len(), "a parcel is in two places or in none");
            }
            // A broker that is well again takes all that is left.
            while outbox.len() > 0 {
                now_ms += 1_000;
                flight.extend(outbox.next(now_ms).map(|(id, ..)| id));
                prop_assert!(answer(&mut outbox, &mut flight, 2, 0, now_ms).is_none());
            }
            prop_assert!(lost <= next);
        }
    }
}
