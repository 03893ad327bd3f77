//! Which storage node takes what, and which are away.
//!
//! A partition belongs to the endpoint with the highest random weight (rendezvous hashing): adding or removing one moves only the
//! partitions that must move. While it is away the next highest of those that are there stands in.
//!
//! ```text
//!            fails for failover_after                 an attempt succeeds
//! there ---------------------------------> away ---------------------------> on trial
//!   ^                                       ^ |  (what it had is sent elsewhere)  |
//!   |                                       | +<------------- fails --------------+
//!   +---------- stays connected for recover_after, doubled with each trip --------+
//! ```
//!
//! A node that restarts within `failover_after` keeps its partitions. One that comes and goes is trusted later each time. If none is
//! there, everything stays where it is and waits. Safety does not depend on any of this: two nodes that hold the same offsets cannot both
//! commit them, because the catalog refuses the second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::arrow_encode::Route;
use crate::coverage::PartitionKey;

/// `recover_after` is doubled at most so often: 16 times as long.
const DOUBLINGS_MAX: u32 = 4;
/// A node that was there this many times `recover_after` starts with a clean record.
const FORGIVEN_AFTER: u32 = 10;

/// When an endpoint counts as away, and as back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failover {
    /// How long an endpoint may fail before others stand in. Too short: a restart of a node moves its partitions; too long: rows wait.
    pub after: Duration,
    /// How long it must stay connected to take its partitions back.
    pub recover_after: Duration,
}

/// One endpoint's state. Times come from the caller.
#[derive(Clone, Copy, Debug, Default)]
struct Breaker {
    failing_since: Option<Instant>,
    connected_since: Option<Instant>,
    /// Away or on trial.
    is_open: bool,
    /// Times it went away since its record was clean.
    trips: u32,
}

impl Breaker {
    fn connected(&mut self, now: Instant) {
        self.failing_since = None;
        self.connected_since.get_or_insert(now);
    }

    fn failed(&mut self, now: Instant) {
        self.connected_since = None;
        self.failing_since.get_or_insert(now);
    }

    /// True if others stand in; moves on with time.
    fn is_away(&mut self, now: Instant, failover: Failover) -> bool {
        let lasted = |since: Option<Instant>, long: Duration| since.is_some_and(|since| now.duration_since(since) >= long);
        if self.is_open {
            let doublings = self.trips.saturating_sub(1).min(DOUBLINGS_MAX);
            self.is_open = !lasted(self.connected_since, failover.recover_after * 2u32.pow(doublings));
        } else if lasted(self.failing_since, failover.after) {
            self.is_open = true;
            self.trips += 1;
        } else if lasted(self.connected_since, failover.recover_after * FORGIVEN_AFTER) {
            self.trips = 0;
        }
        self.is_open
    }
}

struct Node {
    name: String,
    breaker: Breaker,
    /// As it was told last.
    was_away: bool,
}

/// The endpoints of a process, shared by its workers.
pub struct Router {
    failover: Failover,
    nodes: Mutex<Vec<Node>>,
    failovers: AtomicU64,
}

impl Router {
    /// A router over `endpoints`, all of them taken to be there.
    pub fn new(endpoints: &[String], failover: Failover) -> Self {
        let node = |name: &String| Node { name: name.clone(), breaker: Breaker::default(), was_away: false };
        Router { failover, nodes: Mutex::new(endpoints.iter().map(node).collect()), failovers: AtomicU64::new(0) }
    }

    /// The endpoint that takes what belongs to `endpoint`: itself, unless it is away and another one is there.
    pub fn stand_in(&self, endpoint: usize) -> usize {
        let mut nodes = self.lock();
        let there = self.there(&mut nodes);
        if there.is_empty() || there.contains(&endpoint) { endpoint } else { heaviest(endpoint as u64, &there) }
    }

    /// True if what was given to `endpoint` should be given to another one that is there.
    pub fn is_replaced(&self, endpoint: usize) -> bool {
        self.stand_in(endpoint) != endpoint
    }

    /// An attempt to reach `endpoint` succeeded.
    pub fn connected(&self, endpoint: usize) {
        self.note(endpoint, Breaker::connected);
    }

    /// `endpoint` could not be reached, or its stream broke.
    pub fn failed(&self, endpoint: usize) {
        self.note(endpoint, Breaker::failed);
    }

    /// Times an endpoint was found away.
    pub fn failovers(&self) -> u64 {
        self.failovers.load(Ordering::Relaxed)
    }

    fn note(&self, endpoint: usize, event: fn(&mut Breaker, Instant)) {
        if let Some(node) = self.lock().get_mut(endpoint) {
            event(&mut node.breaker, Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Node>> {
        // Poisoned only if a thread panicked in here: the states are whole.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints that are there. Changes are told once.
    fn there(&self, nodes: &mut [Node]) -> Vec<usize> {
        let (now, several) = (Instant::now(), nodes.len() > 1);
        let mut there = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter_mut().enumerate() {
            let is_away = node.breaker.is_away(now, self.failover);
            if is_away != node.was_away && several {
                if is_away {
                    self.failovers.fetch_add(1, Ordering::Relaxed);
                    warn!(endpoint = node.name, "storage node is away, others stand in");
                } else {
                    info!(endpoint = node.name, "storage node is back and takes its partitions again");
                }
            }
            node.was_away = is_away;
            if !is_away {
                there.push(index);
            }
        }
        there
    }
}

impl Route for Router {
    fn endpoint(&self, partition: &PartitionKey) -> usize {
        let mut nodes = self.lock();
        if nodes.len() < 2 {
            return 0;
        }
        let there = self.there(&mut nodes);
        let all: Vec<usize> = (0..nodes.len()).collect();
        let hash = twox_hash::XxHash3_64::oneshot_with_seed(partition.partition as u64, partition.topic.name.as_bytes());
        heaviest(hash, if there.is_empty() { &all } else { &there })
    }
}

/// Highest random weight.
fn heaviest(hash: u64, endpoints: &[usize]) -> usize {
    let weight = |endpoint: &&usize| twox_hash::XxHash3_64::oneshot_with_seed(hash, &endpoint.to_le_bytes());
    endpoints.iter().max_by_key(weight).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::TopicKey;

    const FAILOVER: Failover = Failover { after: Duration::from_secs(5), recover_after: Duration::from_secs(30) };

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        PartitionKey { topic: topic.into(), partition: number }
    }

    fn router(endpoints: usize) -> Router {
        let names: Vec<String> = (0..endpoints).map(|index| format!("http://node-{index}")).collect();
        Router::new(&names, FAILOVER)
    }

    /// Opens or closes a breaker by hand.
    fn set_away(router: &Router, endpoint: usize, is_away: bool) {
        router.lock()[endpoint].breaker = Breaker { is_open: is_away, trips: u32::from(is_away), ..Breaker::default() };
    }

    #[test]
    fn partitions_of_one_topic_are_spread_and_only_those_of_a_lost_node_move() {
        let router = router(3);
        let before: Vec<usize> = (0..300).map(|number| router.endpoint(&partition(number))).collect();
        for node in 0..3 {
            let share = before.iter().filter(|endpoint| **endpoint == node).count();
            assert!((60..140).contains(&share), "node {node} has {share} of 300 partitions");
        }
        set_away(&router, 1, true);
        for (number, before) in before.iter().enumerate() {
            let after = router.endpoint(&partition(number as i32));
            assert!(after != 1 && (*before == 1 || after == *before));
        }
        set_away(&router, 1, false);
        assert!((0..300).all(|number| router.endpoint(&partition(number)) == before[number as usize]));
    }

    #[test]
    fn with_nobody_there_everything_stays_where_it_is() {
        let router = router(2);
        let before: Vec<usize> = (0..50).map(|number| router.endpoint(&partition(number))).collect();
        set_away(&router, 0, true);
        assert_eq!((router.stand_in(0), router.stand_in(1)), (1, 1));
        assert!(router.is_replaced(0));
        set_away(&router, 1, true);
        assert_eq!((router.stand_in(0), router.stand_in(1)), (0, 1));
        assert!((0..50).all(|number| router.endpoint(&partition(number)) == before[number as usize]));
    }

    #[test]
    fn a_short_absence_moves_nothing_and_one_that_comes_and_goes_is_trusted_later_each_time() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::default();
        breaker.failed(at(0));
        breaker.failed(at(4));
        assert!(!breaker.is_away(at(4), FAILOVER));
        breaker.connected(at(4));
        breaker.failed(at(10));
        assert!(!breaker.is_away(at(14), FAILOVER), "failures are counted from the last success");
        assert!(breaker.is_away(at(15), FAILOVER));
        breaker.connected(at(20));
        assert!(breaker.is_away(at(49), FAILOVER), "on trial");
        assert!(!breaker.is_away(at(50), FAILOVER));
        // The second trip doubles the trial.
        breaker.failed(at(60));
        assert!(breaker.is_away(at(65), FAILOVER));
        breaker.connected(at(70));
        breaker.failed(at(80));
        breaker.connected(at(90));
        assert!(breaker.is_away(at(149), FAILOVER), "a failure begins the trial anew");
        assert!(!breaker.is_away(at(150), FAILOVER));
        // Long service is remembered.
        assert!(!breaker.is_away(at(90 + 300), FAILOVER));
        assert_eq!(breaker.trips, 0);
    }
}
