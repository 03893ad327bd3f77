//! The command line of `dead-letter ls` and `dead-letter replay`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use openwit_operators::dead_letter::read::{Origin, Place};

use super::{Assignment, ConfigArgs};
use crate::generate::time;

/// Arguments of `dead-letter`.
#[derive(Debug, Args)]
pub struct DeadLetterArgs {
    /// What to do with the letters.
    #[command(subcommand)]
    pub command: DeadLetterCommand,
}

/// What to do with dead letters. Neither command changes or removes a letter; both work while a process writes more of them.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// List rejected messages: when, from where, why
    ///
    /// Lists the letters that are there at the start, in the order of the files, or of one partition of the topic after the other. A
    /// letter that is there several times, as may happen in a topic, is listed once.
    Ls(DeadLetterLsArgs),
    /// Send rejected messages back to Kafka
    ///
    /// Sends the original key, payload and headers of letters back to the topic and partition in which the message was rejected, or to
    /// another topic. Each message says in headers openwit.replay.* where it lay first, and which attempt this is. One that is rejected
    /// again is told by them: it, and its first letter, are left out by later replays unless --again is given.
    ///
    /// Letters are not removed: after a replay move the files away, or go on behind it with --after the next time. Within one run no
    /// message is sent twice. The letters are read twice, first for what was rejected again.
    Replay(DeadLetterReplayArgs),
}

/// Arguments of `dead-letter ls`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is damaged is named on stderr and left out; then it ends with 1.

Examples:
  openwit-ingest dead-letter ls --directory data/dead-letter --count
  openwit-ingest dead-letter ls -c config/ingest.yaml --reason malformed --since 2026-11-26T00:00:00Z
  openwit-ingest dead-letter ls -c config/ingest.yaml --topic --origin orders:3:1000..2000 --json")]
pub struct DeadLetterLsArgs {
    /// The configuration: where the letters are, and how to reach the brokers
    #[arg(long, short, value_name = "FILE", required_unless_present = "directory")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub set: Vec<Assignment>,
    /// Where the letters are.
    #[command(flatten)]
    pub from: LettersFrom,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Count letters by reason instead of listing them
    #[arg(long)]
    pub count: bool,
    /// Print JSON, one letter (or reason) a line
    #[arg(long)]
    pub json: bool,
    /// Print key, payload and headers as well, in base64 as they are in the files
    #[arg(long, requires = "json", conflicts_with = "count")]
    pub payload: bool,
}

/// Arguments of `dead-letter replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 1 when letters were asked for and not sent: damaged, without their payload, too large
for their topic, or not acknowledged; and when it is stopped. It then says how to go on: --after.
SIGINT and SIGTERM end it when what is on its way is acknowledged, a second one at once.

Examples:
  openwit-ingest dead-letter replay -c config/ingest.yaml --reason wrong_signal --dry-run
  openwit-ingest dead-letter replay -c config/ingest.yaml --reason no_index --since 1790000000
  openwit-ingest dead-letter replay -c config/ingest.yaml --to repaired --origin orders:3")]
pub struct DeadLetterReplayArgs {
    /// The configuration: where the letters are, and the brokers they go to.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where the letters are.
    #[command(flatten)]
    pub from: LettersFrom,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Send to this topic, partitions by key [default: the topic and partition of each message]
    #[arg(long, value_name = "TOPIC")]
    pub to: Option<String>,
    /// Send the original Kafka timestamp instead of the time of sending
    ///
    /// Brokers delete by timestamp: what is older than the topic's retention may be deleted before it is read.
    #[arg(long)]
    pub keep_timestamp: bool,
    /// Also send what was rejected after an earlier replay
    #[arg(long)]
    pub again: bool,
    /// Send each message with the token in this environment variable, in the place of its producer's
    ///
    /// Letters do not keep tokens. The token decides, as for any other producer, whose messages these become: choose the letters of one
    /// tenant, or take a token that is for any.
    #[arg(long, value_name = "NAME")]
    pub token_env: Option<String>,
    /// Send nothing; say what would be sent
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where dead letters are: by default where the configuration says, in the folder if there is one.
#[derive(Clone, Debug, Default, Args)]
pub struct LettersFrom {
    /// Read the files of this folder
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Read a topic; without a name the one of the configuration
    #[arg(
        long,
        value_name = "TOPIC",
        num_args = 0..=1,
        default_missing_value = "",
        requires = "config",
        conflicts_with = "directory"
    )]
    pub topic: Option<String>,
}

/// Which letters: those that all of the given filters take.
#[derive(Clone, Debug, Default, Args)]
pub struct LetterFilter {
    /// Letters of this reason, as `--count` names them; may be repeated
    #[arg(long = "reason", value_name = "REASON")]
    pub reasons: Vec<String>,
    /// Messages of this topic, partition, or range of offsets; may be repeated
    #[arg(long = "origin", alias = "topic-origin", value_name = "TOPIC[:PARTITION[:FROM..TO]]")]
    pub origins: Vec<Origin>,
    /// Letters written at this time and later: RFC 3339 in UTC or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub since: Option<u64>,
    /// Letters written before this time
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub until: Option<u64>,
    /// Letters at most
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Letters behind this place, as `replay` and `ls --json` tell it: FILE:LINE in a folder, PARTITION:OFFSET in a topic
    #[arg(long, value_name = "PLACE")]
    pub after: Option<Place>,
}
