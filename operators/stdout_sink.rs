//! Writes one line of JSON per record to standard output, for people and for programs behind a pipe.
//!
//! # In
//! `UniqueBatch` or `Reject`: whatever has lines ([`Lines`]).
//!
//! # Out
//! No data. Its effect is the lines; the frontier passes an epoch when all its lines are written and flushed.
//!
//! # Holds
//! Batches that are not written, with their shares of the memory budget and the capabilities of their epochs: a pipe that nobody reads holds the
//! frontier, and reading pauses.
//!
//! # Closes when
//! The input ends.
//!
//! # Fails when
//! The output was closed by its reader, or cannot be written: the fault ends the process.
//!
//! # Invariants
//! - Lines are whole: one thread writes for all workers. A batch's lines are together and in the order of offsets.
//!
//! ```text
//! {"topic":"shop.logs","partition":3,"offset":17,"timestampMs":1700000000000,"index":"shop","signal":"logs","tenant":"a","resourceLogs":[..]}
//! {"topic":"shop.logs","partition":3,"offset":18,"timestampMs":1700000000000,"reason":"malformed","detail":"..","key":"..","payload":".."}
//! ```
//! A key or payload that is not UTF-8 is called `keyBase64` or `payloadBase64`. Headers are not shown: one of them may be a secret.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{Reject, UniqueBatch};
use crate::coverage::PartitionKey;
use crate::desk::{Desk, Envelope};
use crate::epoch::Epoch;
use crate::fault::Health;
use crate::normalize::otlp_json::render;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "stdout_sink";

/// Lines are written out at this size, so that a batch of any size needs little memory.
const WRITE_BYTES: usize = 256 << 10;

/// What can be shown as lines of JSON.
pub trait Lines: Send + 'static {
    /// Shows each record to `line`, in order.
    fn lines(&self, line: &mut dyn FnMut(Json));
}

impl Lines for UniqueBatch {
    fn lines(&self, line: &mut dyn FnMut(Json)) {
        let UniqueBatch(batch) = self;
        for record in &batch.records {
            let mut shown = origin(&batch.coverage.partition, record.offset, record.timestamp_ms);
            shown.insert("index".into(), json!(&*batch.group.index));
            shown.insert("signal".into(), json!(batch.group.signal.name()));
            if let Some(tenant) = batch.tenant(record) {
                shown.insert("tenant".into(), json!(tenant.name()));
            }
            match render::data(batch.group.signal, batch.payload(record)) {
                Ok((name, rows)) => _ = shown.insert(name.into(), rows),
                // `normalize` lets nothing through that is not protobuf (I-6); a line is no reason to stop.
                Err(error) => _ = shown.insert("undecodable".into(), json!(error.to_string())),
            }
            line(Json::Object(shown));
        }
    }
}

impl Lines for Reject {
    fn lines(&self, line: &mut dyn FnMut(Json)) {
        let mut shown = origin(&self.partition, self.record.offset, self.record.timestamp_ms);
        shown.insert("reason".into(), json!(self.reason.code()));
        shown.insert("detail".into(), json!(self.detail));
        for (name, piece) in [("key", self.record.key), ("payload", self.record.payload)] {
            let Some(bytes) = piece.map(|piece| piece.of(&self.arena)) else { continue };
            match std::str::from_utf8(bytes) {
                Ok(text) => shown.insert(name.into(), json!(text)),
                Err(_) => shown.insert(format!("{name}Base64"), json!(STANDARD.encode(bytes))),
            };
        }
        line(Json::Object(shown));
    }
}

fn origin(partition: &PartitionKey, offset: i64, timestamp_ms: i64) -> Map<String, Json> {
    let mut shown = Map::new();
    shown.insert("topic".into(), json!(&*partition.topic.name));
    shown.insert("partition".into(), json!(partition.partition));
    shown.insert("offset".into(), json!(offset));
    if timestamp_ms >= 0 {
        shown.insert("timestampMs".into(), json!(timestamp_ms));
    }
    shown
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Lines written.
    pub lines: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
}

/// Batches on their way to the output.
pub type Request = Vec<Box<dyn Lines>>;

/// What the operator needs from outside; shared by all sinks that write to one output.
#[derive(Clone)]
pub struct Ports {
    /// The output's thread.
    pub desk: Desk<Request, ()>,
}

impl Ports {
    /// Starts the thread that writes to `output`, mostly `std::io::stdout()`. It ends with the last of the ports.
    pub fn open(output: Box<dyn Write + Send>, health: Health, stats: Arc<Stats>) -> std::io::Result<(Ports, JoinHandle<()>)> {
        let writer = Writer { output, health: health.clone(), stats };
        let (desk, thread) = Desk::open(NAME, health, move |requests| writer.serve(requests))?;
        Ok((Ports { desk }, thread))
    }
}

/// Writes lines. Its output carries no data: its frontier passes an epoch when all its lines are written.
pub fn stdout_sink<'s, B: Lines + Clone>(stream: Stream<'s, Epoch, Vec<B>>, ports: Ports) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.desk.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, written) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut held: std::collections::BTreeMap<u64, Capability<Epoch>> = Default::default();
        move |_frontiers| {
            // 1. Hand batches over, and hold their epoch.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                let request = batches.drain(..).map(|batch| Box::new(batch) as Box<dyn Lines>).collect();
                held.insert(counter.request(request), capability);
            });
            // 2. Let go of what is written.
            while let Some((ticket, ())) = counter.answer() {
                held.remove(&ticket);
            }
        }
    });
    written
}

/// What the thread owns.
struct Writer {
    output: Box<dyn Write + Send>,
    health: Health,
    stats: Arc<Stats>,
}

impl Writer {
    fn serve(mut self, requests: Receiver<Envelope<Request, ()>>) {
        let mut buffer = Vec::new();
        for envelope in requests {
            for batch in &envelope.request {
                if let Err(error) = self.write(&**batch, &mut buffer) {
                    // Without an answer the capability is held: nothing counts as written that is not.
                    self.health.fail(NAME, told(&error));
                    return;
                }
            }
            envelope.answer(());
        }
    }

    fn write(&mut self, batch: &dyn Lines, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let mut result = Ok(());
        batch.lines(&mut |line| {
            if result.is_ok() {
                // Writing JSON to memory cannot fail, and texts in it hold no line break.
                let _ = serde_json::to_writer(&mut *buffer, &line);
                buffer.push(b'\n');
                self.stats.lines.fetch_add(1, Ordering::Relaxed);
                if buffer.len() >= WRITE_BYTES {
                    result = self.flush(buffer);
                }
            }
        });
        result?;
        self.flush(buffer)
    }

    fn flush(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        self.output.write_all(buffer)?;
        self.stats.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.clear();
        self.output.flush()
    }
}

fn told(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::BrokenPipe => "standard output was closed by its reader; what was not read is not acknowledged".into(),
        _ => format!("cannot write to standard output: {error}"),
    }
}

#[cfg(test)]
mod tests;
