//! Workers of one timely cluster that run when they are told to, one at a time.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use timely::WorkerConfig;
use timely::communication::WorkerGuards;
use timely::worker::Worker;

/// A worker's end of its orders: they come in, whether it goes on goes out.
type End = (Receiver<Order>, Sender<bool>);

enum Order {
    Build,
    Step,
}

/// The workers. When dropped their dataflows end as those of a killed process: capabilities go, and nobody looks.
pub struct Cluster {
    hands: Vec<(Sender<Order>, Receiver<bool>)>,
    guards: Option<WorkerGuards<()>>,
    workers: usize,
}

impl Cluster {
    /// Starts workers and has each build its dataflow, in order.
    pub fn start(workers: usize, build: impl Fn(&mut Worker) + Send + Sync + 'static) -> Self {
        let (mut hands, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let ((orders, receiver), (sender, done)) = (channel(), channel());
            hands.push((orders, done));
            ends.push(Some((receiver, sender)));
        }
        let ends: Mutex<Vec<Option<End>>> = Mutex::new(ends);
        let communication = timely::CommunicationConfig::Process(workers);
        let config = timely::Config { communication, worker: WorkerConfig::default() };
        let run = move |worker: &mut Worker| {
            let (orders, done) = ends.lock().unwrap()[worker.index()].take().unwrap();
            for order in orders {
                match order {
                    Order::Build => build(worker),
                    Order::Step => {
                        worker.step();
                    }
                }
                if done.send(worker.has_dataflows()).is_err() {
                    break;
                }
            }
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        };
        let guards = Some(timely::execute(config, run).unwrap());
        let cluster = Cluster { hands, guards, workers };
        for worker in 0..workers {
            cluster.tell(worker, Order::Build);
        }
        cluster
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Has one worker do what it finds to do; true if its dataflow goes on.
    pub fn step(&self, worker: usize) -> bool {
        self.tell(worker, Order::Step)
    }

    fn tell(&self, worker: usize, order: Order) -> bool {
        let (orders, done) = &self.hands[worker];
        orders.send(order).unwrap_or_else(|_| panic!("worker {worker} is gone"));
        done.recv().unwrap_or_else(|_| panic!("worker {worker} panicked, see above"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.hands.clear();
        // A worker that panicked has said so.
        let ended = self.guards.take().map(|guards| guards.join().into_iter().filter(Result::is_ok).count());
        if ended != Some(self.workers) {
            println!("of {} workers {ended:?} ended in peace", self.workers);
        }
    }
}
