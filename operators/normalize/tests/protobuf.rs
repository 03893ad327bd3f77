//! The walk over OTLP protobuf, judged by prost.

use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use proptest::collection::vec;
use proptest::prelude::any as arbitrary;
use prost::Message as _;

use super::samples::{Draw, SIGNALS, logs, metrics, prost_decodes, sample, traces};
use super::*;
use crate::normalize::otlp_proto::{Rules, check};
use crate::otlp::write::{close, open, put_bytes, put_fixed32, put_fixed64, put_number};

const RULES: Rules = Rules { depth_max: 64, row_bytes_max: 1 << 30 };

/// Payload of `signal` whose only item has the fields that `item` writes.
fn payload_of(item: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    let levels = [open(&mut out, 1), open(&mut out, 2), open(&mut out, 2)];
    item(&mut out);
    levels.into_iter().rev().for_each(|level| close(&mut out, level));
    out
}

/// A span with the two ids it needs, and what `fields` adds.
fn span_of(fields: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    payload_of(|out| {
        put_bytes(out, 1, &[1; 16]);
        put_bytes(out, 2, &[1; 8]);
        fields(out);
    })
}

/// A log record whose body is `depth` values inside one another: arrays, or lists of one key. Built from the inside, backwards.
fn nested_body(depth: usize, as_list: bool) -> Vec<u8> {
    let mut reversed: Vec<u8> = Vec::new();
    let wrap = |reversed: &mut Vec<u8>, field: u8| {
        let mut header = vec![field << 3 | 2];
        crate::otlp::write::put_varint(&mut header, reversed.len() as u64);
        reversed.extend(header.iter().rev());
    };
    for _ in 1..depth {
        if as_list {
            wrap(&mut reversed, 2);
            wrap(&mut reversed, 1);
            wrap(&mut reversed, 6);
        } else {
            wrap(&mut reversed, 1);
            wrap(&mut reversed, 5);
        }
    }
    [5, 2, 2, 1].into_iter().for_each(|field| wrap(&mut reversed, field));
    reversed.reverse();
    reversed
}

#[test]
fn conforming_payloads_pass_untouched() {
    for signal in SIGNALS {
        let (_, payload) = sample(signal);
        for format in [Format::OtlpProto, Format::Auto] {
            assert_eq!(normalize(&mut normalizer(format, signal), &payload), Ok((Arena::Raw, payload.clone())));
        }
    }
}

#[test]
fn every_prefix_of_a_payload_is_rejected_or_is_one_that_prost_decodes() {
    for signal in SIGNALS {
        let (_, payload) = sample(signal);
        for len in 0..payload.len() {
            let accepted = check(&payload[..len], signal, &RULES).is_ok();
            assert!(!accepted || prost_decodes(&payload[..len], signal), "{signal} cut at {len}");
        }
        assert!(check(&payload, signal, &RULES).is_ok());
    }
}

#[test]
fn a_payload_of_another_signal_is_named() {
    for expected in SIGNALS {
        for found in SIGNALS.into_iter().filter(|found| *found != expected) {
            let (json, payload) = sample(found);
            let formats = [
                (Format::OtlpProto, &payload[..]),
                (Format::Auto, &payload),
                (Format::OtlpJson, json.as_bytes()),
                (Format::Auto, json.as_bytes()),
            ];
            for (format, payload) in formats {
                let (reason, detail) = rejected(&mut normalizer(format, expected), payload);
                assert_eq!(reason, Reason::WrongSignal, "{format:?}, {found} in a topic of {expected}: {detail}");
                assert!(detail.contains(found.name()) && detail.contains(expected.name()), "{detail}");
            }
        }
    }
}

#[test]
fn a_resource_without_rows_is_of_every_signal() {
    let mut payload = traces();
    payload.resource_spans[0].scope_spans.clear();
    for signal in SIGNALS {
        assert_eq!(check(&payload.encode_to_vec(), signal, &RULES), Ok(0));
    }
}

#[test]
fn hostile_payloads_are_rejected_with_their_reason() {
    let deep = |depth| nested_body(depth, false);
    let cases: Vec<(&str, Signal, Vec<u8>, Reason)> = vec![
        ("text", Signal::Logs, b"just a line of text".to_vec(), Reason::Malformed),
        ("unknown fields only", Signal::Logs, vec![0x28, 0x01, 0x32, 0x01, b'x'], Reason::Undecodable),
        ("a resource of unknown fields only", Signal::Logs, vec![0x0a, 0x02, 0x28, 0x01], Reason::Undecodable),
        ("a log record of unknown fields only", Signal::Logs, payload_of(|out| put_number(out, 99, 1)), Reason::Undecodable),
        ("resource that is a number", Signal::Logs, vec![0x08, 0x01], Reason::Malformed),
        ("length over the end", Signal::Traces, vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], Reason::Malformed),
        ("length of 2^64 - 1", Signal::Traces, [&[0x0a][..], &[0xff; 9], &[0x01]].concat(), Reason::Malformed),
        ("varint over 64 bits", Signal::Traces, [&[0x0a][..], &[0xff; 9], &[0x02]].concat(), Reason::Malformed),
        ("group", Signal::Traces, vec![0x0b, 0x0c], Reason::Malformed),
        ("field number 0", Signal::Traces, vec![0x02, 0x00], Reason::Malformed),
        ("span without ids", Signal::Traces, payload_of(|out| put_bytes(out, 5, b"name")), Reason::InvalidField),
        ("trace id of 15 bytes", Signal::Traces, payload_of(|out| put_bytes(out, 1, &[1; 15])), Reason::InvalidField),
        ("trace id of zeros", Signal::Traces, span_of(|out| put_bytes(out, 1, &[0; 16])), Reason::InvalidField),
        ("span id of zeros", Signal::Traces, span_of(|out| put_bytes(out, 2, &[0; 8])), Reason::InvalidField),
        ("parent of 16 bytes", Signal::Traces, span_of(|out| put_bytes(out, 4, &[1; 16])), Reason::InvalidField),
        ("time after 2262", Signal::Traces, span_of(|out| put_fixed64(out, 7, 1 << 63)), Reason::InvalidField),
        ("time as a varint", Signal::Traces, span_of(|out| put_number(out, 7, 1)), Reason::Malformed),
        ("flags as a varint", Signal::Traces, span_of(|out| put_number(out, 16, 1)), Reason::Malformed),
        ("name that is not UTF-8", Signal::Traces, span_of(|out| put_bytes(out, 5, b"\xff")), Reason::InvalidUtf8),
        ("name with a lone surrogate", Signal::Traces, span_of(|out| put_bytes(out, 5, b"\xed\xa0\x80")), Reason::InvalidUtf8),
        ("key that is not UTF-8", Signal::Traces, span_of(|out| put_bytes(out, 9, b"\x0a\x01\xc0")), Reason::InvalidUtf8),
        (
            "value that is not UTF-8",
            Signal::Traces,
            span_of(|out| put_bytes(out, 9, b"\x12\x03\x0a\x01\xc0")),
            Reason::InvalidUtf8,
        ),
        ("attribute cut short", Signal::Traces, span_of(|out| put_bytes(out, 9, b"\x0a\x05k")), Reason::Malformed),
        ("log time as bytes", Signal::Logs, payload_of(|out| put_bytes(out, 1, b"x")), Reason::Malformed),
        ("log span id of 7 bytes", Signal::Logs, payload_of(|out| put_bytes(out, 10, &[1; 7])), Reason::InvalidField),
        ("metric without a name", Signal::Metrics, payload_of(|out| put_bytes(out, 7, &[0x10, 0x02])), Reason::InvalidField),
        ("metric of integers", Signal::Metrics, payload_of(|out| put_bytes(out, 4, &[0x0a, 0x00])), Reason::InvalidField),
        ("bounds of 7 bytes", Signal::Metrics, metric_of(9, |out| put_bytes(out, 7, &[0; 7])), Reason::Malformed),
        ("buckets cut short", Signal::Metrics, metric_of(10, |out| put_bytes(out, 8, b"\x12\x01\x80")), Reason::Malformed),
        ("point with labels", Signal::Metrics, metric_of(7, |out| put_bytes(out, 1, b"")), Reason::InvalidField),
        ("point with 32-bit time", Signal::Metrics, metric_of(5, |out| put_fixed32(out, 3, 1)), Reason::Malformed),
        ("65 levels of arrays", Signal::Logs, deep(65), Reason::TooDeep),
        ("65 levels of lists", Signal::Logs, nested_body(65, true), Reason::TooDeep),
        ("100,000 levels of arrays", Signal::Logs, deep(100_000), Reason::TooDeep),
        ("100,000 levels of lists", Signal::Logs, nested_body(100_000, true), Reason::TooDeep),
        ("instrumentation library", Signal::Traces, vec![0x0a, 0x03, 0xc2, 0x3e, 0x00], Reason::InvalidField),
    ];
    for (name, signal, payload, reason) in cases {
        let (found, detail) = rejected(&mut normalizer(Format::OtlpProto, signal), &payload);
        assert_eq!(found, reason, "{name}: {detail}");
    }
}

/// A metric with data of field `kind` and one point, whose fields `point` writes.
fn metric_of(kind: u32, point: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    payload_of(|out| {
        put_bytes(out, 1, b"name");
        let levels = [open(out, kind), open(out, 1)];
        point(out);
        levels.into_iter().rev().for_each(|level| close(out, level));
    })
}

#[test]
fn values_may_nest_up_to_the_limit() {
    for as_list in [false, true] {
        assert_eq!(check(&nested_body(64, as_list), Signal::Logs, &RULES), Ok(1));
    }
}

#[test]
fn a_detail_names_the_field_and_its_place() {
    let mut data = logs();
    data.resource_logs[0].scope_logs[0].log_records[1].trace_id = vec![1; 15];
    let (_, detail) = rejected(&mut normalizer(Format::OtlpProto, Signal::Logs), &data.encode_to_vec());
    assert_eq!(detail, "trace_id is 15 bytes long, not 16 at resources[0].scopes[0].items[1]");
}

#[test]
fn a_row_counts_with_its_resource_and_scope() {
    for (signal, payload, widest) in
        [(Signal::Traces, traces().encode_to_vec(), widest_span()), (Signal::Metrics, metrics().encode_to_vec(), widest_point())]
    {
        let rules = |row_bytes_max| Rules { depth_max: 64, row_bytes_max };
        assert!(check(&payload, signal, &rules(widest)).is_ok(), "{signal}");
        let failure = check(&payload, signal, &rules(widest - 1)).unwrap_err();
        assert_eq!(failure.reason, Reason::TooLarge);
        assert!(failure.detail().contains(&widest.to_string()), "{}", failure.detail());
    }
}

fn widest_span() -> usize {
    let resource = &traces().resource_spans[0];
    let scope = &resource.scope_spans[0];
    let shared = [resource.schema_url.len(), scope.schema_url.len(), resource.resource.as_ref().unwrap().encoded_len()];
    shared.iter().sum::<usize>() + scope.scope.as_ref().unwrap().encoded_len() + scope.spans[0].encoded_len()
}

/// The widest point of the sample is the first of the gauge: the metric with all its points, less the second.
fn widest_point() -> usize {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    let metric = metrics().resource_metrics[0].scope_metrics[0].metrics[0].clone();
    let Some(Data::Gauge(gauge)) = &metric.data else { panic!("the first metric is a gauge") };
    metric.encoded_len() - gauge.encoded_len() + gauge.data_points[0].encoded_len()
}

#[test]
fn a_message_of_ten_megabytes_is_accepted() {
    let mut data = traces();
    let spans = &mut data.resource_spans[0].scope_spans[0].spans;
    *spans = vec![spans[0].clone(); 30_000];
    let payload = data.encode_to_vec();
    assert!(payload.len() > 10_000_000);
    assert_eq!(normalize(&mut normalizer(Format::Auto, Signal::Traces), &payload), Ok((Arena::Raw, payload.clone())));
}

proptest::proptest! {
    #[test]
    fn what_prost_encodes_is_accepted_with_all_its_rows(bytes in vec(arbitrary::<u8>(), 0..2_000)) {
        for signal in SIGNALS {
            let (payload, rows) = Draw(&bytes).data(signal);
            proptest::prop_assert_eq!(check(&payload, signal, &RULES), Ok(rows));
        }
    }

    #[test]
    fn whatever_is_accepted_prost_decodes(
        bytes in vec(arbitrary::<u8>(), 0..600),
        edits in vec((arbitrary::<u16>(), 0u8..4, arbitrary::<u8>()), 0..4),
    ) {
        for signal in SIGNALS {
            let (mut payload, _) = Draw(&bytes).data(signal);
            for &(at, edit, byte) in &edits {
                let at = at as usize % payload.len().max(1);
                match edit {
                    0 => payload.get_mut(at).into_iter().for_each(|target| *target = byte),
                    1 => payload.insert(at.min(payload.len()), byte),
                    2 => payload.truncate(at),
                    _ => drop(payload.drain(at..(at + 1).min(payload.len()))),
                }
            }
            for judged in SIGNALS {
                let accepted = check(&payload, judged, &RULES).is_ok();
                proptest::prop_assert!(!accepted || prost_decodes(&payload, judged), "{} as {}", signal, judged);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(arbitrary::<u8>(), 0..300)) {
        for signal in SIGNALS {
            for payload in [&bytes[..], &[&[0x0a][..], &bytes].concat()] {
                let accepted = normalize(&mut normalizer(Format::Auto, signal), payload).is_ok();
                proptest::prop_assert!(!accepted || prost_decodes(payload, signal));
            }
        }
    }
}

#[test]
fn fields_in_any_order_and_lists_unpacked_are_accepted() {
    let unpacked = metric_of(9, |out| {
        put_fixed64(out, 6, 1);
        put_fixed64(out, 7, 2f64.to_bits());
        put_fixed64(out, 6, 3);
    });
    assert_eq!(check(&unpacked, Signal::Metrics, &RULES), Ok(1));
    assert!(prost_decodes(&unpacked, Signal::Metrics));
    // The resource after its spans, and an unknown field beside them.
    let mut out = Vec::new();
    let resource = open(&mut out, 1);
    let span = span_of(|_| {});
    out.extend_from_slice(&span[2..]);
    put_bytes(&mut out, 1, b"");
    put_number(&mut out, 77, 5);
    close(&mut out, resource);
    assert_eq!(check(&out, Signal::Traces, &RULES), Ok(1));
    assert_eq!(TracesData::decode(&out[..]).unwrap().resource_spans.len(), 1);
    assert!(LogsData::decode(&out[..]).is_err());
}
