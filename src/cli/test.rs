//! Arguments of `test`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `test`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 3 if a case fails, and with 2 if a file is wrong: then every mistake in it is named, and nothing is run.

Examples:
  openwit-ingest test cases/orders.yaml
  openwit-ingest test cases --filter dedup
  openwit-ingest test cases --json")]
pub struct TestArgs {
    /// Files of cases; of a folder, all *.yaml files in it
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Run only cases with this in their names
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Worker threads of each case's graph; no case may depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub workers: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
