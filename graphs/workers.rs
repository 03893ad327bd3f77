//! Timely's workers as threads of a process: they end together, when their work is done or any of them has failed. In a cluster they are
//! workers of one dataflow with those of the other processes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use openwit_operators::fault::{Health, panic_text};
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::{AllocatorBuilder, Hooks, WorkerGuards};
use timely::worker::Worker;

use crate::cluster::watched::Watched;

/// How often a process that is done looks whether others have failed, while they take what it sent last.
const LOOK: Duration = Duration::from_millis(50);

/// Threads of workers that were started.
pub struct Guards {
    workers: WorkerGuards<()>,
    /// Timely's threads for the connections of a cluster.
    connections: Option<CommsGuard>,
    health: Health,
}

/// Connections to the other processes of a cluster, by their numbers; none at the one of this process.
pub type Connections = Vec<Option<Watched>>;

/// Starts `work` on each of `workers` threads. A panic on one is a fault of `stage`, and so are threads that cannot be had: whoever else
/// is to work with these must not wait for them.
pub fn start(
    workers: usize,
    cluster: Option<Connections>,
    stage: &'static str,
    health: &Health,
    work: impl Fn(&mut Worker) + Send + Sync + 'static,
) -> Result<Guards, String> {
    let started = build(workers, cluster).and_then(|(builders, connections)| {
        let workers = start_built(builders, stage, health, work)?;
        Ok(Guards { workers, connections, health: health.clone() })
    });
    if let Err(error) = &started {
        health.fail(stage, format!("starting the workers: {error}"));
    }
    started
}

type Built = (Vec<AllocatorBuilder>, Option<CommsGuard>);

fn build(workers: usize, cluster: Option<Connections>) -> Result<Built, String> {
    let Some(connections) = cluster else {
        let alone =
            if workers == 1 { timely::CommunicationConfig::Thread } else { timely::CommunicationConfig::Process(workers) };
        return Ok((alone.try_build()?.0, None));
    };
    let own = connections.iter().position(Option::is_none).ok_or("a cluster without this process")?;
    let hooks = Hooks::default();
    let inside = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let built = initialize_networking_from_sockets(inside, connections, own, workers, hooks);
    let (builders, guard) = built.map_err(|error| error.to_string())?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Some(guard)))
}

fn start_built(
    builders: Vec<AllocatorBuilder>,
    stage: &'static str,
    health: &Health,
    work: impl Fn(&mut Worker) + Send + Sync + 'static,
) -> Result<WorkerGuards<()>, String> {
    let on_workers = health.clone();
    timely::execute::execute_from(builders, Box::new(()), timely::WorkerConfig::default(), move |worker| {
        on_workers.register_worker();
        // A panicking operator ends its worker alone, and the others would wait for its frontier forever.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(worker))) {
            on_workers.fail(stage, format!("worker {} panicked: {}", worker.index(), panic_text(panic.as_ref())));
            drop_dataflows(worker);
            resume_unwind(panic);
        }
        if on_workers.failed() {
            // Without this, timely goes on stepping until no dataflow is left.
            drop_dataflows(worker);
        }
    })
}

/// Waits until all of them are done, and until the other processes of a cluster have what they sent. After a fault nobody waits for
/// connections: the process ends.
pub fn join(guards: Guards) -> Result<(), String> {
    let Guards { workers, connections, health } = guards;
    let ended = workers.join().into_iter().collect::<Result<Vec<()>, String>>().map(|_| ());
    let Some(connections) = connections else { return ended };
    let (is_closed, closed) = channel();
    // Timely waits for its threads where the guard is dropped.
    let waiting = std::thread::Builder::new().name("cluster-close".into()).spawn(move || {
        drop(connections);
        let _ = is_closed.send(());
    });
    waiting.map_err(|error| format!("closing the connections of the cluster: {error}"))?;
    while !health.failed() && closed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {}
    ended
}

fn drop_dataflows(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

#[cfg(test)]
mod tests {
    use timely::dataflow::operators::Inspect;
    use timely::dataflow::operators::vec::Input;

    use super::*;

    #[test]
    fn a_worker_that_panics_is_a_fault_and_ends_the_others() {
        for workers in [1, 2, 4] {
            let health = Health::default();
            let started = start(workers, None, "process", &health, {
                let health = health.clone();
                move |worker| {
                    let last = worker.peers() as u64 - 1;
                    // Open for ever: a worker that only waits for frontiers never ends.
                    let mut input = worker.dataflow::<u64, _, _>(|scope| {
                        let (input, stream) = scope.new_input();
                        stream.inspect(move |index| assert_ne!(*index, last, "as staged"));
                        input
                    });
                    input.send(worker.index() as u64);
                    input.flush();
                    while worker.has_dataflows() && !health.failed() {
                        worker.step_or_park(None);
                    }
                }
            });
            assert!(join(started.expect("threads can be had")).is_err());
            let fault = health.fault().expect("it was raised").to_string();
            assert!(fault.starts_with(&format!("process: worker {} panicked: ", workers - 1)), "{fault}");
            assert!(fault.contains("as staged"), "{fault}");
        }
    }
}
