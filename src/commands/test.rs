//! `test`: cases from YAML files, each run through a configuration's graph in memory and held against what it expects.
//!
//! ```text
//! files > cases (config/cases.rs) > plans > run: messages > graph > rows, rejects, counters > judge: expected, found > report
//! ```
//! Nothing runs before every case of every file is known to be right.

mod judge;
mod outcome;
mod report;
mod shown;

use std::time::Instant;

use openwit_graphs::dataflow::Memory;
use openwit_graphs::process::Plan;

use self::judge::Finding;
use self::report::{Report, Verdict};
use super::{Ended, Failure};
use crate::cli::TestArgs;
use crate::config::cases::{self, Case, CaseFile};
use crate::config::datasets::Refused;
use crate::plan::case_plan;

/// A case that can be judged.
enum Ready {
    /// It runs.
    Runs(Box<Plan>, Memory),
    /// Its configuration is refused, for this reason.
    Refused(String),
}

/// Runs the command.
pub fn run(args: &TestArgs) -> Ended {
    let started = Instant::now();
    let files = load(args)?;
    let is_wanted = |case: &Case| args.filter.as_ref().is_none_or(|part| case.name.contains(part.as_str()));
    let chosen = files.iter().flat_map(|file| file.cases.iter().map(move |case| (file, case)));
    let chosen: Vec<(&CaseFile, &Case)> = chosen.filter(|(_, case)| is_wanted(case)).collect();
    if let (true, Some(part)) = (chosen.is_empty(), &args.filter) {
        return Err(Failure::usage(format!("no case has {part:?} in its name")));
    }
    let ready = prepare(&chosen, args.workers as usize)?;
    let mut report = Report::default();
    for ((file, case), ready) in chosen.into_iter().zip(ready) {
        let verdict = Verdict::of(file, case, judged(case, ready));
        if !args.json {
            println!("{verdict}");
        }
        report.cases.push(verdict);
    }
    report.finish(started.elapsed());
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::fault)?);
    } else {
        println!("{report}");
    }
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::difference(format!("{failed} of {} cases failed", report.cases.len()))),
    }
}

/// All files, or the mistakes of all.
fn load(args: &TestArgs) -> Result<Vec<CaseFile>, Failure> {
    let (mut files, mut refused) = (Vec::new(), Vec::new());
    for path in &args.files {
        match cases::load(path) {
            Ok(read) => files.extend(read),
            Err(Refused(problems)) => refused.extend(problems),
        }
    }
    if refused.is_empty() { Ok(files) } else { Err(Failure::usage(Refused(refused))) }
}

/// The plans of all cases, or what is wrong with the files that their configurations name.
fn prepare(chosen: &[(&CaseFile, &Case)], workers: usize) -> Result<Vec<Ready>, Failure> {
    let (mut ready, mut wrong) = (Vec::new(), Vec::new());
    for (file, case) in chosen {
        match (made_ready(case, workers), &case.expect.error) {
            (Ready::Refused(message), None) => {
                wrong.push(format!("{}:{}: case {:?} cannot run: {message}", file.file, case.line, case.name));
            }
            (made, _) => ready.push(made),
        }
    }
    if wrong.is_empty() { Ok(ready) } else { Err(Failure::usage(wrong.join("\n"))) }
}

fn made_ready(case: &Case, workers: usize) -> Ready {
    let told = |refused: &Vec<crate::config::Problems>| refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let config = match &case.config {
        Ok(config) => config,
        Err(refused) => return Ready::Refused(told(refused)),
    };
    let batches = outcome::batches(&case.input, config.processing.epoch_interval_ms);
    let memory = Memory { batches: batches.into(), ..Memory::default() };
    match case_plan(config, workers, memory.clone()) {
        Ok(plan) => Ready::Runs(Box::new(plan), memory),
        Err(message) => Ready::Refused(message),
    }
}

fn judged(case: &Case, ready: Ready) -> Vec<Finding> {
    match (ready, &case.expect.error) {
        (Ready::Refused(message), Some(part)) if message.contains(part.as_str()) => Vec::new(),
        (Ready::Refused(message), part) => {
            let part = part.as_deref().unwrap_or_default();
            let found: Vec<String> = message.lines().map(str::to_owned).collect();
            vec![Finding::new(case.line, format!("the configuration is refused, and {part:?} is not what is told")).with(found)]
        }
        (Ready::Runs(..), Some(part)) => {
            vec![Finding::new(case.line, format!("the configuration is accepted, expected an error with {part:?}"))]
        }
        (Ready::Runs(plan, memory), None) => match outcome::run(&plan, &memory) {
            Ok(outcome) => judge::judge(&case.expect, &outcome),
            Err(message) => vec![Finding::new(case.line, format!("the run failed: {message}"))],
        },
    }
}
