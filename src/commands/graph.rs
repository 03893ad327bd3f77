//! `graph`: draws the graph that a configuration runs.

pub mod live;

use std::fmt::Write as _;

use openwit_graphs::dataflow::{commit_points, release_points};
use openwit_graphs::edge::Kind;
use openwit_graphs::registry::{self, Keeps, Operator};
use openwit_graphs::wiring::Wiring;
use openwit_operators::options::Declared;
use serde::{Deserialize, Serialize};

use super::{Ended, Failure, load};
use crate::cli::{GraphArgs, GraphFormat};
use crate::config::Config;
use crate::plan::{commit_mode, wire};

/// What joins two stages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The stage that gives.
    pub from: String,
    /// The stage that takes.
    pub to: String,
    /// What travels.
    pub what: String,
}

impl Edge {
    /// An edge.
    pub fn new(from: impl Into<String>, to: impl Into<String>, what: impl Into<String>) -> Self {
        Edge { from: from.into(), to: to.into(), what: what.into() }
    }
}

/// Runs the command.
pub fn run(args: &GraphArgs) -> Ended {
    if args.operators {
        print!("{}", operators());
        return Ok(());
    }
    if args.live {
        return live::run(args);
    }
    let Some(arguments) = args.configuration() else {
        return Err(Failure::usage("graph needs --config FILE, --operators or --live"));
    };
    let config = load(&arguments)?;
    let edges = edges(&config).map_err(Failure::usage)?;
    let drawn = match args.format {
        GraphFormat::Text => text(&edges),
        GraphFormat::Mermaid => mermaid(&edges),
        GraphFormat::Dot => dot(&edges),
    };
    print!("{drawn}");
    Ok(())
}

/// The edges as `openwit_graphs` builds them; those that carry frontiers only say so.
pub fn edges(config: &Config) -> Result<Vec<Edge>, String> {
    let description = config.description();
    let mut edges = Vec::new();
    if !description.stages.is_empty() {
        stages(&*wire(&description)?, config, &mut edges);
    }
    if description.storage {
        if config.has_operator(registry::FLIGHT) {
            edges.push(Edge::new(name_of(&description.stages, registry::FLIGHT), "flight_source", "Arrow Flight"));
        }
        edges.extend([
            Edge::new("flight_source", "parquet_roll", "Received"),
            Edge::new("parquet_roll", "object_upload", "ClosedCommit"),
            Edge::new("object_upload", "catalog_commit", "ClosedCommit"),
            Edge::new("catalog_commit", "index_trigger", "ClosedCommit"),
            Edge::new("catalog_commit", "parquet_roll", "committed, refused"),
            Edge::new("catalog_commit", "flight_source", "published"),
        ]);
    }
    Ok(edges)
}

fn name_of(stages: &[openwit_graphs::wiring::Stage], operator: &str) -> String {
    stages.iter().find(|stage| stage.operator == operator).map_or(operator, |stage| &stage.name).to_owned()
}

fn stages(wiring: &Wiring, config: &Config, edges: &mut Vec<Edge>) {
    let name = |stage: usize| wiring.stages[stage].stage.name.clone();
    let find = |operator: &str| wiring.stages.iter().position(|placed| placed.operator.name == operator);
    for placed in &wiring.stages {
        for link in &placed.inputs {
            let kind = placed.takes.map_or("", |kind| kind.name());
            edges.push(Edge::new(name(link.stage), &placed.stage.name, kind));
        }
    }
    let (source, log) = (wiring.stages.iter().position(|placed| placed.operator.is_source()), find(registry::LOG));
    if let Some((source, dedup)) = source.zip(find(openwit_operators::dedup_window::NAME))
        && wiring.stages[source].operator.commits
        && config.processing.dedup_warm_up
    {
        // A log of messages as they came holds all that the window goes by.
        let recalled = [Some(source), log.filter(|_| wiring.has_raw_log()), Some(dedup)];
        let recalled: Vec<usize> = recalled.into_iter().flatten().collect();
        edges.extend(recalled.windows(2).map(|pair| Edge::new(name(pair[0]), name(pair[1]), "keys of RecalledBatch")));
    }
    // Nothing is durable, or published from a log of messages as they came, before its rejects are kept.
    let waiting = if wiring.has_raw_log() { find(registry::ENCODE) } else { log };
    if let Some((waiting, dead_letter)) = waiting.zip(find(registry::DEAD_LETTER)) {
        edges.push(Edge::new(name(dead_letter), name(waiting), "frontier"));
    }
    if let Some(source) = source.filter(|_| wiring.commits()) {
        let points = commit_points(wiring, commit_mode(config));
        edges.extend(points.into_iter().map(|point| Edge::new(name(point), name(source), "frontier: commit")));
    }
    if let Some(log) = log {
        edges.extend(release_points(wiring).into_iter().map(|point| Edge::new(name(point), name(log), "frontier: published")));
    }
}

/// What a graph of stages can be made of.
fn operators() -> String {
    let mut text =
        "Operators of a graph of stages: what they take > what they give, and their options (docs/graphs.md)\n".to_owned();
    for operator in registry::public() {
        let Operator { name, meaning, inputs, outputs, keeps, options, .. } = operator;
        let takes = inputs.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" | ");
        let gives = outputs.iter().map(|output| {
            let passed = if output.passes_raw { format!(", or {} as it came", Kind::Raw) } else { String::new() };
            format!("{}: {}{passed}", output.name, output.kind.map_or("the same", |kind| kind.name()))
        });
        let gives = gives.collect::<Vec<_>>().join(", ");
        let ports = match (takes.is_empty(), gives.is_empty()) {
            (true, _) => format!("> {gives}"),
            (false, true) => format!("{takes} >"),
            (false, false) => format!("{takes} > {gives}"),
        };
        let keeps = if *keeps == Keeps::Nothing && outputs.is_empty() { " Keeps nothing." } else { "" };
        let _ = write!(text, "\n{name}\n  {ports}\n  {meaning}{keeps}\n");
        for Declared { name, default, meaning, .. } in *options {
            let default = default.map_or("must be given".to_owned(), |default| {
                format!("default {}", if default.is_empty() { "none" } else { default })
            });
            let _ = writeln!(text, "    {name}: {meaning} ({default})");
        }
    }
    text
}

fn text(edges: &[Edge]) -> String {
    let width = edges.iter().map(|edge| edge.from.len()).max().unwrap_or(0);
    edges.iter().fold(String::new(), |mut drawn, Edge { from, to, what }| {
        let _ = writeln!(drawn, "{from:width$} > {to:width$}  {what}");
        drawn
    })
}

fn mermaid(edges: &[Edge]) -> String {
    edges.iter().fold("flowchart LR\n".to_owned(), |mut drawn, Edge { from, to, what }| {
        let arrow = if what.starts_with("frontier") { "-.->" } else { "-->" };
        let _ = writeln!(drawn, "  {from} {arrow}|{what}| {to}");
        drawn
    })
}

fn dot(edges: &[Edge]) -> String {
    let mut drawn = "digraph openwit_ingest {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for Edge { from, to, what } in edges {
        let style = if what.starts_with("frontier") { ", style=dashed" } else { "" };
        let _ = writeln!(drawn, "  {from} -> {to} [label=\"{what}\"{style}];");
    }
    drawn.push_str("}\n");
    drawn
}
