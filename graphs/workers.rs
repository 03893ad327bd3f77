//! Timely's workers as threads of a process: they end together, when their work is done or any of them has failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use openwit_operators::fault::{Health, panic_text};
use timely::communication::WorkerGuards;
use timely::worker::Worker;

/// Threads of workers that were started.
pub type Guards = WorkerGuards<()>;

/// Starts `work` on each of `workers` threads. A panic on one is a fault of `stage`, and so are threads that cannot be had: whoever else
/// is to work with these must not wait for them.
pub fn start(
    workers: usize,
    stage: &'static str,
    health: &Health,
    work: impl Fn(&mut Worker) + Send + Sync + 'static,
) -> Result<Guards, String> {
    let communication =
        if workers == 1 { timely::CommunicationConfig::Thread } else { timely::CommunicationConfig::Process(workers) };
    let config = timely::Config { communication, worker: timely::WorkerConfig::default() };
    let on_workers = health.clone();
    let started = timely::execute(config, move |worker| {
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
    });
    if let Err(error) = &started {
        health.fail(stage, format!("starting the workers: {error}"));
    }
    started
}

/// Waits until all of them are done.
pub fn join(guards: Guards) -> Result<(), String> {
    guards.join().into_iter().collect::<Result<Vec<()>, String>>().map(|_| ())
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
            let started = start(workers, "process", &health, {
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
