//! Inputs as they are meant to be, of several lengths, made by the project's own generator and writers.

use openwit_ingest::generate::{Format, Generator, Message, Plan, Ppm, Topic};
use openwit_operators::batch::Signal;

use super::messages::{NAMES, SIGNALS};

/// Records of messages: from the smallest that is usual to what fills an input.
const RECORDS: [usize; 4] = [1, 3, 8, 16];

fn generated(format: Format, signal: Signal, records: usize) -> Vec<u8> {
    let plan = Plan {
        topics: vec![Topic { name: "shop".into(), partitions: 1 }],
        format,
        signal,
        count: None,
        records_per_message: records,
        message_bytes_min: 0,
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: 7,
        keyed: false,
        start_time_ns: 1_767_225_600_000_000_000,
        time_step_ns: 1_000_003,
    };
    let (mut generator, mut message) = (Generator::new(plan).expect("the plan makes sense"), Message::empty());
    generator.fill(records as u64, &mut message);
    message.payload().expect("no message is a tombstone").to_vec()
}

fn of_each_signal(format: Format) -> Vec<Vec<u8>> {
    let message =
        |(number, signal): (usize, Signal), records| [&[number as u8][..], &generated(format, signal, records)].concat();
    let signals = || SIGNALS.into_iter().enumerate();
    RECORDS.iter().flat_map(|&records| signals().map(move |signal| message(signal, records))).collect()
}

/// OTLP protobuf.
pub fn protobuf() -> Vec<Vec<u8>> {
    of_each_signal(Format::Otlp)
}

/// OTLP JSON.
pub fn otlp_json() -> Vec<Vec<u8>> {
    of_each_signal(Format::OtlpJson)
}

fn plain(signal: Signal, records: usize, before: &[u8], between: &[u8], after: &[u8]) -> Vec<u8> {
    let objects: Vec<Vec<u8>> = (0..records).map(|_| generated(Format::Json, signal, 1)).collect();
    [before, &objects.join(between)[..], after].concat()
}

/// Plain JSON: objects, lines of them, arrays of them; and lines of text.
pub fn plain_json() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for records in RECORDS {
        for (number, signal) in SIGNALS.into_iter().enumerate() {
            inputs.push([&[number as u8][..], &plain(signal, records, b"", b"\n", b"\n")].concat());
            inputs.push([&[number as u8 + 3][..], &plain(signal, records, b"[", b", ", b"]")].concat());
        }
        let line = generated(Format::Raw, Signal::Logs, 1);
        inputs.push([&[7][..], &vec![line; records].join(&b' ')].concat());
    }
    inputs
}

fn header(name: &str, value: &str) -> Vec<u8> {
    let name = NAMES.iter().position(|known| *known == name).expect("the name is listed") as u8;
    [&[name, value.len() as u8][..], value.as_bytes()].concat()
}

fn enveloped(signal: usize, format: usize, is_ruled: bool, pack: u8, headers: &[Vec<u8>], payload: &[u8]) -> Vec<u8> {
    let first = (signal + 3 * format + 15 * usize::from(is_ruled)) as u8;
    [&[first, headers.len() as u8 | pack << 3][..], &headers.concat(), payload].concat()
}

/// Messages with headers: all formats, each way of packing, CloudEvents in both modes.
pub fn envelopes() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    let event = [
        ("ce_specversion", "1.0"),
        ("ce_id", "17"),
        ("ce_source", "/shop"),
        ("ce_type", "order"),
        ("ce_time", "2026-01-01T00:00:00Z"),
    ];
    let event: Vec<Vec<u8>> = event.iter().map(|(name, value)| header(name, value)).collect();
    for (number, signal) in SIGNALS.into_iter().enumerate() {
        for pack in 0..5 {
            let is_ruled = pack % 2 == 1;
            inputs.push(enveloped(number, 1, is_ruled, pack, &[], &generated(Format::Otlp, signal, 2)));
            inputs.push(enveloped(
                number,
                0,
                !is_ruled,
                pack,
                &[header("content-type", "application/json")],
                &generated(Format::OtlpJson, signal, 1),
            ));
            inputs.push(enveloped(number, 3, is_ruled, pack, &event, &plain(signal, 2, b"", b"\n", b"")));
        }
        let structured = [header("content-type", "application/cloudevents+json")];
        let data = String::from_utf8(generated(Format::Json, signal, 1)).expect("JSON is text");
        let text =
            format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-01-01T00:00:00Z","data":{data}}}"#);
        inputs.push(enveloped(number, 0, true, 0, &structured, text.as_bytes()));
        let base64 = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json","data_base64":"eyJhIjoxLCJvcmRlcl9pZCI6IjcifQ=="}"#;
        inputs.push(enveloped(number, 3, false, 1, &structured, base64.as_bytes()));
    }
    // As large as one may become: what is packed is compared with these.
    let line = br#"{"time":"2026-01-01T00:00:00Z","order_id":"a7","order.total":"3.5","service.name":"shop","message":"paid"}"#;
    for pack in [1, 2, 3, 4] {
        inputs.push(enveloped(1, 3, true, pack, &[], &vec![&line[..]; 30].join(&b'\n')));
    }
    let ruled = br#"{"service.name":"shop","orderId":"7","order.total":"1.5","order.items":"3","order.paid_at":"2026-01-01T00:00:00Z","order.gift":"true","order.state":"paid","order.tags":["a","b"],"cell":"4"}"#;
    inputs.push(enveloped(1, 3, true, 0, &[], ruled));
    inputs.push(enveloped(1, 4, false, 0, &[], b"<134>1 2026-01-01T00:00:00Z host app 7 - - a line of text"));
    inputs
}

/// Segments, key files and copies, as the golden files have them.
pub fn log_files() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for repair in [0, 0x80] {
        for segment in [
            &include_bytes!("../../operators/wal_commit/golden/segment-v1.wal")[..],
            include_bytes!("../../operators/wal_commit/golden/segment-v2.wal"),
            include_bytes!("../../operators/wal_commit/golden/segment-v4-raw.wal"),
        ] {
            // The header's block is zeros but for the header, and so is the end.
            let end = segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last + 1).next_multiple_of(8));
            inputs.push([&[repair][..], &segment[..64], &segment[4096..end]].concat());
        }
        inputs.push([&[repair + 1][..], include_bytes!("../../operators/wal_commit/golden/keys-v1.keys")].concat());
        inputs.push([&[repair + 2][..], include_bytes!("../../operators/wal_commit/golden/long-term-v1.owl")].concat());
        inputs.push([&[repair + 2][..], include_bytes!("../../operators/wal_commit/golden/long-term-v2.owl")].concat());
    }
    inputs
}

/// Lines of the dead letter, and letters with headers.
pub fn dead_letters() -> Vec<Vec<u8>> {
    super::dead_letters::normal()
}

/// Everything that is written beside data.
pub fn notes() -> Vec<Vec<u8>> {
    super::notes::normal()
}

/// The configuration files there are, whole and in part.
pub fn configs() -> Vec<Vec<u8>> {
    let configs = [
        include_str!("../../config/reference.yaml"),
        include_str!("../../config/standalone.yaml"),
        include_str!("../../config/ingest.yaml"),
        include_str!("../../config/storage.yaml"),
        include_str!("../../config/bulk.yaml"),
        include_str!("../../config/low-latency.yaml"),
        include_str!("../../tests/data/spec-section-7.yaml"),
    ];
    let reference = configs[0];
    // Of one length each between the shortest and the whole, so that there is something to compare with.
    let cut = |len: usize| &reference[..reference[..len].rfind('\n').map_or(0, |end| end + 1)];
    let parts = [2_000, 5_000, 10_000, 20_000].map(cut);
    let config = configs.iter().copied().chain(parts).map(|text| [&[0][..], text.as_bytes()].concat());
    let schema = include_str!("../../config/datasets/shop-logs.yaml");
    let schemas =
        [schema, &schema[..schema.find("resource:").unwrap_or(schema.len())]].map(|text| [&[1][..], text.as_bytes()].concat());
    config.chain(schemas).collect()
}
