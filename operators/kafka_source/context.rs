//! What the Kafka client calls back: rebalances, statistics, errors, its log.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, warn};

use super::flows::Flows;
use super::latency::Histogram;
use crate::kafka_client::{BrokerWatch, Complaints, Login};

/// Counters and the progress towards the end offsets; written by the consumer and its operator, read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages emitted into the graph.
    pub messages: AtomicUsize,
    /// Their key, payload and header bytes.
    pub bytes: AtomicUsize,
    /// Times all partitions were paused because the budget stayed full.
    pub pauses: AtomicUsize,
    /// Times reading stood, or a partition was paused, because the partition had more than its share.
    pub partition_full: AtomicUsize,
    /// Partition by partition: what is in flight, pauses.
    pub flows: Flows,
    /// Times reading stopped because the budget was full.
    pub buffer_full: AtomicUsize,
    /// Commits the broker refused.
    pub commit_errors: AtomicUsize,
    /// Messages in Kafka behind the last committed position, by the client's own statistics; as of the last second or so.
    pub lag: AtomicUsize,
    /// Offsets that retention removed before they were read.
    pub lost_offsets: AtomicUsize,
    /// Messages read once more to warm up the dedup window.
    pub recalled: AtomicUsize,
    /// Milliseconds that gained partitions waited for their warm-up, all assignments together.
    pub warm_up_ms: AtomicUsize,
    /// How long messages took from the poll until their offsets could be committed.
    pub committable: Histogram,
    /// With `until_end`: messages between the start positions and the end offsets.
    pub total: AtomicUsize,
}

impl Stats {
    pub(super) fn note_warm_up(&self, waited: Duration) {
        self.warm_up_ms.fetch_add(waited.as_millis() as usize, Ordering::Relaxed);
    }
}

/// What the group decided.
pub(super) enum Rebalance {
    /// These partitions are this member's.
    Assign(TopicPartitionList),
    /// They no longer are.
    Revoke(TopicPartitionList),
}

/// Records rebalances instead of answering them: a revoke is answered only when its data is durable.
pub(super) struct Context {
    rebalances: Mutex<Vec<Rebalance>>,
    /// Set once the group is being left: from then on rebalances are answered at once.
    pub closing: AtomicBool,
    /// Set when the client found a position that the broker does not have, and went to the first one it has.
    pub offset_reset: AtomicBool,
    /// Sees when the client has lost all its brokers.
    pub brokers: BrokerWatch,
    /// Hands the client its tokens.
    pub login: Login,
    /// What the client complains of.
    pub complaints: Complaints,
    stats: Arc<Stats>,
}

impl Context {
    pub fn new(stats: Arc<Stats>, login: Login) -> Self {
        let (closing, offset_reset) = (AtomicBool::new(false), AtomicBool::new(false));
        let (brokers, complaints) = (BrokerWatch::default(), Complaints::default());
        Context { rebalances: Mutex::default(), closing, offset_reset, brokers, login, complaints, stats }
    }

    /// Rebalances that were not answered yet, in their order.
    pub fn take_rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut *self.rebalances())
    }

    /// Puts back what cannot be answered now, before what has come meanwhile.
    pub fn put_back(&self, rebalances: Vec<Rebalance>) {
        self.rebalances().splice(0..0, rebalances);
    }

    fn rebalances(&self) -> MutexGuard<'_, Vec<Rebalance>> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "OFFSET" {
            self.offset_reset.store(true, Ordering::Release);
        }
        match level {
            _ if facility == "FAIL" => self.complaints.note_log("kafka client", message),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                warn!(facility, "kafka client: {message}");
            }
            _ => debug!(facility, "kafka client: {message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.brokers.note(&statistics);
        // Partitions of other members are reported without a lag, as -1.
        let lags = statistics.topics.values().flat_map(|topic| topic.partitions.values()).map(|partition| partition.consumer_lag);
        let lag: i64 = lags.filter(|lag| *lag > 0).sum();
        self.stats.lag.store(lag as usize, Ordering::Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is asked for (see `note_end_of_partition`), not an error.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        self.complaints.note("kafka client", &error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let assign = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            // Dropping the consumer polls until the group is left; an unanswered revoke would make it wait forever.
            let answered =
                if is_cooperative(consumer) && !assign { consumer.incremental_unassign(partitions) } else { consumer.unassign() };
            answered.unwrap_or_else(|error| debug!(%error, "unassign while leaving the group"));
            return;
        }
        let event = if assign { Rebalance::Assign(partitions.clone()) } else { Rebalance::Revoke(partitions.clone()) };
        self.rebalances().push(event);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        // librdkafka repeats refused positions with the next timer commit, as they stay stored.
        if let Err(error) = result
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
        {
            self.stats.commit_errors.fetch_add(1, Ordering::Relaxed);
            debug!(%error, "offset commit refused, it will be repeated");
        }
    }
}

/// True if the group moves single partitions and not all at once.
pub(super) fn is_cooperative(consumer: &BaseConsumer<Context>) -> bool {
    matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative)
}
