//! `graph`: draws the graph that a configuration runs.

use std::fmt::Write as _;

use super::{Ended, load};
use crate::cli::{GraphArgs, GraphFormat};
use crate::config::Config;

/// An edge: from, to, what travels.
type Edge = (&'static str, &'static str, &'static str);

/// Runs the command.
pub fn run(args: &GraphArgs) -> Ended {
    let config = load(&args.config)?;
    let edges = edges(&config);
    let drawn = match args.format {
        GraphFormat::Text => text(&edges),
        GraphFormat::Mermaid => mermaid(&edges),
        GraphFormat::Dot => dot(&edges),
    };
    print!("{drawn}");
    Ok(())
}

/// The edges as `openwit_graphs` builds them; those that carry frontiers only say so.
fn edges(config: &Config) -> Vec<Edge> {
    let mut edges = Vec::new();
    if config.has_ingest() {
        edges.push(("kafka_source", "normalize", "RawBatch"));
        let logged_from = if config.processing.dedup_enabled {
            edges.push(("normalize", "dedup_window", "NormalizedBatch"));
            if config.processing.dedup_warm_up {
                edges.push(("kafka_source", "recall", "RecalledBatch"));
                edges.push(("recall", "dedup_window", "Recalled"));
            }
            "dedup_window"
        } else {
            "normalize"
        };
        edges.extend([
            ("normalize", "dead_letter", "Reject"),
            (logged_from, "wal_commit", "UniqueBatch"),
            ("dead_letter", "wal_commit", "frontier"),
            ("wal_commit", "kafka_source", "frontier: durable"),
            ("wal_commit", "arrow_encode", "DurableBatch"),
            ("wal_commit", "wal_replay", "SpilledBatches"),
            ("wal_replay", "arrow_encode", "DurableBatch"),
            ("arrow_encode", "flight_sink", "Delivery"),
            ("flight_sink", "wal_commit", "frontier: published"),
        ]);
    }
    if config.has_ingest() && config.has_storage() {
        edges.push(("flight_sink", "flight_source", "Arrow Flight"));
    }
    if config.has_storage() {
        edges.extend([
            ("flight_source", "parquet_roll", "Received"),
            ("parquet_roll", "object_upload", "ClosedCommit"),
            ("object_upload", "catalog_commit", "ClosedCommit"),
            ("catalog_commit", "index_trigger", "ClosedCommit"),
            ("catalog_commit", "parquet_roll", "committed"),
            ("catalog_commit", "flight_source", "published"),
        ]);
    }
    edges
}

fn text(edges: &[Edge]) -> String {
    let width = edges.iter().map(|(from, _, _)| from.len()).max().unwrap_or(0);
    edges.iter().fold(String::new(), |mut drawn, (from, to, what)| {
        let _ = writeln!(drawn, "{from:width$} > {to:width$}  {what}");
        drawn
    })
}

fn mermaid(edges: &[Edge]) -> String {
    edges.iter().fold("flowchart LR\n".to_owned(), |mut drawn, (from, to, what)| {
        let arrow = if what.starts_with("frontier") { "-.->" } else { "-->" };
        let _ = writeln!(drawn, "  {from} {arrow}|{what}| {to}");
        drawn
    })
}

fn dot(edges: &[Edge]) -> String {
    let mut drawn = "digraph openwit_ingest {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for (from, to, what) in edges {
        let style = if what.starts_with("frontier") { ", style=dashed" } else { "" };
        let _ = writeln!(drawn, "  {from} -> {to} [label=\"{what}\"{style}];");
    }
    drawn.push_str("}\n");
    drawn
}
