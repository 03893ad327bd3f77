//! What the write-ahead log remembers, on its way to the workers that own the keys: to those of other processes as well.
//!
//! ```text
//! log's keys > thread `dedup-keys` > remember (a worker of the process) ==by owner==> judge
//!                                        ^                                              |
//!                                        +----------- taken (frontier only) ------------+
//! ```
//!
//! Keys travel in the order in which they were logged, under the second in which their epoch lies, so that the logs of several processes
//! come together in the order of their epochs. What is under way is bounded: a process that is ahead waits for the others.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tracing::info;

use super::window::Progress;
use super::{Asked, NAME, Ports, owner};
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::fault::{Health, chain, panic_text};
use crate::place::Place;
use crate::wal_commit::keys::RememberedKey;

/// Keys of one message at most: enough that messages cost nothing, few enough that a worker is not held up.
const PAGE_KEYS: usize = 8_192;

/// Pages that the thread is ahead.
const PAGES_AHEAD: usize = 8;

/// Keys under way that not all owners have taken yet, about 40 bytes each.
const UNDER_WAY_MAX: usize = 64 * PAGE_KEYS;

/// Keys emitted per scheduling.
const KEYS_PER_SCHEDULING: usize = 4 * PAGE_KEYS;

/// Epochs that travel together: each step of a frontier has a cost, a second of keys is few MiB.
const TOGETHER_MS: u64 = 1_000;

/// How long the operator waits for the thread.
const WAIT: Duration = Duration::from_millis(2);

/// Keys of one epoch that one worker owns. Every worker gets one of each page, without keys if need be: all hear of its progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub owner: usize,
    /// Whose log it was.
    process: usize,
    /// Which page of it.
    page: u64,
    pub epoch: Epoch,
    /// Median record time in Unix milliseconds and number of the page's records.
    pub progress: Option<(i64, u64)>,
    pub partitions: Vec<PartitionKey>,
    /// Each with a place in `partitions`.
    pub keys: Vec<(u32, Asked)>,
}

impl Remembered {
    /// The order in which pages are remembered: over all logs that of their epochs, in each log that in which they were logged.
    pub fn order(&self) -> (Epoch, usize, u64) {
        (self.epoch, self.process, self.page)
    }
}

/// Keys of one epoch, as they were logged.
struct Page {
    epoch: Epoch,
    keys: Vec<RememberedKey>,
}

impl Page {
    /// The page's keys by their owners.
    fn remembered(self, number: u64, place: Place) -> impl Iterator<Item = Remembered> {
        let Page { epoch, keys } = self;
        let time_of = |key: &RememberedKey| if key.timestamp_ms >= 0 { key.timestamp_ms } else { epoch.0 as i64 };
        let progress = Progress::of(epoch.0, keys.iter().map(time_of)).map(|progress| (progress.time_ms, progress.records));
        let empty = |owner| {
            let (partitions, keys) = (Vec::new(), Vec::new());
            Remembered { owner, process: place.process, page: number, epoch, progress, partitions, keys }
        };
        let mut owners: Vec<Remembered> = (0..place.peers).map(empty).collect();
        for key in &keys {
            let Remembered { partitions, keys, .. } = &mut owners[owner(key.key, place.peers)];
            // Keys of a batch follow each other.
            let known = partitions.iter().rposition(|partition| *partition == key.partition);
            let partition = known.unwrap_or_else(|| {
                partitions.push(key.partition.clone());
                partitions.len() - 1
            });
            keys.push((partition as u32, Asked { offset: key.offset, time_ms: time_of(key), key: key.key }));
        }
        owners.into_iter()
    }
}

/// The keys of a log on their way to the operator, which takes them once.
#[derive(Clone, Default)]
pub struct Feed(Arc<Mutex<Option<Receiver<Page>>>>);

impl Feed {
    /// Starts the thread that reads `keys`; it ends with them, or with the operator.
    pub fn start<E: std::error::Error>(
        keys: impl Iterator<Item = Result<RememberedKey, E>> + Send + 'static,
        health: Health,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(PAGES_AHEAD);
        let thread = std::thread::Builder::new().name("dedup-keys".into()).spawn(move || {
            let read = catch_unwind(AssertUnwindSafe(|| read(keys, &sender)));
            // Raised before the channel closes: its end would look like the end of the keys.
            match read {
                Ok(Ok(())) => {}
                Ok(Err(error)) => health.fail(NAME, format!("reading the dedup keys of the write-ahead log: {}", chain(&error))),
                Err(panic) => health.fail(NAME, format!("the reader of keys panicked: {}", panic_text(panic.as_ref()))),
            }
            drop(sender);
        })?;
        Ok((Feed(Arc::new(Mutex::new(Some(receiver)))), thread))
    }

    /// The same, read at once into memory: for tests whose schedule is theirs.
    pub fn loaded<E: std::error::Error>(keys: impl Iterator<Item = Result<RememberedKey, E>>) -> Result<Self, E> {
        let keys = keys.collect::<Result<Vec<_>, E>>()?;
        let (sender, receiver) = sync_channel(keys.len());
        read(keys.into_iter().map(Ok::<_, E>), &sender)?;
        Ok(Feed(Arc::new(Mutex::new(Some(receiver)))))
    }

    fn take(&self) -> Option<Receiver<Page>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn read<E>(keys: impl Iterator<Item = Result<RememberedKey, E>>, pages: &SyncSender<Page>) -> Result<(), E> {
    let mut page = Page { epoch: Epoch(0), keys: Vec::new() };
    for key in keys {
        let key = key?;
        if (key.epoch != page.epoch || page.keys.len() >= PAGE_KEYS) && !page.keys.is_empty() {
            let full = std::mem::replace(&mut page, Page { epoch: key.epoch, keys: Vec::new() });
            if pages.send(full).is_err() {
                // Nobody wants them any more: the graph has ended.
                return Ok(());
            }
        }
        page.epoch = key.epoch;
        page.keys.push(key);
    }
    if !page.keys.is_empty() {
        let _ = pages.send(page);
    }
    Ok(())
}

/// How far the sending is.
struct Sending {
    pages: Receiver<Page>,
    /// A page that has to wait.
    next: Option<Page>,
    sent: u64,
    keys: u64,
    /// Keys by the times that `taken` has not passed.
    under_way: BTreeMap<Epoch, usize>,
    /// All of these.
    under_way_keys: usize,
}

enum Turn {
    Page(Epoch, Page),
    /// The next one is of this time, and has to wait until less is under way.
    Full(Epoch),
    /// None yet.
    Wait,
    End,
}

impl Sending {
    /// The next page that may go, and when: never before `open`.
    fn turn(&mut self, open: Epoch) -> Turn {
        let page = match self.next.take().map_or_else(|| self.pages.try_recv(), Ok) {
            Ok(page) => page,
            Err(TryRecvError::Empty) => return Turn::Wait,
            Err(TryRecvError::Disconnected) => return Turn::End,
        };
        // A log that a process with a slower clock went on with goes back in time; a frontier cannot.
        let time = Epoch(page.epoch.0 / TOGETHER_MS * TOGETHER_MS).max(open);
        // What is of this very time goes in any case: nobody can take it before it is complete.
        let before = self.under_way_keys - self.under_way.get(&time).copied().unwrap_or(0);
        if before >= UNDER_WAY_MAX {
            self.next = Some(page);
            return Turn::Full(time);
        }
        *self.under_way.entry(time).or_default() += page.keys.len();
        self.under_way_keys += page.keys.len();
        Turn::Page(time, page)
    }

    /// All owners have taken what is of times before `passed`.
    fn taken(&mut self, passed: Epoch) {
        self.under_way = self.under_way.split_off(&passed);
        self.under_way_keys = self.under_way.values().sum();
    }
}

/// Sends what the log remembers, on the first worker of the process.
pub(super) fn remember<'s>(taken: Stream<'s, Epoch, Vec<()>>, ports: Ports, place: Place) -> Stream<'s, Epoch, Vec<Remembered>> {
    let scope = taken.scope();
    let mut builder = OperatorBuilder::new(format!("{NAME}.remember"), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    // The output comes first: the feedback input has no path to it.
    let (output, remembered) = builder.new_output::<Vec<Remembered>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Remembered>>>::from(output);
    let mut taken = builder.new_input_connection(taken, Pipeline, []);
    builder.build(move |mut capabilities| {
        let pages = if place.worker == 0 { ports.remembered.take() } else { None };
        let mut sending =
            pages.map(|pages| Sending { pages, next: None, sent: 0, keys: 0, under_way: BTreeMap::new(), under_way_keys: 0 });
        let mut capability = capabilities.pop().filter(|_| sending.is_some());
        move |frontiers| {
            taken.for_each(|_, data| data.clear());
            let Some((sending, open)) = sending.as_mut().zip(capability.as_mut()) else { return };
            if let Some(passed) = frontiers[0].frontier().first() {
                sending.taken(*passed);
            }
            let mut output = output.activate();
            let mut emitted = 0;
            while emitted < KEYS_PER_SCHEDULING {
                match sending.turn(*open.time()) {
                    Turn::Page(time, page) => {
                        open.downgrade(&time);
                        emitted += page.keys.len();
                        sending.keys += page.keys.len() as u64;
                        let mut session = output.session(open);
                        session.give_iterator(page.remembered(sending.sent, place));
                        session.flush();
                        sending.sent += 1;
                    }
                    // What is before it can be taken only when it is known that no more of that comes. The frontier wakes the operator.
                    Turn::Full(time) => {
                        open.downgrade(&time);
                        return;
                    }
                    Turn::Wait => {
                        activator.activate_after(WAIT);
                        return;
                    }
                    // Keys that cannot be read look exhausted: nothing may be decided without them.
                    Turn::End if ports.health.failed() => return,
                    Turn::End => {
                        info!(keys = sending.keys, "dedup window warmed up from the write-ahead log");
                        capability = None;
                        return;
                    }
                }
            }
            activator.activate();
        }
    });
    remembered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize, epoch_of: impl Fn(usize) -> u64) -> Vec<RememberedKey> {
        let topic = crate::coverage::TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        let partition = |number| PartitionKey { topic: topic.clone().into(), partition: number };
        let key = |number: usize| RememberedKey {
            key: twox_hash::XxHash3_128::oneshot(&number.to_le_bytes()),
            partition: partition(number as i32 % 3),
            offset: number as i64,
            timestamp_ms: number as i64,
            epoch: Epoch(epoch_of(number)),
        };
        (0..count).map(key).collect()
    }

    fn sending(keys: Vec<RememberedKey>) -> Sending {
        let (sender, pages) = sync_channel(keys.len());
        read(keys.into_iter().map(Ok::<_, std::io::Error>), &sender).unwrap();
        Sending { pages, next: None, sent: 0, keys: 0, under_way: BTreeMap::new(), under_way_keys: 0 }
    }

    #[test]
    fn every_key_goes_to_its_owner_alone_and_every_worker_hears_of_every_page() {
        let (peers, workers) = (6, 2);
        let mut sending = sending(keys(20_000, |number| 5_000 + number as u64 / 9_000));
        let (mut found, mut number) = (Vec::new(), 0);
        while let Turn::Page(_, page) = sending.turn(Epoch(0)) {
            let count = page.keys.len() as u64;
            let place = Place { process: 1, worker: 0, workers, peers };
            let remembered: Vec<Remembered> = page.remembered(number, place).collect();
            number += 1;
            assert_eq!(remembered.iter().map(|one| one.owner).collect::<Vec<_>>(), (0..peers).collect::<Vec<_>>());
            for one in remembered {
                assert_eq!(one.progress.unwrap().1, count);
                found.extend(one.keys.iter().map(|(partition, asked)| {
                    assert_eq!(owner(asked.key, peers), one.owner);
                    assert_eq!(i64::from(one.partitions[*partition as usize].partition), asked.offset % 3);
                    asked.offset
                }));
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..20_000).collect::<Vec<i64>>());
    }

    #[test]
    fn keys_that_cannot_be_read_raise_a_fault_and_hold_the_frontier_so_that_nothing_is_decided_without_them() {
        use timely::dataflow::operators::Probe;
        use timely::dataflow::operators::vec::Input;

        let health = Health::default();
        let mut keys: Vec<Result<RememberedKey, std::io::Error>> = keys(10, |_| 5_000).into_iter().map(Ok).collect();
        keys.push(Err(std::io::Error::other("as staged")));
        let (feed, thread) = Feed::start(keys.into_iter(), health.clone()).unwrap();
        thread.join().unwrap();
        let of_graph = health.clone();
        timely::execute_directly(move |worker| {
            let (mut taken, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
                let (input, taken) = scope.new_input::<()>();
                let ports = Ports { remembered: feed, stats: Default::default(), health: of_graph };
                (input, remember(taken, ports, Place::alone(&scope)).probe().0)
            });
            // Whatever else there is comes later.
            taken.advance_to(Epoch(9_000));
            for _ in 0..100 {
                worker.step();
            }
            assert!(probe.less_than(&Epoch(9_000)), "the frontier passed what was not read");
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        });
        let fault = health.fault().expect("it was raised").to_string();
        assert!(fault.contains("reading the dedup keys of the write-ahead log: as staged"), "{fault}");
    }

    #[test]
    fn what_is_under_way_is_bounded_and_whatever_is_in_a_second_all_goes_in_the_end() {
        // 20 seconds of 100,000 keys; seconds that are each more than may be under way.
        for (count, per_ms) in [(2_000_000, 100), (3 * UNDER_WAY_MAX, 1_000)] {
            let mut sending = sending(keys(count, |number| 1_000_000 + number as u64 / per_ms));
            let (mut gone, mut open) = (0, Epoch(0));
            loop {
                match sending.turn(open) {
                    Turn::Page(time, page) => {
                        assert!(time >= open);
                        open = time;
                        gone += page.keys.len();
                        let of_a_second = per_ms as usize * 1_000;
                        assert!(sending.under_way_keys < UNDER_WAY_MAX + of_a_second + PAGE_KEYS, "{gone} keys are gone");
                    }
                    Turn::Full(time) => {
                        assert!(time > open);
                        open = time;
                        // Everything of former times is taken.
                        sending.taken(open);
                    }
                    Turn::Wait => panic!("all pages are there"),
                    Turn::End => break,
                }
            }
            assert_eq!(gone, count);
        }
    }
}
