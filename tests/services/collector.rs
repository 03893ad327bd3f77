//! A real OpenTelemetry Collector as the producer: what it is sent by OTLP/HTTP it writes to Kafka in its own encodings, and the pipeline
//! stores every record once, with all fields. The Collector takes minutes to build, so it is an optional service.

use std::io::{Read, Write};
use std::net::TcpStream;

use openwit_ingest::generate::{Format, Generator, Message, Plan, Ppm, Topic};
use openwit_operators::batch::Signal;

use crate::setup::{Setup, optional};
use crate::support::lake;
use crate::support::random::Random;

const SIGNALS: [(Signal, &str); 3] = [(Signal::Traces, "traces"), (Signal::Logs, "logs"), (Signal::Metrics, "metrics")];
const MESSAGES: u64 = 60;
const RECORDS: usize = 10;

/// The encodings of its Kafka exporter, by the variable of the receiver that leads there, and what the pipeline calls them.
const ENCODINGS: [(&str, &str, &str); 2] =
    [("OPENWIT_TEST_OTELCOL_PROTO", "otlp_proto", "otlp"), ("OPENWIT_TEST_OTELCOL_JSON", "otlp_json", "otlp-json")];

/// Bodies of export requests, the same for the same seed.
fn requests(signal: Signal, seed: u64) -> Vec<Vec<u8>> {
    let plan = Plan {
        topics: vec![Topic { name: "any".into(), partitions: 1 }],
        format: Format::Otlp,
        signal,
        count: Some(MESSAGES),
        records_per_message: RECORDS,
        message_bytes_min: 0,
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed,
        keyed: false,
        start_time_ns: 1_767_225_600_000_000_000,
        time_step_ns: 1_000_000,
    };
    let (mut generator, mut message, mut bodies) =
        (Generator::new(plan).expect("the plan makes sense"), Message::empty(), vec![]);
    while generator.advance(&mut message) {
        bodies.push(message.payload().expect("no tombstones were asked for").to_vec());
    }
    bodies
}

/// Sends one export request; the Collector answers when Kafka has it.
fn export(receiver: &str, signal: &str, topic: &str, body: &[u8]) {
    let address = receiver.strip_prefix("http://").expect("an address without TLS");
    let mut stream = TcpStream::connect(address).expect("the Collector listens");
    write!(
        stream,
        "POST /v1/{signal} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/x-protobuf\r\ntopic: \
         {topic}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .and_then(|()| stream.write_all(body))
    .expect("the Collector reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the Collector answers");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn what_a_collector_writes_to_kafka_in_either_encoding_is_stored_once_and_with_all_fields() {
    const TEST: &str = "collector";
    let seed = Random::for_test(TEST).bits();
    for (signal, name) in SIGNALS {
        let bodies = requests(signal, seed);
        let mut stored = Vec::new();
        for (variable, encoding, format) in ENCODINGS {
            let Some(receiver) = optional(TEST, variable) else { return };
            let Some(setup) = Setup::new(TEST, name) else { return };
            for body in &bodies {
                export(&receiver, name, &setup.topic, body);
            }
            let summary = setup.run_to_end().json();
            assert_eq!(summary["messages"], MESSAGES, "{encoding} {name}: {summary}");
            assert_eq!(summary["rows"], MESSAGES * RECORDS as u64, "{encoding} {name}: {summary}");
            setup.verify(format, None);
            setup.audit();
            let mut contents: Vec<u64> = lake::rows(&setup.path("data/objects")).iter().map(|row| row.content).collect();
            contents.sort_unstable();
            stored.push(contents);
        }
        assert!(!stored[0].is_empty() && stored[0] == stored[1], "{name}: the two encodings are stored differently");
    }
}
