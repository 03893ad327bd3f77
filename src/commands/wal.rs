//! `wal ls`, `wal cat` and `wal verify`: a look into a write-ahead log, short-term or long-term, also of a running process.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::metrics::v1::MetricsData;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use openwit_operators::batch::{NormalizedBatch, RawBatch, RawRecord, RecalledBatch, Record, Signal, Span, headers};
use openwit_operators::fault::chain;
use openwit_operators::wal_commit::Logged;
use openwit_operators::wal_commit::inspect::{Source, Summary};
use openwit_operators::wal_commit::read::RecoveredFrame;
use prost::Message;
use serde_json::{Value, json};

use super::{Ended, Failure, load};
use crate::cli::{ConfigArgs, LogArgs, PayloadFormat, WalArgs, WalCatArgs, WalCommand, WalDirArgs};
use crate::config::Config;
use crate::plan::long_term_store;

/// In the place of a directory: the long-term log of the configuration.
const LONG_TERM: &str = "long-term";

/// Runs the command.
pub fn run(args: &WalArgs) -> Ended {
    match &args.command {
        WalCommand::Ls(args) => ls(args),
        WalCommand::Cat(args) => cat(args),
        WalCommand::Verify(args) => verify(args),
    }
}

/// The log at `from`; `config` is asked where its long-term log is, if that is wanted.
pub(super) fn source(from: &Path, config: impl FnOnce() -> Result<Config, Failure>) -> Result<Source, Failure> {
    let found = if from == Path::new(LONG_TERM) { Source::find_in(&long_term_store(&config()?)) } else { Source::find(from) };
    found.map_err(|error| Failure::fault(chain(&error)))
}

fn source_of(log: &LogArgs) -> Result<Source, Failure> {
    source(&log.dir, || match log.config.clone() {
        Some(config) => load(&ConfigArgs { config, set: log.set.clone() }),
        None => Err(Failure::usage("`long-term` is the long-term log of a configuration: name it with --config FILE")),
    })
}

fn ls(args: &WalDirArgs) -> Ended {
    let summaries = source_of(&args.log)?.list().map_err(|error| Failure::fault(chain(&error)))?;
    if args.json {
        let list: Vec<_> = summaries.iter().map(as_json).collect();
        println!("{}", serde_json::Value::from(list));
        return Ok(());
    }
    println!(
        "{:>8} {:7} {:>14} {:>14} {:>9} {:>11}  offsets",
        "number", "state", "file bytes", "used bytes", "frames", "records"
    );
    for one in &summaries {
        let state = format!("{:?}", one.state).to_lowercase();
        let offsets = offsets(one).join(" ");
        println!(
            "{:>8} {state:7} {:>14} {:>14} {:>9} {:>11}  {offsets}",
            one.number, one.file_bytes, one.used_bytes, one.frames, one.records
        );
    }
    Ok(())
}

fn offsets(summary: &Summary) -> Vec<String> {
    let ranges = summary.offsets.iter().flat_map(|(partition, set)| set.ranges().map(move |range| (partition, range)));
    ranges.map(|(partition, range)| format!("{partition}:{}..{}", range.start, range.end)).collect()
}

fn as_json(summary: &Summary) -> serde_json::Value {
    json!({
        "number": summary.number,
        "state": format!("{:?}", summary.state).to_lowercase(),
        "path": summary.path,
        "file_bytes": summary.file_bytes,
        "used_bytes": summary.used_bytes,
        "frames": summary.frames,
        "records": summary.records,
        "payload_bytes": summary.payload_bytes,
        "first_epoch": summary.epochs.map(|(first, _)| first.0),
        "last_epoch": summary.epochs.map(|(_, last)| last.0),
        "offsets": offsets(summary),
    })
}

fn cat(args: &WalCatArgs) -> Ended {
    let source = source_of(&args.log)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut left, mut problems) = (args.limit.unwrap_or(u64::MAX), 0);
    for frame in source.frames().map_err(|error| Failure::fault(chain(&error)))? {
        if left == 0 {
            break;
        }
        let printed = match &frame {
            Ok(frame) => print_frame(&mut out, frame, args, &mut left),
            Err(error) => {
                problems += 1;
                eprintln!("{}", chain(error));
                Ok(())
            }
        };
        match printed {
            // Whoever reads has enough, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed.map_err(|error| Failure::fault(format!("writing to stdout: {error}")))?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Failure::fault(format!("writing to stdout: {error}")));
        }
        _ => {}
    }
    if problems == 0 {
        Ok(())
    } else {
        Err(Failure::fault(format!("{}: {problems} problems, see above", args.log.dir.display())))
    }
}

fn print_frame(out: &mut impl Write, frame: &RecoveredFrame<Logged>, args: &WalCatArgs, left: &mut u64) -> io::Result<()> {
    let partition = frame.batch.by_ref().partition();
    let is_topic = args.topics.is_empty() || args.topics.iter().any(|topic| **topic == *partition.topic.name);
    let is_partition = args.partitions.is_empty() || args.partitions.contains(&partition.partition);
    if !(is_topic && is_partition) {
        return Ok(());
    }
    let is_selected =
        |offset: i64| args.from_offset.is_none_or(|from| offset >= from) && args.to_offset.is_none_or(|to| offset < to);
    let mut print = |offset: i64, line: &dyn Fn() -> Value| {
        if *left == 0 || !is_selected(offset) {
            return Ok(());
        }
        *left -= 1;
        let mut line = line();
        line["topic"] = (*partition.topic.name).into();
        line["partition"] = partition.partition.into();
        line["offset"] = offset.into();
        line["epoch"] = frame.epoch.0.into();
        line["segment"] = frame.position.segment.into();
        writeln!(out, "{line}")
    };
    match &frame.batch {
        Logged::Normalized(batch) => {
            batch.records.iter().try_for_each(|record| print(record.offset, &|| record_json(batch, record, args.payload)))
        }
        Logged::Raw(batch) | Logged::Recalled(RecalledBatch(batch)) => batch.records.iter().try_for_each(|record| {
            print(record.offset, &|| {
                let mut line = raw_record_json(batch, record, args.payload);
                if matches!(frame.batch, Logged::Recalled(_)) {
                    // Handled by another process: it is there for its dedup key.
                    line["recalled"] = true.into();
                }
                line
            })
        }),
    }
}

fn record_json(batch: &NormalizedBatch, record: &Record, format: PayloadFormat) -> Value {
    let payload = batch.payload(record);
    let mut line = json!({
        "timestamp_ms": record.timestamp_ms,
        "signal": batch.group.signal.name(),
        "index": batch.group.index,
        "payload_bytes": payload.len(),
    });
    if let Some(schema) = &batch.schema {
        line["dataset"] = json!({ "name": schema.name, "version": schema.version, "hash": schema.hash_text() });
    }
    if let Some(tenant) = batch.tenant(record) {
        line["tenant"] = tenant.name().into();
    }
    match format {
        PayloadFormat::None => {}
        PayloadFormat::Base64 => line["payload_base64"] = base64(payload).into(),
        PayloadFormat::Json => line["payload"] = otlp_json(batch.group.signal, payload),
    }
    line
}

/// A message as it came: nobody has said yet what it is. Its payload is shown as text where it is text.
fn raw_record_json(batch: &RawBatch, record: &RawRecord, format: PayloadFormat) -> Value {
    let bytes = |span: Option<Span>| span.map(|span| span.of(&batch.arena));
    let payload = bytes(record.payload);
    let names: Vec<_> = headers(record.headers.of(&batch.arena)).map(|(name, _)| String::from_utf8_lossy(name)).collect();
    let mut line = json!({
        "timestamp_ms": record.timestamp_ms,
        "raw": true,
        "payload_bytes": payload.map(<[u8]>::len),
        // Their values may be secrets.
        "headers": names,
    });
    match format {
        PayloadFormat::None => {}
        PayloadFormat::Base64 => {
            line["key_base64"] = bytes(record.key).map(base64).into();
            line["payload_base64"] = payload.map(base64).into();
        }
        PayloadFormat::Json => {
            let text = payload.map(|payload| std::str::from_utf8(payload).map_or_else(|_| base64(payload), str::to_owned));
            line["payload"] = text.into();
        }
    }
    line
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The payload as OTLP/JSON. What is in the log has passed `normalize`, so it can be decoded.
fn otlp_json(signal: Signal, payload: &[u8]) -> Value {
    fn decoded<T: Message + Default + serde::Serialize>(payload: &[u8]) -> Result<Value, String> {
        let message = T::decode(payload).map_err(|error| error.to_string())?;
        serde_json::to_value(message).map_err(|error| error.to_string())
    }
    let value = match signal {
        Signal::Traces => decoded::<TracesData>(payload),
        Signal::Logs => decoded::<LogsData>(payload),
        Signal::Metrics => decoded::<MetricsData>(payload),
    };
    value.unwrap_or_else(|error| json!({ "undecodable": error }))
}

fn verify(args: &WalDirArgs) -> Ended {
    let (problems, report) = source_of(&args.log)?.verify().map_err(|error| Failure::fault(chain(&error)))?;
    let losses = problems.iter().filter(|problem| problem.is_loss()).count();
    if args.json {
        let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({ "segments": report.segments, "frames": report.frames, "records": report.records, "problems": listed, "losses": losses })
        );
    } else {
        problems.iter().for_each(|problem| println!("{problem}"));
        println!(
            "{} segments, {} frames, {} records; {} problems, {losses} of them losses",
            report.segments,
            report.frames,
            report.records,
            problems.len()
        );
    }
    if losses == 0 { Ok(()) } else { Err(Failure::fault(format!("{}: the log is damaged", args.log.dir.display()))) }
}
