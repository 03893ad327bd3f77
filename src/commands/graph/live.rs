//! `graph --live`: the graph of a running process, with how far each stage is.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::time::Duration;

use super::super::{Ended, Failure, load};
use crate::cli::GraphArgs;
use crate::config::Config;
use crate::generate::time::rfc3339_ms;
use crate::progress::grouped;
use crate::status::{Progress, Stage, StagePartition, Status};

/// How often it is drawn.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Partitions named that hold a stage.
const HOLDING_MAX: usize = 3;
/// Where a process listens that was told nothing else.
const DEFAULT_URL: &str = "http://127.0.0.1:9464";
/// Takes the cursor home and clears what is below.
const HOME_AND_CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Runs the command: once, or until it is interrupted.
pub fn run(args: &GraphArgs) -> Ended {
    let url = match (&args.url, args.configuration()) {
        (Some(url), _) => url.trim_end_matches('/').to_owned(),
        (None, Some(config)) => url_of(&load(&config)?)?,
        (None, None) => DEFAULT_URL.to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::fault)?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(Failure::fault)?;
    let is_terminal = io::stdout().is_terminal() && !args.once;
    loop {
        let drawn = runtime.block_on(fetch(&client, &url)).map(|status| draw(&status));
        let drawn = match drawn {
            Err(message) if args.once => return Err(Failure::fault(message)),
            // It may be starting, or come back.
            Err(message) => format!("{message}\n"),
            Ok(drawn) => drawn,
        };
        let mut out = io::stdout().lock();
        let home = if is_terminal { HOME_AND_CLEAR } else { "" };
        match write!(out, "{home}{drawn}").and_then(|()| out.flush()) {
            // Whoever reads has enough, as `head` does.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| Failure::fault(format!("writing to stdout: {error}")))?,
        }
        drop(out);
        if args.once {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Where the process of `config` listens, as seen from its machine.
fn url_of(config: &Config) -> Result<String, Failure> {
    let ports = &config.service_ports;
    if ports.admin == 0 {
        return Err(Failure::usage(
            "service_ports.admin is 0, which takes any port: name it with --url; the log of `run` tells it",
        ));
    }
    Ok(match ports.bind_address.as_str() {
        "0.0.0.0" => format!("http://127.0.0.1:{}", ports.admin),
        "::" => format!("http://[::1]:{}", ports.admin),
        address if address.contains(':') => format!("http://[{address}]:{}", ports.admin),
        address => format!("http://{address}:{}", ports.admin),
    })
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Status, String> {
    let failed = |error: reqwest::Error| {
        format!("{url} does not answer: {error}; does the process run, and is this its service_ports.admin?")
    };
    let response = client.get(format!("{url}/status")).send().await.and_then(reqwest::Response::error_for_status);
    let body = response.map_err(failed)?.bytes().await.map_err(failed)?;
    serde_json::from_slice(&body)
        .map_err(|error| format!("{url}/status is not that of an openwit-ingest of this version: {error}"))
}

/// The graph, a line for each stage.
pub fn draw(status: &Status) -> String {
    let about = &status.about;
    let mut text =
        format!("{} {}: {}, graph {}, {}\n", "openwit-ingest", about.node, status.state, about.graph, rfc3339_ms(status.now_ms));
    if let Some(fault) = &status.fault {
        let _ = writeln!(text, "fault: {fault}");
    }
    let from = |stage: &Stage| {
        let is_data = |what: &str| !what.starts_with("frontier") && !what.starts_with("keys");
        let into = about.edges.iter().filter(|edge| edge.to == stage.stage && is_data(&edge.what));
        // What goes back inside the storage graph is no input.
        let ahead = into.filter(|edge| !(edge.from == "catalog_commit" && edge.to != "index_trigger"));
        ahead.map(|edge| edge.from.as_str()).collect::<Vec<_>>().join(", ")
    };
    let rows: Vec<[String; 6]> = status.stages.iter().map(|stage| row(stage, from(stage))).collect();
    let head = ["stage", "from", "done up to", "behind", "offsets behind", "held by"].map(str::to_owned);
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            3 | 4 => format!("{cell:>width$}"),
            _ => format!("{cell:width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

fn row(stage: &Stage, from: String) -> [String; 6] {
    let done = match (stage.reached, stage.time_ms) {
        (Progress::NotStarted, _) => "not started".to_owned(),
        (Progress::Recovering, _) => "reading back the log".to_owned(),
        (Progress::End, _) => "the end".to_owned(),
        (Progress::At, time) => time.map(rfc3339_ms).unwrap_or_default(),
    };
    let behind = stage.behind_ms.map_or("-".to_owned(), |ms| format!("{}.{:03} s", grouped(ms / 1_000), ms % 1_000));
    let known = !stage.partitions.is_empty();
    let offsets: u64 = stage.partitions.iter().filter_map(|partition| partition.behind).sum();
    let mut holding: Vec<&StagePartition> =
        stage.partitions.iter().filter(|one| one.behind.is_some_and(|behind| behind > 0)).collect();
    holding.sort_by_key(|one| std::cmp::Reverse(one.behind));
    let more = holding.len().saturating_sub(HOLDING_MAX);
    let named = holding.iter().take(HOLDING_MAX);
    let named = named.map(|one| format!("{}[{}] {}", one.topic, one.partition, grouped(one.behind.unwrap_or(0))));
    let mut held_by = named.collect::<Vec<_>>().join(", ");
    if more > 0 {
        let _ = write!(held_by, " and {more} more");
    }
    let offsets = if known { grouped(offsets) } else { "-".to_owned() };
    [stage.stage.clone(), from, done, behind, offsets, held_by]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::graph::Edge;
    use crate::status::About;

    #[test]
    fn each_stage_has_a_line_with_its_time_its_lag_and_the_partitions_that_hold_it() {
        let partition = |partition: i32, behind: u64| StagePartition {
            topic: "shop".into(),
            topic_id: String::new(),
            partition,
            offset: Some(10),
            read_ms: None,
            behind: Some(behind),
        };
        let stage = |name: &str, reached: Progress, time_ms: Option<u64>, behind_ms: Option<u64>, behind: &[u64]| Stage {
            stage: name.into(),
            storage: false,
            reached,
            time_ms,
            behind_ms,
            partitions: behind.iter().enumerate().map(|(number, behind)| partition(number as i32, *behind)).collect(),
        };
        let at = 1_790_000_000_000;
        let about = About {
            version: "0".into(),
            node: "node-1".into(),
            graph: "ingest".into(),
            edges: vec![Edge::new("kafka_source", "sink", "RawBatch"), Edge::new("sink", "kafka_source", "frontier: commit")],
            topics: vec!["shop".into()],
            group: None,
        };
        let stages = vec![
            stage("kafka_source", Progress::At, Some(at), Some(0), &[0, 0]),
            stage("sink", Progress::At, Some(at - 65_020), Some(65_020), &[0, 7, 1_200, 5, 6]),
            stage("other", Progress::Recovering, None, None, &[]),
        ];
        let state = "running".into();
        let status = Status { about, state, fault: Some("a: b".into()), now_ms: at, partitions: vec![], stages };
        let expected = "\
openwit-ingest node-1: running, graph ingest, 2026-09-21T14:13:20.000Z
fault: a: b
stage         from          done up to                  behind  offsets behind  held by
kafka_source                2026-09-21T14:13:20.000Z   0.000 s               0
sink          kafka_source  2026-09-21T14:12:14.980Z  65.020 s           1,218  shop[2] 1,200, shop[1] 7, shop[4] 6 and 1 more
other                       reading back the log             -               -
";
        assert_eq!(draw(&status), expected);
        assert_eq!(serde_json::from_str::<Status>(&serde_json::to_string(&status).unwrap()).unwrap(), status);
    }
}
