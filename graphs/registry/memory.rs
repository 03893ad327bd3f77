//! Both ends of a test case's graph.

use openwit_operators::{memory_sink, memory_source};

use super::{Operator, operator, output, unique};
use crate::dataflow::{Built, Memory, Site};
use crate::edge::{Edge, Kind};

/// Messages that are in memory.
pub(super) const MEMORY_SOURCE: Operator = Operator {
    is_internal: true,
    is_single: true,
    ..operator(memory_source::NAME, "Gives the messages of a test case.", &[], &[output("raw", Kind::Raw)], |site| {
        let batches = memory(site).batches;
        Built::outputs([Edge::Raw(memory_source::memory_source(site.scope, batches))])
    })
};

/// Keeps what comes in memory.
pub(super) const MEMORY_SINK: Operator = Operator {
    is_internal: true,
    ..operator(
        memory_sink::NAME,
        "Keeps what comes for a test case.",
        &[Kind::Unique, Kind::Normalized, Kind::Durable, Kind::Reject],
        &[],
        |site| {
            let collected = memory(site).collected;
            Built::sink(match site.edge() {
                Edge::Reject(rejects) => memory_sink::memory_sink(rejects, collected),
                messages => memory_sink::memory_sink(unique(messages), collected),
            })
        },
    )
};

fn memory(site: &Site<'_, '_>) -> Memory {
    site.settings.memory.clone().expect("made where the graph has these operators")
}
