//! Finds the dedup keys of messages that a former owner of their partition has handled.
//!
//! # In
//! `RecalledBatch`: what the source read once more because this process does not know it.
//!
//! # Out
//! `Recalled`: their keys, to the workers that remember them. They are those that `normalize` gave the same messages before; a message
//! that it rejected or skipped has none, nor one that it may have rejected for its token (`normalize/access.rs`).
//!
//! # Holds
//! A `Normalizer` of its own. No message, no capability.
//!
//! # Closes when
//! Its input closes.
//!
//! # Fails when
//! Never: what a configuration forbids is told by `normalize`.
//!
//! # Invariants
//! - Nothing but keys leaves it: no payload, no reject, no count of what was accepted.

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::RecalledBatch;
use crate::dedup_window::{Recalled, recalled_of};
use crate::epoch::Epoch;
use crate::normalize::{self, Normalized, Normalizer, partition_hash};
use crate::place::Place;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "recall";

/// Finds the keys of recalled messages. All workers of the process that read them take their share.
pub fn recall<'s>(
    stream: Stream<'s, Epoch, Vec<RecalledBatch>>,
    config: normalize::Config,
    place: Place,
) -> Stream<'s, Epoch, Vec<Recalled>> {
    let peers = place.peers;
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let routed = Exchange::new(move |batch: &RecalledBatch| place.route(partition_hash(&batch.0.partition)));
    let mut input = builder.new_input(stream, routed);
    let (output, recalled) = builder.new_output::<Vec<Recalled>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Recalled>>>::from(output);
    builder.build(move |_capabilities| {
        let mut normalizer = Normalizer::for_recall(config).ok();
        move |_frontiers| {
            let Some(normalizer) = &mut normalizer else { return };
            let mut output = output.activate();
            input.for_each(|capability, batches| {
                let epoch = *capability.least().expect("every batch is sent under a capability");
                let mut session = output.session(&capability);
                for RecalledBatch(raw) in batches.drain(..) {
                    let mut next = Some(raw);
                    while let Some(raw) = next.take() {
                        let Normalized { batch, rest, .. } = normalizer.normalize(raw);
                        session.give_iterator(recalled_of(&batch, epoch, peers));
                        next = rest;
                    }
                }
                session.flush();
            });
        }
    });
    recalled
}
