//! What is told of cases.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::judge::Finding;
use crate::config::cases::{Case, CaseFile};

/// What became of one case.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Its file.
    pub file: String,
    /// The line at which it begins.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// True if all is as expected.
    pub ok: bool,
    /// What is not.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Of a case with these findings.
    pub fn of(file: &CaseFile, case: &Case, findings: Vec<Finding>) -> Self {
        Verdict { file: file.file.clone(), line: case.line, name: case.name.clone(), ok: findings.is_empty(), findings }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { file, line, name, ok, findings } = self;
        write!(f, "{} {file}:{line}: {name}", if *ok { "ok    " } else { "FAILED" })?;
        for Finding { line, what, details } in findings {
            write!(f, "\n         line {line}: {what}")?;
            for detail in details {
                write!(f, "\n           {detail}")?;
            }
        }
        Ok(())
    }
}

/// What became of all.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Each case.
    pub cases: Vec<Verdict>,
    /// Cases that are as expected.
    pub ok: usize,
    /// Cases that are not.
    pub failed: usize,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Counts the cases.
    pub fn finish(&mut self, elapsed: Duration) {
        self.ok = self.cases.iter().filter(|case| case.ok).count();
        self.failed = self.cases.len() - self.ok;
        self.seconds = elapsed.as_secs_f64();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { cases, ok, failed, seconds } = self;
        let (count, cases) = (cases.len(), if cases.len() == 1 { "case" } else { "cases" });
        write!(f, "{count} {cases}: {ok} ok, {failed} failed, in {:.0} ms", seconds * 1_000.0)
    }
}
