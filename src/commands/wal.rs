//! `wal ls` and `wal verify`: a look into a write-ahead log, also of a running process.

use openwit_operators::fault::chain;
use openwit_operators::wal_commit::inspect::{self, Summary};
use serde_json::json;

use super::{Ended, Failure};
use crate::cli::{WalArgs, WalCommand, WalDirArgs};

/// Runs the command.
pub fn run(args: &WalArgs) -> Ended {
    match &args.command {
        WalCommand::Ls(args) => ls(args),
        WalCommand::Verify(args) => verify(args),
    }
}

fn ls(args: &WalDirArgs) -> Ended {
    let summaries = inspect::list(&args.dir).map_err(|error| Failure::fault(chain(&error)))?;
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

fn verify(args: &WalDirArgs) -> Ended {
    let (problems, report) = inspect::verify(&args.dir).map_err(|error| Failure::fault(chain(&error)))?;
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
    if losses == 0 { Ok(()) } else { Err(Failure::fault(format!("{}: the log is damaged", args.dir.display()))) }
}
