//! Reading dead letters for people and for a replay: from a folder or a topic, also while a process writes there.
//!
//! A source is read as it was when it was opened: files up to their size then, partitions up to their end then. So a replay whose
//! messages are rejected again does not meet them, and every reading ends. Both have one order, in which a `Place` says how far one got:
//!
//! ```text
//! folder   files by age, lines by number                dead-letter-1700000000000-4711-0000.ndjson:12
//! topic    one partition after the other, by offset     3:1047
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs;
use std::io::Take;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::file::{self, Lines, Listed};
use super::kafka::read_message;
use super::letter::Letter;
use crate::coverage::{OffsetSet, PartitionKey};

/// How long brokers may take to answer a question, and how long a partition may give nothing before its end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one look at the consumer waits.
const POLL: Duration = Duration::from_millis(100);

/// Where a letter lies in its source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of a file.
    Line {
        /// The file's name.
        file: String,
        /// The line's number, from 1.
        line: u64,
    },
    /// A message of the dead letter topic.
    Message {
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{file}:{line}"),
            Place::Message { partition, offset } => write!(f, "{partition}:{offset}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is no place of a dead letter: FILE:LINE in a folder, PARTITION:OFFSET in a topic");
        let (whole, part) = text.rsplit_once(':').ok_or_else(refused)?;
        if let (Ok(partition), Ok(offset)) = (whole.parse(), part.parse()) {
            return Ok(Place::Message { partition, offset });
        }
        // A path is taken, too: it is what a shell completes.
        let name = Path::new(whole).file_name().and_then(|name| name.to_str()).ok_or_else(refused)?;
        match (file::created_ms(name), part.parse()) {
            (Some(_), Ok(line)) => Ok(Place::Line { file: name.to_owned(), line }),
            _ => Err(refused()),
        }
    }
}

/// A letter and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it lies.
    pub place: Place,
    /// The letter.
    pub letter: Letter,
}

/// Why letters, or one of them, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder, a file or a line of it.
    #[error(transparent)]
    File(#[from] super::Error),
    /// A message of the topic is no dead letter.
    #[error("message {place} of topic {topic} is no dead letter: it lacks the headers of one")]
    NoLetter {
        /// The dead letter topic.
        topic: String,
        /// Where.
        place: Place,
    },
    /// The client could not be made.
    #[error("making a client to read dead letter topic {topic}")]
    Client {
        /// The dead letter topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// There is no such topic.
    #[error("dead letter topic {topic} does not exist on these brokers")]
    NoTopic {
        /// The dead letter topic.
        topic: String,
    },
    /// Brokers did not answer, or refused.
    #[error("{doing} dead letter topic {topic}")]
    Topic {
        /// What was being done.
        doing: &'static str,
        /// The dead letter topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// A partition gave nothing for too long, and no reason either.
    #[error("partition {partition} of dead letter topic {topic} gave nothing for {} s, at offset {offset}", PATIENCE.as_secs())]
    Silent {
        /// The dead letter topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset that did not come.
        offset: i64,
    },
}

impl Error {
    /// True if it is about one letter or file, and what lies behind it can be read.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::File(_) | Error::NoLetter { .. })
    }
}

/// Messages of a topic, of one of its partitions, or of a range of offsets there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    topic: String,
    partition: Option<i32>,
    offsets: Range<i64>,
}

impl FromStr for Origin {
    type Err = String;

    /// `TOPIC`, `TOPIC:PARTITION`, `TOPIC:PARTITION:OFFSET` or `TOPIC:PARTITION:FROM..TO`, where either end may be left out.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not TOPIC[:PARTITION[:FROM..TO]]");
        let mut parts = text.split(':');
        let topic = parts.next().filter(|topic| !topic.is_empty()).ok_or_else(refused)?.to_owned();
        let partition = parts.next().map(str::parse).transpose().map_err(|_| refused())?;
        let end = |text: &str, open: i64| if text.is_empty() { Ok(open) } else { text.parse().map_err(|_| refused()) };
        let offsets = match parts.next().map(|offsets| (offsets, offsets.split_once(".."))) {
            None => 0..i64::MAX,
            Some((_, Some((from, to)))) => end(from, 0)?..end(to, i64::MAX)?,
            Some((one, None)) => {
                let offset: i64 = one.parse().map_err(|_| refused())?;
                offset..offset.saturating_add(1)
            }
        };
        if parts.next().is_some() || offsets.is_empty() {
            return Err(refused());
        }
        Ok(Origin { topic, partition, offsets })
    }
}

impl Origin {
    fn has(&self, letter: &Letter) -> bool {
        *self.topic == *letter.partition.topic.name
            && self.partition.is_none_or(|partition| partition == letter.partition.partition)
            && self.offsets.contains(&letter.offset)
    }
}

/// Which letters are asked for; an empty list or `None` asks for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// With one of these reasons.
    pub reasons: Vec<String>,
    /// From one of these places in Kafka.
    pub origins: Vec<Origin>,
    /// Rejected at this time or later, in Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Rejected before this time.
    pub until_ms: Option<u64>,
}

impl Selection {
    /// True if `letter` is asked for.
    pub fn takes(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && (self.origins.is_empty() || self.origins.iter().any(|origin| origin.has(letter)))
            && self.since_ms.is_none_or(|since_ms| letter.rejected_at_ms >= since_ms)
            && self.until_ms.is_none_or(|until_ms| letter.rejected_at_ms < until_ms)
    }
}

/// Messages met before. About 40 bytes a range of neighbouring offsets.
#[derive(Debug, Default)]
pub struct Met(BTreeMap<PartitionKey, OffsetSet>);

impl Met {
    /// Notes a message; true if it is met for the first time.
    pub fn first(&mut self, partition: &PartitionKey, offset: i64) -> bool {
        if self.has(partition, offset) {
            return false;
        }
        self.0.entry(partition.clone()).or_default().insert(offset..offset.saturating_add(1));
        true
    }

    /// True if a message was met.
    pub fn has(&self, partition: &PartitionKey, offset: i64) -> bool {
        self.0.get(partition).is_some_and(|offsets| offsets.range_around(offset).is_some())
    }
}

/// Letters one by one, each with its place. An error is about one line, file or message where it is damage, else the last item.
pub type Letters<'s> = Box<dyn Iterator<Item = Result<Found, Error>> + 's>;

/// What is read, as it was when it was opened.
pub enum Source {
    /// A folder of files.
    Folder(Folder),
    /// A topic.
    Topic(Topic),
}

impl Source {
    /// The files of `directory`, oldest first.
    pub fn folder(directory: &Path) -> Result<Self, Error> {
        let files = file::list(directory)?;
        Ok(Source::Folder(Folder { directory: directory.to_owned(), files, read: AtomicU64::new(0) }))
    }

    /// The topic `name`, by librdkafka settings as the source of the pipeline has them. No group is joined and nothing is committed;
    /// `group.id` is set because the client wants one.
    pub fn topic(name: &str, client: &BTreeMap<String, String>) -> Result<Self, Error> {
        Topic::open(name, client).map(Source::Topic)
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        match self {
            Source::Folder(folder) => format!("folder {}", folder.directory.display()),
            Source::Topic(topic) => format!("topic {}", topic.name),
        }
    }

    /// True if it is the topic `name`.
    pub fn is_topic(&self, name: &str) -> bool {
        matches!(self, Source::Topic(topic) if topic.name == name)
    }

    /// True if `place` can be one of this source.
    pub fn may_have(&self, place: &Place) -> bool {
        matches!((self, place), (Source::Folder(_), Place::Line { .. }) | (Source::Topic(_), Place::Message { .. }))
    }

    /// All letters behind `after`.
    pub fn letters(&self, after: Option<&Place>) -> Letters<'_> {
        match self {
            Source::Folder(folder) => Box::new(folder.letters(after)),
            Source::Topic(topic) => Box::new(topic.letters(after)),
        }
    }

    /// Bytes of the files, or messages of the topic.
    pub fn total(&self) -> u64 {
        match self {
            Source::Folder(folder) => folder.files.iter().map(|file| file.bytes).sum(),
            Source::Topic(topic) => topic.partitions.iter().map(|(_, offsets)| (offsets.end - offsets.start) as u64).sum(),
        }
    }

    /// How much of `total` the last reading has behind it.
    pub fn read(&self) -> u64 {
        match self {
            Source::Folder(Folder { read, .. }) | Source::Topic(Topic { read, .. }) => read.load(Ordering::Relaxed),
        }
    }
}

/// The files of a folder, with their sizes when it was listed.
pub struct Folder {
    directory: PathBuf,
    files: Vec<Listed>,
    read: AtomicU64,
}

impl Folder {
    fn letters(&self, after: Option<&Place>) -> FolderLetters<'_> {
        self.read.store(0, Ordering::Relaxed);
        let mut files: VecDeque<&Listed> = self.files.iter().collect();
        let mut lines_passed = 0;
        if let Some(Place::Line { file, line }) = after {
            let place = (file::created_ms(file).unwrap_or(0), file.as_str());
            while files.front().is_some_and(|listed| (listed.created_ms, listed.name()) < place) {
                let passed = files.pop_front().map_or(0, |listed| listed.bytes);
                self.read.fetch_add(passed, Ordering::Relaxed);
            }
            let is_there = files.front().is_some_and(|listed| listed.name() == file);
            lines_passed = if is_there { *line } else { 0 };
        }
        FolderLetters { files, lines_passed, current: None, read: &self.read }
    }
}

/// Reads the lines of files. A torn last line is passed over: it may be in the writing, and was never acked.
struct FolderLetters<'s> {
    files: VecDeque<&'s Listed>,
    /// Lines of the next file that are passed over.
    lines_passed: u64,
    current: Option<(&'s Listed, Lines<Take<fs::File>>)>,
    read: &'s AtomicU64,
}

impl Iterator for FolderLetters<'_> {
    type Item = Result<Found, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.current.is_none() {
                let listed = self.files.pop_front()?;
                match fs::File::open(&listed.path) {
                    Ok(file) => self.current = Some((listed, Lines::new(std::io::Read::take(file, listed.bytes)))),
                    Err(error) => return Some(Err(file::io_error("opening", &listed.path, error).into())),
                }
            }
            let (listed, lines) = self.current.as_mut()?;
            let before = lines.position;
            let parsed = match lines.next() {
                Ok(Some(line)) if self.lines_passed > 0 => {
                    self.lines_passed -= 1;
                    self.read.fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
                    continue;
                }
                Ok(Some(line)) => Letter::parse(line),
                Ok(None) => {
                    self.read.fetch_add(lines.torn, Ordering::Relaxed);
                    (self.current, self.lines_passed) = (None, 0);
                    continue;
                }
                Err(error) => {
                    let error = file::io_error("reading", &listed.path, error);
                    (self.current, self.lines_passed) = (None, 0);
                    return Some(Err(error.into()));
                }
            };
            self.read.fetch_add(lines.position - before, Ordering::Relaxed);
            let (path, line) = (listed.path.clone(), lines.number);
            return Some(match parsed {
                Ok(letter) => Ok(Found { place: Place::Line { file: listed.name().to_owned(), line }, letter }),
                Err(source) => Err(super::Error::Damaged { path, line, source: Arc::new(source) }.into()),
            });
        }
    }
}

/// A topic, with the offsets of its partitions when it was opened.
pub struct Topic {
    name: String,
    consumer: BaseConsumer,
    partitions: Vec<(i32, Range<i64>)>,
    read: AtomicU64,
}

impl Topic {
    fn open(name: &str, client: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        config.extend(client.clone());
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest").set("fetch.wait.max.ms", "100");
        let topic = || name.to_owned();
        let consumer: BaseConsumer = config.create().map_err(|source| Error::Client { topic: topic(), source })?;
        let failed = |doing| move |source| Error::Topic { doing, topic: name.to_owned(), source };
        // Asking for all topics does not create the one that is missing, asking for one may.
        let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(failed("asking the brokers for"))?;
        let found =
            metadata.topics().iter().find(|topic| topic.name() == name).ok_or_else(|| Error::NoTopic { topic: topic() })?;
        let mut partitions = Vec::new();
        for partition in found.partitions().iter().map(|partition| partition.id()) {
            let ends = consumer.fetch_watermarks(name, partition, PATIENCE);
            let (low, high) = ends.map_err(failed("asking for the offsets of"))?;
            partitions.push((partition, low..high));
        }
        partitions.sort_unstable_by_key(|(partition, _)| *partition);
        Ok(Topic { name: topic(), consumer, partitions, read: AtomicU64::new(0) })
    }

    fn letters(&self, after: Option<&Place>) -> TopicLetters<'_> {
        self.read.store(0, Ordering::Relaxed);
        let mut partitions: VecDeque<(i32, Range<i64>)> = self.partitions.iter().cloned().collect();
        if let Some(Place::Message { partition: at, offset }) = after {
            for (partition, offsets) in &mut partitions {
                let from = match (*partition).cmp(at) {
                    std::cmp::Ordering::Less => offsets.end,
                    std::cmp::Ordering::Equal => offset.saturating_add(1).clamp(offsets.start, offsets.end),
                    std::cmp::Ordering::Greater => offsets.start,
                };
                self.read.fetch_add((from - offsets.start) as u64, Ordering::Relaxed);
                offsets.start = from;
            }
        }
        partitions.retain(|(_, offsets)| !offsets.is_empty());
        TopicLetters { topic: self, partitions, current: None, waiting: Instant::now(), last_error: None }
    }
}

/// Reads one partition after the other.
struct TopicLetters<'s> {
    topic: &'s Topic,
    partitions: VecDeque<(i32, Range<i64>)>,
    /// The partition that is read, and what of it is still to come.
    current: Option<(i32, Range<i64>)>,
    /// Since when the brokers have given nothing that was waited for. How long the caller takes does not count.
    waiting: Instant,
    /// What the client reported since.
    last_error: Option<KafkaError>,
}

/// What one look at the consumer gave.
enum Look {
    Item(Box<Result<Found, Error>>),
    Nothing,
    End,
}

impl TopicLetters<'_> {
    fn begin(&self, partition: i32, from: i64) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&self.topic.name, partition, Offset::Offset(from));
        let assigned = added.and_then(|()| self.topic.consumer.assign(&list));
        assigned.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: KafkaError) -> Error {
        Error::Topic { doing: "reading", topic: self.topic.name.clone(), source }
    }

    fn look(&mut self, partition: i32, left: &mut Range<i64>) -> Look {
        match self.topic.consumer.poll(POLL) {
            Some(Ok(message)) => {
                let offset = message.offset();
                // What an earlier assignment had under way.
                if message.partition() != partition || offset < left.start {
                    return Look::Nothing;
                }
                if offset >= left.end {
                    return Look::End;
                }
                self.last_error = None;
                self.topic.read.fetch_add((offset + 1 - left.start) as u64, Ordering::Relaxed);
                left.start = offset + 1;
                let place = Place::Message { partition, offset };
                Look::Item(Box::new(match read_message(&message) {
                    Some(letter) => Ok(Found { place, letter }),
                    None => Err(Error::NoLetter { topic: self.topic.name.clone(), place }),
                }))
            }
            // Behind the last message there may be offsets that hold none.
            Some(Err(KafkaError::PartitionEOF(at))) if at == partition => Look::End,
            Some(Err(KafkaError::PartitionEOF(_))) => Look::Nothing,
            Some(Err(error)) if is_lasting(&error) => Look::Item(Box::new(Err(self.failed(error)))),
            Some(Err(error)) => {
                self.last_error = Some(error);
                self.given_up(partition, left)
            }
            None => self.given_up(partition, left),
        }
    }

    fn given_up(&mut self, partition: i32, left: &Range<i64>) -> Look {
        if self.waiting.elapsed() < PATIENCE {
            return Look::Nothing;
        }
        let silent = Error::Silent { topic: self.topic.name.clone(), partition, offset: left.start };
        Look::Item(Box::new(Err(self.last_error.take().map_or(silent, |error| self.failed(error)))))
    }
}

impl Iterator for TopicLetters<'_> {
    type Item = Result<Found, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.waiting = Instant::now();
        loop {
            let (partition, mut left) = match self.current.take() {
                Some(current) => current,
                None => {
                    let (partition, offsets) = self.partitions.pop_front()?;
                    if let Err(error) = self.begin(partition, offsets.start) {
                        self.partitions.clear();
                        return Some(Err(error));
                    }
                    self.waiting = Instant::now();
                    (partition, offsets)
                }
            };
            match self.look(partition, &mut left) {
                Look::Item(item) => {
                    if (*item).as_ref().is_err_and(|error| !error.is_damage()) {
                        self.partitions.clear();
                    } else if !left.is_empty() {
                        self.current = Some((partition, left));
                    }
                    return Some(*item);
                }
                Look::Nothing => self.current = Some((partition, left)),
                Look::End => {
                    self.topic.read.fetch_add((left.end - left.start) as u64, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What waiting does not mend.
fn is_lasting(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        Authentication, ClusterAuthorizationFailed, TopicAuthorizationFailed, UnknownPartition, UnknownTopic,
        UnknownTopicOrPartition,
    };
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            TopicAuthorizationFailed
                | ClusterAuthorizationFailed
                | Authentication
                | UnknownTopicOrPartition
                | UnknownTopic
                | UnknownPartition
        )
    )
}
