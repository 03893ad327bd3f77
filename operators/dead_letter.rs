//! temporary
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::Reject;
use crate::desk::{Desk, Envelope};
use crate::epoch::Epoch;
use crate::fault::Health;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "dead_letter";

/// Where rejects go; at least one of them.
#[derive(Clone, Debug)]
pub struct Config {
    /// dir
    pub directory: Option<PathBuf>,
    /// size
    pub file_bytes_max: u64,
    /// topic
    pub topic: Option<String>,
    /// client
    pub client: BTreeMap<String, String>,
}
//SHELL
/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The dead letter's thread.
    pub desk: Desk<Vec<Reject>, ()>,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rejects that are in the dead letter.
    pub written: AtomicU64,
    /// Rejects that were there already: rejected again after a restart.
    pub repeated: AtomicU64,
    /// Attempts that failed and were repeated.
    pub retries: AtomicU64,
}

/// Writes rejects to the dead letter. Its output carries no data: its frontier passes an epoch when all its rejects are acked.
pub fn dead_letter<'s>(stream: Stream<'s, Epoch, Vec<Reject>>, ports: Ports) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.desk.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, acked) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut held: BTreeMap<u64, Capability<Epoch>> = BTreeMap::new();
        move |_frontiers| {
            // 1. Hand rejects over, and hold their epoch.
            input.for_each(|capability, rejects| {
                let capability = capability.retain_least(0).expect("every reject is sent under a capability");
                held.insert(counter.request(std::mem::take(rejects)), capability);
            });
            // 2. Let go of what is acked.
            while let Some((ticket, ())) = counter.answer() {
                held.remove(&ticket);
            }
        }
    });
    acked
}

/// Starts the dead letter's thread.
pub fn open(
    config: &Config,
    health: Health,
    stats: Arc<Stats>,
) -> Result<(Desk<Vec<Reject>, ()>, std::thread::JoinHandle<()>), String> {
    let dir = config.directory.clone().ok_or("no dir")?;
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    Desk::open("dead-letter", move |requests: Receiver<Envelope<Vec<Reject>, ()>>| {
        let _ = (health, Duration::ZERO, RecvTimeoutError::Timeout);
        for envelope in requests {
            stats.written.fetch_add(envelope.request.len() as u64, Ordering::Relaxed);
            envelope.answer(());
        }
    })
    .map_err(|e| e.to_string())
}
