//! The command line: every command and flag, with the help a user reads.

mod dead_letter;
mod test;
mod token;
mod whereis;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use openwit_operators::batch::Signal;

pub use self::dead_letter::{
    DeadLetterArgs, DeadLetterCommand, DeadLetterLsArgs, DeadLetterReplayArgs, LetterFilter, LettersFrom,
};
pub use self::test::TestArgs;
pub use self::token::{TokenArgs, TokenCheckArgs, TokenCommand, TokenNewArgs};
pub use self::whereis::WhereArgs;
use crate::generate::{Format, Ppm, time};

/// Longest message asked for: Kafka's default limit is 1 MB, and brokers are rarely configured beyond this.
const MESSAGE_BYTES_MAX: u64 = 32 << 20;
/// Most records in a message: at about 344 bytes a span, 34 MB.
const RECORDS_PER_MESSAGE_MAX: u64 = 100_000;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a fault: a broker, disk, store or operator failed; the message names it
  2  wrong arguments or configuration; nothing was started
  3  an audit, a replay or a test case found a difference: data missing, doubled, unaccounted for or
     not as expected

Environment:
  OPENWIT_LOG  what is logged to stderr: error, warn, info, debug, or per module,
               as in `info,openwit_operators=debug`  [default: info]";

/// Kafka to Parquet for telemetry: loses nothing, doubles nothing, and can prove it.
///
/// Reads traces, logs and metrics from Kafka, makes them durable in a write-ahead log, commits the offsets, and publishes each record
/// exactly once as Parquet files with a catalog.
#[derive(Debug, Parser)]
#[command(name = "openwit-ingest", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// See everything work in one process: broker, load, pipeline, storage, audit
    ///
    /// Starts an in-process Kafka broker, generates telemetry with duplicates and invalid messages among it, runs the standalone graph
    /// until all is published, and audits the result. Nothing is needed but this program.
    ///
    /// The embedded broker keeps little: the load is paced by what the pipeline has consumed, so the demo's speed is the pipeline's.
    Demo(DemoArgs),
    /// Run the graph of a configuration
    Run(RunArgs),
    /// Check a configuration and name every problem in it
    Check(CheckArgs),
    /// Draw the graph of a configuration
    Graph(GraphArgs),
    /// Send realistic and hostile telemetry to Kafka
    ///
    /// Messages depend on the arguments alone: the same seed, start time and topics give the same bytes in the same partitions
    /// (message n goes to topic n % topics, partition n / topics % partitions). Valid messages are distinct, trace and span ids unique.
    ///
    /// The summary tells what a correct pipeline must find: distinct records stored, duplicates dropped, invalid messages rejected.
    /// A failed delivery ends the run with exit code 1.
    Generate(GenerateArgs),
    /// Prove that all that came in was stored once, was a duplicate, or was rejected
    ///
    /// Compares the offsets of the topics with the catalog's coverage: every offset is stored, a duplicate, rejected, skipped by policy or
    /// absent in Kafka. A gap is a lost message, an overlap a doubled one.
    Audit(AuditArgs),
    /// Tell where a record is: in which stage, log frame, file and commit
    ///
    /// Looks for one message of Kafka in all places where it can be: catalog and files, the write-ahead logs, the dead letter, and Kafka
    /// itself. The first line says in words what became of it: stored, in the log, rejected, a duplicate, skipped, not read yet, removed
    /// by Kafka's retention before it was read, or lost.
    Where(WhereArgs),
    /// Bring catalog and object store together, remove what is nobody's or too old
    ///
    /// Registers commits whose objects are complete and which the catalog lacks, puts lost rows of files back, removes objects of commits that
    /// were never finished after storage.janitor.grace_seconds, and files past storage.janitor.retention_days. Safe beside running nodes. A
    /// damaged embedded catalog is moved aside and rebuilt from the files' own footers; for that no process may be using it.
    Janitor(JanitorArgs),
    /// Bring the PostgreSQL catalog's tables to this version, with the role that owns them
    ///
    /// Every command that opens the catalog brings its tables to this version if its role may. Where `run` uses a role that may not, run this
    /// first, with the URL of the role that owns the tables.
    Migrate(MigrateArgs),
    /// Look into a write-ahead log
    Wal(WalArgs),
    /// Run a graph on a capture, a log, a range of Kafka or stored Parquet files: to test a change, or to store again what was lost
    ///
    /// The graph is that of the configuration, from where the input comes in: messages as they came run through all of it, a log or a
    /// capture of what was found unique through the part behind. No group is joined, no offset is committed.
    ///
    /// Without --publish nothing is touched that the graph touches in production: rows go to Parquet files in a folder (--to), or are only
    /// counted. --expect compares them with those of an earlier replay, --compare runs a second configuration on the same input and
    /// says which rows differ, and how.
    ///
    /// With --publish rows go to the configuration's storage: for restoring what a catalog or an object store lost, or for filling another
    /// one. Offsets that the catalog covers are left out. Broken off, it can be started again: what it stored is covered by then.
    Replay(ReplayArgs),
    /// Run cases from YAML files: messages, and the rows, rejects and counters that must come of them
    ///
    /// Each case runs the graph of a configuration in this process, from messages in memory to rows in memory: without a broker, a disk or a
    /// catalog, in milliseconds. docs/testing-with-cases.md has the form of the files, with examples.
    Test(TestArgs),
    /// List rejected messages, and send them back to Kafka
    DeadLetter(DeadLetterArgs),
    /// Make tokens for producers, and check the file that knows them
    Token(TokenArgs),
}

/// A `KEY=VALUE` of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// What is set.
    pub key: String,
    /// To what.
    pub value: String,
}

impl std::str::FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Assignment { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(format!("`{text}` is not KEY=VALUE")),
        }
    }
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The configuration, a YAML file; `config/reference.yaml` explains every key
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key of the configuration; may be repeated
    ///
    /// KEY is the path in the file with dots, VALUE is YAML: `--set ingestion.batching.batch_size=2000`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Assignment>,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  openwit-ingest demo\n  openwit-ingest demo --records 5000000 --dir /tmp/demo --keep")]
pub struct DemoArgs {
    /// Records (spans) to generate, about 344 bytes each
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub records: u64,
    /// Where logs, files and the catalog go [default: a new directory under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the files there at the end, to look at them with DuckDB, pyarrow or DataFusion
    #[arg(long)]
    pub keep: bool,
    /// Print the summary as JSON and show no progress
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  openwit-ingest run --config config/standalone.yaml
  openwit-ingest run --config config/standalone.yaml --until-end --json
  openwit-ingest run --config ingest.yaml --processes 2 --process 0 --hostfile hosts   # and --process 1 on the other machine

SIGTERM and SIGINT stop the sources, let what was read become durable, commit and end with 0.
A second signal ends at once; the write-ahead log makes the next start complete what was begun.
In a cluster the other processes stop as well.")]
pub struct RunArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Worker threads in this process [default: as configured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub workers: Option<u64>,
    /// The cluster it is part of.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// End when all that was in the topics at the start is published, then print a summary
    #[arg(long)]
    pub until_end: bool,
    /// Print the summary as JSON and show no progress
    #[arg(long, requires = "until_end")]
    pub json: bool,
}

/// Arguments of the commands that can be one process of a cluster.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Processes in the timely cluster, with one dedup window across all (docs/scaling.md); they wait for each other at the start
    #[arg(long, value_name = "P", default_value_t = 1, requires = "process", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub processes: u64,
    /// Number of this process in the cluster, from 0
    #[arg(long, value_name = "I", requires = "processes")]
    pub process: Option<u64>,
    /// Addresses of the cluster's processes, one `host:port` a line, in order [default: localhost, ports from 2101]
    #[arg(long, value_name = "FILE", requires = "process")]
    pub hostfile: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every problem is named at once: file, key path, value, what is allowed. Ends with 2 if there is any.

Examples:
  openwit-ingest check --config config/ingest.yaml
  openwit-ingest check --config config/ingest.yaml --connect
  openwit-ingest check --config config/ingest.yaml --against deployed/datasets")]
pub struct CheckArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Also reach the brokers, the object store, the catalog and the Flight endpoints
    #[arg(long)]
    pub connect: bool,
    /// Also compare the dataset schemas with those of before, and name every change that is not allowed
    ///
    /// OLD is a folder of dataset schemas, or one of its files. Allowed are new datasets, optional fields, columns, aliases and values,
    /// int to double, and looser limits; the version must rise with any change.
    #[arg(long, value_name = "OLD")]
    pub against: Option<PathBuf>,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  openwit-ingest graph --config config/standalone.yaml --format dot | dot -Tsvg > graph.svg
  openwit-ingest graph --live --config config/standalone.yaml
  openwit-ingest graph --live --once --url http://ingest-3:9464")]
pub struct GraphArgs {
    /// The configuration, a YAML file
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub set: Vec<Assignment>,
    /// List the operators that a graph of stages can be made of, with what they take, give and can be told
    #[arg(long, conflicts_with = "config")]
    pub operators: bool,
    /// How to draw it
    #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
    pub format: GraphFormat,
    /// Draw the graph of a running process with how far each stage is, each second; plain lines where stdout is no terminal
    #[arg(long, conflicts_with_all = ["operators", "format"])]
    pub live: bool,
    /// Where that process serves its status [default: service_ports of the configuration, else http://127.0.0.1:9464]
    #[arg(long, value_name = "URL", requires = "live")]
    pub url: Option<String>,
    /// Draw it once
    #[arg(long, requires = "live")]
    pub once: bool,
}

impl GraphArgs {
    /// The configuration, if one is named.
    pub fn configuration(&self) -> Option<ConfigArgs> {
        self.config.clone().map(|config| ConfigArgs { config, set: self.set.clone() })
    }
}

/// How a graph is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For the terminal
    Text,
    /// For Markdown
    Mermaid,
    /// For Graphviz
    Dot,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("length").args(["count", "rate", "seconds"]).required(true).multiple(true),
    after_help = "\
Invalid messages are empty, cut off, random bytes, nested 1,000 to 100,000 levels deep, not UTF-8, or of another
signal, as far as the format can tell. Without --count and --seconds a run goes on until SIGINT.

Examples:
  openwit-ingest generate -b localhost:9092 -t demo.traces --count 20000
  openwit-ingest generate -b localhost:9092 -t a -t b --signal logs --format json --rate 5000 --seconds 60
  openwit-ingest generate -b localhost:9092 -t t --count 100000 --duplicates 5 --invalid 1 --seed 7 \\
      --start-time 2026-01-01T00:00:00Z --compression zstd --json")]
pub struct GenerateArgs {
    /// Kafka bootstrap servers, `host:port`, separated by commas
    #[arg(long, short, value_name = "HOSTS")]
    pub brokers: String,
    /// Topic to send to; may be repeated, messages then take turns; created if missing
    #[arg(long = "topic", short, value_name = "TOPIC", required = true)]
    pub topics: Vec<String>,
    /// Partitions to use and to create a missing topic with [default: all there are; 4 for a new topic]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub partitions: Option<i32>,
    /// Replicas of a topic that is created; -1 is the broker's default
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub replication_factor: i32,
    /// How messages are encoded
    #[arg(long, short, value_enum, default_value_t = Format::Otlp)]
    pub format: Format,
    /// What they carry: traces, logs or metrics
    #[arg(long, short, default_value = "traces", value_parser = signal())]
    pub signal: Signal,
    /// Messages to send
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Messages per second [default: as fast as brokers take them]
    #[arg(long, short, value_name = "R", value_parser = positive)]
    pub rate: Option<f64>,
    /// Longest time to send for, in seconds; with --rate, messages for as many seconds at that rate
    #[arg(long, value_name = "S", value_parser = positive)]
    pub seconds: Option<f64>,
    /// Spans, log records or data points in each OTLP message [default: 50]
    #[arg(long, value_name = "N", value_parser = ranged(1, RECORDS_PER_MESSAGE_MAX))]
    pub records_per_message: Option<usize>,
    /// Size of a message to aim for: OTLP takes as many records, json and raw are filled with text
    #[arg(long, value_name = "BYTES", conflicts_with = "records_per_message", value_parser = ranged(1, MESSAGE_BYTES_MAX))]
    pub message_bytes: Option<usize>,
    /// Percent of messages that repeat one of the last few thousand exactly
    #[arg(long, value_name = "PERCENT", default_value = "0")]
    pub duplicates: Ppm,
    /// Percent of messages that must be rejected
    #[arg(long, value_name = "PERCENT", default_value = "0")]
    pub invalid: Ppm,
    /// Percent of messages without payload
    #[arg(long, value_name = "PERCENT", default_value = "0")]
    pub tombstones: Ppm,
    /// What the run's randomness is drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Time of the first event: RFC 3339 in UTC or Unix seconds [default: now, to the second]
    ///
    /// Give it to make two runs the same. Kafka's own timestamps are always the time of sending.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub start_time: Option<u64>,
    /// Event time between two messages, in microseconds [default: 1 s / rate; 10 without a rate]
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..))]
    pub time_step_us: Option<u64>,
    /// Give each message a key: unique, and the same for its duplicates
    #[arg(long)]
    pub keyed: bool,
    /// How batches are compressed
    #[arg(long, value_name = "CODEC", default_value = "none", value_parser = ["none", "lz4", "zstd", "gzip", "snappy"])]
    pub compression: String,
    /// Set a librdkafka property, such as `security.protocol=ssl`; may be repeated
    #[arg(long = "property", short = 'X', value_name = "KEY=VALUE")]
    pub properties: Vec<Assignment>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 3 on any gap or overlap.\n\nExample:\n  openwit-ingest audit --config config/standalone.yaml --json"
)]
pub struct AuditArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `janitor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 3 if something needs a person: a row without its object, an object that cannot be read, a commit that
overlaps another in part.

Examples:
  openwit-ingest janitor --config config/storage.yaml --dry-run
  openwit-ingest janitor --config config/storage.yaml --json")]
pub struct JanitorArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Change nothing; say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  openwit-ingest migrate --config config/storage.yaml --set metastore.url='${OWNER_URL}' --grant openwit_run")]
pub struct MigrateArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Also give this role what it needs to run, and no more; it must exist
    #[arg(long, value_name = "ROLE")]
    pub grant: Option<String>,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Damaged parts are reported and left out; then it ends with 1. A result in a folder ends with `replay.json`: what was broken off has none.
With --compare, --to keeps both results, in `one` and `other`. --publish keeps a log of its own beside that of `run`.

Examples:
  openwit-ingest replay --from data/capture -c config/ingest.yaml --to golden
  openwit-ingest replay --from data/capture -c config/ingest.yaml --expect golden
  openwit-ingest replay --from data/capture -c config/ingest.yaml --compare changed.yaml
  openwit-ingest replay --from kafka --since 2026-11-25T12:00:00Z -c config/ingest.yaml --compare changed.yaml
  openwit-ingest replay --from kafka --offsets 'v6.qtw.traces.shop.eu[3]=1000..2000' -c config/ingest.yaml --to one-batch
  openwit-ingest replay --from data/lake -c config/ingest.yaml --index shop --compare changed.yaml
  openwit-ingest replay --from data/wal/long -c config/standalone.yaml --publish
  openwit-ingest replay --from data/wal/long --since 2026-11-25T00:00:00Z --until 2026-11-26T00:00:00Z --topic a -c c.yaml --publish")]
pub struct ReplayArgs {
    /// A capture: its folder or one of its files. Or a log: its directory, a day of a long-term log, a single segment or copy; or
    /// `long-term` for the one of the configuration, wherever it is. Or a folder with Parquet files at any depth: that of an object
    /// store, or of an earlier replay. Or `parquet`: what the configuration's catalog lists in its object store. Or `kafka`: what the
    /// configuration's topics hold now, or the part of it that --topic, --since, --until or --offsets name; times are those of
    /// Kafka's timestamps there, and of Parquet files
    #[arg(long, value_name = "PATH")]
    pub from: PathBuf,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where the result goes.
    #[command(flatten)]
    pub result: ReplayResult,
    /// Records of this topic only; may be repeated. Of Kafka and of Parquet files also a glob
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Records read or logged at this time and later: RFC 3339 in UTC or Unix seconds. Of Kafka and of Parquet files by Kafka's timestamps
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub since: Option<u64>,
    /// Records read or logged before this time
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub until: Option<u64>,
    /// Of Parquet files, rows of this index only; may be repeated
    #[arg(long = "index", value_name = "INDEX")]
    pub indexes: Vec<String>,
    /// Of Parquet files, rows of this signal only; may be repeated
    #[arg(long = "signal", value_name = "SIGNAL", value_parser = ["traces", "logs", "metrics"])]
    pub signals: Vec<String>,
    /// With --from kafka: these offsets of a partition, either end may be left out, the end is one past the last; may be repeated
    #[arg(long, value_name = "TOPIC[PARTITION]=START..END", conflicts_with_all = ["topics", "since", "until"])]
    pub offsets: Vec<String>,
    /// As fast as it was recorded, or a multiple: 1, 0.5, 10 [default: as fast as it goes]
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    pub speed: Option<f64>,
    /// The cluster it is part of: each process reads its share of a capture, and its result is a part of the whole one.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Worker threads in this process [default: one for each core; with --publish or --processes as configured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub workers: Option<u64>,
    /// Print the result as JSON and show no progress
    #[arg(long)]
    pub json: bool,
}

/// Where the result of a replay goes, and what it is compared with.
#[derive(Clone, Debug, Default, Args)]
pub struct ReplayResult {
    /// Store the rows where the configuration says, rejects too
    #[arg(long, conflicts_with_all = ["to", "expect", "compare", "replace"])]
    pub publish: bool,
    /// Write rows to Parquet files in this folder (`rows/`), rejects beside them (`rejects/`)
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Remove what an earlier replay has left in the folder of --to
    #[arg(long, requires = "to")]
    pub replace: bool,
    /// Compare with what an earlier replay left in this folder; exit code 3 if anything differs
    #[arg(long, value_name = "DIR", conflicts_with = "compare")]
    pub expect: Option<PathBuf>,
    /// Run this configuration on the same input, too, and compare; exit code 3 if anything differs
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Differences of each kind that are listed; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub show: usize,
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor >= 0.01 && *factor <= 1_000.0);
    factor.ok_or_else(|| "must be a number from 0.01 to 1000".to_owned())
}

/// Arguments of `wal`.
#[derive(Debug, Args)]
pub struct WalArgs {
    /// What to do with the log.
    #[command(subcommand)]
    pub command: WalCommand,
}

/// What to do with a write-ahead log, short-term or long-term. None changes it, all work on the log of a running process.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// List segments: state, frames, bytes, epochs, offsets
    Ls(WalDirArgs),
    /// Print records as JSON, one a line
    Cat(WalCatArgs),
    /// Read every frame and check its checksum; ends with 1 if one is damaged, other than a torn tail
    Verify(WalDirArgs),
}

/// Arguments of `wal cat`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is damaged is reported on stderr and left out; then it ends with 1.

Examples:
  openwit-ingest wal cat data/wal/short --topic v6.qtw.traces.shop.eu --partition 3 --from-offset 1000 --limit 10
  openwit-ingest wal cat data/wal/long/2026-11-26 --payload none
  openwit-ingest wal cat long-term --config config/ingest.yaml --limit 10")]
pub struct WalCatArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Records of this topic only; may be repeated
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Records of this partition only; may be repeated
    #[arg(long = "partition", value_name = "N")]
    pub partitions: Vec<i32>,
    /// Records of this offset and later ones
    #[arg(long, value_name = "OFFSET")]
    pub from_offset: Option<i64>,
    /// Records before this offset
    #[arg(long, value_name = "OFFSET")]
    pub to_offset: Option<i64>,
    /// Records to print at most
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// How payloads are printed
    #[arg(long, value_enum, default_value_t = PayloadFormat::Json)]
    pub payload: PayloadFormat,
}

/// How `wal cat` prints payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PayloadFormat {
    /// As OTLP/JSON
    Json,
    /// The protobuf bytes, as base64
    Base64,
    /// Not at all
    None,
}

/// Where a log is.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The log's directory, a day of a long-term log, or a single segment or copy; or `long-term` for the one of the configuration,
    /// wherever it is
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The configuration that tells where its long-term log is
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub set: Vec<Assignment>,
}

/// Arguments of `wal ls` and `wal verify`.
#[derive(Debug, Args)]
pub struct WalDirArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `Signal` lives in a crate that knows nothing of command lines.
fn signal() -> impl TypedValueParser<Value = Signal> {
    let signals = [Signal::Traces, Signal::Logs, Signal::Metrics];
    PossibleValuesParser::new(signals.map(Signal::name)).try_map(move |name| {
        let found = signals.into_iter().find(|signal| signal.name() == name);
        found.ok_or_else(|| format!("`{name}` is no signal"))
    })
}

fn ranged(min: u64, max: u64) -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64).range(min..=max).map(|number| number as usize)
}

/// A finite number above zero, and below what overflows a duration or a rate.
fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (1e-6..=1e9).contains(&number) { Ok(number) } else { Err(format!("{number} is not between 0.000001 and 1,000,000,000")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_of_the_documentation_parse() {
        let lines = [
            "demo --records 1000 --dir d --keep",
            "run --config c.yaml --set a.b=1 --set c=d=e --workers 2 --until-end --json",
            "run -c c.yaml --processes 2 --process 1 --hostfile h",
            "check --config c.yaml --connect",
            "graph --config c.yaml --format mermaid",
            "graph --live --url http://h:1 --once",
            "graph --live -c c.yaml",
            "generate --brokers b:1 --topic t --topic u --format otlp-json --signal logs --count 5 --duplicates 2.5 --invalid 1%",
            "generate -b b:1 -t t --rate 100 --seconds 5 --start-time 2026-01-01T00:00:00Z --replication-factor -1",
            "audit --config c.yaml --json",
            "where t 3 1047 --config c.yaml --offline --json",
            "janitor --config c.yaml --dry-run --json",
            "migrate --config c.yaml --set metastore.url=postgres://o@h/d --grant r",
            "wal ls d",
            "wal cat d --topic t --topic u --partition 3 --from-offset 5 --to-offset 9 --limit 2 --payload base64",
            "wal verify d --json",
            "replay --from d --config c.yaml --topic t --since 2026-11-25T00:00:00Z --until 1790000000 --workers 2 --json --publish",
            "replay --from parquet --config c.yaml --index i --signal traces --signal logs --topic t --to e",
            "replay --from d --config c.yaml --to e --replace --expect f --speed 0.5 --show 3",
            "replay --from d --config c.yaml --compare f.yaml",
            "dead-letter ls --directory d --count",
            "dead-letter ls --directory d --reason malformed --reason empty --since 1790000000 --until 1790000001 --limit 3 --json --payload",
            "dead-letter ls --config c.yaml --set a.b=1 --topic --origin t:3:1000..2000 --origin u --topic-origin v:1",
            "dead-letter ls -c c.yaml --topic letters --after 3:7",
            "dead-letter replay --config c.yaml --to t --keep-timestamp --again --dry-run --json",
            "dead-letter replay --config c.yaml --token-env TOKEN",
            "token new --id shop-1 --tenant shop --topics a.** b --topics c --signals logs traces --expires 2027-01-01T00:00:00Z --json",
            "token new --id any --not-before 1790000000",
            "token check --file f",
            "dead-letter replay --config c.yaml --directory d --after dead-letter-1700000000000-4711-0000.ndjson:12",
        ];
        for line in lines {
            let parsed = Cli::try_parse_from(std::iter::once("openwit-ingest").chain(line.split(' ')));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_ends_with_the_usage_code() {
        let lines = [
            "",
            "run",
            "run -c c --json",
            "run -c c --process 1 --processes",
            "run -c c --set =1",
            "run -c c --workers 0",
            "generate -b b -t t",
            "generate -b b --count 1",
            "generate -b b -t t --count 1 --duplicates 101",
            "generate -b b -t t --count 1 --signal profiles",
            "generate -b b -t t --rate 0",
            "generate -b b -t t --rate inf",
            "generate -b b -t t --count 1 --start-time yesterday",
            "dead-letter ls",
            "dead-letter ls --topic t",
            "dead-letter ls --directory d --config c --topic t",
            "dead-letter ls --directory d --payload",
            "dead-letter ls --directory d --origin t:x",
            "dead-letter ls --directory d --origin t:1:9..9",
            "dead-letter ls --directory d --after there",
            "dead-letter replay --directory d",
            "token new --tenant shop",
            "token new --id a/b",
            "token new --id a --tenant ../etc",
            "token new --id a --topics a**",
            "token new --id a --signals profiles",
            "token check",
            "where t 3 -c c",
            "graph -c c --once",
            "graph --live --operators",
            "where t 3 x -c c",
            "where t -1 3 -c c",
            "generate -b b -t t --count 1 --message-bytes 5 --records-per-message 5",
        ];
        for line in lines {
            let words = line.split(' ').filter(|word| !word.is_empty());
            let error = Cli::try_parse_from(std::iter::once("openwit-ingest").chain(words)).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(crate::exit_code::USAGE), "{line}");
        }
    }
}
