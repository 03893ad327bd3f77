//! The thread that owns one Kafka consumer: polls, collects batches, and serves the group protocol.
//!
//! It decides nothing about durability. The operator tells it which positions may be committed and when a revoked partition is
//! drained; it tells the operator what it read. Polling goes on whatever the graph does, so the group membership is kept.
//!
//! ```text
//! operator  -- Command::{Store, Drained, Stop, Close} -->  consumer thread
//! operator  <-- Event::{Batch, Revoked, Lost, Ended, Closed} ---  consumer thread
//! ```
//!
//! Commits go through `store_offsets` with auto-commit on and auto-store off: librdkafka repeats refused commits, and refuses positions
//! of partitions that are no longer owned. A synchronous commit follows at revoke and at stop.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tracing::{debug, info, warn};

use super::collector::{BatchLimits, Collector, Message};
pub use super::context::Stats;
use super::context::{Context, Rebalance, is_cooperative};
use super::headers;
use super::pool::ArenaPool;
use super::resume::{self, Known, Reset};
use super::topics::TopicPatterns;
use super::warm_up::{self, Gained, Round, WarmUp};
use crate::batch::{RawBatch, RecalledBatch};
use crate::budget::{Budget, Load};
use crate::clock::Clock;
use crate::coverage::{OffsetSet, PartitionKey, TopicKey};
use crate::fault::Health;
use crate::kafka_client::{self, Complaints};

/// How long a call to the broker may take before it is tried again.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for the first answer of a broker takes: what a token waits for.
const FIRST_ANSWER_WAIT: Duration = Duration::from_millis(250);
/// How often it is told that there is none, and how long a broker has for its answer when a stop comes meanwhile.
const FIRST_ANSWER_TOLD: Duration = Duration::from_secs(5);
/// How long one poll waits: the latency of a command.
const POLL_WAIT: Duration = Duration::from_millis(10);
/// Longer blocks pause the partitions: a pause throws the client's prefetched messages away, so it is not for short ones.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// How long a stop tries to get its last commit through while the group rebalances.
const LAST_COMMIT_WAIT: Duration = Duration::from_secs(10);
/// How long the client may take to leave the group and close. With a broker it takes some round trips.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Tells which offsets of a partition are durable already, in the local write-ahead log or in the catalog.
pub trait Covered: Send + Sync {
    /// The covered offsets of `partition`; an error is retried.
    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String>;

    /// The offsets of `partition` in the local write-ahead log: the dedup window was warmed up with their keys at the start.
    fn remembered(&self, partition: &PartitionKey) -> OffsetSet;
}

/// The consumer's settings.
#[derive(Clone)]
pub struct Config {
    /// librdkafka properties: brokers, group, security, fetch sizes.
    pub client: BTreeMap<String, String>,
    /// Which topics to read.
    pub topics: TopicPatterns,
    /// When a batch closes.
    pub limits: BatchLimits,
    /// Messages handled between two looks at commands and timers.
    pub poll_records_max: usize,
    /// Where a partition without history starts.
    pub reset: Reset,
    /// End at the offsets that the partitions have when the consumer starts.
    pub until_end: bool,
    /// Commit where a partition resumes if everything before is durable already: a run that was killed before its commit leaves the
    /// group behind what the log or the catalog holds. Not where offsets wait for publication, which the log alone does not prove.
    pub commit_resumed: bool,
    /// How long a revoke waits for its partitions to drain.
    pub revoke_wait: Duration,
    /// How much of what a former owner read is read once more for its dedup keys; `None` where duplicates are wanted.
    pub warm_up: Option<warm_up::Config>,
    /// Where the arenas come from.
    pub pool: ArenaPool,
}

/// From the operator to the consumer.
#[derive(Debug)]
pub enum Command {
    /// These positions may be committed.
    Store(Vec<(PartitionKey, i64)>),
    /// The revoke with this number is drained as far as it will be; commit these positions and give the partitions up.
    Drained(u64, Vec<(PartitionKey, i64)>),
    /// Read no more, but stay in the group.
    Stop,
    /// Commit these positions, leave the group, end.
    Close(Vec<(PartitionKey, i64)>),
}

/// From the consumer to the operator.
#[derive(Debug)]
pub enum Event {
    /// Messages of one partition.
    Batch(RawBatch),
    /// Messages of one partition that a former owner has handled, for their dedup keys: they come before any message behind them.
    Recalled(RecalledBatch),
    /// The group takes these partitions away: say `Drained` when what was emitted of them is committable.
    Revoked(u64, Vec<PartitionKey>),
    /// These partitions belong to somebody else already: nothing of them may be committed.
    Lost(Vec<PartitionKey>),
    /// Everything up to the end offsets seen at the start was handed out.
    Ended,
    /// The consumer has left the group; `Err` says which last commit failed.
    Closed(Result<(), String>),
}

/// The ends of the thread that the operator holds.
pub struct Handle {
    /// Commands to the consumer.
    pub commands: Sender<Command>,
    /// Events from the consumer.
    pub events: Receiver<Event>,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    /// Waits for the thread; it ends after `Closed`, or soon after a fault.
    pub fn join(self) {
        drop(self.commands);
        // A panic in the thread has raised a fault already.
        let _ = self.thread.join();
    }
}

/// Starts the consumer's thread. `wake` schedules the operator after an event.
pub fn spawn(config: Config, ports: Ports, wake: impl Fn() + Send + 'static) -> Result<Handle, std::io::Error> {
    let (commands, command_receiver) = std::sync::mpsc::channel();
    let (event_sender, events) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("kafka-consumer".into()).spawn(move || {
        let health = ports.health.clone();
        let run = || Thread::start(config, ports, command_receiver, event_sender, wake)?.run();
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(message)) => health.fail(super::NAME, message),
            Err(_) => health.fail(super::NAME, "the consumer thread panicked"),
        }
    })?;
    Ok(Handle { commands, events, thread })
}

/// What the consumer needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where faults go, and where they are seen.
    pub health: Health,
    /// The wall clock, for batch timeouts.
    pub clock: Arc<dyn Clock>,
    /// What is durable already.
    pub covered: Arc<dyn Covered>,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Counters.
    pub stats: Arc<Stats>,
}

struct Revoking {
    id: u64,
    keys: Vec<PartitionKey>,
    partitions: TopicPartitionList,
    since: Instant,
}

/// Where a partition starts.
struct Started {
    partition: PartitionKey,
    offset: i64,
    /// First offset that the group has handled and the broker still has.
    handled_from: Option<i64>,
    /// What the group has committed.
    committed: Option<i64>,
}

/// Something per topic and partition, as the client names them.
pub(super) type Places<T> = BTreeMap<Arc<str>, BTreeMap<i32, T>>;

struct Thread<W> {
    config: Config,
    ports: Ports,
    consumer: Option<BaseConsumer<Context>>,
    commands: Receiver<Command>,
    events: Sender<Event>,
    wake: W,
    cluster: Arc<str>,
    /// Owned partitions.
    collectors: Places<Collector>,
    revoking: Option<Revoking>,
    next_revoke: u64,
    /// Gained partitions that wait until the dedup window knows what came before.
    warm_ups: Vec<WarmUp>,
    /// What this process has emitted of partitions that it no longer owns.
    handled: BTreeMap<PartitionKey, OffsetSet>,
    /// First offsets that the broker had when the client last found some of its positions gone.
    lows: Places<i64>,
    /// With `until_end`: partitions not at their end offset yet.
    ends: Option<Places<i64>>,
    /// End-of-partition events per partition number since its last message (see `note_end_of_partition`).
    eofs: BTreeMap<i32, usize>,
    blocked_since: Option<Instant>,
    is_paused: bool,
    is_stopping: bool,
}

impl<W: Fn()> Thread<W> {
    fn start(config: Config, ports: Ports, commands: Receiver<Command>, events: Sender<Event>, wake: W) -> Result<Self, String> {
        let (mut client, login) = kafka_client::settings(&config.client);
        // Down to what it says of connections that brokers close; the context decides what is shown.
        client.set_log_level(RDKafkaLogLevel::Info);
        let owned = [
            ("enable.auto.commit", "true"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            // Every partition starts at a given offset, so this only says what follows offsets that retention removed: the oldest left.
            ("auto.offset.reset", "earliest"),
        ];
        for (name, value) in owned {
            client.set(name, value);
        }
        let context = Context::new(ports.stats.clone(), login);
        let consumer: BaseConsumer<Context> =
            client.create_with_context(context).map_err(|error| format!("creating the Kafka consumer: {error}"))?;
        let mut thread = Thread {
            config,
            ports,
            consumer: Some(consumer),
            commands,
            events,
            wake,
            cluster: "".into(),
            collectors: BTreeMap::new(),
            revoking: None,
            next_revoke: 0,
            warm_ups: Vec::new(),
            handled: BTreeMap::new(),
            lows: BTreeMap::new(),
            ends: None,
            eofs: BTreeMap::new(),
            blocked_since: None,
            is_paused: false,
            is_stopping: false,
        };
        thread.cluster = thread.wait_for_cluster()?;
        if thread.config.until_end {
            thread.ends = Some(thread.read_end_offsets()?);
        }
        let subscriptions = thread.config.topics.librdkafka_subscriptions();
        let subscriptions: Vec<&str> = subscriptions.iter().map(String::as_str).collect();
        let subscribed = thread.consumer().subscribe(&subscriptions);
        subscribed.map_err(|error| format!("subscribing to {subscriptions:?}: {error}"))?;
        Ok(thread)
    }

    fn consumer(&self) -> &BaseConsumer<Context> {
        self.consumer.as_ref().expect("the consumer is dropped only when the thread ends")
    }

    /// Waits until a broker tells the cluster's id; a broker that is away at the start is waited for.
    fn wait_for_cluster(&self) -> Result<Arc<str>, String> {
        let (brokers, mut told) = (self.config.client.get("bootstrap.servers"), Instant::now());
        loop {
            self.consumer().context().login.renew(self.consumer().client());
            if let Some(id) = self.consumer().client().fetch_cluster_id(FIRST_ANSWER_WAIT) {
                return Ok(id.into());
            }
            // The client's complaints come by polling; without any wait a poll ends at the first line of its log. Nothing is subscribed
            // to, so no message comes.
            while self.consumer().poll(POLL_WAIT).is_some() {}
            if told.elapsed() >= FIRST_ANSWER_TOLD {
                told = Instant::now();
                warn!(?brokers, why = self.why_nobody_answers(), "no Kafka broker answers yet");
                self.give_up_if_ending()?;
            }
        }
    }

    fn why_nobody_answers(&self) -> Option<String> {
        self.consumer().context().complaints.why_nobody_answers()
    }

    fn give_up_if_ending(&self) -> Result<(), String> {
        match self.ports.health.failed() || self.ports.health.stopping() {
            true => {
                let why = self.why_nobody_answers().map(|why| format!("; the last error: {why}")).unwrap_or_default();
                Err(format!("stopped before the Kafka broker answered{why}"))
            }
            false => Ok(()),
        }
    }

    /// The end offsets of all partitions of all matching topics, as they are now.
    fn read_end_offsets(&self) -> Result<Places<i64>, String> {
        let mut ends = Places::new();
        let metadata = self.retry("reading topic metadata", |consumer| consumer.fetch_metadata(None, CALL_TIMEOUT))?;
        for topic in metadata.topics().iter().filter(|topic| self.config.topics.matches(topic.name())) {
            let name: Arc<str> = topic.name().into();
            for partition in topic.partitions() {
                let (low, high) = self.watermarks(&name, partition.id())?;
                if low < high {
                    ends.entry(name.clone()).or_default().insert(partition.id(), high);
                }
            }
        }
        if ends.is_empty() {
            warn!("no matching topic holds a message, there is nothing to read");
        }
        Ok(ends)
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), String> {
        let doing = format!("reading the offsets of {topic}[{partition}]");
        self.retry(&doing, |consumer| consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT))
    }

    /// Repeats a call to the broker until it succeeds, or the process ends or is asked to.
    fn retry<T>(&self, doing: &str, call: impl Fn(&BaseConsumer<Context>) -> KafkaResult<T>) -> Result<T, String> {
        let mut wait = Duration::from_millis(100);
        loop {
            let error = match call(self.consumer()) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if self.ports.health.failed() || self.ports.health.stopping() {
                return Err(format!("{doing}: {error}"));
            }
            warn!(%error, doing, "broker call failed, trying again");
            self.consumer().context().login.renew(self.consumer().client());
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    fn run(mut self) -> Result<(), String> {
        self.check_ended();
        loop {
            if self.ports.health.failed() {
                self.leave();
                return Ok(());
            }
            while let Ok(command) = self.commands.try_recv() {
                if self.obey(command)? {
                    return Ok(());
                }
            }
            self.revive_client();
            self.answer_rebalances()?;
            self.look_for_lost_offsets()?;
            self.close_timed_out_batches();
            self.warm_up()?;
            if !self.wait_for_room()? {
                self.poll()?;
            }
        }
    }

    fn revive_client(&self) {
        self.consumer().context().login.renew(self.consumer().client());
        let servers = self.config.client.get("bootstrap.servers").map_or("", String::as_str);
        self.consumer().context().brokers.revive(self.consumer().client(), servers);
    }

    fn send(&self, event: Event) {
        // The operator is gone only when the process ends by a fault, which the loop sees.
        let _ = self.events.send(event);
        (self.wake)();
    }

    /// Returns true if the thread is done.
    fn obey(&mut self, command: Command) -> Result<bool, String> {
        match command {
            Command::Store(positions) => self.store(&positions),
            Command::Drained(id, positions) => {
                if self.revoking.as_ref().is_some_and(|revoking| revoking.id == id) {
                    self.give_up_revoked(&positions)?;
                }
            }
            Command::Stop => {
                self.is_stopping = true;
                self.warm_ups.clear();
                self.discard_collected();
                self.pause(true);
            }
            Command::Close(positions) => {
                let committed = self.last_commit(&positions);
                self.leave();
                self.send(Event::Closed(committed));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Hands positions to librdkafka's auto-commit, which refuses those of partitions no longer owned. Of a partition that was lost and
    /// is owned again, positions of the former time may still be under way: they would move the group back over another owner's commits.
    fn store(&self, positions: &[(PartitionKey, i64)]) {
        let is_current = |collector: &Collector, position: i64| collector.emitted().1.start <= position;
        let owned = positions.iter().filter(|(partition, position)| {
            self.collector_of(partition).is_some_and(|collector| is_current(collector, *position))
        });
        let list = position_list(owned);
        if list.count() > 0
            && let Err(error) = self.consumer().store_offsets(&list)
        {
            debug!(%error, "positions not stored: some partitions have just moved");
        }
    }

    fn collector_of(&self, partition: &PartitionKey) -> Option<&Collector> {
        let collector = self.collectors.get(&partition.topic.name)?.get(&partition.partition)?;
        (collector.partition() == partition).then_some(collector)
    }

    fn commit_now(&self, positions: &[(PartitionKey, i64)]) -> Result<(), KafkaError> {
        self.store(positions);
        match self.consumer().commit_consumer_state(CommitMode::Sync) {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
            result => result,
        }
    }

    fn last_commit(&self, positions: &[(PartitionKey, i64)]) -> Result<(), String> {
        let since = Instant::now();
        loop {
            match self.commit_now(positions) {
                Ok(()) => return Ok(()),
                Err(error) if since.elapsed() > LAST_COMMIT_WAIT => return Err(format!("committing offsets at stop: {error}")),
                Err(error) => {
                    debug!(%error, "last commit refused, trying again");
                    // Serves the group protocol, whose rebalance is the usual cause.
                    drop(self.consumer().poll(Duration::from_millis(100)));
                }
            }
        }
    }

    /// Leaves the group. Without its brokers the client may never close: then it is left to itself, and ends with the process.
    fn leave(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        consumer.context().closing.store(true, Ordering::Release);
        let (closed, is_closed) = std::sync::mpsc::channel::<()>();
        let close = move || {
            drop(consumer);
            drop(closed);
        };
        // Where there is no thread to be had, spawning drops what it was given: the consumer is closed here.
        let closing = std::thread::Builder::new().name("kafka-close".into()).spawn(close);
        if closing.is_ok() && is_closed.recv_timeout(LEAVE_WAIT) == Err(RecvTimeoutError::Timeout) {
            warn!(
                "the Kafka client does not close, its brokers may be away; the group misses this member after its session timeout"
            );
        }
    }

    fn discard_collected(&mut self) {
        // Their charges go with them.
        for collector in self.collectors.values_mut().flat_map(BTreeMap::values_mut) {
            drop(collector.close(&self.config.pool, &self.ports.budget));
        }
    }

    fn answer_rebalances(&mut self) -> Result<(), String> {
        if let Some(revoking) = &self.revoking {
            // Holding the revoke back holds the whole group back: give up after a bounded wait.
            if revoking.since.elapsed() < self.config.revoke_wait {
                return Ok(());
            }
            warn!("revoked partitions were not drained in time; their last records will be read again by the next owner");
            let keys = revoking.keys.clone();
            self.send(Event::Lost(keys));
            self.give_up_revoked(&[])?;
        }
        let context = self.consumer().context().clone();
        let mut rebalances = context.take_rebalances().into_iter();
        for rebalance in rebalances.by_ref() {
            match rebalance {
                Rebalance::Assign(partitions) => self.assign(partitions)?,
                Rebalance::Revoke(partitions) => self.begin_revoke(partitions)?,
            }
            if self.revoking.is_some() {
                break;
            }
        }
        // What came after a revoke waits until the revoke is answered.
        context.put_back(rebalances.collect());
        Ok(())
    }

    fn assign(&mut self, partitions: TopicPartitionList) -> Result<(), String> {
        let started = match self.starts_of(&partitions) {
            // A stop waits for nobody. What was not begun is read by the next owner, from where catalog and log end.
            Err(error) if self.was_asked_to_stop() => {
                info!(error, "stopping, the partitions assigned last are not read");
                Vec::new()
            }
            started => started?,
        };
        let (mut starts, mut resumed, mut gained) = (TopicPartitionList::new(), Vec::new(), Vec::new());
        for Started { partition, offset, handled_from, committed } in started {
            let topic = partition.topic.name.clone();
            let added = starts.add_partition_offset(&topic, partition.partition, Offset::Offset(offset));
            added.map_err(|error| format!("assigning {partition}: {error}"))?;
            info!(%partition, offset, "partition assigned");
            if self.config.commit_resumed && committed.is_none_or(|committed| committed < offset) {
                resumed.push((partition.clone(), offset));
            }
            if let Some(low) = handled_from.filter(|low| *low < offset) {
                gained.push(Gained { known: self.known(&partition), partition: partition.clone(), low, resume: offset });
            }
            let number = partition.partition;
            self.collectors.entry(topic).or_default().insert(number, Collector::new(partition, offset));
        }
        let cooperative = is_cooperative(self.consumer());
        let assigned = if cooperative { self.consumer().incremental_assign(&starts) } else { self.consumer().assign(&starts) };
        assigned.map_err(|error| format!("assigning partitions: {error}"))?;
        self.store(&resumed);
        self.begin_warm_up(gained)?;
        if self.is_paused || self.is_stopping {
            self.pause(true);
        }
        self.check_ended();
        Ok(())
    }

    fn was_asked_to_stop(&self) -> bool {
        self.ports.health.stopping() && !self.ports.health.failed()
    }

    fn starts_of(&self, partitions: &TopicPartitionList) -> Result<Vec<Started>, String> {
        let ask = |consumer: &BaseConsumer<Context>| consumer.committed_offsets(partitions.clone(), CALL_TIMEOUT);
        let committed = self.retry("reading committed offsets", ask)?;
        let start = |element: TopicPartitionListElem<'_>| {
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            self.start_of(&element.topic().into(), element.partition(), committed)
        };
        committed.elements().into_iter().map(start).collect()
    }

    /// What this process knows of a partition from its log, or because it owned it before.
    fn known(&self, partition: &PartitionKey) -> OffsetSet {
        let mut known = self.ports.covered.remembered(partition);
        for range in self.handled.get(partition).iter().flat_map(|set| set.ranges()) {
            known.insert(range);
        }
        known
    }

    fn begin_warm_up(&mut self, gained: Vec<Gained>) -> Result<(), String> {
        let Some(config) = self.config.warm_up.filter(|_| !self.is_stopping) else { return Ok(()) };
        let Some(warm_up) = WarmUp::begin(&self.config.client, config, gained)? else { return Ok(()) };
        self.consumer()
            .pause(&warm_up.held())
            .map_err(|error| format!("holding partitions until the dedup window is warm: {error}"))?;
        self.warm_ups.push(warm_up);
        Ok(())
    }

    /// Reads on for the dedup window's sake, and resumes the partitions that it now knows.
    fn warm_up(&mut self) -> Result<(), String> {
        if self.warm_ups.is_empty() || self.ports.budget.is_full() {
            return Ok(());
        }
        let mut warm_ups = std::mem::take(&mut self.warm_ups);
        let round = Round { messages_max: self.config.poll_records_max.max(1), ports: &self.ports, pool: &self.config.pool };
        for warm_up in &mut warm_ups {
            for batch in warm_up.poll(&round)? {
                self.send(Event::Recalled(batch));
            }
        }
        let (done, waiting): (Vec<_>, Vec<_>) = warm_ups.into_iter().partition(WarmUp::is_done);
        self.warm_ups = waiting;
        for warm_up in done {
            warm_up.tell_end(&self.ports);
            for Gained { partition, low, resume, .. } in warm_up.gained() {
                self.handled.entry(partition.clone()).or_default().insert(*low..*resume);
            }
            if !self.is_paused {
                let resumed = self.consumer().resume(&warm_up.held());
                resumed.map_err(|error| format!("resuming partitions whose dedup window is warm: {error}"))?;
            }
        }
        Ok(())
    }

    /// True while a partition waits for the dedup window.
    fn is_held(&self, topic: &str, partition: i32) -> bool {
        self.warm_ups.iter().any(|warm_up| warm_up.holds(topic, partition))
    }

    fn start_of(&self, topic: &Arc<str>, partition: i32, committed: Option<i64>) -> Result<Started, String> {
        let (low, high) = self.watermarks(topic, partition)?;
        let mut incarnation = 0u32;
        loop {
            let id: Arc<str> = if incarnation == 0 { "".into() } else { format!("~{incarnation}").into() };
            let key = TopicKey { cluster: self.cluster.clone(), name: topic.clone(), id };
            let key = PartitionKey { topic: key.into(), partition };
            let covered = self.covered(&key)?;
            let known = Known { committed, low, high, covered };
            if resume::is_recreated(&known) {
                warn!(partition = %key, high, "the topic was deleted and created anew: its offsets start over");
                incarnation += 1;
                continue;
            }
            let start = resume::start(&known, self.config.reset);
            if let Some(lost) = start.lost {
                note_lost(&self.ports.stats, &key, &lost);
            }
            if let Some(end) = self.ends.as_ref().and_then(|ends| ends.get(topic)?.get(&partition)) {
                let count = usize::try_from(end - start.offset).unwrap_or(0);
                self.ports.stats.total.fetch_add(count, Ordering::Relaxed);
            }
            let handled_from = known.handled_from(self.config.reset);
            return Ok(Started { partition: key, offset: start.offset, handled_from, committed });
        }
    }

    /// After the client found a position gone: asks what the broker still has. The messages behind the gap are not handed out before,
    /// as this thread polls for them.
    fn look_for_lost_offsets(&mut self) -> Result<(), String> {
        if !self.consumer().context().offset_reset.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let positions = self.collectors.values().flat_map(BTreeMap::values);
        let positions: Vec<(PartitionKey, i64)> = positions.map(|at| (at.partition().clone(), at.next())).collect();
        for (partition, next) in positions {
            let (low, high) = self.watermarks(&partition.topic.name, partition.partition)?;
            if high < next {
                let message =
                    format!("{partition} was read up to {next} and ends at {high} now: the topic was created anew, or cut");
                self.ports.health.fail_curable(super::NAME, message);
            }
            self.lows.entry(partition.topic.name.clone()).or_default().insert(partition.partition, low);
        }
        Ok(())
    }

    /// Tells of offsets that retention removed before they were read, and leaves them out of all coverage, so that an audit finds them.
    /// Those of `gap` that the broker still had are markers, or compacted away: they are accounted for as absent.
    fn skip_lost(&mut self, topic: &str, number: i32, gap: Range<i64>) {
        let low = self.lows.get(topic).and_then(|topic| topic.get(&number));
        let lost = gap.start..low.map_or(gap.start, |low| *low.min(&gap.end));
        let collector = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number));
        let Some(collector) = collector.filter(|_| !lost.is_empty()) else { return };
        note_lost(&self.ports.stats, collector.partition(), &lost);
        let before = collector.close(&self.config.pool, &self.ports.budget);
        collector.skip_to(lost.end);
        before.into_iter().for_each(|batch| self.emit(batch));
    }

    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String> {
        let mut wait = Duration::from_millis(100);
        loop {
            let error = match self.ports.covered.covered(partition) {
                Ok(covered) => return Ok(covered),
                Err(error) => error,
            };
            if self.ports.health.failed() || self.ports.health.stopping() {
                return Err(format!("reading the coverage of {partition}: {error}"));
            }
            warn!(%partition, error, "reading the catalog's coverage failed, trying again");
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    fn begin_revoke(&mut self, partitions: TopicPartitionList) -> Result<(), String> {
        let lost = self.consumer().assignment_lost();
        let mut keys = Vec::new();
        for element in partitions.elements() {
            let collector = self.collectors.get_mut(element.topic()).and_then(|topic| topic.get_mut(&element.partition()));
            let Some(collector) = collector else { continue };
            let (partition, emitted) = collector.emitted();
            self.handled.entry(partition.clone()).or_default().insert(emitted);
            keys.push(partition.clone());
            // Collected messages hold no epoch: the next owner reads them again.
            drop(collector.close(&self.config.pool, &self.ports.budget));
        }
        info!(partitions = keys.len(), lost, "partitions revoked");
        self.next_revoke += 1;
        self.revoking = Some(Revoking { id: self.next_revoke, keys: keys.clone(), partitions, since: Instant::now() });
        if lost {
            self.fence();
            self.send(Event::Lost(keys));
            return self.give_up_revoked(&[]);
        }
        self.send(Event::Revoked(self.next_revoke, keys));
        Ok(())
    }

    /// Takes positions back that librdkafka would commit as it gives partitions up: they are lost, and another owner has gone on.
    fn fence(&self) {
        let mut none = TopicPartitionList::new();
        for element in self.revoking.iter().flat_map(|revoking| revoking.partitions.elements()) {
            // Without an offset: nothing to be committed.
            none.add_partition(element.topic(), element.partition());
        }
        if let Err(error) = self.consumer().store_offsets(&none) {
            warn!(%error, "positions of lost partitions could not be taken back");
        }
    }

    fn give_up_revoked(&mut self, positions: &[(PartitionKey, i64)]) -> Result<(), String> {
        let Some(revoking) = self.revoking.take() else { return Ok(()) };
        if !positions.is_empty() {
            // One attempt: while the group refuses commits, waiting makes it worse for everybody.
            if let Err(error) = self.commit_now(positions) {
                self.ports.stats.commit_errors.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "commit at revoke refused; the next owner will read some records again, storage drops them");
            }
        }
        for element in revoking.partitions.elements() {
            if let Some(topic) = self.collectors.get_mut(element.topic()) {
                topic.remove(&element.partition());
            }
        }
        self.warm_ups.iter_mut().for_each(|warm_up| warm_up.remove(&revoking.partitions));
        let cooperative = is_cooperative(self.consumer());
        let given_up =
            if cooperative { self.consumer().incremental_unassign(&revoking.partitions) } else { self.consumer().unassign() };
        given_up.map_err(|error| format!("giving up revoked partitions: {error}"))
    }

    fn pause(&mut self, pause: bool) {
        let consumer = self.consumer();
        let resume = |assigned: TopicPartitionList| {
            let elements = assigned.elements();
            let free = elements.iter().filter(|element| !self.is_held(element.topic(), element.partition()));
            let mut list = TopicPartitionList::new();
            for element in free {
                list.add_partition(element.topic(), element.partition());
            }
            consumer.resume(&list)
        };
        let result = consumer.assignment().and_then(|assigned| if pause { consumer.pause(&assigned) } else { resume(assigned) });
        if let Err(error) = result {
            warn!(%error, pause, "pausing or resuming partitions failed");
        }
        self.is_paused = pause;
    }

    /// Waits while the budget is full; true if nothing should be read now.
    fn wait_for_room(&mut self) -> Result<bool, String> {
        if self.is_stopping {
            self.serve_group()?;
            return Ok(true);
        }
        let Some(since) = self.blocked_since else {
            if self.ports.budget.is_full() {
                self.ports.stats.buffer_full.fetch_add(1, Ordering::Relaxed);
                self.blocked_since = Some(Instant::now());
            }
            return Ok(self.blocked_since.is_some());
        };
        // Collected messages count against the budget and cannot drain by themselves: they are what may be filling it.
        self.close_all_batches();
        if self.ports.budget.has_room() {
            self.blocked_since = None;
            if self.is_paused {
                self.pause(false);
            }
            return Ok(false);
        }
        if !self.is_paused && since.elapsed() > PAUSE_AFTER {
            self.ports.stats.pauses.fetch_add(1, Ordering::Relaxed);
            self.pause(true);
        }
        if self.is_paused {
            self.serve_group()?;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Polls paused partitions, so that rebalances and commits are served; hardly ever a message prefetched before the pause comes.
    fn serve_group(&mut self) -> Result<(), String> {
        self.poll_up_to(1)
    }

    fn poll(&mut self) -> Result<(), String> {
        self.poll_up_to(self.config.poll_records_max.max(1))
    }

    fn poll_up_to(&mut self, messages_max: usize) -> Result<(), String> {
        // Taken out for the loop, so that messages borrowed from it and the collectors can be used together.
        let consumer = self.consumer.take().expect("the consumer is dropped only when the thread ends");
        let now_ms = self.ports.clock.now_ms();
        let mut wait = POLL_WAIT;
        let mut result = Ok(());
        for _ in 0..messages_max {
            match consumer.poll(wait) {
                Some(Ok(message)) if self.is_held(message.topic(), message.partition()) => {
                    // Reading on would leave a hole in what is read; a new start does not.
                    result = Err(format!("{}[{}] was read while it was paused", message.topic(), message.partition()));
                    break;
                }
                Some(Ok(message)) => self.collect(&message, now_ms),
                Some(Err(KafkaError::PartitionEOF(partition))) => self.note_end_of_partition(partition),
                Some(Err(error)) => {
                    result = judge(error, &consumer.context().complaints);
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
            if self.ports.budget.is_full() {
                break;
            }
        }
        self.consumer = Some(consumer);
        result
    }

    fn collect(&mut self, message: &BorrowedMessage<'_>, now_ms: u64) {
        let (topic, number) = (message.topic(), message.partition());
        let is_revoked = |revoking: &Revoking| revoking.partitions.find_partition(topic, number).is_some();
        if self.is_stopping || self.revoking.as_ref().is_some_and(is_revoked) {
            // Not emitted, so never committed: it will be read again.
            return;
        }
        let Some(collector) = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number)) else { return };
        let gap = collector.next()..message.offset();
        if !gap.is_empty() && !self.lows.is_empty() {
            self.skip_lost(topic, number, gap);
        }
        let Some(collector) = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number)) else { return };
        let taken = Message {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key(),
            payload: message.payload(),
        };
        let Some(bytes) = collector.push(&taken, headers::of(message), &self.config.pool, now_ms) else { return };
        self.ports.budget.collect(Load { bytes, messages: 1 });
        let next = collector.next();
        let full = collector.is_full(&self.config.limits);
        let full = full.then(|| collector.close(&self.config.pool, &self.ports.budget)).flatten();
        if let Some(batch) = full {
            self.emit(batch);
        }
        self.eofs.remove(&number);
        let end = self.ends.as_ref().and_then(|ends| ends.get(topic)?.get(&number));
        if end.is_some_and(|end| next >= *end) {
            self.check_ended();
        }
    }

    fn emit(&self, batch: RawBatch) {
        self.send(Event::Batch(batch));
    }

    /// The end offset may be a transaction marker, which is never handed out: the end-of-partition event stands in for it. The client
    /// names only the partition's number, so with several topics as many events are awaited as topics own that number.
    fn note_end_of_partition(&mut self, number: i32) {
        let Some(ends) = &mut self.ends else { return };
        let seen = self.eofs.entry(number).or_default();
        *seen += 1;
        let owners: Vec<&Arc<str>> =
            self.collectors.iter().filter(|(_, topic)| topic.contains_key(&number)).map(|(name, _)| name).collect();
        if *seen >= owners.len() {
            for topic in owners {
                ends.get_mut(topic).and_then(|topic| topic.remove(&number));
            }
            self.check_ended();
        }
    }

    /// With `until_end`: hands out what is collected and says so once every partition is at its end.
    fn check_ended(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        for (name, partitions) in ends.iter_mut() {
            let Some(topic) = self.collectors.get(name) else { continue };
            partitions.retain(|partition, end| topic.get(partition).is_none_or(|collector| collector.next() < *end));
        }
        ends.retain(|_, partitions| !partitions.is_empty());
        if ends.is_empty() {
            self.ends = None;
            self.close_all_batches();
            self.send(Event::Ended);
        }
    }

    fn close_timed_out_batches(&mut self) {
        let now_ms = self.ports.clock.now_ms();
        self.close_batches(|collector, limits| collector.deadline_ms(limits).is_some_and(|deadline| deadline <= now_ms));
    }

    fn close_all_batches(&mut self) {
        self.close_batches(|_, _| true);
    }

    fn close_batches(&mut self, which: impl Fn(&Collector, &BatchLimits) -> bool) {
        let mut closed = Vec::new();
        for collector in self.collectors.values_mut().flat_map(BTreeMap::values_mut) {
            if which(collector, &self.config.limits) {
                closed.extend(collector.close(&self.config.pool, &self.ports.budget));
            }
        }
        closed.into_iter().for_each(|batch| self.emit(batch));
    }
}

fn judge(error: KafkaError, complaints: &Complaints) -> Result<(), String> {
    match error {
        KafkaError::MessageConsumptionFatal(code) => Err(format!("the Kafka client cannot go on: {code}")),
        error => {
            // Those of the connection were told already, in more words.
            if let Some(unsaid) = complaints.due(&error.to_string()) {
                warn!(%error, unsaid, "Kafka reports an error, reading goes on");
            }
            Ok(())
        }
    }
}

fn note_lost(stats: &Stats, partition: &PartitionKey, lost: &Range<i64>) {
    stats.lost_offsets.fetch_add((lost.end - lost.start) as usize, Ordering::Relaxed);
    tracing::error!(%partition, from = lost.start, to = lost.end, "the broker's retention removed offsets before they were read");
}

fn position_list<'p>(positions: impl Iterator<Item = &'p (PartitionKey, i64)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    let mut seen = BTreeSet::new();
    for (partition, offset) in positions {
        assert!(seen.insert(partition), "{partition} is named twice in one commit");
        let added = list.add_partition_offset(&partition.topic.name, partition.partition, Offset::Offset(*offset));
        added.expect("an offset that was read is a valid offset");
    }
    list
}
