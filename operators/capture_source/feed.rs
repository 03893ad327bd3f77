//! Batches on their way from a thread that reads to the workers.
//!
//! What is read may come packed: then the workers unpack it, each a piece at a time when it has nothing to emit, so that reading is as fast as
//! there are workers. Batches are handed out in the order in which they were read all the same.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use timely::scheduling::SyncActivator;

use super::{Speed, WAIT};
use crate::budget::Budget;
use crate::capture::{Captured, Recorded};
use crate::clock::Clock;
use crate::epoch::Epoch;
use crate::fault::{Health, panic_text};
use crate::normalize::partition_hash;
use crate::place::Place;

/// Bytes read ahead, unless one batch has more: enough to bridge a block that is unpacked.
const QUEUE_BYTES: usize = 8 << 20;

/// What a feed needs from outside.
#[derive(Clone)]
pub struct FeedPorts {
    /// Where the process is: its first worker. In a cluster every process reads the same capture, and emits its share of the partitions.
    pub place: Place,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where a stop is announced and a failure raised.
    pub health: Health,
    /// The time, for [`Speed::Recorded`].
    pub clock: Arc<dyn Clock>,
}

/// Gives the batches of a piece, in the order of their epochs. An error is a failure of the whole reading.
pub(super) type Unpack<B> = Box<dyn FnOnce(&mut dyn FnMut(Recorded<B>)) -> Result<(), String> + Send>;

/// What a thread has read.
pub(super) enum Piece<B> {
    /// A batch.
    Batch(Recorded<B>),
    /// Batches, none of an earlier epoch than this, that a worker is to unpack.
    Packed(Epoch, Unpack<B>),
}

/// The batches on their way to the workers. When it is dropped its thread ends.
pub struct Feed<B> {
    pub(super) shared: Arc<Shared<B>>,
}

/// What the thread and the workers share.
pub(super) struct Shared<B> {
    queues: Mutex<Queues<B>>,
    /// A batch was taken, or nobody will take one any more.
    room: Condvar,
    is_abandoned: AtomicBool,
    name: &'static str,
    speed: Speed,
    pub(super) ports: FeedPorts,
}

struct Queues<B> {
    /// Batches that may be handed out, by the worker that normalizes them.
    of_worker: Vec<VecDeque<(Epoch, B)>>,
    /// What they come from, in the order in which it was read; and the number of the first.
    read: VecDeque<Stage<B>>,
    first: u64,
    /// Bytes of the batches in both.
    bytes: usize,
    /// No batch of an earlier epoch will be handed out to `of_worker`.
    next: Epoch,
    /// Batches of it and of earlier epochs may be emitted.
    open: Option<Epoch>,
    /// When the first epoch was begun, and which it was.
    began: Option<(u64, Epoch)>,
    /// Nothing more will be read.
    ended: bool,
    /// Workers that wait for a change, by their index.
    waiting: Vec<Option<SyncActivator>>,
}

/// How far a piece is.
enum Stage<B> {
    Packed(Unpack<B>),
    /// A worker has it.
    Taken,
    Unpacked(Vec<Recorded<B>>),
}

/// What there is for a worker.
pub(super) enum Next<B> {
    /// A batch to emit.
    Batch(Epoch, Box<B>),
    /// A piece was unpacked, which took as long as working on so many bytes; come again.
    Unpacked(usize),
    /// Nothing yet; it will not be of an earlier epoch than this. The worker is scheduled when that may have changed.
    Nothing(Epoch),
    /// No memory, or the time of the next epoch has not come: nobody tells when that changes.
    NotYet(Epoch),
    /// There will be nothing.
    End,
}

impl<B: Captured> Feed<B> {
    /// Starts a thread named after the operator `name`, which runs `read`: it gives batches, in the order of their epochs, to what it is
    /// handed until that says by `false` that no more are wanted. A speed that is no positive number is refused.
    pub fn read_by(
        name: &'static str,
        speed: Speed,
        ports: FeedPorts,
        read: impl FnOnce(&mut dyn FnMut(Recorded<B>) -> bool) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        Self::read_pieces(name, speed, ports, move |put| read(&mut |recorded| put(Piece::Batch(recorded))))
    }

    /// The same with pieces.
    pub(super) fn read_pieces(
        name: &'static str,
        speed: Speed,
        ports: FeedPorts,
        read: impl FnOnce(&mut dyn FnMut(Piece<B>) -> bool) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        if let Speed::Recorded(factor) = speed
            && !(factor.is_finite() && factor > 0.0)
        {
            let problem = format!("nothing can be replayed at {factor} times its speed: the factor must be a positive number");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
        }
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::new(ports.place.workers)),
            room: Condvar::new(),
            is_abandoned: AtomicBool::new(false),
            name,
            speed,
            ports,
        });
        let reader = shared.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let mut put = |piece| reader.put(piece);
            match catch_unwind(AssertUnwindSafe(|| read(&mut put))) {
                Ok(Ok(())) => {
                    let mut queues = reader.lock();
                    queues.ended = true;
                    queues.wake();
                }
                // The queues must not look exhausted: their end would let the frontier pass what was not read.
                Ok(Err(message)) => reader.ports.health.fail(name, message),
                Err(panic) => reader.fail_panicked(panic.as_ref()),
            }
        })?;
        Ok((Arc::new(Feed { shared }), thread))
    }
}

impl<B> Drop for Feed<B> {
    fn drop(&mut self) {
        self.shared.is_abandoned.store(true, Ordering::Release);
        self.shared.room.notify_all();
    }
}

impl<B> Queues<B> {
    fn new(workers: usize) -> Self {
        Queues {
            of_worker: std::iter::repeat_with(VecDeque::new).take(workers).collect(),
            read: VecDeque::new(),
            first: 0,
            bytes: 0,
            next: Epoch(0),
            open: None,
            began: None,
            ended: false,
            waiting: vec![None; workers],
        }
    }

    /// Has the workers look again that wait.
    fn wake(&mut self) {
        for activator in self.waiting.iter_mut().filter_map(Option::take) {
            // It fails only where the worker is gone.
            let _ = activator.activate();
        }
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Queues<B>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire) || self.ports.health.failed()
    }

    fn fail_panicked(&self, panic: &(dyn std::any::Any + Send)) {
        self.ports.health.fail(self.name, format!("the reader panicked: {}", panic_text(panic)));
    }
}

impl<B: Captured> Shared<B> {
    /// Queues what was read when there is room. False if no more is wanted.
    fn put(&self, piece: Piece<B>) -> bool {
        let mut queues = self.lock();
        let (first, stage) = match piece {
            Piece::Batch(recorded) => (recorded.epoch, Stage::Unpacked(vec![recorded])),
            Piece::Packed(first, unpack) => (first, Stage::Packed(unpack)),
        };
        let bytes = stage.bytes();
        loop {
            // A capture that a process with a slower clock went on with goes back in time; a frontier cannot.
            let is_unbegun = queues.open.is_none_or(|open| first.max(queues.next) > open);
            if self.is_over() || (self.ports.health.stopping() && is_unbegun) {
                return false;
            }
            // One piece for every worker and one more: none waits for this thread.
            let has_room = queues.bytes == 0 || queues.bytes + bytes <= QUEUE_BYTES;
            if has_room && queues.read.len() <= 2 * queues.of_worker.len() {
                break;
            }
            // A failure or a stop wakes the workers only.
            queues = self.room.wait_timeout(queues, WAIT * 10).unwrap_or_else(PoisonError::into_inner).0;
        }
        queues.bytes += bytes;
        queues.read.push_back(stage);
        self.hand_out(&mut queues);
        queues.wake();
        true
    }

    /// Hands out what is unpacked of what was read first.
    fn hand_out(&self, queues: &mut Queues<B>) {
        while let Some(Stage::Unpacked(batches)) = queues.read.front_mut() {
            for Recorded { epoch, batch } in std::mem::take(batches) {
                queues.next = queues.next.max(epoch);
                let hash = partition_hash(batch.partition());
                if self.ports.place.has_share(hash) {
                    let worker = (hash % queues.of_worker.len() as u64) as usize;
                    queues.of_worker[worker].push_back((queues.next, batch));
                } else {
                    // Another process of the cluster has it.
                    queues.bytes -= batch.load().bytes;
                }
            }
            queues.read.pop_front();
            queues.first += 1;
        }
    }

    /// What there is for `worker`, which `activator` schedules.
    pub(super) fn next(&self, worker: usize, activator: &SyncActivator) -> Next<B> {
        let mut queues = self.lock();
        let Some(&(epoch, _)) = queues.of_worker[worker].front() else {
            return self.unpack(queues, worker, activator);
        };
        if queues.open.is_none_or(|open| epoch > open) {
            if self.ports.health.stopping() {
                // Begun by nobody, now or later: so it is left out whole.
                queues.wake();
                return Next::End;
            }
            // Epochs are begun in their order, and no later one while the least has to wait.
            if !queues.of_worker.iter().filter_map(VecDeque::front).all(|(other, _)| epoch <= *other) {
                queues.waiting[worker] = Some(activator.clone());
                return Next::Nothing(epoch);
            }
            if !self.may_begin(epoch, &mut queues) {
                return Next::NotYet(epoch);
            }
            queues.open = Some(epoch);
            queues.wake();
        }
        let (epoch, batch) = queues.of_worker[worker].pop_front().expect("it was looked at above");
        let load = batch.load();
        let (is_last, was_full) =
            (queues.of_worker[worker].front().is_none_or(|(next, _)| *next > epoch), queues.bytes >= QUEUE_BYTES);
        queues.bytes -= load.bytes;
        if is_last || (was_full && queues.bytes < QUEUE_BYTES) {
            queues.wake();
        }
        drop(queues);
        self.room.notify_one();
        self.ports.budget.collect(load);
        Next::Batch(epoch, Box::new(batch.charged(self.ports.budget.seal(load))))
    }

    /// Unpacks a piece, if there is one and there is room for it.
    fn unpack(&self, mut queues: MutexGuard<'_, Queues<B>>, worker: usize, activator: &SyncActivator) -> Next<B> {
        let packed = queues.read.iter().position(|stage| matches!(stage, Stage::Packed(_)));
        // The first is what everybody waits for, so there is always room for it.
        let Some(position) = packed.filter(|position| *position == 0 || queues.bytes < QUEUE_BYTES) else {
            if queues.ended && queues.read.is_empty() {
                return Next::End;
            }
            queues.waiting[worker] = Some(activator.clone());
            return Next::Nothing(queues.next);
        };
        let Stage::Packed(unpack) = std::mem::replace(&mut queues.read[position], Stage::Taken) else {
            unreachable!("it was looked at above");
        };
        let number = queues.first + position as u64;
        drop(queues);
        let mut batches = Vec::new();
        match catch_unwind(AssertUnwindSafe(|| unpack(&mut |recorded| batches.push(recorded)))) {
            Ok(Ok(())) => {}
            // The piece stays taken, so nothing behind it is handed out and the queues do not look exhausted.
            Ok(Err(message)) => {
                self.ports.health.fail(self.name, message);
                return Next::End;
            }
            Err(panic) => {
                self.fail_panicked(panic.as_ref());
                return Next::End;
            }
        }
        let stage = Stage::Unpacked(batches);
        let bytes = stage.bytes();
        let mut queues = self.lock();
        queues.bytes += bytes;
        let position = (number - queues.first) as usize;
        queues.read[position] = stage;
        self.hand_out(&mut queues);
        queues.wake();
        drop(queues);
        self.room.notify_one();
        Next::Unpacked(bytes)
    }

    /// True if there is memory for the epoch, and its time has come.
    fn may_begin(&self, epoch: Epoch, queues: &mut Queues<B>) -> bool {
        let Speed::Recorded(factor) = self.speed else { return !self.ports.budget.is_full() };
        let now_ms = self.ports.clock.now_ms();
        let (began_ms, first) = *queues.began.get_or_insert((now_ms, epoch));
        let due_ms = began_ms as f64 + (epoch.0 - first.0) as f64 / factor;
        now_ms as f64 >= due_ms && !self.ports.budget.is_full()
    }
}

impl<B: Captured> Stage<B> {
    fn bytes(&self) -> usize {
        match self {
            Stage::Unpacked(batches) => batches.iter().map(|recorded| recorded.batch.load().bytes).sum(),
            Stage::Packed(_) | Stage::Taken => 0,
        }
    }
}
