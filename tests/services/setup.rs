//! A topic, a folder and a configuration of one test's own.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::binary::{Finished, openwit};
use crate::support::skipped;

/// A service that a test needs, by its variable; `None` if it was not started.
pub fn service(test: &str, variable: &str) -> Option<String> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => Some(value),
        _ => {
            let why =
                format!("{variable} is not set; start it with `scripts/services up` and `eval \"$(scripts/services env)\"`");
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test}: {why}");
            skipped(test, &why);
            None
        }
    }
}

/// As `service`, of one that `scripts/services` may do without.
pub fn optional(test: &str, variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if found.is_none() {
        skipped(test, &format!("{variable} is not set; `scripts/services up` says what of its service is missing"));
    }
    found
}

/// The graph of `config/wal-first.yaml`.
pub const LOG_FIRST: &str = "{storage: true, stages: [kafka_source, wal_commit, normalize, dead_letter, {operator: dedup_window, from: \
                             normalize}, arrow_encode, flight_sink]}";

/// One test's surroundings.
pub struct Setup {
    /// Bootstrap servers.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// Everything the process keeps.
    pub folder: tempfile::TempDir,
    /// The topic's signal.
    pub signal: &'static str,
    /// The graph, as YAML.
    pub graph: String,
    /// Lines of YAML that replace defaults, without indentation.
    pub extra: String,
}

impl Setup {
    /// A new topic of 8 partitions that takes large messages.
    pub fn new(test: &str, signal: &'static str) -> Option<Self> {
        let brokers = service(test, "OPENWIT_TEST_KAFKA")?;
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos();
        let topic = format!("v6.qtw.{signal}.{test}.n{unique}");
        let created = Command::new(root().join("scripts/services"))
            .args(["topic", "create", &topic, "8", "max.message.bytes=22000000"])
            .output()
            .expect("scripts/services can be run");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Setup {
            brokers,
            group: format!("{test}-{unique}"),
            topic,
            folder,
            signal,
            graph: "standalone".into(),
            extra: String::new(),
        })
    }

    /// The same with its catalog in PostgreSQL and its files in S3, and how other readers name the folder of these.
    pub fn in_postgres_and_s3(test: &str, signal: &'static str) -> Option<(Self, String)> {
        let needed = [
            "OPENWIT_TEST_POSTGRES",
            "OPENWIT_TEST_S3_ENDPOINT",
            "OPENWIT_TEST_S3_BUCKET",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ];
        let found: Vec<String> = needed.iter().filter_map(|variable| service(test, variable)).collect();
        let [postgres, endpoint, bucket, key, secret] = &found[..] else { return None };
        let setup = Setup::new(test, signal)?;
        let (prefix, schema) = (setup.group.clone(), setup.schema());
        let setup = setup.with(&format!(
            "metastore: {{type: postgres, url: \"{postgres}\", schema: {schema}}}\nstorage: {{object_store: {{scheme: s3, bucket: {bucket}, \
             endpoint: \"{endpoint}\", access_key_id: {key}, secret_access_key: {secret}, prefix: {prefix}}}}}\n"
        ));
        Some((setup, format!("s3://{bucket}/{prefix}")))
    }

    /// Adds lines of YAML to the configuration.
    pub fn with(mut self, yaml: &str) -> Self {
        self.extra.push_str(yaml);
        self
    }

    /// The folder's path joined with `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A PostgreSQL schema of this test's own: audits and janitors look at all that is in one.
    pub fn schema(&self) -> String {
        self.group.replace('-', "_")
    }

    /// Writes the configuration and returns its path.
    pub fn config(&self) -> String {
        let path = self.path("config.yaml");
        let mut yaml = String::new();
        // A killed member is missed after 3 seconds: the default of 45 would be most of a test's time.
        write!(
            yaml,
            "graph: {graph}\nnode: {{data_directory: {data}}}\nservice_ports: {{arrow_flight: 0, admin: 0}}\n{extra}ingestion:\n  kafka:\n    \
             brokers: {brokers}\n    group_id: {group}\n    topics: [\"{topic}\"]\n    topic_index_config: {{default_index_position: 3}}\n    \
             telemetry_type: {signal}\n    consumer: {{session_timeout_ms: 3000, heartbeat_interval_ms: 500}}\n",
            data = self.path("data").display(),
            graph = self.graph,
            extra = self.extra,
            brokers = self.brokers,
            group = self.group,
            topic = self.topic,
            signal = self.signal,
        )
        .expect("text takes text");
        std::fs::write(&path, yaml).expect("the folder is writable");
        path.display().to_string()
    }

    /// Sends a generated load.
    pub fn generate(&self, format: &str, count: u64, seed: u64) {
        let (count, seed) = (count.to_string(), seed.to_string());
        let args = ["generate", "--brokers", &self.brokers, "--topic", &self.topic, "--format", format, "--signal", self.signal];
        let load = ["--count", &count, "--duplicates", "2", "--invalid", "1", "--seed", &seed];
        openwit(args.iter().chain(&load)).expect(0);
    }

    /// Runs until everything in the topic is published; the audit at the end must be clean.
    pub fn run_to_end(&self) -> Finished {
        openwit(["run", "--config", &self.config(), "--until-end", "--workers", "2", "--json"]).expect(0)
    }

    /// Checks Parquet files and dead letters against Kafka with the independent reader, and the group's lag.
    pub fn verify(&self, format: &str, parquet: Option<&str>) {
        self.verify_letters(format, parquet, &self.path("data/dead-letter"));
    }

    /// The same where the dead letters lie elsewhere.
    pub fn verify_letters(&self, format: &str, parquet: Option<&str>, letters: &Path) {
        self.verify_with(format, parquet, &["--dead-letter-dir".as_ref(), letters.as_os_str()]);
    }

    /// The same where messages have tenants, by what `--tenants` of the reader says.
    pub fn verify_tenants(&self, format: &str, tenants: &str) {
        let letters = self.path("data/dead-letter");
        self.verify_with(
            format,
            None,
            &["--tenants".as_ref(), tenants.as_ref(), "--dead-letter-dir".as_ref(), letters.as_os_str()],
        );
    }

    /// The same where the dead letters lie in a topic.
    pub fn verify_letters_in(&self, format: &str, topic: &str) {
        self.verify_with(format, None, &["--dead-letter-topic".as_ref(), topic.as_ref()]);
    }

    fn verify_with(&self, format: &str, parquet: Option<&str>, more: &[&OsStr]) {
        let Some(python) = service("verify.py", "OPENWIT_TEST_PYTHON") else { return };
        let objects = self.path("data/objects");
        let objects = parquet.map_or_else(|| objects.display().to_string(), str::to_owned);
        let checked = Command::new(python)
            .arg(root().join("tests/tools/verify.py"))
            .args(["--brokers", &self.brokers, "--topics", &self.topic, "--signal", self.signal, "--format", format])
            .args(["--parquet", &objects, "--group", &self.group])
            .args(more)
            .output()
            .expect("python can be run");
        let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert!(checked.status.success(), "{said}");
    }

    /// Ends the audit clean.
    pub fn audit(&self) {
        openwit(["audit", "--config", &self.config()]).expect(0);
    }
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
