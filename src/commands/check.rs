//! `check`: every problem of a configuration, without starting anything.

use std::path::Path;
use std::time::{Duration, Instant};

use openwit_graphs::catalog;
use openwit_operators::dataset::{Schema, evolution};
use openwit_operators::fault::chain;
use openwit_operators::kafka_client::{self, Complaints};
use openwit_operators::object_upload;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;

use super::{Ended, Failure, load_with_warnings};
use crate::cli::CheckArgs;
use crate::config::{Config, Loaded, datasets};
use crate::plan::{Changes, catalog_location, consumer_properties, object_store, plan, topics};

/// How long each service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt takes: a client that is refused is told so in less.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a poll waits: without any wait it ends at the first line of the client's log.
const POLL_WAIT: Duration = Duration::from_millis(10);

/// Runs the command.
pub fn run(args: &CheckArgs) -> Ended {
    let Loaded { config, warnings } = load_with_warnings(&args.config)?;
    if !warnings.is_empty() {
        println!("{warnings}");
    }
    plan(&config, &Changes::default(), std::sync::Arc::default()).map_err(Failure::usage)?;
    let schemas = match &config.ingestion.datasets.directory {
        Some(directory) => datasets::load(directory).map_err(Failure::usage)?,
        None => Vec::new(),
    };
    for schema in &schemas {
        println!("dataset {}: {} of {}", schema.stamp(), schema.signal, schema.indexes.join(", "));
    }
    if let Some(old) = &args.against {
        compare(old, &schemas)?;
    }
    println!("{}: no errors", args.config.config.display());
    if args.connect { connect(&config) } else { Ok(()) }
}

/// Names every change from the schemas at `old` that is not allowed.
fn compare(old: &Path, schemas: &[Schema]) -> Ended {
    let old_schemas = datasets::load(old).map_err(Failure::usage)?;
    let forbidden = evolution::forbidden(&old_schemas, schemas);
    if forbidden.is_empty() {
        println!("{}: {} dataset schemas, no change that is not allowed", old.display(), old_schemas.len());
        return Ok(());
    }
    let lines: Vec<String> = forbidden.iter().map(ToString::to_string).collect();
    Err(Failure::usage(lines.join("\n")))
}

/// Reaches everything the configuration names, and reports all that cannot be reached.
fn connect(config: &Config) -> Ended {
    let mut failures = Vec::new();
    let mut tell = |what: &str, result: Result<String, String>| match result {
        Ok(found) => println!("{what}: {found}"),
        Err(error) => {
            println!("{what}: FAILED: {error}");
            failures.push(what.to_owned());
        }
    };
    if config.has_ingest() {
        tell("kafka", kafka(config));
    }
    tell("catalog", open_catalog(config));
    if config.has_storage() {
        tell("object store", store(config));
    }
    for endpoint in &config.storage.endpoints {
        tell(&format!("storage {endpoint}"), reach(endpoint));
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::fault(format!("cannot reach: {}", failures.join(", ")))) }
}

fn kafka(config: &Config) -> Result<String, String> {
    let (mut client, login) = kafka_client::settings(&consumer_properties(config));
    // Down to what it says of connections that brokers close.
    client.set_log_level(RDKafkaLogLevel::Info);
    let consumer: BaseConsumer<Witness> = client.create_with_context(Witness::default()).map_err(|error| error.to_string())?;
    login.begin(consumer.client());
    let metadata = reach_brokers(&consumer)?;
    let patterns = topics(config)?;
    let matching: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).filter(|name| patterns.matches(name)).collect();
    let found = if matching.is_empty() { "no topic matches yet".into() } else { format!("topics {}", matching.join(", ")) };
    Ok(format!("{} brokers, {found}", metadata.brokers().len()))
}

/// Asks for the topics until a broker answers, refuses, or patience ends.
fn reach_brokers(consumer: &BaseConsumer<Witness>) -> Result<Metadata, String> {
    let since = Instant::now();
    loop {
        let error = match consumer.fetch_metadata(None, ATTEMPT) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        // The client's words come by polling.
        while consumer.poll(POLL_WAIT).is_some() {}
        let complaints = &consumer.context().0;
        if let Some(refusal) = complaints.refusal() {
            return Err(refusal);
        }
        if since.elapsed() >= PATIENCE {
            return Err(complaints.why_nobody_answers().map_or_else(|| error.to_string(), |why| format!("{error}: {why}")));
        }
    }
}

/// Remembers what the Kafka client complains of. Nothing is logged: it is what `check` reports.
#[derive(Default)]
struct Witness(Complaints);

impl ClientContext for Witness {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.0.hear_log(message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.hear(&error, reason);
    }
}

impl ConsumerContext for Witness {}

fn open_catalog(config: &Config) -> Result<String, String> {
    let catalog = catalog::open(&catalog_location(config)).map_err(|error| chain(&error))?;
    let partitions = catalog.coverage().map_err(|error| chain(&error))?.len();
    Ok(format!("{partitions} partitions known"))
}

fn store(config: &Config) -> Result<String, String> {
    let operator = object_upload::build_operator(&object_store(config)).map_err(|error| chain(&error))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(operator.check()).map_err(|error| error.to_string())?;
    Ok("reachable".into())
}

fn reach(endpoint: &str) -> Result<String, String> {
    let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address).trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let connected = runtime.block_on(async { tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await });
    match connected {
        Ok(Ok(_)) => Ok("reachable".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}
