//! Messages that a pipeline chokes on: each is in the dead letter with its reason, byte for byte, and the rest goes on.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openwit_ingest::generate::{Format, Generator, Plan, Ppm, Topic};
use openwit_operators::batch::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::kafka::Kafka;
use crate::setup::Setup;
use crate::support::binary::openwit;
use crate::support::lake;

fn producer(setup: &Setup) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &setup.brokers).set("message.max.bytes", "21000000");
    config.create().expect("the settings are valid")
}

fn send(producer: &BaseProducer, setup: &Setup, payload: Option<&[u8]>) {
    let record = BaseRecord::<[u8], [u8]>::to(&setup.topic).partition(0).key(b"key");
    let record = match payload {
        Some(payload) => record.payload(payload),
        None => record,
    };
    producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
}

/// One valid OTLP message of `records` spans.
fn valid(setup: &Setup, signal: Signal, records: usize) -> Vec<u8> {
    let plan = Plan {
        topics: vec![Topic { name: setup.topic.clone(), partitions: 1 }],
        format: Format::Otlp,
        signal,
        count: Some(1),
        records_per_message: records,
        message_bytes_min: 0,
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: records as u64,
        keyed: false,
        start_time_ns: 1_790_000_000_000_000_000,
        time_step_ns: 1_000,
    };
    let message = Generator::new(plan).expect("the plan is valid").next().expect("one message");
    message.payload().expect("it is no tombstone").to_vec()
}

#[test]
fn hostile_messages_are_put_aside_with_their_reason_and_the_rest_goes_on() {
    let Some(setup) = Setup::new("hostile", "traces") else { return };
    let producer = producer(&setup);
    let span = valid(&setup, Signal::Traces, 1);
    let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)).into_bytes();
    let mut not_utf8 = span.clone();
    let place = not_utf8.windows(4).position(|bytes| bytes == b"prod").expect("every resource names its environment");
    not_utf8[place] = 0xff;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("undecodable", b"\x07\x93 no decoder takes this".to_vec()),
        ("malformed", span[..span.len() - 7].to_vec()),
        ("too_deep", deep),
        ("invalid_utf8", not_utf8),
        ("wrong_signal", valid(&setup, Signal::Logs, 3)),
    ];
    send(&producer, &setup, Some(&valid(&setup, Signal::Traces, 2)));
    for (_, payload) in &cases {
        send(&producer, &setup, Some(payload));
    }
    send(&producer, &setup, None);
    // About 10 MB: more rows and bytes than one record batch and one gRPC message hold.
    let large = valid(&setup, Signal::Traces, 29_000);
    assert!(large.len() > 9_500_000, "{}", large.len());
    send(&producer, &setup, Some(&large));
    send(&producer, &setup, Some(&valid(&setup, Signal::Traces, 5)));
    producer.flush(Duration::from_secs(30)).expect("the broker takes all");

    let summary = setup.run_to_end().json();
    assert_eq!((&summary["rows"], &summary["rejects"], &summary["skipped"]), (&29_007.into(), &6.into(), &1.into()), "{summary}");
    let mut letters = Vec::new();
    for entry in std::fs::read_dir(setup.path("data/dead-letter")).expect("the folder is there") {
        let path = entry.expect("it is readable").path();
        if path.extension().is_some_and(|extension| extension == "ndjson") {
            let text = std::fs::read_to_string(path).expect("it is text");
            letters.extend(text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line is JSON")));
        }
    }
    letters.sort_by_key(|letter| letter["offset"].as_i64());
    assert_eq!(letters.len(), cases.len(), "{letters:?}");
    for (letter, (reason, payload)) in letters.iter().zip(&cases) {
        // A cut message is told by where the cut falls.
        let accepted: &[&str] = if *reason == "malformed" { &["malformed", "undecodable"] } else { &[reason] };
        let found = letter["reason"].as_str().expect("a letter has a reason");
        assert!(accepted.contains(&found), "{reason}: {letter}");
        let kept = STANDARD.decode(letter["payload_base64"].as_str().expect("it had a payload")).expect("it is base64");
        assert!(kept == *payload, "{reason}: the payload differs");
    }
    setup.verify("otlp", None);
    setup.audit();
}

#[test]
fn a_letter_too_large_for_its_topic_ends_every_start_until_the_topic_takes_it_or_a_folder_does() {
    for fix in ["topic", "folder"] {
        let Some(setup) = Setup::new(&format!("large-letter-{fix}"), "traces") else { return };
        let (kafka, letters) = (Kafka::at(&setup.brokers), format!("{}.letters", setup.group));
        assert!(kafka.create_topic(&letters, 1) && kafka.set_topic(&letters, "max.message.bytes", "2000"));
        setup.generate("otlp", 40, 61);
        let producer = producer(&setup);
        let payload = [0x07; 5_000];
        send(&producer, &setup, Some(&payload));
        producer.flush(Duration::from_secs(30)).expect("the broker takes it");
        let (config, folder) = (setup.config(), setup.path("letters"));
        let run = |directory: &str| {
            let to = format!("ingestion.kafka.dead_letter={{topic: {letters}, directory: {directory}}}");
            openwit(["run", "--config", &config, "--until-end", "--set", &to])
        };
        for _ in 0..2 {
            let ended = run("null").expect(1);
            let told = format!("of 5003 bytes is larger than topic {letters} takes: raise its max.message.bytes");
            assert!(ended.stderr.contains("dead_letter: ") && ended.stderr.contains(&told), "{}", ended.stderr);
        }
        match fix {
            "topic" => {
                assert!(kafka.set_topic(&letters, "max.message.bytes", "20000"));
                run("null").expect(0);
            }
            _ => {
                run(&folder.display().to_string()).expect(0);
                let kept = lake::letters(&folder).into_iter().map(|letter| letter.payload());
                assert!(kept.flatten().any(|kept| kept == payload), "the folder has it whole");
            }
        }
        setup.audit();
    }
}
