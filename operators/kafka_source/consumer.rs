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
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, warn};

use self::recreated::Recreated;
use self::throttle::Throttle;
use super::collector::{BatchLimits, Collector, Message};
use super::context::Context;
pub use super::context::Stats;
use super::gate::Gate;
use super::headers;
use super::pool::ArenaPool;
use super::resume::{Lost, Reset};
use super::topics::TopicPatterns;
use super::warm_up::{self, WarmUp};
use crate::batch::{RawBatch, RecalledBatch};
use crate::budget::{Budget, Load};
use crate::clock::Clock;
use crate::coverage::{OffsetSet, PartitionKey};
use crate::fault::Health;
use crate::kafka_client::{self, Complaints};
use crate::quota::Quotas;

mod ends;
mod flow;
mod partitions;
mod recreated;
mod throttle;

/// How long a call to the broker may take before it is tried again.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for the first answer of a broker takes: what a token waits for.
const FIRST_ANSWER_WAIT: Duration = Duration::from_millis(250);
/// How often it is told that there is none, and how long a broker has for its answer when a stop comes meanwhile.
const FIRST_ANSWER_TOLD: Duration = Duration::from_secs(5);
/// How long one poll waits: the latency of a command.
const POLL_WAIT: Duration = Duration::from_millis(10);
/// The same once nothing has come for `IDLE_AFTER`: a message ends the wait, and only a command may have to wait for it.
const IDLE_POLL_WAIT: Duration = Duration::from_millis(50);
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How long a stop tries to get its last commit through while the group rebalances.
const LAST_COMMIT_WAIT: Duration = Duration::from_secs(10);
/// How long the client may take to leave the group and close. With a broker it takes some round trips.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// Between two attempts to set the group's offsets back.
const SET_BACK_INTERVAL: Duration = Duration::from_secs(1);

/// Tells which offsets of a partition are durable already, in the local write-ahead log or in the catalog.
pub trait Covered: Send + Sync {
    /// The covered offsets of `partition`; an error is retried.
    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String>;

    /// The offsets of `partition` in the local write-ahead log: the dedup window was warmed up with their keys at the start.
    fn remembered(&self, partition: &PartitionKey) -> OffsetSet;

    /// True if the local write-ahead log was found to have lost records that were acknowledged.
    fn log_lost_records(&self) -> bool;
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
    /// What happens where retention removed messages before they were read.
    pub lost: Lost,
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
        let run = || Thread::start(config, ports, command_receiver, event_sender, wake).map(Thread::run);
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
    /// Which partitions are to wait because of what their messages' tenant or topic has sent.
    pub quotas: Option<Arc<Quotas>>,
    /// Counters.
    pub stats: Arc<Stats>,
}

struct Revoking {
    id: u64,
    keys: Vec<PartitionKey>,
    partitions: TopicPartitionList,
    since: Instant,
}

/// Something per topic and partition, as the client names them.
pub(super) type Places<T> = BTreeMap<Arc<str>, BTreeMap<i32, T>>;

struct Thread<W> {
    config: Config,
    ports: Ports,
    consumer: Option<Arc<BaseConsumer<Context>>>,
    commands: Receiver<Command>,
    events: Sender<Event>,
    wake: W,
    cluster: Arc<str>,
    /// Owned partitions.
    collectors: Places<Collector>,
    revoking: Option<Revoking>,
    next_revoke: u64,
    /// Partitions that resumed before the group's offset, and when to tell the group next.
    set_back: Vec<(PartitionKey, i64)>,
    set_back_at: Instant,
    /// Partitions of topics that were created anew not long ago.
    recreated: Recreated,
    /// Gained partitions that wait until the dedup window knows what came before.
    warm_ups: Vec<WarmUp>,
    /// What this process has emitted of partitions that it no longer owns.
    handled: BTreeMap<PartitionKey, OffsetSet>,
    /// First offsets that the broker had when the client last found some of its positions gone.
    lows: Places<i64>,
    /// With `until_end`: partitions not at their end offset yet.
    ends: Option<Places<i64>>,
    /// When to ask the group next for ends that others have reached; not before this process is one of it.
    ends_asked_at: Option<Instant>,
    /// End-of-partition events per partition number since its last message (see `note_end_of_partition`).
    eofs: BTreeMap<i32, usize>,
    /// Since when nothing is read because the budget is full.
    blocked_since: Option<Instant>,
    /// All partitions are paused.
    is_paused: bool,
    /// Partitions that are paused alone.
    gate: Gate,
    /// Partitions that are paused for a quota.
    throttle: Throttle,
    told_of_waiting: Instant,
    /// When the client last had something to say.
    came_at: Instant,
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
        // A subscription alone cannot leave topics out.
        client.set("topic.blacklist", config.topics.librdkafka_exclusions().join(","));
        let context = Context::new(ports.stats.clone(), login);
        let consumer: BaseConsumer<Context> =
            client.create_with_context(context).map_err(|error| format!("creating the Kafka consumer: {error}"))?;
        let mut thread = Thread {
            config,
            ports,
            consumer: Some(Arc::new(consumer)),
            commands,
            events,
            wake,
            cluster: "".into(),
            collectors: BTreeMap::new(),
            revoking: None,
            next_revoke: 0,
            set_back: Vec::new(),
            set_back_at: Instant::now(),
            recreated: Recreated::default(),
            warm_ups: Vec::new(),
            handled: BTreeMap::new(),
            lows: BTreeMap::new(),
            ends: None,
            eofs: BTreeMap::new(),
            blocked_since: None,
            is_paused: false,
            gate: Gate::default(),
            throttle: Throttle::default(),
            ends_asked_at: None,
            told_of_waiting: Instant::now(),
            came_at: Instant::now(),
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

    /// Runs until the consumer is closed. A fault is raised before the group is left: leaving waits for the group, and nothing else may.
    fn run(mut self) {
        if let Err(message) = self.serve() {
            self.ports.health.fail(super::NAME, message);
            self.leave();
        }
    }

    fn serve(&mut self) -> Result<(), String> {
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
            self.set_group_back();
            self.look_for_forgotten_offsets();
            self.look_for_ends_elsewhere();
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
            Command::Store(positions) => {
                self.store(&positions);
                self.recreated.note_stored(positions.iter());
            }
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

    /// Commits what is stored, on a thread of its own: a broker that is gone with the request in its hands makes the client wait for
    /// minutes, and this thread must not.
    fn commit_state_within(&self, wait: Duration) -> Result<(), String> {
        let Some(consumer) = self.consumer.clone() else { return Ok(()) };
        let (answer, answered) = std::sync::mpsc::channel();
        let commit = move || {
            let committed = match consumer.commit_consumer_state(CommitMode::Sync) {
                Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
                result => result.map_err(|error| error.to_string()),
            };
            drop(consumer);
            // Nobody may wait for it any more.
            let _ = answer.send(committed);
        };
        let spawned = std::thread::Builder::new().name("kafka-commit".into()).spawn(commit);
        spawned.map_err(|error| format!("no thread to commit on: {error}"))?;
        answered.recv_timeout(wait).unwrap_or_else(|_| Err("the brokers do not answer".to_owned()))
    }

    fn last_commit(&self, positions: &[(PartitionKey, i64)]) -> Result<(), String> {
        let since = Instant::now();
        loop {
            self.store(positions);
            match self.commit_state_within(LAST_COMMIT_WAIT.saturating_sub(since.elapsed())) {
                Ok(()) => return Ok(()),
                Err(error) if since.elapsed() >= LAST_COMMIT_WAIT => return Err(format!("committing offsets at stop: {error}")),
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
            drop(collector.close(&self.config.pool));
        }
    }

    fn poll(&mut self) -> Result<(), String> {
        self.poll_up_to(self.config.poll_records_max.max(1))
    }

    fn poll_up_to(&mut self, messages_max: usize) -> Result<(), String> {
        // Taken out for the loop, so that messages borrowed from it and the collectors can be used together.
        let consumer = self.consumer.take().expect("the consumer is dropped only when the thread ends");
        let now_ms = self.ports.clock.now_ms();
        let is_idle = !self.is_stopping && self.came_at.elapsed() > IDLE_AFTER;
        let mut wait = if is_idle { IDLE_POLL_WAIT } else { POLL_WAIT };
        let mut result = Ok(());
        for _ in 0..messages_max {
            match consumer.poll(wait) {
                Some(Ok(message)) if self.is_held(message.topic(), message.partition()) => {
                    // Reading on would leave a hole in what is read; a new start does not.
                    result = Err(format!("{}[{}] was read while it was paused", message.topic(), message.partition()));
                    break;
                }
                Some(Ok(message)) => {
                    if let Err(message) = self.collect(&message, now_ms) {
                        result = Err(message);
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => self.note_end_of_partition(partition),
                Some(Err(error)) => {
                    result = judge(error, &consumer.context().complaints);
                    break;
                }
                None => break,
            }
            if !wait.is_zero() {
                self.came_at = Instant::now();
            }
            wait = Duration::ZERO;
            if self.ports.budget.is_full() || self.gate.stands() {
                break;
            }
        }
        self.consumer = Some(consumer);
        result
    }

    fn collect(&mut self, message: &BorrowedMessage<'_>, now_ms: u64) -> Result<(), String> {
        let (topic, number) = (message.topic(), message.partition());
        let is_revoked = |revoking: &Revoking| revoking.partitions.find_partition(topic, number).is_some();
        if self.is_stopping || self.revoking.as_ref().is_some_and(is_revoked) {
            // Not emitted, so never committed: it will be read again.
            return Ok(());
        }
        let Some(collector) = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number)) else { return Ok(()) };
        let gap = collector.next()..message.offset();
        if !gap.is_empty() && !self.lows.is_empty() {
            self.skip_lost(topic, number, gap)?;
        }
        let Some(collector) = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number)) else { return Ok(()) };
        let taken = Message {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key(),
            payload: message.payload(),
        };
        let Some(bytes) = collector.push(&taken, headers::of(message), &self.config.pool, now_ms) else { return Ok(()) };
        self.ports.budget.collect(Load { bytes, messages: 1 });
        let next = collector.next();
        // Before it is closed: what it has is the same afterwards.
        if collector.lane().is_over(collector.open())
            && self.gate.note_over(collector.partition(), collector.lane(), Instant::now())
        {
            self.ports.stats.partition_full.fetch_add(1, Ordering::Relaxed);
        }
        let full = collector.is_full(&self.config.limits);
        let full = full.then(|| collector.close(&self.config.pool)).flatten();
        if let Some(batch) = full {
            self.emit(batch);
        }
        self.eofs.remove(&number);
        let end = self.ends.as_ref().and_then(|ends| ends.get(topic)?.get(&number));
        if end.is_some_and(|end| next >= *end) {
            self.check_ended();
        }
        Ok(())
    }

    fn emit(&self, batch: RawBatch) {
        self.send(Event::Batch(batch));
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
                closed.extend(collector.close(&self.config.pool));
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
