//! The storage graph: Flight deliveries to Parquet files in the object store, registered in the catalog.
//!
//! ```text
//! flight_source > parquet_roll > object_upload > catalog_commit > index_trigger
//!       ^             ^                               |
//!       |             +------ committed, refused -----+
//!       +-------------------- published --------------+
//! ```

use std::sync::Arc;

use openwit_operators::catalog_commit::registrar::Refused;
use openwit_operators::catalog_commit::{self, catalog_commit};
use openwit_operators::epoch::{Epoch, Same};
use openwit_operators::flight_source::{self, flight_source};
use openwit_operators::index_trigger::{self, index_trigger};
use openwit_operators::object_upload::{self, object_upload};
use openwit_operators::parquet_roll::{self, ClosedCommit, DeliveryId, parquet_roll};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Concat, ConnectLoop, Feedback};
use timely::dataflow::{Scope, Stream};

use crate::frontiers::{Frontiers, noted};

/// The settings of the graph's operators.
#[derive(Clone, Debug)]
pub struct Config {
    /// The source's settings.
    pub source: flight_source::Config,
    /// How files are written and when they close; its directory is the process's, each worker has a folder in it.
    pub roll: parquet_roll::Config,
    /// How files are uploaded.
    pub upload: object_upload::Config,
}

/// What the graph's operators need from outside.
#[derive(Clone)]
pub struct Ports {
    /// The source's.
    pub source: flight_source::Ports,
    /// The roller's.
    pub roll: parquet_roll::Ports,
    /// The uploader's.
    pub upload: object_upload::Ports,
    /// The catalog's.
    pub catalog: catalog_commit::Ports,
    /// The announcer's.
    pub index: index_trigger::Ports,
    /// Where the stages note how far they are.
    pub frontiers: Frontiers,
}

/// Builds the graph on one worker.
pub fn storage(scope: Scope<'_, Epoch>, config: Config, ports: Ports) {
    let (published_loop, published) = scope.feedback::<Vec<DeliveryId>>(Same);
    let (committed_loop, committed) = scope.feedback::<Vec<Arc<ClosedCommit>>>(Same);
    let (refused_loop, refused) = scope.feedback::<Vec<Refused>>(Same);

    let mark = |stage: &str| ports.frontiers.of_storage(stage);
    let received = noted(flight_source(scope, config.source, ports.source, published), mark(flight_source::NAME));
    let rolled = parquet_roll(received, parquet_roll::Feedback { committed, refused }, config.roll, ports.roll);
    let closed = noted(rolled.closed, mark(parquet_roll::NAME));
    let uploaded = noted(object_upload(closed, config.upload, ports.upload), mark(object_upload::NAME));
    let settled = catalog_commit(uploaded, ports.catalog);
    let committed = noted(settled.committed, mark(catalog_commit::NAME));
    index_trigger(noted(committed.clone(), mark(index_trigger::NAME)), ports.index);

    deliveries(committed.clone()).concat(rolled.published).connect_loop(published_loop);
    committed.connect_loop(committed_loop);
    settled.refused.connect_loop(refused_loop);
}

/// The deliveries of commits.
fn deliveries<'s>(stream: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>) -> Stream<'s, Epoch, Vec<DeliveryId>> {
    stream.unary::<CapacityContainerBuilder<Vec<DeliveryId>>, _, _, _>(Pipeline, "deliveries", |_capability, _info| {
        move |input, output| {
            input.for_each(|capability, commits| {
                let ids = commits.drain(..).flat_map(|commit| commit.deliveries.clone());
                output.session(&capability).give_iterator(ids);
            });
        }
    })
}
