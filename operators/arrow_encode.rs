//! Turns OTLP protobuf into Arrow record batches of one fixed schema per signal, coalesced per group.
//!
//! # In
//! Durable batches: OTLP protobuf of one group (index, signal), which `normalize` has validated.
//!
//! # Out
//! `Delivery`: record batches of the signal's schema, each below the message limit, with the coverage of all messages in them and the
//! frames they were made of.
//!
//! # Holds
//! Per group, dataset schema and storage endpoint, the rows since the last batch went out, at most `batch_rows_max` of them in columns and the rest as finished record
//! batches; and the capability of the earliest epoch among them. A backlog: batches that it has not come to, with their capabilities.
//!
//! # Closes when
//! It has `delivery_messages_max` messages or `delivery_bytes_max` bytes, or waited for `delivery_wait`, or the input ends, or an
//! offset comes a second time. Record batches inside are cut by rows and by bytes.
//!
//! # Fails when
//! A payload is not valid OTLP: an invariant is broken, because `normalize` let it pass and the write-ahead log kept it whole.
//!
//! # Invariants
//! - The rows of one message are all in one `Delivery`, in order, and numbered from 0 by `_ordinal`.
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
//!      |   +- datasets    the columns that a dataset's schema adds
//!      |   +- values      any value as text
//!      +- columns     growing columns that become Arrow arrays
//!          +- texts       the same for texts, checked in bulk
//!          +- binaries    the same for bytes
//!          +- buffers     vectors that come back once they are read
//! schema      names and types, documented in docs/schemas.md
//! ```

pub mod encoder;
pub mod schema;

mod attributes;
mod binaries;
mod buffers;
mod columns;
mod common;
mod datasets;
mod logs;
pub(crate) mod metrics;
pub(crate) mod promoted;
mod texts;
mod traces;
pub(crate) mod values;

#[cfg(test)]
pub(crate) mod tests;

pub use encoder::{Config, Encoder, Error};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;

use crate::backlog::Backlog;
use crate::batch::{Delivery, DurableBatch, Group, NormalizedBatch};
use crate::budget::Charge;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::wal_commit::read::Position;

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
    /// The settings of the encoder for `batch` and others of its group and dataset schema.
    pub fn config(&self, batch: &NormalizedBatch) -> Config {
        let Limits { batch_rows_max, batch_bytes_max, .. } = *self;
        Config { group: batch.group.clone(), schema: batch.schema.clone(), batch_rows_max, batch_bytes_max }
    }
}

/// Which storage endpoint a partition's rows belong to.
pub trait Route: Send + Sync {
    /// The endpoint's position in the configuration.
    fn endpoint(&self, partition: &PartitionKey) -> usize;
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where rows go.
    pub route: Arc<dyn Route>,
    /// Where faults go.
    pub health: Health,
}

/// Encodes batches, coalescing those of a group and an endpoint until a delivery is large or old enough.
pub fn arrow_encode<'s>(
    stream: Stream<'s, Epoch, Vec<DurableBatch>>,
    limits: Limits,
    ports: Ports,
) -> Stream<'s, Epoch, Vec<Delivery>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, encoded) = builder.new_output::<Vec<Delivery>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Delivery>>>::from(output);
    builder.build(move |_capabilities| {
        let Ports { route, health } = ports;
        let mut encoding = Encoding { limits, route, open: BTreeMap::new(), failed: Vec::new(), next_timer: None };
        let mut backlog = Backlog::new(activator.clone());
        move |frontiers| {
            let mut output = output.activate();
            // 1. Take what is there.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                backlog.take(&capability, batches);
            });
            // 2. Append some of it, and send what is large enough.
            for (capability, batch) in backlog.turn() {
                if let Err(error) = encoding.append(batch, &capability, &mut output) {
                    health.fail(NAME, format!("epoch {}: {}", capability.time(), chain(&error)));
                }
            }
            // 3. Send what is old enough; at the end of the input, everything.
            encoding.send_due(frontiers[0].is_empty() && backlog.is_empty(), &mut output);
            // 4. Come back for what is not old enough.
            encoding.arm_timer(&activator);
        }
    });
    encoded
}

/// The encoder of a group and an endpoint, and what it holds.
struct Open {
    encoder: Encoder,
    endpoint: usize,
    messages: usize,
    frames: Vec<Position>,
    charges: Vec<Charge>,
    /// The least epoch in it, and since when.
    held: Option<(Capability<Epoch>, Instant)>,
}

/// Group, storage endpoint, and the hash of the dataset schema: rows of two versions, as there are after a change while the log still
/// holds older ones, never share a record batch.
type Destination = (Group, usize, Option<u64>);

struct Encoding {
    limits: Limits,
    route: Arc<dyn Route>,
    open: BTreeMap<Destination, Open>,
    /// Capabilities of batches that could not be encoded: never dropped, so the frontier never passes them.
    failed: Vec<Capability<Epoch>>,
    next_timer: Option<Instant>,
}

impl Encoding {
    fn append(&mut self, durable: DurableBatch, capability: &Capability<Epoch>, output: &mut Session<'_>) -> Result<(), Error> {
        let limits = self.limits;
        let DurableBatch { batch, position, charge } = durable;
        let endpoint = self.route.endpoint(&batch.coverage.partition);
        let destination = (batch.group.clone(), endpoint, batch.schema.as_ref().map(|schema| schema.hash));
        let open = self.open.entry(destination).or_insert_with(|| Open {
            encoder: Encoder::new(limits.config(&batch)),
            endpoint,
            messages: 0,
            frames: Vec::new(),
            charges: Vec::new(),
            held: None,
        });
        if open.encoder.contradicts(&batch.coverage) {
            open.send(output);
        }
        if let Err(error) = open.encoder.append(&batch) {
            self.failed.push(capability.clone());
            return Err(error);
        }
        let (held, _) = open.held.get_or_insert_with(|| (capability.clone(), Instant::now()));
        if capability.time() < held.time() {
            *held = capability.clone();
        }
        open.messages += batch.records.len();
        open.frames.extend(position);
        open.charges.extend([batch.charge, charge]);
        if open.encoder.bytes() >= limits.delivery_bytes_max || open.messages >= limits.delivery_messages_max {
            open.send(output);
        }
        Ok(())
    }

    fn send_due(&mut self, is_end: bool, output: &mut Session<'_>) {
        for open in self.open.values_mut() {
            let is_due = open.held.as_ref().is_some_and(|(_, since)| is_end || since.elapsed() >= self.limits.delivery_wait);
            if is_due {
                open.send(output);
            }
        }
    }

    fn arm_timer(&mut self, activator: &Activator) {
        let oldest = self.open.values().filter_map(|open| open.held.as_ref().map(|(_, since)| *since)).min();
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
        if self.encoder.has_failed() {
            // Nothing comes out of it any more: what it holds stays unpublished.
            return;
        }
        self.messages = 0;
        let (frames, charges) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.charges));
        let (Some(batch), Some((capability, _))) = (self.encoder.finish(), self.held.take()) else { return };
        let mut session = output.session(&capability);
        session.give(Delivery { batch, frames, endpoint: self.endpoint, charges });
        session.flush();
    }
}

type Session<'a> = timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<Delivery>>>;
