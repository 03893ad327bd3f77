//! Dataset schemas from a file to the rows: columns, policies, rejects; and a schema that changes while rows are in the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use arrow::array::Array;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use openwit_graphs::catalog;
use openwit_graphs::process::{self, Control};
use openwit_ingest::config::{Config, Graph, datasets};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan};
use openwit_ingest::plan::{Input, Output, catalog_location, replay_plan};
use openwit_operators::batch::Signal;
use openwit_operators::catalog_commit::FileFilter;
use openwit_operators::frame_source;
use openwit_operators::wal_commit::inspect::Source;
use openwit_operators::wal_commit::long_term::read::Selection;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use super::pipeline::{INDEX, config, load, run_to_the_end};
use crate::support::binary::Process;
use crate::support::{lake, wait};

const PATIENCE: Duration = Duration::from_secs(60);

/// The rules, with `order.total` of this type and this policy for what is unknown.
fn schema(version: u32, total: &str, unknown: &str) -> String {
    format!(
        "dataset: shop-logs\nversion: {version}\nindex: shop\nsignal: logs\nnames: {{semantic_conventions: true}}\nattributes:\n  \
         unknown: {unknown}\n  fields:\n    order.id: {{type: string, required: true, aliases: [orderId], bytes_max: 8, promote: true}}\n    \
         order.total: {{type: {total}, promote: true}}\n    order.at: {{type: timestamp, formats: [rfc3339], promote: true}}\n    \
         order.gift: {{type: bool, default: false, promote: true, column: is_gift}}\n    note: {{type: string}}\nresource:\n  \
         fields:\n    cell: {{type: int, promote: true, column: cell}}\n"
    )
}

struct Setup {
    broker: EmbeddedBroker,
    load: Plan,
    folder: TempDir,
    config: Config,
}

impl Setup {
    fn new() -> Self {
        let load = load(&format!("v6.qtw.logs.{INDEX}.eu"), Signal::Logs, Format::Json);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        broker.create_topic(&load.topics[0]).unwrap();
        let mut config = config(&broker, &load, &folder);
        config.ingestion.datasets.directory = Some(folder.path().join("datasets"));
        Setup { broker, load, folder, config }
    }

    /// Writes the schema's file; gives the hash that a run will state.
    fn set_schema(&self, text: &str) -> String {
        let directory = self.folder.path().join("datasets");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("shop-logs.yaml"), text).unwrap();
        datasets::load(&directory).unwrap_or_else(|refused| panic!("{refused}"))[0].stamp().hash_text()
    }

    /// Sends messages to partition 0.
    fn send(&self, payloads: &[&str]) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.brokers());
        let producer: BaseProducer = client.create().unwrap();
        for payload in payloads {
            let record = BaseRecord::<[u8], str>::to(&self.load.topics[0].name).partition(0).payload(*payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }
}

/// The cells of all rows below `folder` by offset, those of `columns`; times as numbers, nulls left out.
fn cells(folder: &Path, columns: &[&str]) -> BTreeMap<i64, BTreeMap<String, String>> {
    let mut rows = BTreeMap::new();
    for path in lake::files(folder, ".parquet") {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.schema().metadata()["openwit.dataset"], "shop-logs", "{}", path.display());
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let options = FormatOptions::new();
            for row in 0..batch.num_rows() {
                let cell = |name: &str| {
                    let array = batch.column_by_name(name).filter(|array| !array.is_null(row))?;
                    let is_time = matches!(array.data_type(), DataType::Timestamp(..));
                    let array = if is_time { arrow::compute::cast(array, &DataType::Int64).unwrap() } else { array.clone() };
                    Some(ArrayFormatter::try_new(&array, &options).unwrap().value(row).to_string())
                };
                let offset = cell("_offset").unwrap().parse().unwrap();
                let cells = columns.iter().filter_map(|name| Some(((*name).to_owned(), cell(name)?))).collect();
                let twice = rows.insert(offset, cells);
                assert!(twice.is_none(), "offset {offset} is stored twice");
            }
        }
    }
    rows
}

fn row(cells: &[(&str, &str)]) -> BTreeMap<String, String> {
    cells.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn rows_obey_their_schema_and_what_cannot_is_in_the_dead_letter_with_its_reason() {
    let setup = Setup::new();
    let hash = setup.set_schema(&schema(3, "double", "drop"));
    setup.send(&[
        r#"{"msg":"a","orderId":"A1","order.total":12,"order.at":"2026-11-23T12:01:02.5Z","junk":1}"#,
        r#"{"msg":"b","order.id":"A2","order.gift":"true","http.route":"/x"}"#,
        r#"{"msg":"c"}"#,
        r#"{"msg":"d","order.id":"A3","order.total":"a lot"}"#,
        r#"{"msg":"e","order.id":"123456789"}"#,
        r#"{"msg":"f","order.id":"A4","note":"kept","resource":{"cell":"7"}}"#,
    ]);
    run_to_the_end(&setup.config, 2);

    let columns = ["body", "order_id", "order_total", "order_at", "is_gift", "http_route", "attributes", "cell"];
    let stored = cells(&setup.config.storage.object_store.root, &columns);
    let expected = [
        (
            0,
            row(&[
                ("body", "a"),
                ("order_id", "A1"),
                ("order_total", "12.0"),
                ("order_at", "1795435262500000000"),
                ("is_gift", "false"),
                ("attributes", "{}"),
            ]),
        ),
        // What has a column in every schema is a field of none here, so it is dropped, too.
        (1, row(&[("body", "b"), ("order_id", "A2"), ("is_gift", "true"), ("attributes", "{}")])),
        (5, row(&[("body", "f"), ("order_id", "A4"), ("is_gift", "false"), ("attributes", "{note: kept}"), ("cell", "7")])),
    ];
    assert_eq!(stored, BTreeMap::from(expected));

    let letters = lake::letters(setup.config.ingestion.kafka.dead_letter.directory.as_ref().unwrap());
    let reasons: BTreeMap<i64, (String, String)> =
        letters.into_iter().map(|letter| (letter.offset, (letter.reason, letter.detail))).collect();
    let at = " at resources[0].scopes[0].items[0]";
    let expected = [
        (2, ("missing_field", format!("order.id is missing, should be a string{at}"))),
        (3, ("wrong_type", format!("order.total should be a double, found the string 'a lot'{at}"))),
        (4, ("field_too_large", format!("order.id has 9 bytes, over its limit of 8{at}"))),
    ];
    assert_eq!(reasons, expected.into_iter().map(|(offset, (reason, detail))| (offset, (reason.to_owned(), detail))).collect());

    let catalog = catalog::open(&catalog_location(&setup.config)).unwrap();
    let files = catalog.files(&FileFilter::default()).unwrap();
    assert!(!files.is_empty());
    for file in files {
        assert_eq!((file.schema_version, file.schema_hash.split('-').next()), (3, Some(hash.as_str())));
    }
}

#[test]
fn a_schema_that_changes_between_the_log_and_the_files_loses_doubles_and_mixes_nothing() {
    let mut setup = Setup::new();
    // As large as a process wants it that is started in earnest.
    (setup.config.processing.wal.segment_size_bytes, setup.config.processing.wal.max_size_bytes) = (16 << 20, 256 << 20);
    // The log is kept, to be replayed at the end.
    setup.config.wal_cleanup.retention_seconds = 3_600;
    let old = setup.set_schema(&schema(1, "int", "keep"));
    setup.send(&[r#"{"msg":"a","order.id":"A1","order.total":7,"extra":"x"}"#, r#"{"msg":"b","order.id":"A2"}"#]);

    // An ingest node whose storage is away dies with everything in its log.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ingest = setup.config.clone();
    ingest.graph = Graph::Ingest;
    ingest.metastore.path = setup.folder.path().join("catalog-of-ingest");
    ingest.storage.endpoints = vec![format!("http://127.0.0.1:{port}")];
    let path = setup.folder.path().join("ingest.yaml");
    std::fs::write(&path, ingest.to_yaml()).unwrap();
    let mut process = Process::start(["run", "--config", &path.display().to_string()]);
    let wal = &setup.config.processing.wal.directory;
    let logged = || {
        Source::find(wal)
            .and_then(|log| log.list())
            .map_or(0, |segments| segments.iter().map(|segment| segment.records).sum::<u64>())
    };
    let met = wait::until_or_late(PATIENCE, || logged() == 2 || process.has_ended());
    assert!(met && !process.has_ended(), "{} records are in the log, not 2:\n{}", logged(), process.stderr());
    assert!(process.kill());

    let new = setup.set_schema(&schema(2, "double", "drop"));
    setup.send(&[r#"{"msg":"c","order.id":"A3","order.total":8,"extra":"x"}"#]);
    run_to_the_end(&setup.config, 2);
    let columns = ["order_id", "order_total", "is_gift", "attributes"];
    let stored = cells(&setup.config.storage.object_store.root, &columns);
    let expected = BTreeMap::from([
        (0, row(&[("order_id", "A1"), ("order_total", "7"), ("is_gift", "false"), ("attributes", "{extra: x}")])),
        (1, row(&[("order_id", "A2"), ("is_gift", "false"), ("attributes", "{}")])),
        (2, row(&[("order_id", "A3"), ("order_total", "8.0"), ("is_gift", "false"), ("attributes", "{}")])),
    ]);
    assert_eq!(stored, expected);
    let catalog = catalog::open(&catalog_location(&setup.config)).unwrap();
    let mut rows: BTreeMap<(u32, String), u64> = BTreeMap::new();
    for file in catalog.files(&FileFilter::default()).unwrap() {
        let hash = file.schema_hash.split('-').next().unwrap().to_owned();
        *rows.entry((file.schema_version, hash)).or_default() += file.rows;
    }
    assert_eq!(rows, BTreeMap::from([((1, old), 2), ((2, new), 1)]));
    drop(catalog);

    // From the log alone, and without the schemas' files, the same rows come again.
    let elsewhere = TempDir::new().unwrap();
    let embedded = Config::embedded(elsewhere.path());
    let mut other = setup.config.clone();
    other.ingestion.datasets.directory = None;
    other.storage.object_store.root = embedded.storage.object_store.root;
    other.storage.local_directory = embedded.storage.local_directory;
    other.metastore.path = embedded.metastore.path;
    other.processing.wal.directory = embedded.processing.wal.directory;
    let source = Source::find(wal).unwrap();
    let plan = replay_plan(
        &other,
        2,
        Input::Log(frame_source::Config { source, selection: Selection::default(), is_raw: false }),
        &Output::Published,
    )
    .unwrap();
    process::run(&plan, &Control::default()).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(cells(&other.storage.object_store.root, &columns), expected);
}
