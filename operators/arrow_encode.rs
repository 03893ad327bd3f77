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
//! The group has `batch_rows_max` rows, or its time is up, or the input ends. Record batches inside are cut by rows and by bytes.
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
//!      +- columns     growing buffers that become Arrow arrays
//! schema      names and types, documented in docs/schemas.md
//! ```

pub mod encoder;
pub mod schema;

mod attributes;
mod columns;
mod common;
mod logs;
mod metrics;
mod promoted;
mod traces;
mod values;

#[cfg(test)]
mod tests;

pub use encoder::{Config, Encoder, Error};

use std::collections::BTreeMap;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{DurableBatch, EncodedBatch, Group};
use crate::epoch::Epoch;
use crate::fault::Health;

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
}

impl Limits {
    fn config(&self, group: &Group) -> Config {
        Config { group: group.clone(), batch_rows_max: self.batch_rows_max, batch_bytes_max: self.batch_bytes_max }
    }
}

/// Encodes batches, coalescing what is there at one scheduling per group.
pub fn arrow_encode<'s>(stream: Stream<'s, Epoch, Vec<DurableBatch>>, limits: Limits, health: Health) -> Stream<'s, Epoch, Vec<EncodedBatch>> {
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    let (output, encoded) = builder.new_output::<Vec<EncodedBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<EncodedBatch>>>::from(output);
    builder.build(move |_capabilities| {
        let mut groups: BTreeMap<Group, Encoder> = BTreeMap::new();
        let mut open: BTreeMap<Group, Capability<Epoch>> = BTreeMap::new();
        // Capabilities of batches that could not be encoded: never dropped, so the frontier never passes them.
        let mut failed: Vec<Capability<Epoch>> = Vec::new();
        move |_frontiers| {
            let mut output = output.activate();
            // 1. Append what is there. A group's delivery travels under the least epoch it holds.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                for DurableBatch(batch) in batches.drain(..) {
                    let encoder = groups.entry(batch.group.clone()).or_insert_with(|| Encoder::new(limits.config(&batch.group)));
                    if let Err(error) = encoder.append(&batch) {
                        health.fail(NAME, format!("epoch {}: {error}", capability.time()));
                        failed.push(capability.clone());
                        return;
                    }
                    let held = open.entry(batch.group.clone()).or_insert_with(|| capability.clone());
                    if capability.time() < held.time() {
                        *held = capability.clone();
                    }
                    // 2. Send a delivery when it is large enough ..
                    if encoder.bytes() >= limits.delivery_bytes_max {
                        send(encoder, open.remove(&batch.group), &mut output);
                    }
                }
            });
            // .. and all of them when nothing more is there: coalescing never waits.
            for (group, held) in std::mem::take(&mut open) {
                if let Some(encoder) = groups.get_mut(&group) {
                    send(encoder, Some(held), &mut output);
                }
            }
        }
    });
    encoded
}

type Session<'a> = timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<EncodedBatch>>>;

fn send(encoder: &mut Encoder, held: Option<Capability<Epoch>>, output: &mut Session<'_>) {
    let (Some(delivery), Some(capability)) = (encoder.finish(), held) else { return };
    let mut session = output.session(&capability);
    session.give(delivery);
    session.flush();
}
