//! `dedup_window`: drops records whose key was seen from another record inside the window.
//!
//! # In
//! `NormalizedBatch`: accepted messages of one partition, with their 128-bit keys. `Recalled`: keys of messages that a former owner of
//! their partition has handled. `Remembered` (`dedup_window/remember.rs`): the keys that the write-ahead log remembers at a start.
//!
//! # Out
//! `UniqueBatch`: the same batch without the records found to be duplicates. Their offsets move to the `duplicates` of the batch's
//! coverage, so nothing is unaccounted for. A batch stays whole on its worker: keys travel to the worker that owns them, verdicts
//! travel back, payloads stay (design D-5).
//!
//! # Holds
//! The batches of open epochs until their verdicts are in, and one `window::Window` per worker: the keys it owns with the identity
//! (topic, partition, offset) and the record time of their winners, bounded by `bytes_max`.
//!
//! # Closes when
//! Epoch by epoch: an epoch's sightings are decided together when the frontier passed it, in the order of (topic, partition, offset).
//! So the least identity of an epoch wins, whichever worker read it first (design D-8). Recalled keys of the epoch come before all.
//! Nothing is decided before the logs of all processes have said all that they remember.
//!
//! # Fails when
//! The log's keys cannot be read, or it runs out of partition numbers (`window::TooManyPartitions`). A full window is no failure: the
//! oldest keys are forgotten early, and counted.
//!
//! # Invariants
//! - A record is dropped only if another record with its key, at most `window_ms` away in record time, passed before it.
//! - A record that *is* the remembered winner (same topic, partition, offset) is a redelivery and is never dropped.
//! - Decisions depend on the epochs, the records and their order, on nothing else. Memory decides only when `forced` counts.

pub mod remember;
mod table;
pub mod window;
mod winners;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, ConnectLoop, Feedback};
use timely::progress::Antichain;

use self::remember::Remembered;
use self::window::{PartitionIndex, Partitions, Progress, Sighting, TooManyPartitions, Window};
use crate::batch::{NormalizedBatch, Record, UniqueBatch};
use crate::coverage::{Coverage, PartitionKey};
use crate::epoch::{Epoch, Same};
use crate::fault::Health;
use crate::place::Place;

/// The stage's name in config, metrics and faults.
pub const NAME: &str = "dedup_window";

/// What an operator of this kind can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Two records with one key are duplicates when their record times are at most this far apart. Milliseconds, default 60,000.
    /// Too small: a producer's late retry is stored twice. Too large: memory; see `bytes_max`.
    pub window_ms: u64,
    /// Bytes the windows of a process may take, about 70 per record of the window. Default 256 MiB; each worker has a share of them, and
    /// less than 1 MiB for one counts as 1 MiB.
    /// At the limit the oldest keys are forgotten early, which `forced` counts: duplicates may pass, nothing is dropped wrongly.
    pub bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { window_ms: 60_000, bytes_max: 256 << 20 }
    }
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// What the write-ahead log remembers.
    pub remembered: remember::Feed,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Where faults go.
    pub health: Health,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records dropped.
    pub duplicates: AtomicU64,
    /// Keys remembered, over all workers.
    pub keys: AtomicU64,
    /// Bytes the windows hold, over all workers.
    pub bytes: AtomicU64,
    /// Keys recalled for partitions that were gained, over all workers.
    pub recalled: AtomicU64,
    /// Times that a window was full and forgot its oldest keys early. What is a duplicate then depends on the number of workers: each has
    /// a share of the memory.
    pub forced: AtomicU64,
}

impl Config {
    /// How far before a record's time its duplicates matter, in milliseconds: a window before it, with the tolerance for late records,
    /// and another one before that, to tell which of those in the first were duplicates themselves.
    pub fn reach_ms(&self) -> u64 {
        self.window_ms.saturating_add(window::kept_ms(self.window_ms))
    }

    /// About how many keys fit into the windows of a process.
    pub fn keys_max(&self) -> u64 {
        (self.bytes_max / window::BYTES_PER_WINNER) as u64
    }
}

/// The worker, of `peers` in all processes, that remembers `key`.
fn owner(key: u128, peers: usize) -> usize {
    // The key is a hash: any of its bits are good ones.
    ((key >> 64) as u64 % peers as u64) as usize
}

/// The keys of one batch that one worker owns. Every worker gets one per batch, without keys if need be: all hear of the progress of
/// record time that the batch makes, so verdicts do not depend on the number of workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Question {
    owner: usize,
    asker: usize,
    ticket: u64,
    partition: PartitionKey,
    /// First offset of the batch.
    start: i64,
    /// Median record time in Unix milliseconds and number of the batch's records.
    progress: Option<(i64, u64)>,
    /// Position in the batch, and what is asked about it; ascending by offset.
    keys: Vec<(u32, Asked)>,
}

/// The keys of one recalled batch that one worker owns; like `Question`, but nobody waits for an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recalled {
    owner: usize,
    partition: PartitionKey,
    start: i64,
    progress: Option<(i64, u64)>,
    keys: Vec<Asked>,
}

/// The keys of a batch that a former owner has handled, by the workers that remember them.
pub fn recalled_of(batch: &NormalizedBatch, epoch: Epoch, peers: usize) -> impl Iterator<Item = Recalled> {
    questions_of(batch, epoch, 0, 0, peers).into_iter().map(|question| {
        let Question { owner, partition, start, progress, keys, .. } = question;
        Recalled { owner, partition, start, progress, keys: keys.into_iter().map(|(_, asked)| asked).collect() }
    })
}

/// One record, as the window's owner needs to know it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Asked {
    offset: i64,
    time_ms: i64,
    key: u128,
}

impl Asked {
    fn sighting(&self, partition: PartitionIndex) -> Sighting {
        Sighting { key: self.key, time_ms: self.time_ms, partition, offset: self.offset }
    }
}

/// The positions in a batch that are duplicates, as one owner sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answer {
    asker: usize,
    ticket: u64,
    duplicates: Vec<u32>,
}

/// A batch that waits for its answers.
#[derive(Clone, Debug)]
struct Waiting {
    ticket: u64,
    answers: usize,
    batch: NormalizedBatch,
}

/// Drops duplicates within the window, over all workers of all processes.
///
/// Keys travel, batches stay: a batch is whole on its worker, so its coverage stays a plain range.
pub fn dedup_window<'s>(
    stream: Stream<'s, Epoch, Vec<NormalizedBatch>>,
    recalled: Stream<'s, Epoch, Vec<Recalled>>,
    config: Config,
    ports: Ports,
    place: Place,
) -> Stream<'s, Epoch, Vec<UniqueBatch>> {
    let (taken_handle, taken_back) = stream.scope().feedback::<Vec<()>>(Same);
    let remembered = remember::remember(taken_back, ports.clone(), place);
    let (waiting, questions) = ask(stream);
    let (answers, taken) = judge(Inputs { questions, recalled, remembered }, config, ports.clone(), place);
    taken.connect_loop(taken_handle);
    apply(waiting, answers, ports)
}

/// What the judge hears.
struct Inputs<'s> {
    questions: Stream<'s, Epoch, Vec<Question>>,
    recalled: Stream<'s, Epoch, Vec<Recalled>>,
    remembered: Stream<'s, Epoch, Vec<Remembered>>,
}

type Asking<'s> = (Stream<'s, Epoch, Vec<Waiting>>, Stream<'s, Epoch, Vec<Question>>);

/// Sends each key to its owner.
fn ask<'s>(stream: Stream<'s, Epoch, Vec<NormalizedBatch>>) -> Asking<'s> {
    let scope = stream.scope();
    let (index, peers) = (scope.index(), scope.peers());
    let mut builder = OperatorBuilder::new(format!("{NAME}.ask"), scope);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, waiting) = builder.new_output::<Vec<Waiting>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Waiting>>>::from(output);
    let (question_output, questions) = builder.new_output::<Vec<Question>>();
    let mut question_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Question>>>::from(question_output);
    builder.build(move |_capabilities| {
        let mut ticket = 0;
        move |_frontiers| {
            let mut output = output.activate();
            let mut question_output = question_output.activate();
            input.for_each(|capability, batches| {
                let epoch = *capability.least().expect("every batch is sent under a capability");
                let mut session = output.session(&capability);
                let mut question_session = question_output.session(&capability);
                for batch in batches.drain(..) {
                    ticket += 1;
                    let questions = questions_of(&batch, epoch, index, ticket, peers);
                    session.give(Waiting { ticket, answers: questions.len(), batch });
                    question_session.give_iterator(questions.into_iter());
                }
                session.flush();
                question_session.flush();
            });
        }
    });
    (waiting, questions)
}

fn questions_of(batch: &NormalizedBatch, epoch: Epoch, asker: usize, ticket: u64, peers: usize) -> Vec<Question> {
    let mut keys: Vec<Vec<(u32, Asked)>> = (0..peers).map(|_| Vec::with_capacity(batch.records.len() / peers + 16)).collect();
    let time_of = |record: &Record| if record.timestamp_ms >= 0 { record.timestamp_ms } else { epoch.0 as i64 };
    for (position, record) in batch.records.iter().enumerate() {
        let asked = Asked { offset: record.offset, time_ms: time_of(record), key: record.key };
        keys[owner(record.key, peers)].push((position as u32, asked));
    }
    let progress = Progress::of(epoch.0, batch.records.iter().map(time_of)).map(|progress| (progress.time_ms, progress.records));
    let Coverage { partition, start, .. } = &batch.coverage;
    let question = |(owner, keys)| Question { owner, asker, ticket, partition: partition.clone(), start: *start, progress, keys };
    keys.into_iter().enumerate().map(question).collect()
}

/// Decides an epoch's questions once all of them are here, in the order of (topic, partition, offset): the least one wins, whatever
/// the number of workers and the order of arrival (design D-8). The frontier of the second stream says what was taken of what the logs
/// remember.
fn judge<'s>(
    inputs: Inputs<'s>,
    config: Config,
    ports: Ports,
    place: Place,
) -> (Stream<'s, Epoch, Vec<Answer>>, Stream<'s, Epoch, Vec<()>>) {
    let Inputs { questions, recalled, remembered } = inputs;
    let mut builder = OperatorBuilder::new(format!("{NAME}.judge"), questions.scope());
    let mut input = builder.new_input(questions, Exchange::new(|question: &Question| question.owner as u64));
    let mut recalled_input = builder.new_input(recalled, Exchange::new(|recalled: &Recalled| recalled.owner as u64));
    let (output, answers) = builder.new_output::<Vec<Answer>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Answer>>>::from(output);
    // What is remembered has epochs of before the start: the stages behind need not hear of them.
    let (_taken, taken) = builder.new_output_connection::<Vec<()>, _>([]);
    let to_taken = [(1, Antichain::from_elem(Same))];
    let exchange = Exchange::new(|remembered: &Remembered| remembered.owner as u64);
    let mut remembered_input = builder.new_input_connection(remembered, exchange, to_taken);
    builder.build(move |_capabilities| {
        let mut open: BTreeMap<Epoch, Opened> = BTreeMap::new();
        let mut former: BTreeMap<Epoch, Vec<Remembered>> = BTreeMap::new();
        let mut judge = Judge::new(config, ports, place);
        // Capabilities of epochs that could not be decided: never dropped, so the frontier never passes them.
        let mut failed: Vec<Capability<Epoch>> = Vec::new();
        move |frontiers| {
            // 1. Keep questions until their epoch is complete.
            input.for_each(|capability, questions| {
                let capability = capability.retain_least(0).expect("every question is sent under a capability");
                Opened::of(&mut open, capability).questions.append(questions);
            });
            recalled_input.for_each(|capability, recalled| {
                let capability = capability.retain_least(0).expect("every recalled key is sent under a capability");
                Opened::of(&mut open, capability).recalled.append(recalled);
            });
            remembered_input.for_each(|capability, remembered| {
                let epoch = *capability.least().expect("every remembered key is sent under a capability");
                former.entry(epoch).or_default().append(remembered);
            });
            // 2. Remember what the logs do, epoch by epoch over all processes.
            let [asked, recalled, remembered] = frontiers else { unreachable!("there are three inputs") };
            while let Some(entry) = former.first_entry().filter(|entry| !remembered.less_equal(entry.key())) {
                if let Err(error) = judge.remember(entry.remove()) {
                    judge.ports.health.fail(NAME, error);
                    return;
                }
            }
            // 3. When they have said all, answer the epochs that the frontier has closed, in order.
            let mut output = output.activate();
            while let Some(entry) = open.first_entry().filter(|_| remembered.frontier().is_empty()) {
                if [asked, recalled].iter().any(|frontier| frontier.less_equal(entry.key())) {
                    break;
                }
                let (epoch, Opened { capability, recalled, questions }) = entry.remove_entry();
                let decided = judge.recall(epoch, recalled).and_then(|()| judge.decide(epoch, questions));
                match decided {
                    Ok(answers) => {
                        let mut session = output.session(&capability);
                        session.give_iterator(answers.into_iter());
                        session.flush();
                    }
                    Err(error) => {
                        judge.ports.health.fail(NAME, format!("epoch {epoch}: {error}"));
                        failed.push(capability);
                    }
                }
            }
        }
    });
    (answers, taken)
}

/// What is known of an epoch that is not complete yet.
struct Opened {
    capability: Capability<Epoch>,
    recalled: Vec<Recalled>,
    questions: Vec<Question>,
}

impl Opened {
    fn of(open: &mut BTreeMap<Epoch, Opened>, capability: Capability<Epoch>) -> &mut Opened {
        let empty = |capability| Opened { capability, recalled: Vec::new(), questions: Vec::new() };
        open.entry(*capability.time()).or_insert_with(|| empty(capability))
    }
}

/// Decides for the keys that one worker owns.
struct Judge {
    window: Window,
    /// The numbers by which the window knows partitions.
    partitions: Partitions,
    ports: Ports,
    noted_keys: u64,
    noted_bytes: u64,
    noted_forced: u64,
}

impl Judge {
    fn new(config: Config, ports: Ports, place: Place) -> Self {
        let window = Window::new(Config { bytes_max: config.bytes_max / place.workers.max(1), ..config });
        Judge { window, partitions: Partitions::default(), ports, noted_keys: 0, noted_bytes: 0, noted_forced: 0 }
    }

    /// Remembers what the logs of all processes remember of some epochs.
    fn remember(&mut self, mut remembered: Vec<Remembered>) -> Result<(), TooManyPartitions> {
        remembered.sort_by_key(Remembered::order);
        let mut sightings = Vec::new();
        for Remembered { epoch, progress, partitions, keys, .. } in remembered {
            if let Some((time_ms, records)) = progress {
                self.window.advance(Progress { epoch_ms: epoch.0, time_ms, records });
            }
            let numbers: Result<Vec<_>, _> = partitions.iter().map(|partition| self.partitions.index(partition)).collect();
            let numbers = numbers?;
            sightings.clear();
            sightings.extend(keys.iter().map(|(partition, asked)| asked.sighting(numbers[*partition as usize])));
            self.window.remember(&sightings);
        }
        self.note();
        Ok(())
    }

    /// Goes over keys that a former owner has decided, as it did: what it took for a duplicate is no winner here either.
    fn recall(&mut self, epoch: Epoch, mut recalled: Vec<Recalled>) -> Result<(), TooManyPartitions> {
        recalled.sort_by(|one, other| (&one.partition, one.start).cmp(&(&other.partition, other.start)));
        let (mut sightings, mut verdicts) = (Vec::new(), Vec::new());
        for Recalled { partition, progress, keys, .. } in recalled {
            if let Some((time_ms, records)) = progress {
                self.window.advance(Progress { epoch_ms: epoch.0, time_ms, records });
            }
            let partition = self.partitions.index(&partition)?;
            sightings.clear();
            sightings.extend(keys.iter().map(|asked| asked.sighting(partition)));
            self.window.observe(&sightings, &mut verdicts);
            self.ports.stats.recalled.fetch_add(keys.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn decide(&mut self, epoch: Epoch, mut questions: Vec<Question>) -> Result<Vec<Answer>, TooManyPartitions> {
        questions.sort_by(|one, other| (&one.partition, one.start).cmp(&(&other.partition, other.start)));
        let (mut sightings, mut verdicts) = (Vec::new(), Vec::new());
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            if let Some((time_ms, records)) = question.progress {
                self.window.advance(Progress { epoch_ms: epoch.0, time_ms, records });
            }
            let partition = self.partitions.index(&question.partition)?;
            sightings.clear();
            sightings.extend(question.keys.iter().map(|(_, asked)| asked.sighting(partition)));
            self.window.observe(&sightings, &mut verdicts);
            let judged = question.keys.iter().zip(&verdicts);
            let duplicates = judged.filter(|(_, is_duplicate)| **is_duplicate).map(|((position, _), _)| *position).collect();
            answers.push(Answer { asker: question.asker, ticket: question.ticket, duplicates });
        }
        self.note();
        Ok(answers)
    }

    /// Adds this window's share to the process's gauges.
    fn note(&mut self) {
        let (keys, bytes) = (self.window.len() as u64, self.window.bytes() as u64);
        let forced = self.window.stats().forced;
        self.ports.stats.forced.fetch_add(forced - self.noted_forced, Ordering::Relaxed);
        self.noted_forced = forced;
        self.ports.stats.keys.fetch_add(keys.wrapping_sub(self.noted_keys), Ordering::Relaxed);
        self.ports.stats.bytes.fetch_add(bytes.wrapping_sub(self.noted_bytes), Ordering::Relaxed);
        (self.noted_keys, self.noted_bytes) = (keys, bytes);
    }
}

/// What is known of one batch in `apply`; answers may come before the batch does.
#[derive(Default)]
struct Stashed {
    waiting: Option<(Capability<Epoch>, Waiting)>,
    answers: usize,
    duplicates: Vec<u32>,
}

/// Takes the duplicates out of each batch once all owners have answered.
fn apply<'s>(
    waiting: Stream<'s, Epoch, Vec<Waiting>>,
    answers: Stream<'s, Epoch, Vec<Answer>>,
    ports: Ports,
) -> Stream<'s, Epoch, Vec<UniqueBatch>> {
    let mut builder = OperatorBuilder::new(format!("{NAME}.apply"), waiting.scope());
    let mut batch_input = builder.new_input(waiting, Pipeline);
    let mut answer_input = builder.new_input(answers, Exchange::new(|answer: &Answer| answer.asker as u64));
    let (output, unique) = builder.new_output::<Vec<UniqueBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<UniqueBatch>>>::from(output);
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<u64, Stashed> = BTreeMap::new();
        move |_frontiers| {
            // 1. Bring batches and answers together.
            let mut ready = BTreeSet::new();
            batch_input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                for waiting in batches.drain(..) {
                    let ticket = waiting.ticket;
                    ready.insert(ticket);
                    stash.entry(ticket).or_default().waiting = Some((capability.clone(), waiting));
                }
            });
            answer_input.for_each(|_capability, answers| {
                for mut answer in answers.drain(..) {
                    ready.insert(answer.ticket);
                    let stashed = stash.entry(answer.ticket).or_default();
                    stashed.answers += 1;
                    stashed.duplicates.append(&mut answer.duplicates);
                }
            });
            // 2. Send what is complete.
            let mut output = output.activate();
            for ticket in ready {
                let is_complete =
                    |stashed: &Stashed| stashed.waiting.as_ref().is_some_and(|(_, waiting)| waiting.answers == stashed.answers);
                if !stash.get(&ticket).is_some_and(is_complete) {
                    continue;
                }
                let Some(Stashed { waiting: Some((capability, waiting)), duplicates, .. }) = stash.remove(&ticket) else {
                    continue;
                };
                ports.stats.duplicates.fetch_add(duplicates.len() as u64, Ordering::Relaxed);
                let mut session = output.session(&capability);
                session.give(UniqueBatch(without(waiting.batch, duplicates)));
                session.flush();
            }
        }
    });
    unique
}

/// The batch without the records at `duplicates`, whose offsets move to the coverage.
fn without(mut batch: NormalizedBatch, mut duplicates: Vec<u32>) -> NormalizedBatch {
    if duplicates.is_empty() {
        return batch;
    }
    duplicates.sort_unstable();
    batch.coverage.duplicates = duplicates.iter().map(|position| batch.records[*position as usize].offset).collect();
    let mut position = 0;
    batch.records.retain(|_| {
        position += 1;
        duplicates.binary_search(&(position - 1)).is_err()
    });
    batch
}

#[cfg(test)]
#[path = "dedup_window/tests.rs"]
mod tests;
