//! Storage nodes that are away, or die: ingest goes on acknowledging from its log, and nothing is lost or doubled.

use std::net::TcpListener;
use std::sync::atomic::Ordering::Relaxed;

use openwit_ingest::config::{Config, Graph};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, send, sent};
use crate::support::binary::Process;

/// An ingest node in this process, whose storage node is another one, at a port that is free now.
pub struct Apart {
    _broker: EmbeddedBroker,
    pub load: Plan,
    folder: TempDir,
    /// Of everything together: what `delivered` reads.
    pub config: Config,
    pub ingest: Config,
    port: u16,
}

impl Apart {
    fn new(messages: u64) -> Self {
        let mut load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
        load.count = Some(messages);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        let config = config(&broker, &load, &folder);
        Apart::of(broker, folder, load, config, Graph::Ingest)
    }

    /// Of `config`, with this graph in the ingest node. Sends the load.
    pub fn of(broker: EmbeddedBroker, folder: TempDir, load: Plan, config: Config, graph: Graph) -> Self {
        send(&broker, &load);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ingest = config.clone();
        ingest.graph = graph;
        // The embedded catalog belongs to one process. Without a look into storage's, ingest sends all it has: storage drops what it knows.
        ingest.metastore.path = folder.path().join("catalog-of-ingest");
        ingest.storage.endpoints = vec![format!("http://127.0.0.1:{port}")];
        Apart { _broker: broker, load, folder, config, ingest, port }
    }

    pub fn messages(&self) -> i64 {
        self.load.count.unwrap_or_default() as i64
    }

    /// Starts the storage node; it publishes what was idle for `idle_seconds`.
    pub fn storage(&self, idle_seconds: u64) -> Process {
        let path = self.folder.path().join("storage.yaml");
        let mut config = self.config.clone();
        config.graph = Graph::Storage;
        config.service_ports.arrow_flight = self.port;
        let rotation = &mut config.storage.rotation;
        (rotation.file_bytes_max, rotation.idle_seconds, rotation.age_max_seconds) = (64 << 20, idle_seconds, 3_600);
        std::fs::write(&path, config.to_yaml()).unwrap();
        let mut storage = Process::start(["run", "--config", &path.display().to_string()]);
        assert!(storage.wait_for("Arrow Flight is served"), "{}", storage.stderr());
        storage
    }
}

#[test]
fn acknowledging_goes_on_while_storage_is_away_and_the_backlog_is_stored_exactly_once() {
    for workers in [1, 2] {
        let mut setup = Apart::new(1_200);
        // A ninth of the load: the rest has to wait on disk.
        setup.ingest.processing.buffer.max_size_bytes = 1 << 20;
        setup.ingest.processing.wal.max_size_bytes = 32 << 20;
        let mut ingest = Running::start(&setup.ingest, workers, Until::End);
        ingest.wait_for("all messages to be acknowledged", |positions| positions.committable == setup.messages());
        let backlog = &ingest.control().counters.backlog;
        // Most of it is in the log alone.
        assert!(backlog.backlog.load(Relaxed) > 40, "{backlog:?}");
        let storage = setup.storage(1);
        let control = ingest.finish();
        assert_eq!(control.counters.backlog.backlog.load(Relaxed), 0);
        assert_eq!(control.counters.backlog.recalled.load(Relaxed), control.counters.backlog.spilled.load(Relaxed));
        stop(storage);
        delivered(&setup.config, &sent(&setup.load));
    }
}

#[test]
fn what_a_killed_storage_node_had_received_is_sent_again_from_the_log() {
    let setup = Apart::new(400);
    let storage = setup.storage(3_600);
    let mut ingest = Running::start(&setup.ingest, 2, Until::End);
    let counters = ingest.control().counters.clone();
    ingest.wait_for("everything to be received", |positions| {
        let (sent, received) = (counters.sink.rows_sent.load(Relaxed), counters.sink.rows_received.load(Relaxed));
        positions.committable == setup.messages() && received == sent && received > 0
    });
    assert!(counters.sink.unpublished.load(Relaxed) > 0);
    assert!(storage.kill());
    let storage = setup.storage(1);
    let control = ingest.finish();
    assert!(control.counters.sink.resent.load(Relaxed) > 0);
    stop(storage);
    delivered(&setup.config, &sent(&setup.load));
}

fn stop(storage: Process) {
    storage.signal(libc::SIGTERM);
    storage.wait(crate::support::binary::PATIENCE).expect(0);
}
