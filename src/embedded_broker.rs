//! An in-process Kafka broker for the demo and for tests: librdkafka's mock cluster, on a thread of its own.
//!
//! It speaks the real protocol over TCP on loopback, with consumer groups, commits and idempotent producers, and keeps everything in
//! memory. Its limits, which are librdkafka's and fixed:
//!
//! | limit | consequence |
//! |---|---|
//! | a partition keeps its newest 5 MiB or 100,000 record batches, read or not | a producer must not run ahead of consumers: `Window` |
//! | no CreateTopics request | topics are created with `create_topic`, or by naming them, then with 4 partitions |
//! | a waiting fetch is answered only after `fetch.wait.max.ms` | consumers set it low |
//! | no ListOffsets by time, no transaction isolation | neither can be shown in the demo |

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rdkafka::bindings;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use crate::generate::{Message, Topic};

/// Brokers of the cluster: one connection suffices, and one thread of librdkafka serves all of them anyway.
const BROKERS: i32 = 1;
/// How long a group without members waits for further ones after its first. The mock cluster waits 3 s, which would be most of the time of
/// a demo or a test. Short against that, and long enough for the consumers of one process, which start together: one that comes later makes
/// all of them join again, which takes most of a session.
const FIRST_JOIN_MS: i32 = 300;

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread could not be started.
    #[error("starting the embedded broker's thread")]
    Thread(#[source] std::io::Error),
    /// The mock cluster could not be started.
    #[error("starting the embedded broker")]
    Start(#[source] KafkaError),
    /// A topic could not be created.
    #[error("creating topic `{topic}` in the embedded broker")]
    Topic {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// The broker's thread has ended.
    #[error("the embedded broker has stopped")]
    Stopped,
}

struct CreateTopic {
    topic: Topic,
    reply: Sender<Result<(), KafkaError>>,
}

/// A running broker. It stops, and forgets everything, when dropped.
pub struct EmbeddedBroker {
    bootstrap: String,
    /// `None` only while dropping: closing the channel ends the thread.
    requests: Option<Sender<CreateTopic>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Starts a broker on a free port of the loopback interface.
    pub fn start() -> Result<Self, Error> {
        let (requests, received) = channel();
        let (reply, started) = channel();
        let serve = move || serve(&reply, &received);
        let thread = std::thread::Builder::new().name("embedded-broker".to_owned()).spawn(serve).map_err(Error::Thread)?;
        let bootstrap = started.recv().map_err(|_| Error::Stopped)?.map_err(Error::Start)?;
        Ok(EmbeddedBroker { bootstrap, requests: Some(requests), thread: Some(thread) })
    }

    /// The address to configure as `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.bootstrap
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: &Topic) -> Result<(), Error> {
        let (reply, replied) = channel();
        let requests = self.requests.as_ref().ok_or(Error::Stopped)?;
        requests.send(CreateTopic { topic: topic.clone(), reply }).map_err(|_| Error::Stopped)?;
        let created = replied.recv().map_err(|_| Error::Stopped)?;
        created.map_err(|source| Error::Topic { topic: topic.name.clone(), source })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed already, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// The broker's thread: the cluster cannot be sent between threads, so it lives and dies here. Its work is done by librdkafka's threads.
fn serve(started: &Sender<Result<String, KafkaError>>, requests: &Receiver<CreateTopic>) {
    // A cluster made by a client's configuration rather than by itself: only so can its pointer be had.
    let mut config = ClientConfig::new();
    config.set("test.mock.num.brokers", BROKERS.to_string()).set_log_level(RDKafkaLogLevel::Warning);
    let producer: BaseProducer = match config.create() {
        Ok(producer) => producer,
        Err(error) => {
            // If nobody waits for the answer, nobody misses it.
            let _ = started.send(Err(error));
            return;
        }
    };
    let Some(cluster) = producer.client().mock_cluster() else {
        unreachable!("a client configured to have a mock cluster has one")
    };
    // SAFETY: the client has a mock cluster, as was just seen, and both live until the end of this function. The function takes the
    // cluster's lock and stores a number.
    unsafe {
        let cluster = bindings::rd_kafka_handle_mock_cluster(producer.client().native_ptr());
        bindings::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, FIRST_JOIN_MS);
    }
    let _ = started.send(Ok(cluster.bootstrap_servers()));
    while let Ok(CreateTopic { topic, reply }) = requests.recv() {
        let _ = reply.send(cluster.create_topic(&topic.name, topic.partitions, BROKERS));
    }
}

/// Most bytes of a partition that may wait to be consumed: a fifth below what the broker keeps.
const WINDOW_BYTES: u64 = 4 << 20;
/// What a message costs the broker beyond key and payload: at worst a record batch of its own, with a header of 61 bytes.
///
/// It also bounds record batches: 4 MiB / 80 is half of the 100,000 the broker keeps.
const MESSAGE_OVERHEAD_BYTES: u64 = 80;

/// Holds a producer back so that the embedded broker never drops what is not yet consumed.
///
/// Knows of each partition the messages sent and not yet consumed, oldest first. Their offsets are known without asking: the window's
/// producer is the topic's only one and idempotent, so the n-th message sent to a partition has offset n.
pub struct Window<F> {
    topics: Vec<(String, Vec<PartitionWindow>)>,
    consumed: F,
}

#[derive(Default)]
struct PartitionWindow {
    /// Offset of the next message sent.
    next_offset: i64,
    /// Sizes of messages sent and not known to be consumed; the last has offset `next_offset - 1`.
    waiting: VecDeque<u64>,
    /// Sum of `waiting`.
    waiting_bytes: u64,
}

impl PartitionWindow {
    fn fits(&self, bytes: u64) -> bool {
        // A message above the limit goes alone.
        self.waiting.is_empty() || self.waiting_bytes + bytes <= WINDOW_BYTES
    }

    /// Forgets messages below `consumed`.
    fn retire(&mut self, consumed: i64) {
        while self.next_offset - (self.waiting.len() as i64) < consumed {
            match self.waiting.pop_front() {
                Some(bytes) => self.waiting_bytes -= bytes,
                None => break,
            }
        }
    }

    fn push(&mut self, bytes: u64) {
        self.waiting.push_back(bytes);
        self.waiting_bytes += bytes;
        self.next_offset += 1;
    }
}

impl<F: FnMut(&str, i32) -> i64> Window<F> {
    /// A window over new, empty `topics`; `consumed` tells a partition's next offset to be consumed, 0 at first.
    pub fn new(topics: &[Topic], consumed: F) -> Self {
        let partitions = |topic: &Topic| (0..topic.partitions).map(|_| PartitionWindow::default()).collect();
        Window { topics: topics.iter().map(|topic| (topic.name.clone(), partitions(topic))).collect(), consumed }
    }

    /// True if `message` may be sent now, which it must then be; false if consumers have to catch up first.
    pub fn admits(&mut self, message: &Message) -> bool {
        let (topic, partitions) = &mut self.topics[message.topic];
        let partition = &mut partitions[message.partition as usize];
        let bytes = message.bytes() + MESSAGE_OVERHEAD_BYTES;
        // Consumers are asked only when the partition is full: mostly it is not.
        if !partition.fits(bytes) {
            partition.retire((self.consumed)(topic, message.partition));
        }
        let fits = partition.fits(bytes);
        if fits {
            partition.push(bytes);
        }
        fits
    }

    /// Bytes that may wait in the broker, of all partitions.
    pub fn waiting_bytes(&self) -> u64 {
        self.topics.iter().flat_map(|(_, partitions)| partitions).map(|partition| partition.waiting_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Format, Generator, Plan, Ppm};
    use openwit_operators::batch::Signal;
    use std::cell::Cell;

    fn generator(topic: &Topic, records_per_message: usize) -> Generator {
        let plan = Plan {
            topics: vec![topic.clone()],
            format: Format::Otlp,
            signal: Signal::Traces,
            count: None,
            records_per_message,
            message_bytes_min: 0,
            duplicates: Ppm(0),
            invalid: Ppm(0),
            tombstones: Ppm(0),
            seed: 1,
            keyed: false,
            start_time_ns: 1,
            time_step_ns: 1,
        };
        Generator::new(plan).unwrap()
    }

    #[test]
    fn window_admits_until_a_partition_is_full_and_again_when_it_is_consumed() {
        let topic = Topic { name: "t".to_owned(), partitions: 2 };
        let consumed = Cell::new(0);
        let mut window = Window::new(std::slice::from_ref(&topic), |_, _| consumed.get());
        let mut messages = generator(&topic, 50);
        let held_back = messages.find(|message| !window.admits(message)).unwrap();
        let waiting = window.waiting_bytes();
        assert!(waiting <= 2 * WINDOW_BYTES && waiting + held_back.bytes() * 4 > 2 * WINDOW_BYTES, "{waiting}");
        assert!(!window.admits(&held_back), "nothing was consumed meanwhile");
        consumed.set(1);
        assert!(window.admits(&held_back), "one message of about the same size was consumed");
        // A consumer that is ahead of what the window knows of leaves nothing waiting.
        consumed.set(i64::MAX);
        let admitted = messages.take(2_000).filter(|message| window.admits(message)).count();
        assert_eq!(admitted, 2_000);
    }

    #[test]
    fn message_above_the_window_goes_alone() {
        let topic = Topic { name: "t".to_owned(), partitions: 1 };
        let mut window = Window::new(std::slice::from_ref(&topic), |_, _| 0);
        let large: Vec<_> = generator(&topic, 20_000).take(2).collect();
        assert!(large[0].bytes() > WINDOW_BYTES);
        assert_eq!([window.admits(&large[0]), window.admits(&large[1])], [true, false]);
    }

    #[test]
    fn broker_creates_topics_and_stops_when_dropped() {
        let broker = EmbeddedBroker::start().unwrap();
        let topic = Topic { name: "t".to_owned(), partitions: 3 };
        broker.create_topic(&topic).unwrap();
        assert!(broker.create_topic(&topic).is_err(), "it exists already");
        let address = broker.brokers().to_owned();
        assert!(std::net::TcpStream::connect(&address).is_ok(), "{address}");
        drop(broker);
        assert!(std::net::TcpStream::connect(&address).is_err(), "{address}");
    }
}
