//! `check`: every problem of a configuration, without starting anything.

use std::time::Duration;

use openwit_graphs::catalog;
use openwit_operators::fault::chain;
use openwit_operators::object_upload;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Ended, Failure, load_with_warnings};
use crate::cli::CheckArgs;
use crate::config::{Config, Loaded};
use crate::plan::{Changes, catalog_location, consumer_properties, object_store, plan, topics};

/// How long each service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(args: &CheckArgs) -> Ended {
    let Loaded { config, warnings } = load_with_warnings(&args.config)?;
    print!("{warnings}");
    plan(&config, &Changes::default(), std::sync::Arc::default()).map_err(Failure::usage)?;
    println!("{}: no errors", args.config.config.display());
    if args.connect { connect(&config) } else { Ok(()) }
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
    let mut client = ClientConfig::new();
    client.extend(consumer_properties(config));
    let consumer: BaseConsumer = client.create().map_err(|error| error.to_string())?;
    let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(|error| error.to_string())?;
    let patterns = topics(config)?;
    let matching: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).filter(|name| patterns.matches(name)).collect();
    let found = if matching.is_empty() { "no topic matches yet".into() } else { format!("topics {}", matching.join(", ")) };
    Ok(format!("{} brokers, {found}", metadata.brokers().len()))
}

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
