//! `where`: in which stage, frame, file and commit a record is.
//!
//! Everything is asked in the order in which records pass it, so that one that moves on meanwhile is met later and not missed:
//!
//! ```text
//! Kafka's offsets > dead letter > log > catalog and files
//! ```
//! A recreated topic has several incarnations, each with its own offsets: an answer is given for each that has anything of the offset.

mod kafka;
mod text;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use openwit_graphs::{catalog, registry};
use openwit_operators::catalog_commit::locate::{Located, Search};
use openwit_operators::catalog_commit::{self, Catalog};
use openwit_operators::coverage::{Disposition, Dispositions, OffsetSet, PartitionKey};
use openwit_operators::dead_letter::read::{Selection, Source as Letters};
use openwit_operators::fault::chain;
use openwit_operators::object_upload;
use openwit_operators::wal_commit::inspect::Source as Log;
use openwit_operators::wal_commit::locate::locate as locate_in_log;
use serde::Serialize;

pub use self::kafka::{Kafka, Message};
pub use self::verdict::Verdict;
use super::dead_letter::reader;
use super::{Ended, Failure, load};
use crate::cli::WhereArgs;
use crate::config::Config;
use crate::plan::{catalog_location, long_term_store, object_store};

/// A record, by its place in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Whereabouts {
    /// What was asked for.
    #[serde(flatten)]
    pub place: Place,
    /// What became of it, in the topic as it is now.
    pub verdict: Verdict,
    /// The stage that has it, or had it last.
    pub stage: &'static str,
    /// The same in words.
    pub says: String,
    /// What Kafka says; `None` where it was not asked.
    pub kafka: Option<Kafka>,
    /// Who said what is published.
    pub catalog: CatalogAsked,
    /// What is known of each incarnation of the topic, the one that is read now last.
    pub incarnations: Vec<Incarnation>,
    /// What could not be read, and other things to know.
    pub notes: Vec<String>,
}

/// Who said what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogAsked {
    /// The catalog.
    Asked,
    /// The files' footers: another process has the embedded catalog.
    InUse,
    /// Nobody: there is no catalog here.
    None,
}

/// What is known of the offset in one incarnation of its topic.
#[derive(Debug, Default, Serialize)]
pub struct Incarnation {
    /// Kafka's cluster.
    pub cluster: String,
    /// The topic's id; empty for the first.
    pub topic_id: String,
    /// It is the topic as it is now.
    pub is_current: bool,
    /// What became of the record.
    pub verdict: Verdict,
    /// The same in words.
    pub says: String,
    /// The catalog covers the offset; `None` where it was not asked.
    pub covered: Option<bool>,
    /// The commit that accounts for it.
    pub commits: Vec<Commit>,
    /// The frames that account for it.
    pub frames: Vec<Frame>,
    /// Its dead letters.
    pub letters: Vec<Letter>,
}

/// A commit that accounts for the offset.
#[derive(Debug, Serialize)]
pub struct Commit {
    /// Its id.
    pub commit_id: String,
    /// The group of its rows.
    pub group: String,
    /// The node that wrote it.
    pub node: String,
    /// The catalog has it; `None` where it was not asked.
    pub is_registered: Option<bool>,
    /// The offsets around it that the commit accounts for: the first, and one past the last.
    pub offsets: (i64, i64),
    /// What became of them.
    pub dispositions: Dispositions,
    /// The files with rows of the record.
    pub files: Vec<File>,
    /// Files of the commit that are not published any more, or gone.
    pub absent_files: Vec<String>,
}

/// A file with rows of the record.
#[derive(Debug, Serialize)]
pub struct File {
    /// Where it is.
    pub uri: String,
    /// Its rows.
    pub file_rows: u64,
    /// Rows of the record.
    pub rows: usize,
    /// Their numbers in the record.
    pub ordinals: Vec<i32>,
}

/// A frame that accounts for the offset.
#[derive(Debug, Serialize)]
pub struct Frame {
    /// `short-term` or `long-term`.
    pub log: &'static str,
    /// Number of the segment.
    pub segment: u64,
    /// The frame's first byte in the segment.
    pub at: u64,
    /// The frame's length.
    pub bytes: u32,
    /// The epoch in which it was logged.
    pub epoch: u64,
    /// What it says of the offset; nothing where it holds the message as it came, which is judged behind the log.
    pub says: Option<Disposition>,
    /// The record's payload, where it is stored.
    pub payload_bytes: Option<usize>,
}

/// A dead letter of the record.
#[derive(Debug, Serialize)]
pub struct Letter {
    /// The folder or topic.
    pub source: String,
    /// Where in it.
    pub place: String,
    /// Why it was rejected.
    pub reason: String,
    /// The details, for people.
    pub detail: String,
    /// When, in Unix milliseconds.
    pub rejected_at_ms: u64,
}

/// Runs the command.
pub fn run(args: &WhereArgs) -> Ended {
    let config = load(&args.config)?;
    let place = Place { topic: args.topic.clone(), partition: args.partition, offset: args.offset };
    let found = locate(&config, place, args.offline)?;
    match args.json {
        true => println!("{}", serde_json::to_string(&found).map_err(Failure::fault)?),
        false => print!("{}", text::of(&found)),
    }
    match found.incarnations.iter().find(|one| one.verdict.is_loss()) {
        Some(lost) => Err(Failure::difference(format!("{}: {}", text::name(&found.place), lost.says))),
        None => Ok(()),
    }
}

/// Finds out where a record is; without Kafka if `is_offline`.
pub fn locate(config: &Config, place: Place, is_offline: bool) -> Result<Whereabouts, Failure> {
    let mut search = Looking { config, place, incarnations: BTreeMap::new(), notes: Vec::new(), read_all_letters: true };
    let asks_kafka = config.has_ingest() && !is_offline;
    let kafka = if asks_kafka { kafka::ask(config, &search.place, &mut search.notes)? } else { None };
    search.letters(asks_kafka)?;
    search.logs()?;
    let (catalog, covered) = search.published(kafka.as_ref())?;
    Ok(search.conclude(kafka, catalog, &covered))
}

/// A topic of this name: by cluster and id.
type Topic = (String, String);

/// What was found so far, by topic.
struct Looking<'a> {
    config: &'a Config,
    place: Place,
    incarnations: BTreeMap<Topic, Incarnation>,
    notes: Vec<String>,
    /// A record without a letter was not rejected.
    read_all_letters: bool,
}

type Covered = BTreeMap<PartitionKey, OffsetSet>;

impl Looking<'_> {
    fn of(&mut self, partition: &PartitionKey) -> &mut Incarnation {
        let topic = topic_of(partition);
        self.incarnations.entry(topic.clone()).or_insert_with(|| Incarnation::of(topic))
    }

    fn letters(&mut self, asks_kafka: bool) -> Ended {
        let keys = &self.config.ingestion.kafka.dead_letter;
        let is_there = self.config.has_operator(registry::DEAD_LETTER);
        let (mut sources, mut failures) = (Vec::new(), Vec::new());
        let mut open = |opened: Result<Letters, _>| match opened {
            Ok(source) => sources.push(source),
            Err(error) => failures.push(format!("the dead letter was not read: {}", chain(&error))),
        };
        if let Some(directory) = keys.directory.as_deref().filter(|directory| is_there && directory.exists()) {
            open(Letters::folder(directory));
        }
        if let Some(topic) = keys.topic.as_deref().filter(|_| is_there && asks_kafka) {
            open(Letters::topic(topic, &reader(self.config)));
        }
        self.read_all_letters = failures.is_empty() && (keys.directory.is_some() || asks_kafka);
        self.notes.extend(failures);
        let Place { topic, partition, offset } = &self.place;
        let origin = format!("{topic}:{partition}:{offset}").parse().map_err(Failure::usage)?;
        let selection = Selection { origins: vec![origin], ..Selection::default() };
        for source in &sources {
            for found in source.letters(None) {
                match found {
                    Ok(found) if selection.takes(&found.letter) => {
                        let (letter, place) = (found.letter, found.place.to_string());
                        let of_topic = self.of(&letter.partition);
                        of_topic.letters.push(Letter {
                            source: source.name(),
                            place,
                            reason: letter.reason,
                            detail: letter.detail,
                            rejected_at_ms: letter.rejected_at_ms,
                        });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        self.read_all_letters = false;
                        self.notes.push(format!("{}: {}", source.name(), chain(&error)));
                    }
                }
            }
        }
        Ok(())
    }

    fn logs(&mut self) -> Ended {
        let wal = &self.config.processing.wal;
        if !self.config.has_operator(registry::LOG) {
            return Ok(());
        }
        let mut logs = Vec::new();
        if wal.directory.exists() {
            logs.push(("short-term", Log::find(&wal.directory)));
        }
        if wal.long_term.enabled {
            logs.push(("long-term", Log::find_in(&long_term_store(self.config))));
        }
        for (name, log) in logs {
            let Place { topic, partition, offset } = &self.place;
            let located = log.and_then(|log| locate_in_log(&log, topic, *partition, *offset));
            let (frames, problems) = match located {
                Ok(located) => located,
                Err(error) => (Vec::new(), vec![error]),
            };
            self.notes.extend(problems.iter().map(|problem| format!("{name} log: {}", chain(problem))));
            for frame in frames {
                self.of(&frame.partition).frames.push(Frame {
                    log: name,
                    segment: frame.position.segment,
                    at: frame.position.at,
                    bytes: frame.position.bytes,
                    epoch: frame.epoch.0,
                    says: frame.disposition,
                    payload_bytes: frame.payload_bytes,
                });
            }
        }
        Ok(())
    }

    /// What the catalog covers, and the commits and files that have the record.
    fn published(&mut self, kafka: Option<&Kafka>) -> Result<(CatalogAsked, Covered), Failure> {
        let knows = self.config.has_storage() || self.config.has_operator(registry::FLIGHT);
        let opened = match knows {
            true => catalog::open_to_look(&catalog_location(self.config)),
            false => Ok(None),
        };
        let (asked, catalog) = match opened {
            Ok(Some(catalog)) => (CatalogAsked::Asked, Some(catalog)),
            Ok(None) => (CatalogAsked::None, None),
            Err(catalog_commit::Error::Locked { .. }) => {
                let note = "the embedded catalog is in use by another process: the files' footers were read in its place";
                self.notes.push(note.to_owned());
                (CatalogAsked::InUse, None)
            }
            Err(error) => return Err(Failure::fault(chain(&error))),
        };
        let Place { topic, partition, offset } = &self.place;
        let mut covered = match &catalog {
            Some(catalog) => {
                let coverage = catalog.coverage().map_err(|error| Failure::fault(chain(&error)))?;
                catalog_commit::covered(&coverage)
            }
            None => Covered::new(),
        };
        covered.retain(|key, _| *key.topic.name == **topic && key.partition == *partition);
        let has = |(key, offsets): (&PartitionKey, &OffsetSet)| offsets.range_around(*offset).map(|_| key.clone());
        let expected: BTreeSet<PartitionKey> = covered.iter().filter_map(has).collect();
        let is_committed = kafka.and_then(|kafka| kafka.committed).is_some_and(|committed| committed > *offset);
        let would_be_lost = is_committed && self.incarnations.is_empty();
        if self.config.has_storage() && (asked == CatalogAsked::InUse || !expected.is_empty() || would_be_lost) {
            self.files(catalog.as_deref(), &expected)?;
        }
        for partition in covered.keys().cloned().collect::<Vec<_>>() {
            let is_covered = expected.contains(&partition);
            self.of(&partition).covered = Some(is_covered);
        }
        Ok((asked, covered))
    }

    fn files(&mut self, catalog: Option<&dyn Catalog>, expected: &BTreeSet<PartitionKey>) -> Ended {
        let store = object_upload::build_operator(&object_store(self.config)).map_err(|error| Failure::fault(chain(&error)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::fault(format!("starting the I/O runtime: {error}")))?;
        let Place { topic, partition, offset } = self.place.clone();
        let prefix = &self.config.storage.object_store.prefix;
        let search = Search { store: &store, prefix, catalog, runtime: runtime.handle(), topic: &topic, partition, offset };
        let located = search.run(expected).map_err(|error| Failure::fault(chain(&error)))?;
        let Located { commits, missing, unreadable } = located;
        self.notes.extend(missing.into_iter().map(|path| format!("missing in the object store: {path}")));
        self.notes.extend(unreadable.into_iter().map(|object| format!("not readable: {object}")));
        for commit in commits {
            let files = commit.files.into_iter().map(|file| File {
                uri: file.uri,
                file_rows: file.rows,
                rows: file.ordinals.len(),
                ordinals: file.ordinals,
            });
            let found = Commit {
                commit_id: commit.commit_id.to_string(),
                group: commit.group.to_string(),
                node: commit.node.to_string(),
                is_registered: commit.is_registered,
                offsets: (commit.coverage.range.start, commit.coverage.range.end),
                dispositions: commit.coverage.dispositions,
                files: files.collect(),
                absent_files: commit.absent.iter().map(ToString::to_string).collect(),
            };
            self.of(&commit.partition).commits.push(found);
        }
        Ok(())
    }

    /// A verdict on each incarnation that has anything of the offset, and on the topic as it is now.
    fn conclude(mut self, kafka: Option<Kafka>, catalog: CatalogAsked, covered: &Covered) -> Whereabouts {
        let current = self.current(kafka.as_ref(), covered);
        self.incarnations.entry(current.clone()).or_insert_with(|| Incarnation::of(current.clone()));
        let mut incarnations: Vec<Incarnation> = self.incarnations.into_values().collect();
        incarnations.sort_by_key(|one| (one.topic() == current, age(&one.topic())));
        let is_missing = |note: &String| note.starts_with("missing in the object store");
        let first_covered = covered.iter().filter(|(key, _)| topic_of(key) == current);
        let known = verdict::Known {
            offset: self.place.offset,
            kafka: None,
            catalog,
            has_catalog: self.config.has_storage() || self.config.has_operator(registry::FLIGHT),
            has_objects: self.config.has_storage(),
            read_all_letters: self.read_all_letters,
            missing_objects: self.notes.iter().filter(|note| is_missing(note)).count(),
            begins_at_the_end: self.config.ingestion.kafka.auto_offset_reset == crate::config::AutoOffsetReset::Latest,
            first_covered: first_covered.filter_map(|(_, offsets)| offsets.ranges().next().map(|first| first.start)).next(),
        };
        for one in &mut incarnations {
            one.is_current = one.topic() == current;
            if catalog == CatalogAsked::Asked {
                one.covered.get_or_insert(false);
            }
            let known = verdict::Known { kafka: kafka.as_ref().filter(|_| one.is_current), ..known };
            (one.verdict, one.says) = verdict::verdict(one, &known);
        }
        incarnations.retain(|one| one.is_current || one.covered == Some(true) || one.has_anything());
        let now = incarnations.iter().find(|one| one.is_current);
        let (verdict, says) = now.map(|one| (one.verdict, one.says.clone())).unwrap_or_default();
        let stage = verdict.stage();
        Whereabouts { place: self.place, verdict, stage, says, kafka, catalog, incarnations, notes: self.notes }
    }

    /// The topic as it is now: the youngest that is known of the cluster, or the next one where Kafka ends before what that one had.
    fn current(&self, kafka: Option<&Kafka>, covered: &Covered) -> Topic {
        let known = covered.keys().map(topic_of).chain(self.incarnations.keys().cloned());
        let known = known.filter(|(cluster, _)| kafka.is_none_or(|kafka| kafka.cluster == *cluster)).max_by_key(age);
        let Some(known) = known else { return (kafka.map(|kafka| kafka.cluster.clone()).unwrap_or_default(), String::new()) };
        let ends = covered.iter().filter(|(key, _)| topic_of(key) == known);
        let end = ends.filter_map(|(_, offsets)| offsets.ranges().next_back().map(|last| last.end)).max().unwrap_or(0);
        match kafka {
            Some(kafka) if kafka.high < end => {
                let (cluster, id) = known;
                let number: u32 = id.trim_start_matches('~').parse().unwrap_or(0);
                (cluster, format!("~{}", number + 1))
            }
            _ => known,
        }
    }
}

fn topic_of(partition: &PartitionKey) -> Topic {
    (partition.topic.cluster.to_string(), partition.topic.id.to_string())
}

/// Orders the topics of a cluster as they followed one another.
fn age((cluster, id): &Topic) -> (String, usize, String) {
    (cluster.clone(), id.len(), id.clone())
}

impl Incarnation {
    fn of((cluster, topic_id): Topic) -> Incarnation {
        Incarnation { cluster, topic_id, ..Incarnation::default() }
    }

    fn topic(&self) -> Topic {
        (self.cluster.clone(), self.topic_id.clone())
    }

    fn has_anything(&self) -> bool {
        !(self.commits.is_empty() && self.frames.is_empty() && self.letters.is_empty())
    }
}
