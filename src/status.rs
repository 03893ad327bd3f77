//! What a running process tells of itself at `/status`, and what `graph --live` reads there.

use std::time::{SystemTime, UNIX_EPOCH};

use openwit_graphs::Control;
use openwit_graphs::frontiers::{Reached, StageFrontier};
use openwit_operators::epoch::Epoch;
use serde::{Deserialize, Serialize};

use crate::commands::graph::{Edge, edges};
use crate::config::Config;

/// Epochs below are no times: in them a start brings back what the log has.
const TIMES_FROM_MS: u64 = 1_000_000_000_000;

/// What a process is, which does not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The version of the program.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The name of its graph.
    pub graph: String,
    /// What joins its stages.
    pub edges: Vec<Edge>,
    /// The topics it reads, as patterns; empty where it reads none.
    pub topics: Vec<String>,
    /// The group it reads them in.
    pub group: Option<String>,
}

impl About {
    /// What `config` runs.
    pub fn new(config: &Config) -> Result<About, String> {
        let kafka = &config.ingestion.kafka;
        let reads = config.has_ingest();
        Ok(About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node.id.clone(),
            graph: config.graph.name().to_owned(),
            edges: edges(config)?,
            topics: if reads { kafka.topics.clone() } else { Vec::new() },
            group: reads.then(|| kafka.group_id.clone()),
        })
    }
}

/// What a process tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is.
    #[serde(flatten)]
    pub about: About,
    /// `starting`, `running`, `restarting` or `draining`.
    pub state: String,
    /// The fault that ended its graphs, until they are started again.
    pub fault: Option<String>,
    /// Its clock, in Unix milliseconds.
    pub now_ms: u64,
    /// What its source reads.
    pub partitions: Vec<Partition>,
    /// Its stages, the source first.
    pub stages: Vec<Stage>,
}

/// A partition that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// The topic's name.
    pub topic: String,
    /// The topic's id; empty for the first of its name.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
    /// One past the last offset that was read.
    pub read: i64,
    /// One past the last offset that may be committed.
    pub committable: Option<i64>,
}

/// How far a stage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub stage: String,
    /// It is one of the storage graph.
    pub storage: bool,
    /// How far it is.
    pub reached: Progress,
    /// Everything that was read before this time has had its effect, in Unix milliseconds. In the storage graph: everything received.
    pub time_ms: Option<u64>,
    /// How far that is behind the source of its graph, in milliseconds.
    pub behind_ms: Option<u64>,
    /// The same by partition; in the storage graph that of `catalog_commit` alone.
    pub partitions: Vec<StagePartition>,
}

/// How far a stage is, as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Its graph is being built.
    NotStarted,
    /// It is busy with what a start has found in the log.
    Recovering,
    /// It is at a time.
    At,
    /// It has done all it will ever do.
    End,
}

/// How far a stage is with a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagePartition {
    /// The topic's name.
    pub topic: String,
    /// The topic's id; empty for the first of its name.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
    /// All offsets before this one have had the stage's effect; `None` where that is not known of any.
    pub offset: Option<i64>,
    /// When the last of them was read, in Unix milliseconds.
    pub read_ms: Option<u64>,
    /// Offsets that were read since the start and are not known to have had it; `None` where that cannot be said.
    pub behind: Option<u64>,
}

/// What the process tells now.
pub fn read(about: &About, control: &Control) -> Status {
    let positions = control.counters.positions.positions();
    let frontiers = control.frontiers();
    let stages = frontiers.iter().map(|one| stage(one, source_of(one, &frontiers))).collect();
    let partitions = positions.iter().map(|(partition, at)| Partition {
        topic: partition.topic.name.to_string(),
        topic_id: partition.topic.id.to_string(),
        partition: partition.partition,
        read: at.emitted,
        committable: at.committable,
    });
    Status {
        about: about.clone(),
        state: control.state().name().to_owned(),
        fault: control.fault().map(|fault| fault.to_string()),
        now_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        partitions: partitions.collect(),
        stages,
    }
}

/// How far the source is of the graph that `stage` is in: nobody is before it.
fn source_of(stage: &StageFrontier, all: &[StageFrontier]) -> Option<Reached> {
    all.iter().filter(|one| one.is_storage == stage.is_storage).map(|one| one.reached).max()
}

fn stage(one: &StageFrontier, source: Option<Reached>) -> Stage {
    let time_ms = time_ms(one.reached);
    let reached = match one.reached {
        Reached::NotStarted => Progress::NotStarted,
        Reached::Before(_) if time_ms.is_none() => Progress::Recovering,
        Reached::Before(_) => Progress::At,
        Reached::End => Progress::End,
    };
    let partitions = one.partitions.iter().map(|(partition, passed)| StagePartition {
        topic: partition.topic.name.to_string(),
        topic_id: partition.topic.id.to_string(),
        partition: partition.partition,
        offset: passed.offset,
        read_ms: passed.epoch.map(|epoch| epoch.0),
        behind: passed.behind,
    });
    // Where the source has ended, the time up to which all else is done says how far that is behind it no more.
    let behind_ms = match (source.and_then(self::time_ms), time_ms) {
        (Some(source), Some(time)) => Some(source.saturating_sub(time)),
        _ if one.reached == Reached::End => Some(0),
        _ => None,
    };
    Stage { stage: one.stage.clone(), storage: one.is_storage, reached, time_ms, behind_ms, partitions: partitions.collect() }
}

fn time_ms(reached: Reached) -> Option<u64> {
    match reached {
        Reached::Before(Epoch(at)) if at >= TIMES_FROM_MS => Some(at),
        _ => None,
    }
}
