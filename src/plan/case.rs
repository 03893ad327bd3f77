//! The plan of a test case: a configuration's graph between messages in memory and sinks in memory.

use openwit_graphs::dataflow::Memory;
use openwit_graphs::process::Plan;
use openwit_graphs::replayed::{ending_in, fed_by};
use openwit_graphs::wiring::{Description, Stage};
use openwit_operators::{dead_letter, memory_sink, memory_source, normalize};

use super::{Files, Origin, graph_plan, process_plan, wire};
use crate::config::Config;

/// Names that no stage of a configuration has.
const ROWS: &str = "rows of the case";
const REJECTS: &str = "rejects of the case";

/// The plan of `config` with `memory` at both ends. Nothing is touched outside of this process: no broker, no disk, no catalog. Quotas are not
/// asked: what is let in depends on what came before.
pub fn case_plan(config: &Config, workers: usize, memory: Memory) -> Result<Plan, String> {
    if !config.has_source() {
        return Err("graph: storage has no stages from a source on: there is nothing that a case could test".to_owned());
    }
    let fed = fed_by(&config.description(), Stage::of(memory_source::NAME))?;
    let description = ending_in(&fed, Stage::of(memory_sink::NAME).named(ROWS))?;
    let wiring = wire(&rejects_kept(description))?;
    let files = Files { quotas: None, ..Files::read(config)? };
    let mut graph = graph_plan(config, wiring, workers, files, Origin { source: None, frames: None, stored: None })?;
    // They were read; nobody looks whether they change.
    graph.tokens = None;
    graph.settings.memory = Some(memory);
    process_plan(config, workers, Some(graph), false)
}

/// The graph with its rejects in memory, wherever they went.
fn rejects_kept(mut description: Description) -> Description {
    description.stages.retain(|stage| stage.operator != dead_letter::NAME);
    let normalize = description.stages.iter().find(|stage| stage.operator == normalize::NAME);
    if let Some(name) = normalize.map(|stage| stage.name.clone()) {
        description.stages.push(Stage::of(memory_sink::NAME).named(REJECTS).from(&format!("{name}.rejects")));
    }
    description
}
