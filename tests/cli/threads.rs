//! Parallelism as the system sees it: the threads of a running process, and the Flight streams it opens.

use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Topic;
use tempfile::TempDir;

use crate::support::binary::{PATIENCE, Process};
use crate::support::wait;
use crate::{DONE, Loaded, line};

/// Threads of a process whose names begin with `name`.
fn threads(process: &Process, name: &str) -> usize {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", process.id())) else { return 0 };
    // A thread that has just ended has no name.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.starts_with(name)).count()
}

#[test]
fn high_performance_runs_as_many_consumers_workers_and_flight_streams_as_it_says() {
    let broker = EmbeddedBroker::start().unwrap();
    // An index keeps to one stream: so many that some go to each.
    let topics: Vec<Topic> = (0..12).map(|shop| Topic { name: format!("v6.qtw.traces.shop{shop}.eu"), partitions: 2 }).collect();
    topics.iter().for_each(|topic| broker.create_topic(topic).unwrap());
    let loaded = Loaded { broker, folder: TempDir::new().unwrap() };
    let names: Vec<String> = topics.iter().map(|topic| format!("--topic {}", topic.name)).collect();
    let brokers = loaded.broker.brokers();
    line(&format!("generate --brokers {brokers} {} --count 240 --seed 4", names.join(" "))).expect(DONE);
    // Without `high_performance` its section counts for nothing.
    for (kind, section, consumers, workers, streams) in [
        ("standard", [3, 4, 3], 1, 1, Some(1)),
        ("high_performance", [1, 1, 3], 1, 1, Some(3)),
        // Which workers have rows for which stream is left to the topics.
        ("high_performance", [3, 4, 1], 3, 4, None),
    ] {
        let [num_consumers, threads_wanted, clients] = section;
        let sets = [
            format!("ingestion.kafka.group_id={kind}-{num_consumers}"),
            format!("node.data_directory={}", loaded.folder.path().join(format!("{kind}-{num_consumers}")).display()),
            format!("ingestion.kafka.consumer_type={kind}"),
            format!(
                "ingestion.kafka.high_performance={{num_consumers: {num_consumers}, processing_threads: {threads_wanted}, \
                 num_grpc_clients: {clients}}}"
            ),
        ];
        let process = Process::start(loaded.arguments(&["run"], &sets));
        let opened = || process.stderr().matches("flight stream open").count();
        let running = || (threads(&process, "kafka-consumer"), threads(&process, "timely:work"));
        // Two graphs, to Flight and from it, each with its workers.
        let met = wait::until_or_late(PATIENCE, || {
            running() == (consumers, 2 * workers) && streams.is_none_or(|streams| opened() >= streams)
        });
        assert!(met, "{kind} {section:?}: {:?}, {} streams\n{}", running(), opened(), process.stderr());
        process.signal(libc::SIGTERM);
        let ended = process.wait(PATIENCE).expect(DONE);
        if let Some(streams) = streams {
            assert_eq!(ended.stderr.matches("flight stream open").count(), streams, "{kind} {section:?}");
        }
    }
}
