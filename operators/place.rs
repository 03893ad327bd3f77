//! Where a worker is: in which process of a cluster, and which of its workers.
//!
//! ```text
//! process            0             1             2
//! worker          0  1  2  3    0  1  2  3    0  1  2  3      of its process
//! index           0  1  2  3    4  5  6  7    8  9 10 11      over all, as timely counts
//! ```
//!
//! Payloads stay in the process that read them: their memory is counted there, and its log takes them. So whatever is routed with its
//! payload goes to a worker of the own process. Only keys, and what is said of them, go to any worker of any process.

use timely::dataflow::Scope;
use timely::progress::Timestamp;

/// A worker's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The process.
    pub process: usize,
    /// Which of its workers.
    pub worker: usize,
    /// Workers of the process; every process has as many.
    pub workers: usize,
    /// Workers of all processes.
    pub peers: usize,
}

impl Place {
    /// The place of the worker that builds `scope`, where each process has `workers`.
    ///
    /// # Panics
    /// If the dataflow's workers are not those of whole processes.
    pub fn of<T: Timestamp>(scope: &Scope<'_, T>, workers: usize) -> Self {
        let (index, peers) = (scope.index(), scope.peers());
        assert!(workers > 0 && peers.is_multiple_of(workers), "{peers} workers are not those of processes with {workers} each");
        Place { process: index / workers, worker: index % workers, workers, peers }
    }

    /// The place where there is no other process.
    pub fn alone<T: Timestamp>(scope: &Scope<'_, T>) -> Self {
        Place::of(scope, scope.peers())
    }

    /// The worker's number over all processes.
    pub fn index(&self) -> usize {
        self.process * self.workers + self.worker
    }

    /// True where there are other processes.
    pub fn is_in_cluster(&self) -> bool {
        self.peers > self.workers
    }

    /// The worker of this process, as a number over all, to which `hash` is routed.
    pub fn route(&self, hash: u64) -> u64 {
        (self.process * self.workers) as u64 + hash % self.workers as u64
    }

    /// True if `hash` is this process's share where something is there for all of them. The worker that it is routed to is then the
    /// one that has it among all.
    pub fn has_share(&self, hash: u64) -> bool {
        (hash % self.peers as u64) as usize / self.workers == self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_over_the_processes_and_routed_where_one_process_of_as_many_workers_would_route_them() {
        for (processes, workers) in [(1, 1), (1, 4), (2, 1), (2, 2), (3, 2), (4, 3)] {
            let peers = processes * workers;
            let places: Vec<Place> = (0..processes).map(|process| Place { process, worker: 0, workers, peers }).collect();
            for hash in 0..100 {
                let having: Vec<&Place> = places.iter().filter(|place| place.has_share(hash)).collect();
                assert_eq!(having.len(), 1, "{processes} processes of {workers}, hash {hash}");
                assert_eq!(having[0].route(hash), hash % peers as u64);
            }
        }
    }
}
