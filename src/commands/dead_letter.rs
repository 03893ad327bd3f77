//! `dead-letter ls` and `dead-letter replay`: what was rejected, and the way back.

pub mod ls;
pub mod replay;

use std::collections::BTreeMap;

use openwit_operators::dead_letter::read::{Selection, Source};
use openwit_operators::fault::chain;

use super::{Ended, Failure};
use crate::cli::{DeadLetterArgs, DeadLetterCommand, LetterFilter, LettersFrom};
use crate::config::Config;
use crate::plan::connection_properties;

/// Runs the command.
pub fn run(args: &DeadLetterArgs) -> Ended {
    match &args.command {
        DeadLetterCommand::Ls(args) => ls::run(args, &mut std::io::stdout().lock()),
        DeadLetterCommand::Replay(args) => replay::run(args),
    }
}

/// Opens the folder or topic that was asked for, or the one of the configuration: its folder, if there is one, for there each letter is
/// whole and there once.
fn open(from: &LettersFrom, filter: &LetterFilter, config: Option<&Config>) -> Result<Source, Failure> {
    let folder = |directory| Source::folder(directory).map_err(|error| Failure::fault(chain(&error)));
    let topic = |name: &str, config| Source::topic(name, &reader(config)).map_err(|error| Failure::fault(chain(&error)));
    let source = match (from, config) {
        (LettersFrom { directory: Some(directory), .. }, _) => folder(directory)?,
        (LettersFrom { topic: Some(name), .. }, Some(config)) if !name.is_empty() => topic(name, config)?,
        (from, Some(config)) => {
            let keys = &config.ingestion.kafka.dead_letter;
            match (&keys.directory, &keys.topic) {
                (Some(directory), _) if from.topic.is_none() => folder(directory)?,
                (_, Some(name)) => topic(name, config)?,
                _ => return Err(Failure::usage("--topic: ingestion.kafka.dead_letter.topic is not set: name the topic")),
            }
        }
        (_, None) => return Err(Failure::usage("either --directory or --config is needed")),
    };
    match &filter.after {
        Some(place) if !source.may_have(place) => {
            Err(Failure::usage(format!("--after {place}: the letters are in {}, where no place is called so", source.name())))
        }
        _ => Ok(source),
    }
}

/// The properties of a client that reads. It joins no group; the client only wants to know one.
pub(super) fn reader(config: &Config) -> BTreeMap<String, String> {
    let mut properties = connection_properties(config);
    properties.insert("group.id".into(), config.ingestion.kafka.group_id.clone());
    properties
}

fn selection(filter: &LetterFilter) -> Selection {
    // Both ends are rounded up: a letter's time is in whole milliseconds.
    let to_ms = |unix_ns: u64| unix_ns.div_ceil(1_000_000);
    Selection {
        reasons: filter.reasons.clone(),
        origins: filter.origins.clone(),
        since_ms: filter.since.map(to_ms),
        until_ms: filter.until.map(to_ms),
    }
}
