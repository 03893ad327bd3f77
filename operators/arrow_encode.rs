//! Turns OTLP protobuf into Arrow record batches of one fixed schema per signal, coalesced per group.
//!
//! # In
//! Durable batches: OTLP protobuf of one group (index, signal), which `normalize` has validated.
//!
//! # Out
//! `EncodedBatch`: record batches of the signal's schema, each below the message limit, with the coverage of all messages in them.
//!
//! # Holds
//! Per group, the rows since the last batch went out, at most `batch_rows_max` of them in columns and the rest as finished record
//! batches; and the capability of the earliest epoch among them.
//!
//! # Closes when
//! The group has `delivery_messages_max` messages or `delivery_bytes_max` bytes, or waited for `delivery_wait`, or the input ends.
//! Record batches inside are cut by rows and by bytes.
//!
//! # Fails when
//! A payload is not valid OTLP: an invariant is broken, because `normalize` let it pass and the write-ahead log kept it whole.
//!
//! # Invariants
//! - The rows of one message are all in one `EncodedBatch`, in order, and numbered from 0 by `_ordinal`.
//! - Every offset that came in is in exactly one coverage that goes out.
//! - No record batch is over `batch_bytes_max` as a Flight message, unless it holds a single row.
//! - The bytes out depend on the bytes in and the config alone.
//!
//! ```text
//! encoder     shape common to all signals, cutting, coverage
//!  +- common      identity, resource and scope columns: prepared once, repeated per row
//!  +- traces      one row per span
//!  +- logs        one row per log record
//!  +- metrics     one row per data point
//!      +- attributes  attribute lists: promoted columns and maps
//!      |   +- promoted    the table of attributes that have a column
//!      |   +- values      any value as text
//!      +- columns     growing columns that become Arrow arrays
//!          +- texts       the same for texts, checked in bulk
//!          +- buffers     vectors that come back once they are read
//! schema      names and types, documented in docs/schemas.md
//! ```

pub mod encoder;
pub mod schema;

mod attributes;
mod buffers;
mod columns;
mod common;
mod logs;
mod metrics;
mod promoted;
mod texts;
mod traces;
mod values;

#[cfg(test)]
mod tests;

pub use encoder::{Config, Encoder, Error};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;

use crate::batch::{DurableBatch, EncodedBatch, Group, NormalizedBatch};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in config, metrics and messages.
pub const NAME: &str = "arrow_encode";

/// How rows are coalesced and cut, for all groups.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of one record batch; `pipeline.batch_size`.
    pub batch_rows_max: usize,
    /// Bytes of one record batch as a Flight message.
    pub batch_bytes_max: usize,
    /// Bytes at which a delivery is sent without looking for more to coalesce.
    pub delivery_bytes_max: usize,
    /// Messages at which a delivery is sent; `processing.flush_size_messages`.
    pub delivery_messages_max: usize,
    /// How long a smaller delivery waits for more; `processing.buffer.flush_interval_seconds`. Zero sends whatever is there at once.
    pub delivery_wait: Duration,
}

impl Limits {
    fn config(&self, group: &Group) -> Config {
        Config { group: group.clone(), batch_rows_max: self.batch_rows_max, batch_bytes_max: self.batch_bytes_max }
    }
}

/// Encodes batches, coalescing those of a group until a delivery is large or old enough.
pub fn arrow_encode<'s>(
    stream: Stream<'s, Epoch, Vec<DurableBatch>>,
    limits: Limits,
    health: Health,
) -> Stream<'s, Epoch, Vec<EncodedBatch>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, encoded) = builder.new_output::<Vec<EncodedBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<EncodedBatch>>>::from(output);
    builder.build(move |_capabilities| {
        let mut encoding = Encoding { limits, groups: BTreeMap::new(), failed: Vec::new(), next_timer: None };
        move |frontiers| {
            let mut output = output.activate();
            // 1. Append what is there, and send what is large enough.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                for DurableBatch(batch) in batches.drain(..) {
                    if let Err(error) = encoding.append(&batch, &capability, &mut output) {
                        health.fail(NAME, format!("epoch {}: {}", capability.time(), chain(&error)));
                    }
                }
            });
            // 2. Send what is old enough; at the end of the input, everything.
            encoding.send_due(frontiers[0].is_empty(), &mut output);
            // 3. Come back for the rest.
            encoding.arm_timer(&activator);
        }
    });
    encoded
}

/// A group's encoder, and what it holds.
struct Open {
    encoder: Encoder,
    messages: usize,
    /// The least epoch in it, and since when.
    held: Option<(Capability<Epoch>, Instant)>,
}

struct Encoding {
    limits: Limits,
    groups: BTreeMap<Group, Open>,
    /// Capabilities of batches that could not be encoded: never dropped, so the frontier never passes them.
    failed: Vec<Capability<Epoch>>,
    next_timer: Option<Instant>,
}

impl Encoding {
    fn append(&mut self, batch: &NormalizedBatch, capability: &Capability<Epoch>, output: &mut Session<'_>) -> Result<(), Error> {
        let limits = self.limits;
        let open = self.groups.entry(batch.group.clone()).or_insert_with(|| Open {
            encoder: Encoder::new(limits.config(&batch.group)),
            messages: 0,
            held: None,
        });
        if let Err(error) = open.encoder.append(batch) {
            self.failed.push(capability.clone());
            return Err(error);
        }
        let (held, _) = open.held.get_or_insert_with(|| (capability.clone(), Instant::now()));
        if capability.time() < held.time() {
            *held = capability.clone();
        }
        open.messages += batch.records.len();
        if open.encoder.bytes() >= limits.delivery_bytes_max || open.messages >= limits.delivery_messages_max {
            open.send(output);
        }
        Ok(())
    }

    fn send_due(&mut self, is_end: bool, output: &mut Session<'_>) {
        for open in self.groups.values_mut() {
            let is_due = open.held.as_ref().is_some_and(|(_, since)| is_end || since.elapsed() >= self.limits.delivery_wait);
            if is_due {
                open.send(output);
            }
        }
    }

    fn arm_timer(&mut self, activator: &Activator) {
        let oldest = self.groups.values().filter_map(|open| open.held.as_ref().map(|(_, since)| *since)).min();
        let Some(due) = oldest.map(|since| since + self.limits.delivery_wait) else { return };
        let now = Instant::now();
        // One timer at a time: activate_after never deduplicates.
        if self.next_timer.is_none_or(|timer| timer <= now) {
            self.next_timer = Some(due);
            activator.activate_after(due.saturating_duration_since(now));
        }
    }
}

impl Open {
    fn send(&mut self, output: &mut Session<'_>) {
        self.messages = 0;
        let (Some(delivery), Some((capability, _))) = (self.encoder.finish(), self.held.take()) else { return };
        let mut session = output.session(&capability);
        session.give(delivery);
        session.flush();
    }
}

type Session<'a> =
    timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<EncodedBatch>>>;
