//! What a soak found, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::chaos::Count;
use crate::ledger::Findings;
use crate::watch::Seen;

/// The result of a run. Its field names are a contract with scripts that read `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the outages and the load were drawn from.
    pub seed: u64,
    /// How long the load ran.
    pub minutes: f64,
    /// Processes killed, all together.
    pub kills: u64,
    /// Times that the group's offsets were deleted or rewound.
    pub group_resets: u64,
    /// What happened to each process.
    pub processes: BTreeMap<String, Count>,
    /// What the load was found to be, and what became of it.
    #[serde(flatten)]
    pub findings: Findings,
    /// How publication went.
    #[serde(flatten)]
    pub seen: Seen,
    /// From the end of the load until all of it was published; `None` if that was given up.
    pub drain_seconds: Option<f64>,
    /// Seconds that the comparison took.
    pub compare_seconds: f64,
    /// Exit code of `audit`, and its last line.
    pub audit: (Option<i32>, String),
    /// Nodes that did not stop with 0 at the end.
    pub stopped_badly: Vec<String>,
    /// True if nothing was lost, doubled, changed, invented or rejected wrongly, all was published and the audit is clean.
    pub passed: bool,
}

impl Report {
    /// One line of JSON.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (findings, differences) = (&self.findings, &self.findings.differences);
        writeln!(
            f,
            "soak: seed {}, {:.1} minutes of load, {} kills, {} resets of the group",
            self.seed, self.minutes, self.kills, self.group_resets
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<12}{:>7}{:>7}{:>8}{:>8}{:>16}{:>10}",
            "process", "kills", "stops", "pauses", "starts", "ended by itself", "peak MB"
        )?;
        for (name, count) in &self.processes {
            let Count { kills, stops, pauses, starts, ended_by_itself, peak_memory_bytes, .. } = count;
            let peak = *peak_memory_bytes / 1_000_000;
            writeln!(f, "{name:<12}{kills:>7}{stops:>7}{pauses:>8}{starts:>8}{ended_by_itself:>16}{peak:>10}")?;
        }
        let late: u64 = self.processes.values().map(|count| count.stops_late).sum();
        let failed: u64 = self.processes.values().map(|count| count.stops_failed).sum();
        writeln!(f, "stops that were not clean: {late} late, {failed} with a code other than 0")?;
        writeln!(f)?;
        writeln!(
            f,
            "produced   {} messages: {} distinct, {} duplicates, {} invalid, {} tombstones",
            findings.messages, findings.distinct, findings.duplicates, findings.invalid, findings.tombstones
        )?;
        writeln!(
            f,
            "stored     {} rows; {} dead letters, {} of them repeated",
            findings.rows, findings.letters, findings.letters_repeated
        )?;
        writeln!(f, "lost       {} rows", differences.lost)?;
        writeln!(f, "doubled    {} rows", differences.doubled)?;
        writeln!(f, "changed    {} messages, invented {} rows", differences.changed, differences.invented)?;
        writeln!(
            f,
            "duplicates {} messages stored again inside the dedup window, {} beyond it",
            differences.duplicates_passed, findings.duplicates_beyond_window
        )?;
        writeln!(f, "letters    {} missing, {} wrong", differences.letters_missing, differences.letters_wrong)?;
        for (what, places) in &findings.examples {
            places.iter().try_for_each(|place| writeln!(f, "  {what}: {place}"))?;
        }
        writeln!(
            f,
            "standstill {:.1} s at most; lag {} messages at most; drained in {}; compared in {:.0} s",
            self.seen.longest_standstill_seconds,
            self.seen.lag_max_messages,
            self.drain_seconds.map_or("NEVER".to_owned(), |seconds| format!("{seconds:.1} s")),
            self.compare_seconds
        )?;
        writeln!(f, "{}", self.audit.1)?;
        self.stopped_badly.iter().try_for_each(|node| writeln!(f, "{node}"))?;
        write!(f, "soak: {}", if self.passed { "PASSED" } else { "FAILED" })
    }
}
