//! Arguments of `where`.

use clap::Args;

use super::ConfigArgs;

/// Arguments of `where`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 3 if the record is lost: its offset was committed, or its file was published, and it is nowhere any more.

Beside a running process: the embedded catalog belongs to that process, so the footers of the files in the object store are
read instead. What has left the log and is not in the object store yet is in the storage process, between the two.

Examples:
  openwit-ingest where v6.qtw.traces.shop.eu 3 1047 --config config/standalone.yaml
  openwit-ingest where v6.qtw.traces.shop.eu 3 1047 -c config/ingest.yaml --json | jq -r .verdict
  openwit-ingest where v6.qtw.traces.shop.eu 3 1047 -c config/storage.yaml --offline")]
pub struct WhereArgs {
    /// The topic's name
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// The partition's number
    #[arg(value_name = "PARTITION", value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: i32,
    /// The record's offset
    #[arg(value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    pub offset: i64,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Do not ask Kafka: neither for its offsets nor for dead letters in a topic
    #[arg(long)]
    pub offline: bool,
    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}
