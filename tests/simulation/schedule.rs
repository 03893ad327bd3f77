//! The scheduler: draws steps from a seed, lets things fail, lets all come to rest, and looks whether it is right.

use std::collections::VecDeque;

use openwit_operators::parquet_roll::{DeliveryId, Received};
use openwit_operators::wal_commit::memory::Fault;

use crate::ingest::{Failed, Ingest, Sent};
use crate::model::{Kafka, Lake, Message, PARTITIONS};
use crate::storage::{Answer, Storage};
use crate::support::random::Random;

/// Histories of a default run; a few seconds.
const RUNS: u64 = 10;
/// Steps of a history before all comes to rest.
const STEPS: u64 = 600;
/// Rounds in which all must come to rest: each brings at least one more batch of every partition through.
const ROUNDS: usize = 400;

/// Deliveries that may come a second time.
const RECENT: usize = 4;

/// How many nodes there are, and what may befall them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    ingest: usize,
    storage: usize,
}

const SINGLE: Shape = Shape { ingest: 1, storage: 1 };
const CLUSTER: Shape = Shape { ingest: 2, storage: 2 };

/// What is drawn from, and how many choices it has.
#[derive(Clone, Copy)]
enum Kind {
    Step,
    Ingest,
    Storage,
    Fault,
}

/// The usual weight of each choice. Each history multiplies each by 1 to 16 of its own: so there are histories in which storage is slow
/// to commit, others in which partitions move all the time, and so on.
const WEIGHTS: [&[u64]; 4] = [
    // Produce, ingest, storage, fault.
    &[12, 48, 36, 3],
    // Poll, close, dedup, append, sync, commit, encode, send.
    &[2, 1, 1, 1, 1, 1, 1, 1],
    // Receive, flush, settle, learn of a commit, of a refusal, answer.
    &[3, 1, 1, 1, 1, 1],
    // Crash, restart, storage crash, failed write or sync, full disk, delivery twice, other route, move.
    &[1, 1, 1, 1, 1, 6, 2, 4],
];

struct World {
    weights: [Vec<u64>; 4],
    random: Random,
    shape: Shape,
    kafka: Kafka,
    lake: Lake,
    ingest: Vec<Ingest>,
    storage: Vec<Storage>,
    next_session: u64,
    contents: u64,
    /// The last deliveries sent.
    recent: VecDeque<Received>,
    now_ms: u64,
    trace: bool,
}

impl World {
    fn new(seed: u64, shape: Shape) -> Self {
        let (kafka, lake) = (Kafka::default(), Lake::default());
        let storage = (0..shape.storage).map(|node| Storage::new(node, &lake)).collect();
        let mut random = Random::of_seed(seed);
        let weights = WEIGHTS.map(|weights| weights.iter().map(|weight| weight << random.below(5)).collect());
        let mut world = World {
            weights,
            random,
            shape,
            kafka,
            lake,
            ingest: (0..shape.ingest).map(Ingest::new).collect(),
            storage,
            next_session: 0,
            contents: 0,
            recent: VecDeque::new(),
            now_ms: 1_767_225_600_000,
            trace: std::env::var("SIM_TRACE").is_ok(),
        };
        (0..PARTITIONS).for_each(|index| world.kafka.owner[index] = index % shape.ingest);
        // Each ingest node begins with another storage node: so a partition that moves meets both.
        world.ingest.iter_mut().enumerate().for_each(|(node, ingest)| ingest.route = [node % shape.storage; 2]);
        (0..shape.ingest).for_each(|node| world.start(node));
        world
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.trace {
            println!("{what}");
        }
    }

    /// Starts an ingest node whose process is gone.
    fn start(&mut self, node: usize) {
        self.next_session += 1;
        self.ingest[node].start(self.next_session, &self.kafka, &self.lake);
    }

    /// A new start of the graphs from the log, as after any fault that it cures.
    fn restart(&mut self, node: usize) {
        self.say(format_args!("ingest {node} restarts"));
        self.ingest[node].stop(None);
        self.start(node);
    }

    /// The machine of an ingest node loses power.
    fn crash(&mut self, node: usize) {
        self.say(format_args!("ingest {node} crashes"));
        let random = &mut self.random;
        self.ingest[node].stop(Some(&mut |bound| random.below(bound as u64) as usize));
        self.start(node);
    }

    /// A log that failed may have lost what it had not synced.
    fn survive(&mut self, node: usize, done: Result<(), Failed>) {
        if done.is_err() {
            self.crash(node);
        }
    }

    fn produce(&mut self) {
        let index = self.below(PARTITIONS);
        let is_copy = self.contents > 0 && self.below(6) == 0;
        let content = if is_copy { self.random.below(self.contents) } else { self.contents };
        self.contents = self.contents.max(content + 1);
        let is_valid = content % 11 != 5;
        self.kafka.messages[index].push(Message { content, is_valid });
    }

    fn deliver(&mut self, node: usize, topic: usize, sent: Sent) {
        let id = DeliveryId { session: self.ingest[node].session, sequence: sent.sequence };
        let target = self.ingest[node].route[topic];
        self.say(format_args!("ingest {node} sends {id} to storage {target}: {:?}", sent.batch.coverage));
        let received = Received { id, batch: sent.batch };
        self.recent.push_back(received.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.storage[target].inbox.push_back(received);
    }

    fn encode(&mut self, node: usize) {
        if let Some((topic, sent)) = self.ingest[node].encode() {
            self.deliver(node, topic, sent);
        }
    }

    /// The next answer of a storage node reaches its sender, if that still listens.
    fn answer(&mut self, node: usize) {
        let Some(answer) = self.storage[node].answers.pop_front() else { return };
        let (Answer::Published(id) | Answer::Refused(id)) = answer;
        let Some(sender) = self.ingest.iter().position(|ingest| ingest.session == id.session) else { return };
        self.say(format_args!("storage {node} answers {answer:?} to ingest {sender}"));
        match answer {
            Answer::Published(id) => self.ingest[sender].published(id.sequence, &self.lake),
            Answer::Refused(_) => self.restart(sender),
        }
    }

    /// What Kafka was told is durable somewhere: in a log, or in the catalog.
    fn check_committed(&self) {
        for index in 0..PARTITIONS {
            let key = crate::model::partition(index);
            let synced = self.ingest.iter().filter_map(|ingest| ingest.synced.get(&key));
            let mut durable = self.lake.covered.get(&key).cloned().unwrap_or_default();
            synced.flat_map(|offsets| offsets.ranges()).for_each(|range| durable.insert(range));
            let committed = self.kafka.committed[index].unwrap_or(0);
            let missing = durable.missing_in(0..committed);
            assert!(missing.is_empty(), "committed to {committed}, {missing:?} of {key} are durable nowhere");
        }
    }

    fn ingest_step(&mut self) {
        let node = self.below(self.shape.ingest);
        match self.draw(Kind::Ingest) {
            0 => {
                let (index, messages) = (self.below(PARTITIONS), 1 + self.below(5));
                self.ingest[node].poll(index, messages, &self.kafka);
            }
            1 => {
                let index = self.below(PARTITIONS);
                self.ingest[node].close(index, &self.kafka);
                self.ingest[node].tick();
            }
            2 => self.ingest[node].dedup(),
            3 => {
                let done = self.ingest[node].append();
                self.survive(node, done);
            }
            4 => {
                let done = self.ingest[node].sync();
                self.survive(node, done);
            }
            5 => {
                self.ingest[node].commit_offsets(&mut self.kafka);
                self.check_committed();
                let done = self.ingest[node].release();
                self.survive(node, done);
            }
            6 => self.encode(node),
            _ => {
                let topic = self.below(2);
                if let Some(sent) = self.ingest[node].send(topic) {
                    self.deliver(node, topic, sent);
                }
            }
        }
    }

    fn storage_step(&mut self) {
        let node = self.below(self.shape.storage);
        self.now_ms += 1;
        let now_ms = self.now_ms;
        match self.draw(Kind::Storage) {
            0 => self.storage[node].receive(now_ms),
            1 => self.storage[node].flush(),
            2 => self.storage[node].settle(&self.kafka, &mut self.lake),
            3 => self.storage[node].learn_committed(),
            4 => self.storage[node].learn_refused(),
            _ => self.answer(node),
        }
    }

    fn fault(&mut self) {
        let (ingest, storage) = (self.below(self.shape.ingest), self.below(self.shape.storage));
        match self.draw(Kind::Fault) {
            0 => self.crash(ingest),
            // A kill, or a stream that broke: acknowledgements on their way are lost.
            1 => self.restart(ingest),
            2 => {
                self.say(format_args!("storage {storage} crashes"));
                self.storage[storage].start(&self.lake);
                (0..self.shape.ingest).for_each(|node| self.restart(node));
            }
            3 => {
                let after = self.random.below(10);
                self.ingest[ingest].break_disk(after, Fault::Io);
            }
            4 => {
                let (after, reached) = (self.random.below(10), self.below(5_000));
                self.ingest[ingest].break_disk(after, Fault::Full(reached));
            }
            5 => {
                // A delivery comes twice, the second time perhaps to another node: both take it, and one must lose.
                if !self.recent.is_empty() {
                    let again = self.below(self.recent.len());
                    self.storage[storage].inbox.push_back(self.recent[again].clone());
                }
            }
            6 => {
                // The storage node looks away from here: its groups go elsewhere, and what is on its way there stays there.
                let topic = self.below(2);
                self.ingest[ingest].route[topic] = storage;
                self.restart(ingest);
            }
            _ => {
                let (index, owner) = (self.below(PARTITIONS), self.below(self.shape.ingest));
                let before = std::mem::replace(&mut self.kafka.owner[index], owner);
                self.say(format_args!("partition {index} moves from ingest {before} to {owner}"));
                self.ingest[before].revoke(index);
                self.ingest[owner].assign(index, &self.kafka, &self.lake);
            }
        }
    }

    fn step(&mut self) {
        match self.draw(Kind::Step) {
            0 => self.produce(),
            1 => self.ingest_step(),
            2 => self.storage_step(),
            _ => self.fault(),
        }
    }

    /// Draws one of the choices of a kind, by the weights of this history.
    fn draw(&mut self, kind: Kind) -> usize {
        let total = self.weights[kind as usize].iter().sum();
        let mut drawn = self.random.below(total);
        let weights = &self.weights[kind as usize];
        let chosen = |weight: &u64| {
            let is_chosen = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_chosen
        };
        weights.iter().position(chosen).unwrap()
    }

    /// Nothing fails any more: everything goes through.
    fn rest(&mut self) {
        (0..self.shape.ingest).for_each(|node| self.crash(node));
        for _ in 0..ROUNDS {
            for node in 0..self.shape.ingest {
                self.drain(node);
            }
            for node in 0..self.shape.storage {
                while !self.storage[node].inbox.is_empty() {
                    self.storage[node].receive(self.now_ms);
                }
                self.storage[node].flush();
                while !self.storage[node].is_idle() {
                    self.storage[node].settle(&self.kafka, &mut self.lake);
                    self.storage[node].learn_committed();
                    self.storage[node].learn_refused();
                }
                while !self.storage[node].answers.is_empty() {
                    self.answer(node);
                }
            }
            if self.lake.is_complete(&self.kafka) {
                return;
            }
        }
        panic!("not all is published after {ROUNDS} rounds: {:?}", self.lake.covered);
    }

    fn drain(&mut self, node: usize) {
        for index in 0..PARTITIONS {
            self.ingest[node].poll(index, 100, &self.kafka);
            self.ingest[node].close(index, &self.kafka);
        }
        self.ingest[node].tick();
        self.ingest[node].dedup();
        for _ in 0..PARTITIONS {
            self.ingest[node].append().unwrap();
        }
        self.ingest[node].sync().unwrap();
        self.ingest[node].commit_offsets(&mut self.kafka);
        self.check_committed();
        for _ in 0..100 {
            self.encode(node);
        }
        for topic in 0..2 {
            if let Some(sent) = self.ingest[node].send(topic) {
                self.deliver(node, topic, sent);
            }
        }
        self.ingest[node].release().unwrap();
    }
}

/// One history. Returns how many commits were registered, and how many another node had forestalled.
fn history(seed: u64, shape: Shape) -> (u64, u64) {
    println!("SIM_SEED={seed} {shape:?}");
    let mut world = World::new(seed, shape);
    (0..STEPS).for_each(|_| world.step());
    world.rest();
    // Duplicates are found within one process; where partitions move, a copy may pass.
    let copies_max = if shape.ingest == 1 { 1 } else { usize::MAX };
    world.lake.check_contents(&world.kafka, copies_max);
    (world.lake.commits, world.lake.overlaps)
}

fn histories(name: &str, shape: Shape) {
    let number = |variable| std::env::var(variable).ok().map(|value: String| value.parse::<u64>().unwrap());
    if let Some(seed) = number("SIM_SEED") {
        history(seed, shape);
        return;
    }
    let mut random = Random::for_test(name);
    let runs = number("SIM_RUNS").unwrap_or(RUNS);
    let (mut commits, mut overlaps) = (0, 0);
    for _ in 0..runs {
        let (registered, forestalled) = history(random.bits(), shape);
        commits += registered;
        overlaps += forestalled;
    }
    println!("{name}: {commits} commits, {overlaps} refused");
    assert!(commits > 0, "the schedules publish something");
    // Every other history of a cluster has one, so a short run may have none.
    let is_expected = shape.storage > 1 && runs >= 50;
    assert!(!is_expected || overlaps > 0, "the schedules make two storage nodes meet");
}

#[test]
fn one_node_of_each_kind_stores_every_content_once_whatever_fails() {
    histories("single", SINGLE);
}

#[test]
fn several_nodes_store_every_offset_once_whatever_fails() {
    histories("cluster", CLUSTER);
}
