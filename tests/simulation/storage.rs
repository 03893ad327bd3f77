//! A storage node: the roller, its closed commits on their way, and the registrar's rule of refusal.

use std::collections::{BTreeMap, VecDeque};

use openwit_operators::catalog_commit::refusals::Refusals;
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::object_upload::remove_local;
use openwit_operators::parquet_roll::{ClosedCommit, Config, DeliveryId, Received, Roller};

use crate::model::{Kafka, Lake};

/// What senders are told.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// The delivery is in the catalog.
    Published(DeliveryId),
    /// The delivery's stream ends: send again.
    Refused(DeliveryId),
}

/// One process.
pub struct Storage {
    node: usize,
    folder: tempfile::TempDir,
    roller: Option<Roller>,
    starts: u64,
    /// Deliveries that have come in.
    pub inbox: VecDeque<Received>,
    closed: VecDeque<ClosedCommit>,
    refusals: Refusals,
    registered: VecDeque<ClosedCommit>,
    refused: VecDeque<(ClosedCommit, BTreeMap<PartitionKey, OffsetSet>)>,
    /// Answers on their way to senders.
    pub answers: VecDeque<Answer>,
}

impl Storage {
    /// A node with an empty folder, started.
    pub fn new(node: usize, lake: &Lake) -> Self {
        // In memory where that can be: what a disk does to files is not in question here.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut storage = Storage {
            node,
            folder,
            roller: None,
            starts: 0,
            inbox: VecDeque::new(),
            closed: VecDeque::new(),
            refusals: Refusals::default(),
            registered: VecDeque::new(),
            refused: VecDeque::new(),
            answers: VecDeque::new(),
        };
        storage.start(lake);
        storage
    }

    /// Starts the process anew: all that was not committed is gone.
    pub fn start(&mut self, lake: &Lake) {
        self.roller = None;
        self.starts += 1;
        self.inbox.clear();
        self.closed.clear();
        self.registered.clear();
        self.refused.clear();
        self.answers.clear();
        self.refusals = Refusals::default();
        let name = format!("storage-{}", self.node);
        let seed = self.starts << 8 | self.node as u64;
        let config = Config { open_writers_max: 3, ..Config::new(self.folder.path().to_path_buf(), name, seed) };
        self.roller = Some(Roller::open(config, lake.covered.clone()).unwrap());
    }

    /// Admits the next delivery.
    pub fn receive(&mut self, now_ms: u64) {
        let Some(received) = self.inbox.pop_front() else { return };
        let id = received.id;
        match self.roller.as_mut().unwrap().admit(received, now_ms) {
            Ok(admitted) => {
                self.closed.extend(admitted.closed);
                self.answers.extend(admitted.published.map(Answer::Published));
            }
            Err(error) if error.is_refusal() && error.is_retriable() => self.answers.push_back(Answer::Refused(id)),
            Err(error) => panic!("delivery {id}: {error}"),
        }
    }

    /// Closes everything open.
    pub fn flush(&mut self) {
        self.closed.extend(self.roller.as_mut().unwrap().flush().unwrap());
    }

    /// The oldest closed commit reaches the catalog: what the registrar does.
    pub fn settle(&mut self, kafka: &Kafka, lake: &mut Lake) {
        let Some(commit) = self.closed.pop_front() else { return };
        if !self.refusals.admits(&commit) {
            self.refused.push_back((commit.clone(), BTreeMap::new()));
        } else if lake.overlaps(&commit) {
            lake.overlaps += 1;
            self.refusals.refuse(&commit);
            self.refused.push_back((commit.clone(), lake.covered.clone()));
        } else {
            lake.register(&commit, kafka);
            self.answers.extend(commit.deliveries.iter().copied().map(Answer::Published));
            self.registered.push_back(commit.clone());
        }
        remove_local(&commit).unwrap();
    }

    /// The roller learns of a commit that is in the catalog.
    pub fn learn_committed(&mut self) {
        if let Some(commit) = self.registered.pop_front() {
            self.roller.as_mut().unwrap().committed(&commit);
        }
    }

    /// The roller learns of a commit that never will be.
    pub fn learn_refused(&mut self) {
        let Some((commit, covered)) = self.refused.pop_front() else { return };
        let abandoned = self.roller.as_mut().unwrap().abandon(commit.commit_id, covered).unwrap();
        self.answers.extend(abandoned.refused.into_iter().map(Answer::Refused));
    }

    /// True if nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.inbox.is_empty() && self.closed.is_empty() && self.registered.is_empty() && self.refused.is_empty()
    }
}
