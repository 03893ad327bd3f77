//! What may travel between two stages, and the streams that carry it.

use openwit_operators::batch::{Delivery, DurableBatch, NormalizedBatch, RawBatch, Reject, UniqueBatch};
use openwit_operators::epoch::Epoch;
use timely::dataflow::Stream;
use timely::dataflow::operators::Concatenate;

use crate::frontiers::{Mark, noted};

/// A stream of one type.
pub type Flow<'s, D> = Stream<'s, Epoch, Vec<D>>;

/// What can travel on an edge.
pub trait Travels: Clone + 'static {
    /// Its type, as wirings know it.
    const KIND: Kind;
    /// The edge that carries it.
    fn edge(flow: Flow<'_, Self>) -> Edge<'_>;
    /// What an edge carries, where it is this.
    fn flow(edge: Edge<'_>) -> Option<Flow<'_, Self>>;
}

macro_rules! kinds {
    ($($(#[doc = $meaning:literal])+ $kind:ident = $type:ty, $name:literal;)+) => {
        /// The type of what travels on an edge.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[doc = $meaning])+ $kind,)+ }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// Its name, as graphs are drawn and problems told.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)+ }
            }
        }

        /// A stream of any of the types.
        #[derive(Clone)]
        pub enum Edge<'s> { $($(#[doc = $meaning])+ $kind(Flow<'s, $type>),)+ }

        impl<'s> Edge<'s> {
            /// All batches of streams of one type; the first gives the type.
            pub fn joined(self, others: Vec<Edge<'s>>) -> Edge<'s> {
                match self { $(Edge::$kind(first) => {
                    let scope = first.scope();
                    let flows = others.into_iter().filter_map(<$type as Travels>::flow);
                    Edge::$kind(scope.concatenate([first].into_iter().chain(flows)))
                })+ }
            }
        }

        impl<'s> Edge<'s> {
            /// The same edge, its frontier noted.
            pub fn noted(self, mark: Mark) -> Edge<'s> {
                match self { $(Edge::$kind(flow) => Edge::$kind(noted(flow, mark)),)+ }
            }
        }

        $(impl Travels for $type {
            const KIND: Kind = Kind::$kind;

            fn edge(flow: Flow<'_, Self>) -> Edge<'_> {
                Edge::$kind(flow)
            }

            fn flow(edge: Edge<'_>) -> Option<Flow<'_, Self>> {
                if let Edge::$kind(flow) = edge { Some(flow) } else { None }
            }
        })+
    };
}

kinds! {
    /// Messages as they were read.
    Raw = RawBatch, "RawBatch";
    /// Messages as OTLP protobuf.
    Normalized = NormalizedBatch, "NormalizedBatch";
    /// A message that failed.
    Reject = Reject, "Reject";
    /// Messages without duplicates.
    Unique = UniqueBatch, "UniqueBatch";
    /// Messages that are in the log.
    Durable = DurableBatch, "DurableBatch";
    /// Rows on their way to storage.
    Delivery = Delivery, "Delivery";
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
