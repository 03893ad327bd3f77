//! What a run did and what it cost: the last words of `run --until-end` and `demo`.
//!
//! MB and GB are 10^6 and 10^9 bytes, and count the bytes of messages as they came from Kafka.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use openwit_operators::normalize::TenantCount;
use openwit_operators::quota;
use serde::Serialize;

use crate::progress::grouped;

/// Tenants that the table for people shows.
const TENANTS_SHOWN_MAX: usize = 20;

/// What a run counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages read from Kafka.
    pub messages: u64,
    /// Records decoded from them (spans, log records, data points).
    pub records: u64,
    /// Rows published.
    pub rows: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Messages dropped as duplicates.
    pub duplicates: u64,
    /// Messages in the dead letter.
    pub rejects: u64,
    /// Messages dropped by policy: tombstones.
    pub skipped: u64,
    /// Parquet files published.
    pub files: u64,
    /// Milliseconds from the poll of a message until its offset could be committed: half of all messages took less.
    pub committable_ms_p50: u64,
    /// The same for 99 of 100.
    pub committable_ms_p99: u64,
    /// Messages in the dead letter, by the code of their reason.
    pub rejects_by_reason: BTreeMap<&'static str, u64>,
    /// What came from each tenant.
    pub tenants: BTreeMap<String, TenantCount>,
    /// Messages that each token let in, by its id.
    pub tokens: BTreeMap<String, u64>,
    /// What each account of tenants and topics was charged.
    pub quotas: BTreeMap<String, quota::Count>,
    /// Times reading stopped because the whole buffer was full.
    pub buffer_full: u64,
    /// Times a partition had more than its share of the buffer.
    pub partition_full: u64,
    /// Times a partition was paused alone.
    pub pauses: u64,
    /// Times a partition was resumed.
    pub resumes: u64,
    /// Milliseconds that partitions were paused, added up.
    pub paused_ms: u64,
    /// What stages of the graph count that it can have several of.
    pub stages: BTreeMap<String, BTreeMap<&'static str, u64>>,
}

/// One partition that was paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PausedPartition {
    /// Topic and number, as `topic[3]`.
    pub partition: String,
    /// Times it was paused alone.
    pub pauses: u64,
    /// Times it was resumed.
    pub resumes: u64,
    /// Milliseconds it was paused.
    pub paused_ms: u64,
    /// Bytes it has in flight.
    pub in_flight_bytes: u64,
}

/// What the process used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor seconds of all threads, user and system.
    pub cpu_seconds: f64,
    /// Greatest resident memory since the process started.
    pub rss_max_bytes: u64,
}

impl Usage {
    /// The process's usage now.
    pub fn now() -> Self {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: getrusage writes one rusage to the address it is given and keeps no reference to it. RUSAGE_SELF and a valid
        // address cannot fail; were it to fail all the same, the zeros it was initialised with are a valid rusage.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        // Linux counts resident memory in KiB, macOS in bytes.
        let unit = if cfg!(target_os = "macos") { 1 } else { 1_024 };
        Usage { cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime), rss_max_bytes: usage.ru_maxrss as u64 * unit }
    }
}

/// The summary. Its field names are a contract with scripts that read `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Messages read from Kafka.
    pub messages: u64,
    /// Records decoded from them.
    pub records: u64,
    /// Rows published.
    pub rows: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Messages dropped as duplicates.
    pub duplicates: u64,
    /// Messages in the dead letter.
    pub rejects: u64,
    /// Messages dropped by policy.
    pub skipped: u64,
    /// Parquet files published.
    pub files: u64,
    /// Milliseconds from the poll of a message until its offset could be committed: half of all messages took less. The upper bound
    /// of a bucket; 0 without messages.
    pub committable_ms_p50: u64,
    /// The same for 99 of 100.
    pub committable_ms_p99: u64,
    /// Times reading stopped because the whole buffer was full.
    pub buffer_full: u64,
    /// Times a partition had more than its share of the buffer.
    pub partition_full: u64,
    /// Times a partition was paused alone.
    pub pauses: u64,
    /// Times a partition was resumed.
    pub resumes: u64,
    /// Milliseconds that partitions were paused, added up.
    pub paused_ms: u64,
    /// Those paused longest, at most 32.
    pub paused_partitions: Vec<PausedPartition>,
    /// Seconds by the clock.
    pub seconds: f64,
    /// Processor seconds used during the run, of all threads.
    pub cpu_seconds: f64,
    /// Greatest resident memory since the process started.
    pub rss_max_bytes: u64,
    /// Records per second by the clock.
    pub records_per_second: f64,
    /// Megabytes of messages per second by the clock.
    pub mb_per_second: f64,
    /// Processor seconds per gigabyte of messages; 0 without messages.
    pub cpu_seconds_per_gb: f64,
    /// Messages in the dead letter, by the code of their reason.
    pub rejects_by_reason: BTreeMap<&'static str, u64>,
    /// What came from each tenant; none where messages have no tenants.
    pub tenants: BTreeMap<String, TenantCount>,
    /// Messages that each token let in, by its id; none where nobody is asked for one.
    pub tokens: BTreeMap<String, u64>,
    /// What each account of tenants and topics was charged, rejected and held back; none where there are no quotas.
    pub quotas: BTreeMap<String, quota::Count>,
    /// What stages of the graph count that it can have several of, by their names.
    pub stages: BTreeMap<String, BTreeMap<&'static str, u64>>,
}

impl Summary {
    /// The summary of a run that took `elapsed` and began with the usage `before`, which is subtracted.
    pub fn new(totals: Totals, elapsed: Duration, before: Usage, after: Usage) -> Self {
        let Totals { messages, records, rows, bytes, duplicates, rejects, skipped, files, .. } = totals;
        let seconds = elapsed.as_secs_f64();
        let cpu_seconds = (after.cpu_seconds - before.cpu_seconds).max(0.0);
        let ratio = |amount: f64, of: f64| if of > 0.0 { amount / of } else { 0.0 };
        Summary {
            messages,
            records,
            rows,
            bytes,
            duplicates,
            rejects,
            skipped,
            files,
            committable_ms_p50: totals.committable_ms_p50,
            committable_ms_p99: totals.committable_ms_p99,
            buffer_full: totals.buffer_full,
            partition_full: totals.partition_full,
            pauses: totals.pauses,
            resumes: totals.resumes,
            paused_ms: totals.paused_ms,
            paused_partitions: Vec::new(),
            seconds,
            cpu_seconds,
            rss_max_bytes: after.rss_max_bytes,
            records_per_second: ratio(records as f64, seconds),
            mb_per_second: ratio(bytes as f64 / 1e6, seconds),
            cpu_seconds_per_gb: ratio(cpu_seconds, bytes as f64 / 1e9),
            rejects_by_reason: totals.rejects_by_reason,
            tenants: totals.tenants,
            tokens: totals.tokens,
            quotas: totals.quotas,
            stages: totals.stages,
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        // A struct of numbers and of maps by text has nothing that could fail to serialize: not even a float that is not finite, which becomes null.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Summary {
    /// A table for people, numbers aligned at their last digit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let rows = [
            ("messages read", grouped(self.messages), String::new()),
            ("  duplicates", grouped(self.duplicates), "dropped".to_owned()),
            ("  rejects", grouped(self.rejects), "in the dead letter".to_owned()),
            ("  skipped", grouped(self.skipped), "by policy".to_owned()),
            ("records", grouped(self.records), format!("{} records/s", grouped(self.records_per_second as u64))),
            ("rows published", grouped(self.rows), format!("in {} files", grouped(self.files))),
            ("MB read", megabytes(self.bytes), format!("{:.1} MB/s", self.mb_per_second)),
            ("seconds", format!("{:.2}", self.seconds), String::new()),
            (
                "ms to commit",
                grouped(self.committable_ms_p99),
                format!("99 of 100 messages; half in {}", self.committable_ms_p50),
            ),
            (
                "pauses",
                grouped(self.pauses),
                format!("of partitions, {:.1} s; buffer full {}", self.paused_ms as f64 / 1e3, grouped(self.buffer_full)),
            ),
            ("CPU seconds", format!("{:.2}", self.cpu_seconds), format!("{:.2} per GB read", self.cpu_seconds_per_gb)),
            ("peak memory MB", megabytes(self.rss_max_bytes), String::new()),
        ];
        let width = rows.iter().map(|(_, number, _)| number.len()).max().unwrap_or(0);
        for (name, number, remark) in rows {
            writeln!(f, "{}", format!("{name:<16}{number:>width$}  {remark}").trim_end())?;
        }
        for (reason, messages) in &self.rejects_by_reason {
            writeln!(f, "rejected as {reason}: {}", grouped(*messages))?;
        }
        for (tenant, count) in self.tenants.iter().take(TENANTS_SHOWN_MAX) {
            let (accepted, rejected) = (grouped(count.accepted), grouped(count.rejected));
            writeln!(f, "tenant {tenant}: {accepted} accepted, {} MB; {rejected} rejected", megabytes(count.accepted_bytes))?;
        }
        let more = self.tenants.len().saturating_sub(TENANTS_SHOWN_MAX);
        if more > 0 {
            writeln!(f, "and {more} tenants more: see --json")?;
        }
        for (stage, counts) in &self.stages {
            let counts = counts.iter().map(|(name, count)| format!("{name} {}", grouped(*count)));
            writeln!(f, "stage {stage}: {}", counts.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let totals = Totals {
            messages: 20_100,
            records: 1_000_000,
            rows: 1_000_000,
            bytes: 344_000_000,
            duplicates: 80,
            rejects: 20,
            skipped: 0,
            files: 3,
            committable_ms_p50: 20,
            committable_ms_p99: 50,
            rejects_by_reason: BTreeMap::from([("malformed", 20)]),
            tenants: BTreeMap::from([(
                "shop".to_owned(),
                TenantCount { accepted: 5, accepted_bytes: 2_000_000, ..Default::default() },
            )]),
            tokens: BTreeMap::new(),
            quotas: BTreeMap::new(),
            buffer_full: 1,
            partition_full: 9,
            pauses: 3,
            resumes: 2,
            paused_ms: 1_200,
            stages: BTreeMap::from([("copy".to_owned(), BTreeMap::from([("records", 1_000), ("bytes", 7)]))]),
        };
        let before = Usage { cpu_seconds: 1.0, rss_max_bytes: 1 };
        let after = Usage { cpu_seconds: 2.72, rss_max_bytes: 256_000_000 };
        Summary::new(totals, Duration::from_secs(2), before, after)
    }

    #[test]
    fn rates_follow_from_totals_time_and_usage() {
        let summary = summary();
        assert_eq!((summary.records_per_second, summary.mb_per_second), (500_000.0, 172.0));
        assert!((summary.cpu_seconds - 1.72).abs() < 1e-9 && (summary.cpu_seconds_per_gb - 5.0).abs() < 1e-9, "{summary:?}");
    }

    #[test]
    fn empty_run_has_rates_of_zero() {
        let summary = Summary::new(Totals::default(), Duration::ZERO, Usage::default(), Usage::default());
        assert_eq!((summary.records_per_second, summary.mb_per_second, summary.cpu_seconds_per_gb), (0.0, 0.0, 0.0));
    }

    #[test]
    fn json_has_the_promised_fields() {
        let value: serde_json::Value = serde_json::from_str(&summary().json()).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        let mut promised = vec![
            "messages",
            "records",
            "rows",
            "bytes",
            "committable_ms_p50",
            "committable_ms_p99",
            "buffer_full",
            "quotas",
            "partition_full",
            "pauses",
            "resumes",
            "paused_ms",
            "paused_partitions",
            "duplicates",
            "rejects",
            "skipped",
            "files",
            "seconds",
            "cpu_seconds",
            "rss_max_bytes",
            "records_per_second",
            "mb_per_second",
            "cpu_seconds_per_gb",
            "rejects_by_reason",
            "tenants",
            "tokens",
            "stages",
        ];
        promised.sort_unstable();
        assert_eq!(fields, promised);
    }

    #[test]
    fn table_aligns_numbers() {
        let table = summary().to_string();
        let ends: Vec<_> = table
            .lines()
            .filter(|line| !line.contains(':'))
            .map(|line| line.get(16..25).unwrap_or(line).trim_end().len())
            .collect();
        assert!(ends.iter().all(|&end| end == 9), "{table}");
        assert!(table.contains("rows published  1,000,000  in 3 files\n"), "{table}");
        assert!(
            table.ends_with(
                "rejected as malformed: 20\ntenant shop: 5 accepted, 2.0 MB; 0 rejected\nstage copy: bytes 7, records 1,000\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn usage_of_this_process_is_plausible() {
        let usage = Usage::now();
        assert!(usage.cpu_seconds >= 0.0 && usage.rss_max_bytes > 1 << 20, "{usage:?}");
    }
}
