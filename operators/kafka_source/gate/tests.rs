//! The gate between a scripted client and a pipeline that drains at random, and hangs: seeded, by a clock of its own.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::budget::{Budget, Charge};
use crate::coverage::TopicKey;

/// Bytes of the largest message, small against what twelve busy partitions leave free.
const MESSAGE_BYTES_MAX: usize = 100;
/// Messages that the client reads ahead.
const PREFETCH: usize = 50;
const STEP: Duration = Duration::from_millis(1);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

struct Partition {
    key: PartitionKey,
    lane: Arc<Lane>,
    open: Load,
    /// Messages in Kafka that the client has not read ahead.
    backlog: usize,
    read: usize,
    is_paused: bool,
}

/// The consumer's thread, as `consumer/flow.rs` has it, with a client and a pipeline.
struct Model {
    random: Random,
    budget: Arc<Budget>,
    gate: Gate,
    partitions: Vec<Partition>,
    client: VecDeque<usize>,
    in_flight: Vec<Charge>,
    /// Half of the charges that a log would have made durable.
    behind: Vec<(Charge, Charge)>,
    now: Instant,
    batch: usize,
    is_blocked: bool,
    pauses: usize,
}

impl Model {
    fn new(seed: u64, busy: usize) -> Self {
        let mut random = Random(seed);
        let budget = Budget::new(Load { bytes: 256 << 10, messages: 4_000 + random.below(6_000) });
        // The last one is quiet.
        let partitions = (0..=busy as i32).map(|number| {
            let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
            let key = PartitionKey { topic: topic.into(), partition: number };
            let (lane, backlog) = (budget.lane(&key), if number < busy as i32 { usize::MAX / 2 } else { 0 });
            Partition { key, lane, open: Load::default(), backlog, read: 0, is_paused: false }
        });
        let (partitions, batch) = (partitions.collect(), 1 + random.below(40));
        let (client, in_flight, behind) = (VecDeque::new(), Vec::new(), Vec::new());
        let (gate, now) = (Gate::default(), Instant::now());
        Model { random, budget, gate, partitions, client, in_flight, behind, now, batch, is_blocked: false, pauses: 0 }
    }

    fn close(&mut self, index: usize) {
        let partition = &mut self.partitions[index];
        let open = std::mem::take(&mut partition.open);
        if open != Load::default() {
            self.in_flight.push(partition.lane.seal(open));
        }
    }

    fn index_of(&self, key: &PartitionKey) -> usize {
        self.partitions.iter().position(|partition| partition.key == *key).unwrap()
    }

    /// A turn of the thread.
    fn turn(&mut self) {
        self.now += STEP;
        self.prefetch();
        for key in self.gate.take_drained() {
            let index = self.index_of(&key);
            self.partitions[index].is_paused = false;
        }
        if self.is_blocked || self.budget.is_full() {
            (0..self.partitions.len()).for_each(|index| self.close(index));
            self.is_blocked = !self.budget.has_room();
            return;
        }
        let mut gate = std::mem::take(&mut self.gate);
        let open = |key: &PartitionKey| self.partitions[self.index_of(key)].open;
        let turn = gate.turn(open, self.now);
        self.gate = gate;
        match turn {
            Turn::Read => {}
            Turn::Stand => return,
            Turn::Close(key) => return self.close(self.index_of(&key)),
            Turn::Pause(key) => {
                let index = self.index_of(&key);
                self.close(index);
                self.pauses += 1;
                let before = self.client.len();
                self.client.retain(|of| *of != index);
                self.partitions[index].backlog += before - self.client.len();
                self.partitions[index].is_paused = true;
            }
        }
        for _ in 0..16 {
            let Some(index) = self.client.pop_front() else { break };
            self.collect(index);
            if self.gate.stands() || self.budget.is_full() {
                break;
            }
        }
        // Batches time out.
        if self.random.below(20) == 0 {
            (0..self.partitions.len()).for_each(|index| self.close(index));
        }
    }

    fn prefetch(&mut self) {
        let ready: Vec<usize> = (0..self.partitions.len())
            .filter(|&index| self.partitions[index].backlog > 0 && !self.partitions[index].is_paused)
            .collect();
        let mut left: Vec<usize> = ready;
        while self.client.len() < PREFETCH && !left.is_empty() {
            let choice = self.random.below(left.len());
            let partition = &mut self.partitions[left[choice]];
            partition.backlog -= 1;
            self.client.push_back(left[choice]);
            if partition.backlog == 0 {
                left.swap_remove(choice);
            }
        }
    }

    fn collect(&mut self, index: usize) {
        let bytes = 1 + self.random.below(MESSAGE_BYTES_MAX);
        let load = Load { bytes, messages: 1 };
        self.budget.collect(load);
        let partition = &mut self.partitions[index];
        assert!(!partition.is_paused, "{} was read while it was paused", partition.key);
        partition.open = partition.open.plus(load);
        partition.read += 1;
        if partition.lane.is_over(partition.open) {
            self.gate.note_over(&partition.key, &partition.lane, self.now);
        }
        if self.partitions[index].open.messages >= self.batch {
            self.close(index);
        }
        let (in_flight, limit) = (self.budget.in_flight(), self.budget.limit());
        assert!(!in_flight.exceeds(limit.plus(load)), "{in_flight:?} of {limit:?}");
    }

    /// The log takes some batches, storage receives some.
    fn drain(&mut self, share: usize) {
        for _ in 0..self.in_flight.len().min(self.random.below(share + 1)) {
            let charge = self.in_flight.swap_remove(self.random.below(self.in_flight.len()));
            if let Some(behind) = self.budget.stay(&charge) {
                self.behind.push((charge, behind));
            }
        }
        for _ in 0..self.behind.len().min(self.random.below(share + 1)) {
            let place = self.random.below(self.behind.len());
            self.behind.swap_remove(place);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_quiet_partition_gets_in_past_any_number_of_busy_ones_and_none_is_forgotten(seed: u64, busy in 1usize..=12) {
        let mut model = Model::new(seed, busy);
        let quiet = busy;
        for phase in 0..4 {
            let share = 1 + model.random.below(6);
            for _ in 0..500 {
                model.turn();
                model.drain(share);
            }
            // Nothing drains any more, and after a while the quiet one has something to say.
            (0..model.random.below(300)).for_each(|_| model.turn());
            let before = model.partitions[quiet].read;
            model.partitions[quiet].backlog += 1;
            let turns = (0..).take_while(|_| { model.turn(); model.partitions[quiet].read == before }).take(1_000).count();
            let bound = HOLD.as_millis() as usize + PREFETCH + 3 * busy;
            // Those that become busy one after another while nothing drains at all take eight ninths of what is left each: after
            // the fourth a message may fill the rest.
            let may_be_full = busy > 3 && (model.is_blocked || model.budget.is_full());
            prop_assert!(turns <= bound || may_be_full, "phase {}: it waited {} ms", phase, turns);
            // Long enough to fill all there is, sixteen messages a turn.
            (0..HOLD.as_millis() + 1_000).for_each(|_| model.turn());
            let may_be_full = busy > 3 && (model.is_blocked || model.budget.is_full());
            let paused: BTreeSet<_> = (0..busy).filter(|&index| model.partitions[index].is_paused).collect();
            prop_assert!(paused.len() == busy || may_be_full, "{:?} have what they may have", paused);
        }
        prop_assert!(model.pauses > 0);
        // While it only drains, everything is read in the end.
        model.partitions[..busy].iter_mut().for_each(|partition| partition.backlog = 5_000);
        let mut turns = 0;
        while model.partitions.iter().any(|partition| partition.backlog > 0) || !model.client.is_empty() {
            model.turn();
            model.drain(40);
            turns += 1;
            prop_assert!(turns < 100_000, "{:?}", model.gate);
        }
        (0..model.partitions.len()).for_each(|index| model.close(index));
        model.in_flight.clear();
        model.behind.clear();
        model.turn();
        prop_assert!(model.gate.waiting.is_empty() && !model.gate.stands());
        prop_assert_eq!(model.budget.in_flight(), Load::default());
    }
}

#[test]
fn a_pipeline_that_is_merely_busy_pauses_nothing() {
    let mut model = Model::new(7, 3);
    for _ in 0..20_000 {
        model.turn();
        // A quarter of what is in flight goes on each millisecond.
        let share = model.in_flight.len() / 2;
        model.drain(share.max(4));
    }
    assert_eq!(model.pauses, 0);
    assert!(model.partitions[0].read > 20_000);
}

#[test]
fn a_partition_that_is_given_up_holds_nobody() {
    let mut model = Model::new(1, 2);
    (0..2 * HOLD.as_millis() + 1_000).for_each(|_| model.turn());
    let keys: Vec<_> = model.partitions.iter().map(|partition| partition.key.clone()).collect();
    assert!(model.gate.waits(&keys[0]) && model.gate.waits(&keys[1]) && !model.gate.waits(&keys[2]));
    keys.iter().for_each(|key| model.gate.forget(key));
    assert_eq!(model.gate.turn(|_| Load::default(), model.now), Turn::Read);
    assert!(model.gate.take_drained().is_empty());
}
