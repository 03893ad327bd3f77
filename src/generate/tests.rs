//! What the generator promises, for every format and signal; and that what it sends is what a broker hands out.
//!
//! Kafka is librdkafka's mock broker here: its protocol is real, its durability is not, so nothing is proved about broker restarts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use prost::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use super::producer::{self, Pace, Settings};
use super::*;
use crate::embedded_broker::{EmbeddedBroker, Window};

const START_NS: u64 = 1_700_000_000_000_000_000;

/// All formats with all signals they can carry.
fn variants() -> Vec<(Format, Signal)> {
    let signals = [Signal::Traces, Signal::Logs, Signal::Metrics];
    let formats = [Format::Otlp, Format::OtlpJson, Format::Json];
    let mut variants: Vec<_> = formats.into_iter().flat_map(|format| signals.map(|signal| (format, signal))).collect();
    variants.push((Format::Raw, Signal::Logs));
    variants
}

fn topics(names: &[&str]) -> Vec<Topic> {
    names.iter().map(|name| Topic { name: (*name).to_owned(), partitions: 3 }).collect()
}

fn plan_of(format: Format, signal: Signal) -> Plan {
    Plan {
        topics: topics(&["a", "b"]),
        format,
        signal,
        count: Some(400),
        records_per_message: if format.batches_records() { 7 } else { 1 },
        message_bytes_min: 0,
        duplicates: Ppm(100_000),
        invalid: Ppm(100_000),
        tombstones: Ppm(20_000),
        seed: 7,
        keyed: true,
        start_time_ns: START_NS,
        time_step_ns: 1_000,
    }
}

fn run(plan: &Plan) -> Vec<Message> {
    Generator::new(plan.clone()).unwrap().collect()
}

#[test]
fn same_seed_gives_the_same_messages_and_another_seed_others() {
    for (format, signal) in variants() {
        let plan = plan_of(format, signal);
        let messages = run(&plan);
        assert_eq!(messages, run(&plan), "{format:?} {signal}");
        // Empty and deep messages hold nothing random.
        let varied =
            |message: &&Message| !matches!(message.kind, Kind::Tombstone | Kind::Invalid(Invalid::Empty | Invalid::Deep));
        let payloads: BTreeSet<_> = messages.iter().filter(varied).map(|message| message.payload()).collect();
        let others = run(&Plan { seed: 8, ..plan });
        assert!(!others.iter().filter(varied).any(|other| payloads.contains(&other.payload())), "{format:?} {signal}");
    }
}

#[test]
fn any_message_can_be_computed_without_those_before_it() {
    for (format, signal) in variants() {
        let plan = plan_of(format, signal);
        let mut generator = Generator::new(plan.clone()).unwrap();
        let mut message = Message::empty();
        for expected in run(&plan).iter().rev() {
            generator.fill(expected.index, &mut message);
            assert_eq!(&message, expected, "{format:?} {signal}");
        }
    }
}

#[test]
fn messages_take_turns_at_topics_and_partitions() {
    let plan = plan_of(Format::Raw, Signal::Logs);
    let routes: Vec<_> = run(&plan).iter().take(8).map(|message| (message.topic, message.partition)).collect();
    assert_eq!(routes, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 0), (1, 0)]);
}

#[test]
fn shares_of_kinds_are_those_asked_for() {
    let plan =
        Plan { duplicates: Ppm(50_000), invalid: Ppm(20_000), tombstones: Ppm(10_000), ..plan_of(Format::Raw, Signal::Logs) };
    const MESSAGES: u64 = 200_000;
    let (mut duplicates, mut tombstones, mut invalid) = (0, 0, BTreeMap::new());
    for index in 0..MESSAGES {
        match plan.kind(index) {
            Kind::Valid => {}
            Kind::Duplicate { .. } => duplicates += 1,
            Kind::Tombstone => tombstones += 1,
            Kind::Invalid(kind) => *invalid.entry(kind).or_insert(0) += 1,
        }
    }
    // Five standard deviations of a binomial distribution.
    let check = |found: u64, expected: f64| {
        assert!((found as f64 - expected).abs() < 5.0 * expected.sqrt(), "{found} instead of {expected}");
    };
    check(duplicates, 0.05 * MESSAGES as f64);
    check(tombstones, 0.01 * MESSAGES as f64);
    assert_eq!(invalid.keys().copied().collect::<Vec<_>>(), [Invalid::Empty, Invalid::Random, Invalid::Utf8]);
    for found in invalid.into_values() {
        check(found, 0.02 * MESSAGES as f64 / 3.0);
    }
}

#[test]
fn valid_messages_are_distinct_and_duplicates_repeat_a_recent_one_of_their_topic() {
    for (format, signal) in variants() {
        let messages = run(&plan_of(format, signal));
        let mut seen = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for message in &messages {
            match message.kind {
                Kind::Valid => assert!(seen.insert(message.payload().unwrap()), "{format:?} {signal} {}", message.index),
                Kind::Duplicate { of } => {
                    let original = &messages[of as usize];
                    assert!(of < message.index && original.kind == Kind::Valid, "{of}");
                    assert_eq!(
                        (original.topic, original.key(), original.payload()),
                        (message.topic, message.key(), message.payload())
                    );
                    assert_eq!(message.records, original.records);
                    continue;
                }
                Kind::Tombstone => assert_eq!(message.payload(), None),
                Kind::Invalid(_) => assert!(!seen.contains(message.payload().unwrap())),
            }
            assert!(keys.insert(message.key().unwrap()), "keys are unique but for duplicates");
        }
        let duplicates = messages.iter().filter(|message| matches!(message.kind, Kind::Duplicate { .. })).count();
        assert!(duplicates > 20, "{duplicates}");
    }
}

#[test]
fn identifiers_of_a_run_are_distinct_and_parents_lie_in_their_trace() {
    let plan = Plan { duplicates: Ppm(0), invalid: Ppm(0), tombstones: Ppm(0), ..plan_of(Format::Otlp, Signal::Traces) };
    let (mut span_ids, mut traces) = (BTreeSet::new(), BTreeSet::new());
    for message in run(&plan) {
        let data = TracesData::decode(message.payload().unwrap()).unwrap();
        let spans: Vec<_> = data.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|scope| &scope.spans).collect();
        let mut traces_here = BTreeSet::new();
        for span in &spans {
            assert!(span_ids.insert(span.span_id.clone()) && span.span_id != [0; 8] && span.trace_id != [0; 16]);
            traces_here.insert(span.trace_id.clone());
            let parent = spans.iter().find(|parent| parent.span_id == span.parent_span_id);
            assert_eq!(span.parent_span_id.is_empty(), parent.is_none());
            assert!(parent.is_none_or(|parent| parent.trace_id == span.trace_id));
            let times = span.start_time_unix_nano..=span.end_time_unix_nano;
            assert!(span.events.iter().all(|event| times.contains(&event.time_unix_nano)));
            assert!((START_NS..START_NS + 400_000).contains(times.start()));
        }
        assert!(traces_here.iter().all(|trace| traces.insert(trace.clone())), "a trace does not reach into another message");
    }
}

#[test]
fn otlp_messages_decode_to_the_records_announced() {
    for records in [1, 4, 50, 200] {
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            let valid = |message: &Message| message.kind == Kind::Valid;
            for message in run(&Plan { records_per_message: records, count: Some(20), ..plan_of(Format::Otlp, signal) })
                .iter()
                .filter(|m| valid(m))
            {
                let payload = message.payload().unwrap();
                let found = match signal {
                    Signal::Traces => traces::count(&TracesData::decode(payload).unwrap()),
                    Signal::Logs => logs::count(&LogsData::decode(payload).unwrap()),
                    Signal::Metrics => metrics::count(&MetricsData::decode(payload).unwrap()),
                };
                assert_eq!((found, message.records), (records, records as u64), "{signal}");
            }
        }
    }
}

#[test]
fn patched_templates_give_what_encoding_gives() {
    for signal in [Signal::Traces, Signal::Logs] {
        for records in [1, 50, 130] {
            let plan = Plan { records_per_message: records, ..plan_of(Format::Otlp, signal) };
            let mut fast = Templates::build(Format::Otlp, signal, records, plan.seed);
            let mut slow = Templates::structs(signal, records, plan.seed);
            assert!(matches!(fast, Templates::Patched(_)), "{signal}: patching saves most of the time");
            for index in (0..300).chain([1 << 40, u64::MAX - 1]) {
                let (mut patched, mut encoded) = (Vec::new(), Vec::new());
                fast.push(&mut patched, Format::Otlp, plan.template(index), &plan.stamp(index));
                slow.push(&mut encoded, Format::Otlp, plan.template(index), &plan.stamp(index));
                assert!(patched == encoded, "{signal} {records} {index}");
            }
        }
    }
}

#[test]
fn metrics_mix_all_kinds_and_histograms_add_up() {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    let plan = Plan { records_per_message: 50, count: Some(4), ..plan_of(Format::Otlp, Signal::Metrics) };
    let data = MetricsData::decode(run(&plan)[0].payload().unwrap()).unwrap();
    let mut kinds = [0; 5];
    for metric in &data.resource_metrics[0].scope_metrics[0].metrics {
        match metric.data.as_ref().unwrap() {
            Data::Gauge(_) => kinds[0] += 1,
            Data::Sum(sum) => kinds[1] += i32::from(sum.is_monotonic),
            Data::Histogram(histogram) => {
                kinds[2] += 1;
                for point in &histogram.data_points {
                    assert_eq!(point.count, point.bucket_counts.iter().sum::<u64>());
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                }
            }
            Data::ExponentialHistogram(histogram) => {
                kinds[3] += 1;
                for point in &histogram.data_points {
                    assert_eq!(
                        point.count,
                        point.zero_count + point.positive.as_ref().unwrap().bucket_counts.iter().sum::<u64>()
                    );
                }
            }
            Data::Summary(_) => kinds[4] += 1,
        }
    }
    assert!(kinds.iter().all(|&kind| kind >= 2), "{kinds:?}");
}

#[test]
fn otlp_json_says_the_same_as_otlp_protobuf() {
    let valid = |format| Plan {
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        count: Some(20),
        ..plan_of(format, Signal::Traces)
    };
    for (binary, text) in run(&valid(Format::Otlp)).iter().zip(run(&valid(Format::OtlpJson))) {
        let data = TracesData::decode(binary.payload().unwrap()).unwrap();
        let json: Value = serde_json::from_slice(text.payload().unwrap()).unwrap();
        let resource = &json["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"].as_array().unwrap().len(), 7);
        for (position, span) in data.resource_spans[0].scope_spans[0].spans.iter().enumerate() {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let found = &resource["scopeSpans"][0]["spans"][position];
            assert_eq!(found["traceId"], hex(&span.trace_id));
            assert_eq!(found["spanId"], hex(&span.span_id));
            assert_eq!(found["parentSpanId"].as_str().unwrap_or(""), hex(&span.parent_span_id));
            assert_eq!(found["name"], span.name);
            assert_eq!(found["kind"], span.kind);
            assert_eq!(found["startTimeUnixNano"], span.start_time_unix_nano.to_string());
            assert_eq!(found["endTimeUnixNano"], span.end_time_unix_nano.to_string());
            assert_eq!(found["events"].as_array().map_or(0, Vec::len), span.events.len());
            assert_eq!(found["links"].as_array().map_or(0, Vec::len), span.links.len());
            let attributes = found["attributes"].as_array().unwrap();
            assert_eq!(attributes.len(), 7);
            assert_eq!(attributes[6]["value"]["intValue"], "8080");
            assert_eq!(attributes[0]["value"]["stringValue"], span.name.split(' ').next().unwrap());
        }
    }
}

#[test]
fn every_valid_json_message_is_one_json_object() {
    for (format, signal) in variants().into_iter().filter(|(format, _)| matches!(format, Format::OtlpJson | Format::Json)) {
        for message in run(&plan_of(format, signal)).iter().filter(|message| message.kind == Kind::Valid) {
            let json: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
            assert!(json.is_object(), "{format:?} {signal}");
        }
    }
}

#[test]
fn sizes_are_those_of_real_telemetry() {
    let cases = [
        (Format::Otlp, Signal::Traces, 50, 330..360),
        (Format::Otlp, Signal::Logs, 50, 200..300),
        (Format::Otlp, Signal::Metrics, 50, 120..300),
        (Format::Json, Signal::Logs, 1, 280..340),
        (Format::Json, Signal::Traces, 1, 400..700),
        (Format::Raw, Signal::Logs, 1, 150..300),
    ];
    for (format, signal, records, expected) in cases {
        let plan = Plan { records_per_message: records, ..plan_of(format, signal) };
        let valid: Vec<_> = run(&plan).into_iter().filter(|message| message.kind == Kind::Valid).collect();
        let bytes = valid.iter().map(|message| message.bytes.len()).sum::<usize>() / valid.len() / records;
        assert!(expected.contains(&bytes), "{format:?} {signal}: {bytes} bytes a record");
    }
}

#[test]
fn json_and_raw_messages_are_filled_up_to_the_size_asked_for() {
    for (format, signal) in variants().into_iter().filter(|(format, _)| !format.batches_records()) {
        for size in [600, 601, 5_000] {
            let plan = Plan { message_bytes_min: size, ..plan_of(format, signal) };
            for message in run(&plan).iter().filter(|message| message.kind == Kind::Valid) {
                let length = message.payload().unwrap().len();
                assert!((size..size + 100).contains(&length), "{format:?} {signal}: {length} instead of {size}");
                assert!(format == Format::Raw || serde_json::from_slice::<Value>(message.payload().unwrap()).is_ok());
            }
        }
    }
}

/// What a decoder without mercy or limits of its own makes of a payload: `None` is rejection.
fn accepted(format: Format, signal: Signal, payload: &[u8]) -> Option<()> {
    if payload.is_empty() {
        return None;
    }
    let root = match signal {
        Signal::Traces => "resourceSpans",
        Signal::Logs => "resourceLogs",
        Signal::Metrics => "resourceMetrics",
    };
    match format {
        Format::Otlp => match signal {
            Signal::Traces => TracesData::decode(payload).ok().map(drop),
            Signal::Logs => LogsData::decode(payload).ok().map(drop),
            Signal::Metrics => MetricsData::decode(payload).ok().map(drop),
        },
        Format::OtlpJson => serde_json::from_slice::<Value>(payload).ok()?.get(root).map(drop),
        Format::Json => serde_json::from_slice::<Value>(payload).ok().map(drop),
        Format::Raw => std::str::from_utf8(payload).ok().map(drop),
    }
}

#[test]
fn invalid_messages_are_rejected_by_decoders_and_valid_ones_are_not() {
    for (format, signal) in variants() {
        let plan = Plan { count: Some(1_500), invalid: Ppm(400_000), ..plan_of(format, signal) };
        let mut kinds = BTreeMap::new();
        for message in Generator::new(plan).unwrap() {
            let Some(payload) = message.payload() else { continue };
            if let Kind::Invalid(kind) = message.kind {
                *kinds.entry(kind).or_insert(0) += 1;
                assert_eq!((accepted(format, signal, payload), message.records), (None, 0), "{format:?} {signal} {kind:?}");
            } else {
                assert_eq!(accepted(format, signal, payload), Some(()), "{format:?} {signal} {}", message.index);
            }
        }
        assert_eq!(kinds.len(), invalid::kinds(format).len(), "every kind occurs: {kinds:?}");
    }
}

#[test]
fn message_cut_between_two_resources_is_still_invalid() {
    // 130 spans are three resources; all cuts of a message are tried by many indexes.
    let plan =
        Plan { records_per_message: 130, invalid: Ppm(900_000), duplicates: Ppm(0), ..plan_of(Format::Otlp, Signal::Traces) };
    let cut = |message: &Message| message.kind == Kind::Invalid(Invalid::Truncated);
    assert!(
        run(&plan).iter().filter(|message| cut(message)).all(|message| TracesData::decode(message.payload().unwrap()).is_err())
    );
}

#[test]
fn nested_protobuf_is_well_formed_to_its_innermost_level() {
    let mut payload = Vec::new();
    for _ in 0..64 {
        payload.clear();
        invalid::push_deep(&mut payload, Format::Otlp, &mut Random::new(1, 1));
        let mut level: &[u8] = &payload;
        let mut levels = 0;
        while let Some(field) = wire::fields(level).last() {
            let (_, wire::Value::Bytes(inner)) = field.unwrap() else { panic!("only messages are nested here") };
            level = inner;
            levels += 1;
        }
        assert!(levels >= 2_000 && payload.len() < 900_000, "{levels} levels in {} bytes", payload.len());
    }
}

#[test]
fn senseless_plans_are_refused() {
    let plan = plan_of(Format::Otlp, Signal::Traces);
    let cases = [
        (Plan { topics: vec![], ..plan.clone() }, PlanError::NoPartition),
        (Plan { duplicates: Ppm(800_000), invalid: Ppm(151_000), ..plan.clone() }, PlanError::TooLittleValid),
        (Plan { format: Format::Raw, ..plan.clone() }, PlanError::RawSignal(Signal::Traces)),
        (Plan { format: Format::Json, ..plan.clone() }, PlanError::RecordsPerMessage(7)),
        (Plan { records_per_message: 0, ..plan.clone() }, PlanError::NoRecord),
        (Plan { time_step_ns: 0, ..plan }, PlanError::NoTimeStep),
    ];
    for (plan, error) in cases {
        assert_eq!(Generator::new(plan).err(), Some(error));
    }
}

proptest::proptest! {
    /// Duplicates lead to a valid message before them, whatever the shares.
    #[test]
    fn duplicates_always_have_an_original(
        seed: u64,
        topic_count in 1usize..4,
        duplicates in 0u32..=900_000,
        index in 0u64..100_000,
    ) {
        let topics = (0..topic_count).map(|n| Topic { name: n.to_string(), partitions: 1 }).collect();
        let plan = Plan { seed, topics, duplicates: Ppm(duplicates), invalid: Ppm(50_000), tombstones: Ppm(0), ..plan_of(Format::Raw, Signal::Logs) };
        proptest::prop_assert_eq!(plan.check(), Ok(()));
        if let Kind::Duplicate { of } = plan.kind(index) {
            proptest::prop_assert!(of < index && of % topic_count as u64 == index % topic_count as u64);
            proptest::prop_assert_eq!(plan.kind(of), Kind::Valid);
            proptest::prop_assert!((index - of) / topic_count as u64 <= 2 * LOOKBACK);
        }
    }
}

fn settings(brokers: &str) -> Settings {
    Settings { brokers: brokers.to_owned(), compression: "lz4".to_owned(), properties: vec![] }
}

/// A consumer of one partition from its beginning.
fn consumer(brokers: &str, topic: &str, partition: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "check")
        .set("fetch.wait.max.ms", "10")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    consumer
}

#[test]
fn broker_hands_out_exactly_the_messages_of_the_plan() {
    let broker = EmbeddedBroker::start().unwrap();
    let plan = plan_of(Format::Otlp, Signal::Logs);
    plan.topics.iter().for_each(|topic| broker.create_topic(topic).unwrap());
    let names: Vec<_> = plan.topics.iter().map(|topic| topic.name.clone()).collect();
    let settings = settings(broker.brokers());
    assert_eq!(producer::ensure_topics(&settings, &names, None, -1).unwrap(), plan.topics);

    let mut generator = Generator::new(plan.clone()).unwrap();
    let sent = producer::send(&settings, &mut generator, Pace::default(), &AtomicBool::new(false), |_| true).unwrap();
    let mut expected_tally = Tally::default();
    let messages = run(&plan);
    messages.iter().for_each(|message| expected_tally.add(message));
    assert_eq!((sent.delivered, &sent.tally), (400, &expected_tally));

    for (topic, partition) in (0..2).flat_map(|topic| (0..3).map(move |partition| (topic, partition))) {
        let consumer = consumer(broker.brokers(), &plan.topics[topic].name, partition);
        for expected in messages.iter().filter(|message| (message.topic, message.partition) == (topic, partition)) {
            let received = consumer.poll(Duration::from_secs(20)).expect("a message within 20 s").unwrap();
            assert_eq!(received.payload(), expected.payload());
            assert_eq!(received.key(), expected.key().map(str::as_bytes));
        }
    }
}

#[test]
fn window_keeps_the_broker_from_dropping_what_a_slow_consumer_has_not_read() {
    let broker = EmbeddedBroker::start().unwrap();
    let topic = Topic { name: "t".to_owned(), partitions: 1 };
    broker.create_topic(&topic).unwrap();
    // Four times what a partition keeps.
    let plan = Plan {
        topics: vec![topic.clone()],
        count: Some(220),
        records_per_message: 300,
        invalid: Ppm(0),
        tombstones: Ppm(0),
        ..plan_of(Format::Otlp, Signal::Traces)
    };
    let messages = run(&plan);
    assert!(messages.iter().map(Message::bytes).sum::<u64>() > 20 << 20);

    let consumed = Arc::new(AtomicI64::new(0));
    let position = consumed.clone();
    let uncompressed = Settings { compression: "none".to_owned(), ..settings(broker.brokers()) };
    let sender = std::thread::spawn(move || {
        let mut window = Window::new(std::slice::from_ref(&topic), |_, _| position.load(Ordering::Acquire));
        let mut generator = Generator::new(plan).unwrap();
        producer::send(&uncompressed, &mut generator, Pace::default(), &AtomicBool::new(false), |message| window.admits(message))
    });
    let consumer = consumer(broker.brokers(), "t", 0);
    for expected in &messages {
        let received = consumer.poll(Duration::from_secs(20)).expect("a message within 20 s").unwrap();
        assert_eq!((received.offset(), received.payload()), (expected.index as i64, expected.payload()));
        consumed.store(received.offset() + 1, Ordering::Release);
    }
    assert_eq!(sender.join().unwrap().unwrap().delivered, 220);
}

#[test]
fn messages_that_no_broker_takes_fail_the_run() {
    // A port that was free a moment ago: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let properties =
        vec![("delivery.timeout.ms".to_owned(), "300".to_owned()), ("socket.timeout.ms".to_owned(), "200".to_owned())];
    let settings = Settings { properties, ..settings(&format!("127.0.0.1:{port}")) };
    let mut generator = Generator::new(Plan { count: Some(5), ..plan_of(Format::Json, Signal::Logs) }).unwrap();
    let error = producer::send(&settings, &mut generator, Pace::default(), &AtomicBool::new(false), |_| true).unwrap_err();
    assert!(matches!(error, producer::Error::Undelivered { queued: 1..=5, .. }), "{error}");
}

#[test]
fn run_without_end_ends_when_stopped_or_when_its_time_is_over() {
    let broker = EmbeddedBroker::start().unwrap();
    let plan = Plan { topics: topics(&["t"]), count: None, ..plan_of(Format::Raw, Signal::Logs) };
    broker.create_topic(&plan.topics[0]).unwrap();
    let settings = settings(broker.brokers());
    let stop = AtomicBool::new(false);
    let mut asked = 0;
    let stopping = |_: &Message| {
        asked += 1;
        stop.store(asked > 1_000, Ordering::Relaxed);
        true
    };
    let sent = producer::send(&settings, &mut Generator::new(plan.clone()).unwrap(), Pace::default(), &stop, stopping).unwrap();
    assert!((1_000..1_100).contains(&sent.tally.messages), "{}", sent.tally.messages);

    let pace = Pace { rate: Some(1_000.0), duration: Some(Duration::from_millis(200)) };
    let sent = producer::send(&settings, &mut Generator::new(plan).unwrap(), pace, &AtomicBool::new(false), |_| true).unwrap();
    assert!((1..=201).contains(&sent.tally.messages), "{}", sent.tally.messages);
}
