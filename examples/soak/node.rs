//! Processes of the program: their configurations, started, signalled and watched.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use openwit_ingest::config::Config;

use crate::services::Services;

/// The consumer group.
pub const GROUP: &str = "soak";
/// Duplicates of the load reach back some minutes at most; the window must be longer, or the check would excuse what passes.
pub const DEDUP_WINDOW_SECONDS: u32 = 900;

/// The stages of `config/wal-first.yaml` without storage.
const WAL_FIRST: &str = "{stages: [kafka_source, wal_commit, normalize, dead_letter, {operator: dedup_window, from: normalize}, \
                         arrow_encode, flight_sink]}";

/// Where everything is that the nodes need.
pub struct Surroundings {
    /// The program.
    pub binary: PathBuf,
    /// The folder of the run.
    pub folder: PathBuf,
    /// Kafka's address.
    pub brokers: String,
    metastore: String,
    object_store: String,
    endpoints: Vec<String>,
    ingest_graph: &'static str,
    process_group: i32,
}

impl Surroundings {
    /// Those of a run with `storage` storage nodes; with `wal_first` the log of ingest nodes stands before `normalize`.
    pub fn new(binary: PathBuf, folder: PathBuf, services: &Services, storage: usize, wal_first: bool) -> anyhow::Result<Self> {
        let variable = |name: &str| services.variable(name);
        let metastore = format!("{{type: postgres, url: \"{}\", schema: soak}}", variable("OPENWIT_TEST_POSTGRES")?);
        let object_store = format!(
            "{{scheme: s3, bucket: {}, endpoint: \"{}\", access_key_id: {}, secret_access_key: {}, prefix: soak}}",
            variable("OPENWIT_TEST_S3_BUCKET")?,
            variable("OPENWIT_TEST_S3_ENDPOINT")?,
            variable("AWS_ACCESS_KEY_ID")?,
            variable("AWS_SECRET_ACCESS_KEY")?,
        );
        let endpoints = free_ports(storage)?.into_iter().map(|port| format!("http://127.0.0.1:{port}"));
        Ok(Surroundings {
            binary,
            folder,
            brokers: variable("OPENWIT_TEST_KAFKA")?.to_owned(),
            metastore,
            object_store,
            endpoints: endpoints.collect(),
            ingest_graph: if wal_first { WAL_FIRST } else { "ingest" },
            process_group: services.process_group(),
        })
    }

    fn common(&self, graph: &str, name: &str) -> String {
        format!(
            "graph: {graph}\nnode: {{id: {name}, data_directory: {}}}\nmetastore: {}\n",
            self.folder.join(name).display(),
            self.metastore
        )
    }

    fn kafka(&self, more: &str) -> String {
        format!(
            "ingestion:\n  kafka:\n    brokers: {}\n    group_id: {GROUP}\n    topics: [\"v6.soak.*.*.*\"]\n    topic_index_config:\n      \
             default_index_position: 3\n      patterns:\n        - {{match: \"v6.soak.logs.*.*\", telemetry_type: logs, format: json}}\n        \
             - {{match: \"v6.soak.metrics.*.*\", telemetry_type: metrics}}\n    consumer: {{session_timeout_ms: 6000, \
             heartbeat_interval_ms: 1000, revoke_wait_ms: 3000}}\n    commit_strategy: {{interval_ms: 500}}\n{more}",
            self.brokers
        )
    }

    /// Writes the configuration of ingest node `number`.
    fn ingest(&self, number: usize) -> anyhow::Result<PathBuf> {
        let name = format!("ingest-{number}");
        let kafka = self.kafka(&format!("    group_instance_id: {name}\n"));
        let endpoints = self.endpoints.join("\", \"");
        let text = format!(
            "{}{kafka}service_ports: {{admin: 0}}\nprocessing:\n  shutdown_timeout_seconds: 20\n  dedup_window_seconds: {DEDUP_WINDOW_SECONDS}\n  wal: {{max_size_bytes: 1GiB, \
             segment_size_bytes: 16MiB}}\nstorage: {{endpoints: [\"{endpoints}\"]}}\n",
            self.common(self.ingest_graph, &name)
        );
        self.write(&name, &text)
    }

    /// Writes the configuration of storage node `number`. Files close soon, so that there is always a commit to interrupt.
    fn storage(&self, number: usize) -> anyhow::Result<PathBuf> {
        let name = format!("storage-{number}");
        let port = self.endpoints[number].rsplit(':').next().unwrap_or_default();
        let text = format!(
            "{}service_ports: {{arrow_flight: {port}, admin: 0}}\nprocessing: {{shutdown_timeout_seconds: 20}}\nstorage:\n  rotation: \
             {{file_bytes_max: 32MiB, age_max_seconds: 12, idle_seconds: 4, memory_bytes_max: 96MiB}}\n  object_store: {}\n",
            self.common("storage", &name),
            self.object_store
        );
        self.write(&name, &text)
    }

    /// Writes the configuration for `audit`, which sees both ends, and returns its path.
    pub fn audit(&self) -> anyhow::Result<PathBuf> {
        let text =
            format!("{}{}storage: {{object_store: {}}}\n", self.common("standalone", "audit"), self.kafka(""), self.object_store);
        self.write("audit", &text)
    }

    /// What `audit` is configured with.
    pub fn audit_config(&self) -> anyhow::Result<Config> {
        let loaded = Config::load(&self.audit()?, &[]).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        Ok(loaded.config)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{name}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Ports below those that the kernel gives to clients: one of these could be taken by a client that dials a dead node.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_of_clients = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768_u16).max(12_000);
    // Two runs at once should not look at the same ports.
    let start = 10_240 + (std::process::id() % 1_000) as u16;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = (start..first_of_clients).filter(is_free).take(count).collect();
    anyhow::ensure!(ports.len() == count, "no free port from {start} to {first_of_clients}");
    Ok(ports)
}

/// Which graph a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Kafka to the storage nodes.
    Ingest,
    /// To Parquet and the catalog.
    Storage,
}

/// A node: the same name and folder over all its processes.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its graph.
    pub role: Role,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node that is not running yet.
    pub fn new(surroundings: &Surroundings, role: Role, number: usize) -> anyhow::Result<Self> {
        let (kind, config) = match role {
            Role::Ingest => ("ingest", surroundings.ingest(number)?),
            Role::Storage => ("storage", surroundings.storage(number)?),
        };
        let name = format!("{kind}-{number}");
        let log = surroundings.folder.join(format!("{name}.log"));
        Ok(Node { name, role, config, log, child: None })
    }

    /// Starts its process, with so many workers.
    pub fn start(&mut self, surroundings: &Surroundings, workers: u64) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&surroundings.binary);
        command.args(["run", "--config"]).arg(&self.config).args(["--workers", &workers.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_remove("OPENWIT_LOG");
        command.process_group(surroundings.process_group);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", surroundings.binary.display()))?);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) -> anyhow::Result<()> {
        self.pid().map_or(Ok(()), |pid| send_signal(pid, signal))
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(libc::SIGKILL)?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// How it ended, once, if it has: its exit code, or `None` where a signal ended it.
    pub fn ended(&mut self) -> anyhow::Result<Option<Option<i32>>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let Some(status) = child.try_wait()? else { return Ok(None) };
        self.child = None;
        Ok(Some(status.code()))
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().map(|line| line.trim().chars().take(300).collect::<String>()).collect::<Vec<_>>().join(" | ")
    }
}

/// Folders with the dead letters of ingest nodes.
pub fn dead_letters(folder: &Path, ingest: usize) -> Vec<PathBuf> {
    (0..ingest).map(|number| folder.join(format!("ingest-{number}/dead-letter"))).collect()
}

/// Sends a signal to a process that was not waited for yet.
pub fn send_signal(pid: u32, signal: libc::c_int) -> anyhow::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory.
    let sent = unsafe { libc::kill(pid as libc::pid_t, signal) };
    anyhow::ensure!(sent == 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The greatest resident memory of a process so far, in bytes.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1_024)
}
