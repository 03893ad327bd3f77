//! The command line of `token new` and `token check`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use openwit_operators::batch::Signal;
use openwit_operators::kafka_source::topics::Glob;
use openwit_operators::tenant::Tenant;

use super::signal;
use crate::generate::time;

/// Arguments of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for a producer, and its entry for the token file
    ///
    /// Prints the token, which nothing keeps and nothing can show again, and the entry to append to the file of
    /// ingestion.auth.tokens_file, which has only its hash. A running process takes the entry up by itself.
    New(TokenNewArgs),
    /// Check a token file and name every problem in it
    Check(TokenCheckArgs),
}

/// Arguments of `token new`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  openwit-ingest token new --id shop-2026 --tenant shop
  openwit-ingest token new --id edge --tenant shop --topics 'v6.shop.**' --signals logs --expires 2027-06-30T00:00:00Z")]
pub struct TokenNewArgs {
    /// Its name in logs and counters, 1 to 128 of a-z A-Z 0-9 . _ -
    #[arg(long, value_name = "ID", value_parser = crate::config::tokens::id)]
    pub id: String,
    /// The tenant whose messages it is for [default: any]
    #[arg(long, value_name = "TENANT", value_parser = Tenant::new)]
    pub tenant: Option<Tenant>,
    /// Topics it is for, as names or globs; may be repeated [default: all]
    #[arg(long, value_name = "GLOB", num_args = 1.., value_parser = Glob::new)]
    pub topics: Vec<Glob>,
    /// Signals it is for; may be repeated [default: all]
    #[arg(long, value_name = "SIGNAL", num_args = 1.., value_parser = signal())]
    pub signals: Vec<Signal>,
    /// When it begins to be good: RFC 3339 in UTC or Unix seconds [default: at once]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub not_before: Option<u64>,
    /// When it ends to be good [default: never]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub expires: Option<u64>,
    /// Print JSON: `token` and `entry`
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `token check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 2 if there is any problem.

Example:
  openwit-ingest token check --file /etc/openwit/tokens.yaml")]
pub struct TokenCheckArgs {
    /// The token file
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,
}
