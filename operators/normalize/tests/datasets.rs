//! Dataset schemas: what conforms is not touched, what can be brought into form is, all else is refused with field and place.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value::{self, BoolValue, BytesValue, DoubleValue, IntValue};
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{MetricsData, metric};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use proptest::prelude::*;
use prost::Message as _;

use super::samples::{Draw, SIGNALS, any, attribute, sample, text_attribute};
use super::*;
use crate::dataset::names::RENAMES;
use crate::dataset::{Case, Field, Kind, Level, Names, Scalar, Schema, Separators, TimeFormat, Unknown};
use crate::otlp::wire;

fn schema(signal: Signal, fields: Vec<Field>) -> Schema {
    Schema {
        name: "test".into(),
        version: 1,
        indexes: vec!["**".to_owned()],
        signal,
        names: Names::default(),
        attributes: Level { fields, ..Level::default() },
        resource: Level::default(),
    }
}

fn ruled(format: Format, schema: Schema) -> Normalizer {
    let config = Config { datasets: [schema.clone()].into(), ..config(format, schema.signal) };
    Normalizer::new(config).unwrap_or_else(|problem| panic!("{problem}"))
}

/// A message of one log record with these attributes.
fn log(attributes: Vec<KeyValue>) -> Vec<u8> {
    let record = LogRecord { time_unix_nano: 7, attributes, ..LogRecord::default() };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..ScopeLogs::default() }];
    LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
}

/// The attributes of the first log record of `payload`.
fn attributes(payload: &[u8]) -> Vec<(String, Option<Value>)> {
    let data = LogsData::decode(payload).unwrap();
    let attributes = &data.resource_logs[0].scope_logs[0].log_records[0].attributes;
    attributes.iter().map(|pair| (pair.key.clone(), pair.value.clone().and_then(|value| value.value))).collect()
}

/// What becomes of one log record with `given` under `schema`.
fn outcome(schema: &Schema, given: Vec<KeyValue>) -> Result<Vec<(String, Option<Value>)>, (Reason, String)> {
    normalize(&mut ruled(Format::OtlpProto, schema.clone()), &log(given)).map(|(_, payload)| attributes(&payload))
}

fn string(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

fn list(values: usize) -> Value {
    Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(1)); values] })
}

fn map(entries: usize) -> Value {
    Value::KvlistValue(KeyValueList { values: vec![text_attribute("k", "v"); entries] })
}

/// A value, what it is declared to be, and what it becomes; `None`: refused.
type Cell = (Value, Kind, Option<Value>);

fn cells() -> Vec<Cell> {
    [cells_of_strings(), cells_of_ints(), cells_of_doubles(), cells_of_others()].concat()
}

fn cells_of_strings() -> Vec<Cell> {
    let nanos = |nanos| Some(IntValue(nanos));
    vec![
        (string("a"), Kind::String, Some(string("a"))),
        (string("12"), Kind::Int, Some(IntValue(12))),
        (string("-9223372036854775808"), Kind::Int, Some(IntValue(i64::MIN))),
        (string("0"), Kind::Int, Some(IntValue(0))),
        (string("9223372036854775808"), Kind::Int, None),
        (string("012"), Kind::Int, None),
        (string("-0"), Kind::Int, None),
        (string("+1"), Kind::Int, None),
        (string("1.0"), Kind::Int, None),
        (string("1e3"), Kind::Int, None),
        (string(" 1"), Kind::Int, None),
        (string(""), Kind::Int, None),
        (string("1.50"), Kind::Double, Some(DoubleValue(1.5))),
        (string("-2e3"), Kind::Double, Some(DoubleValue(-2000.0))),
        (string("7"), Kind::Double, Some(DoubleValue(7.0))),
        (string("NaN"), Kind::Double, None),
        (string("inf"), Kind::Double, None),
        (string("1e999"), Kind::Double, None),
        (string(".5"), Kind::Double, None),
        (string("1 "), Kind::Double, None),
        (string("TRUE"), Kind::Bool, Some(BoolValue(true))),
        (string("false"), Kind::Bool, Some(BoolValue(false))),
        (string("yes"), Kind::Bool, None),
        (string("1970-01-01T00:00:01Z"), Kind::Timestamp, nanos(1_000_000_000)),
        (string("1500"), Kind::Timestamp, nanos(1_500_000_000)),
        (string("yesterday"), Kind::Timestamp, None),
        (string("AAE="), Kind::Bytes, Some(BytesValue(vec![0, 1]))),
        (string("AAE"), Kind::Bytes, None),
        (string("[1]"), Kind::List, None),
        (string("{}"), Kind::Map, None),
    ]
}

fn cells_of_ints() -> Vec<Cell> {
    let nanos = |nanos| Some(IntValue(nanos));
    let exact = 1i64 << 53;
    vec![
        (IntValue(-5), Kind::String, Some(string("-5"))),
        (IntValue(5), Kind::Int, Some(IntValue(5))),
        (IntValue(exact), Kind::Double, Some(DoubleValue(9_007_199_254_740_992.0))),
        (IntValue(exact + 1), Kind::Double, None),
        (IntValue(-exact - 1), Kind::Double, None),
        (IntValue(1), Kind::Bool, Some(BoolValue(true))),
        (IntValue(0), Kind::Bool, Some(BoolValue(false))),
        (IntValue(2), Kind::Bool, None),
        (IntValue(1_500), Kind::Timestamp, nanos(1_500_000_000)),
        (IntValue(-1), Kind::Timestamp, None),
        (IntValue(i64::MAX), Kind::Timestamp, None),
        (IntValue(1), Kind::Bytes, None),
        (IntValue(1), Kind::List, None),
        (IntValue(1), Kind::Map, None),
    ]
}

fn cells_of_doubles() -> Vec<Cell> {
    let nanos = |nanos| Some(IntValue(nanos));
    vec![
        (DoubleValue(0.1), Kind::String, Some(string("0.1"))),
        (DoubleValue(f64::NAN), Kind::String, None),
        (DoubleValue(-3.0), Kind::Int, Some(IntValue(-3))),
        (DoubleValue(3.5), Kind::Int, None),
        (DoubleValue(1e16), Kind::Int, None),
        (DoubleValue(f64::INFINITY), Kind::Int, None),
        (DoubleValue(0.25), Kind::Double, Some(DoubleValue(0.25))),
        (DoubleValue(1.0), Kind::Bool, None),
        (DoubleValue(1_500.5), Kind::Timestamp, nanos(1_500_500_000)),
        (DoubleValue(-1.0), Kind::Timestamp, None),
        (DoubleValue(1.0), Kind::Bytes, None),
        (DoubleValue(1.0), Kind::List, None),
        (DoubleValue(1.0), Kind::Map, None),
    ]
}

fn cells_of_others() -> Vec<Cell> {
    vec![
        (BoolValue(true), Kind::String, Some(string("true"))),
        (BoolValue(true), Kind::Int, Some(IntValue(1))),
        (BoolValue(false), Kind::Double, Some(DoubleValue(0.0))),
        (BoolValue(true), Kind::Bool, Some(BoolValue(true))),
        (BoolValue(true), Kind::Timestamp, None),
        (BoolValue(true), Kind::Bytes, None),
        (BoolValue(true), Kind::List, None),
        (BoolValue(true), Kind::Map, None),
        (BytesValue(vec![65]), Kind::String, None),
        (BytesValue(vec![65]), Kind::Int, None),
        (BytesValue(vec![65]), Kind::Double, None),
        (BytesValue(vec![65]), Kind::Bool, None),
        (BytesValue(vec![65]), Kind::Timestamp, None),
        (BytesValue(vec![65]), Kind::Bytes, Some(BytesValue(vec![65]))),
        (BytesValue(vec![65]), Kind::List, None),
        (BytesValue(vec![65]), Kind::Map, None),
        (list(1), Kind::String, None),
        (list(1), Kind::Int, None),
        (list(1), Kind::Double, None),
        (list(1), Kind::Bool, None),
        (list(1), Kind::Timestamp, None),
        (list(1), Kind::Bytes, None),
        (list(1), Kind::List, Some(list(1))),
        (list(1), Kind::Map, None),
        (map(1), Kind::String, None),
        (map(1), Kind::Int, None),
        (map(1), Kind::Double, None),
        (map(1), Kind::Bool, None),
        (map(1), Kind::Timestamp, None),
        (map(1), Kind::Bytes, None),
        (map(1), Kind::List, None),
        (map(1), Kind::Map, Some(map(1))),
    ]
}

fn field_of(kind: Kind) -> Field {
    let mut field = Field::new("f", kind);
    if kind == Kind::Timestamp {
        field.formats = vec![TimeFormat::Rfc3339, TimeFormat::UnixMillis];
    }
    field
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::StringValue(_) | Value::StringValueStrindex(_) => "string",
        Value::IntValue(_) => "int",
        Value::DoubleValue(_) => "double",
        Value::BoolValue(_) => "bool",
        Value::BytesValue(_) => "bytes",
        Value::ArrayValue(_) => "list",
        Value::KvlistValue(_) => "map",
    }
}

#[test]
fn every_cell_of_the_coercion_table_is_as_it_says_and_as_it_is_documented() {
    let mut accepted: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for (given, kind, expected) in cells() {
        let shown = format!("{given:?} as {}", kind.name());
        let found = name_of(&given);
        let result = outcome(&schema(Signal::Logs, vec![field_of(kind)]), vec![attribute("f", given)]);
        *accepted.entry((found, kind.name())).or_default() |= expected.is_some();
        match (expected, result) {
            (Some(expected), Ok(got)) => assert_eq!(got, [("f".to_owned(), Some(expected))], "{shown}"),
            (None, Err((reason, detail))) => {
                assert_eq!(reason, Reason::WrongType, "{shown}: {detail}");
                let says = detail.contains(&format!("f should be a{}", if kind == Kind::Int { "n int" } else { "" }))
                    || (kind == Kind::Bytes && detail.starts_with("f should be bytes"));
                assert!(says && detail.contains("found ") && detail.ends_with("items[0]"), "{shown}: {detail}");
            }
            (expected, got) => panic!("{shown}: expected {expected:?}, got {got:?}"),
        }
    }
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/datasets.md"));
    let section = text.split("\n## ").find(|section| section.starts_with("Coercion")).unwrap();
    let mut rows = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).map(str::to_owned).collect::<Vec<_>>());
    let header = rows.next().unwrap();
    let mut documented = 0;
    for row in rows.filter(|row| row.len() == header.len()) {
        for (kind, cell) in header[1..].iter().zip(&row[1..]) {
            let is_accepted = accepted.get(&(row[0].as_str(), kind.as_str()));
            let is_accepted = *is_accepted.unwrap_or_else(|| panic!("no case for {} as {kind}", row[0]));
            assert_eq!(cell != "never", is_accepted, "{} as {kind}", row[0]);
            assert_eq!(cell == "as is", row[0] == *kind, "{} as {kind}", row[0]);
            documented += 1;
        }
    }
    assert_eq!((documented, accepted.len()), (7 * 8, 7 * 8));
}

#[test]
fn a_field_may_refuse_to_be_coerced() {
    let field = Field { coerce: vec![Kind::Bool], ..Field::new("f", Kind::Int) };
    let strict = schema(Signal::Logs, vec![field]);
    assert!(outcome(&strict, vec![attribute("f", Value::BoolValue(true))]).is_ok());
    let (reason, detail) = outcome(&strict, vec![text_attribute("f", "1")]).unwrap_err();
    let expected = "f should be an int, found the string '1', which may not be coerced at resources[0].scopes[0].items[0]";
    assert_eq!((reason, detail.as_str()), (Reason::WrongType, expected));
}

#[test]
fn timestamps_are_read_in_the_formats_of_their_field_only() {
    let check = |formats: &[TimeFormat], given: Value, expected: Option<i64>| {
        let field = Field { formats: formats.to_vec(), ..Field::new("f", Kind::Timestamp) };
        let result = outcome(&schema(Signal::Logs, vec![field]), vec![attribute("f", given.clone())]);
        let got = result.ok().map(|attributes| attributes[0].1.clone().unwrap());
        assert_eq!(got, expected.map(Value::IntValue), "{formats:?} {given:?}");
    };
    let (text, seconds) = ("2026-11-23T12:01:02Z", 1_795_435_262);
    check(&[TimeFormat::Rfc3339], string(text), Some(seconds * 1_000_000_000));
    check(&[TimeFormat::UnixSeconds], string(text), None);
    check(&[TimeFormat::Rfc3339], Value::IntValue(seconds), None);
    check(&[TimeFormat::UnixSeconds], Value::IntValue(seconds), Some(seconds * 1_000_000_000));
    check(&[TimeFormat::UnixSeconds], Value::DoubleValue(1.25), Some(1_250_000_000));
    check(&[TimeFormat::UnixMicros], Value::IntValue(3), Some(3_000));
    check(&[TimeFormat::UnixNanos], Value::IntValue(3), Some(3));
    check(&[TimeFormat::UnixNanos], Value::DoubleValue(3.0), None);
    check(&[TimeFormat::UnixNanos], string("3"), Some(3));
    check(&[TimeFormat::UnixSeconds], Value::IntValue(i64::MAX), None);
}

#[test]
fn a_field_is_found_under_its_name_its_aliases_and_their_form_in_this_order() {
    let field = Field { aliases: vec!["orderId".into(), "order".into()], ..Field::new("order.id", Kind::String) };
    let names = Names { case: Case::Lower, separators: Separators::Dot, semantic_conventions: false };
    let schema = Schema { names, ..schema(Signal::Logs, vec![field]) };
    let check = |given: &[&str], expected: &[(&str, &str)]| {
        let attributes = given.iter().map(|key| text_attribute(key, &format!("by {key}"))).collect();
        let expected: Vec<_> = expected.iter().map(|(key, by)| ((*key).to_owned(), Some(string(&format!("by {by}"))))).collect();
        assert_eq!(outcome(&schema, attributes), Ok(expected), "{given:?}");
    };
    check(&["order.id"], &[("order.id", "order.id")]);
    check(&["ORDER-Id"], &[("order.id", "ORDER-Id")]);
    check(&["order", "orderId"], &[("order", "order"), ("order.id", "orderId")]);
    check(&["ORDER_ID", "order", "order.id"], &[("ORDER_ID", "ORDER_ID"), ("order", "order"), ("order.id", "order.id")]);
    // Of the same name the first stays.
    check(&["order.id", "order.id"], &[("order.id", "order.id")]);
    check(
        &["Other-Key", "http.response.status_code"],
        &[("other.key", "Other-Key"), ("http.response.status_code", "http.response.status_code")],
    );
}

#[test]
fn an_empty_value_is_none() {
    let with_default = Field { default: Some(Scalar::Int(3)), ..Field::new("n", Kind::Int) };
    let required = Field { required: true, aliases: vec!["alias".into()], ..Field::new("r", Kind::String) };
    let schema = schema(Signal::Logs, vec![with_default, required]);
    let empty = |key: &str| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: None }), key_strindex: 0 };
    let got = outcome(&schema, vec![empty("n"), empty("r"), text_attribute("alias", "x"), empty("kept")]).unwrap();
    let expected = [("r", Some(string("x"))), ("kept", None), ("n", Some(Value::IntValue(3)))];
    assert_eq!(got, expected.map(|(key, value)| (key.to_owned(), value)));
    assert_eq!(outcome(&schema, vec![empty("r")]).unwrap_err().0, Reason::MissingField);
}

#[test]
fn unknown_attributes_are_kept_dropped_or_refused() {
    let with = |unknown| {
        let mut schema = schema(Signal::Logs, vec![Field::new("known", Kind::Int)]);
        schema.attributes.unknown = unknown;
        schema
    };
    let given = || vec![text_attribute("other", "x"), attribute("known", Value::IntValue(1))];
    let known = ("known".to_owned(), Some(Value::IntValue(1)));
    assert_eq!(outcome(&with(Unknown::Keep), given()), Ok(vec![("other".to_owned(), Some(string("x"))), known.clone()]));
    assert_eq!(outcome(&with(Unknown::Drop), given()), Ok(vec![known]));
    let (reason, detail) = outcome(&with(Unknown::Reject), given()).unwrap_err();
    let says =
        "'other' is no field of the dataset, which refuses others; found the string 'x' at resources[0].scopes[0].items[0]";
    assert_eq!((reason, detail.as_str()), (Reason::UnknownField, says));
}

#[test]
fn values_out_of_bounds_are_refused_with_what_was_found_shortened() {
    let word = Field { allowed: vec![Scalar::Text("a".into())], bytes_max: Some(60), ..Field::new("word", Kind::String) };
    let code = Field { allowed: vec![Scalar::Int(1), Scalar::Int(2)], ..Field::new("code", Kind::Int) };
    let tags = Field { items_max: Some(2), ..Field::new("tags", Kind::List) };
    let pairs = Field { items_max: Some(1), ..Field::new("pairs", Kind::Map) };
    let blob = Field { bytes_max: Some(1), ..Field::new("blob", Kind::Bytes) };
    let schema = schema(Signal::Logs, vec![word, code, tags, pairs, blob]);
    let refused = |key: &str, value: Value| {
        let (reason, detail) = outcome(&schema, vec![attribute(key, value)]).unwrap_err();
        (reason, detail.strip_suffix(" at resources[0].scopes[0].items[0]").unwrap().to_owned())
    };
    let cut = format!("word has none of its allowed values, found the string '{}…'", "x".repeat(39));
    assert_eq!(refused("word", string(&"x".repeat(60))), (Reason::NotAllowed, cut));
    assert_eq!(
        refused("word", string(&"x".repeat(61))),
        (Reason::FieldTooLarge, "word has 61 bytes, over its limit of 60".into())
    );
    // Judged after coercion.
    assert_eq!(refused("code", string("3")), (Reason::NotAllowed, "code has none of its allowed values, found the int 3".into()));
    assert_eq!(refused("tags", list(3)), (Reason::FieldTooLarge, "tags has 3 items, over its limit of 2".into()));
    assert_eq!(refused("pairs", map(2)), (Reason::FieldTooLarge, "pairs has 2 items, over its limit of 1".into()));
    assert_eq!(refused("blob", string("AAE=")), (Reason::FieldTooLarge, "blob has 2 bytes, over its limit of 1".into()));
    let fine = [("word", string("a")), ("code", string("2")), ("tags", list(2)), ("pairs", map(1)), ("blob", string("AA=="))];
    assert!(outcome(&schema, fine.map(|(key, value)| attribute(key, value)).to_vec()).is_ok());
}

#[test]
fn resources_have_rules_of_their_own_even_in_pieces_or_absent() {
    let mut schema = schema(Signal::Logs, vec![]);
    let service = Field { required: true, ..Field::new("service.name", Kind::String) };
    let zone = Field { default: Some(Scalar::Text("eu".into())), ..Field::new("zone", Kind::String) };
    schema.resource.fields = vec![service, zone];
    let mut normalizer = ruled(Format::OtlpProto, schema);
    let resource = |attributes| Resource { attributes, ..Resource::default() }.encode_to_vec();
    let message = |resources: &[Vec<u8>]| {
        let mut group = Vec::new();
        resources.iter().for_each(|resource| crate::otlp::write::put_bytes(&mut group, 1, resource));
        crate::otlp::write::put_bytes(&mut group, 2, &[0x12, 0x02, 0x10, 0x09]);
        let mut payload = Vec::new();
        crate::otlp::write::put_bytes(&mut payload, 1, &group);
        payload
    };
    let named = resource(vec![text_attribute("service.name", "shop")]);
    let zoned = resource(vec![text_attribute("zone", "us")]);
    let found = |payload: &[u8]| {
        let group = LogsData::decode(payload).unwrap().resource_logs.remove(0);
        assert_eq!(group.scope_logs[0].log_records.len(), 1);
        group.resource.unwrap().attributes
    };
    let (arena, payload) = normalize(&mut normalizer, &message(&[named.clone(), zoned.clone()])).unwrap();
    assert_eq!((arena, found(&payload).len()), (Arena::Raw, 2), "a message in pieces is one");
    let (arena, payload) = normalize(&mut normalizer, &message(&[named])).unwrap();
    assert_eq!((arena, found(&payload)[1].clone()), (Arena::Written, text_attribute("zone", "eu")));
    for incomplete in [message(&[zoned]), message(&[])] {
        let (reason, detail) = rejected(&mut normalizer, &incomplete);
        assert_eq!(
            (reason, detail.as_str()),
            (Reason::MissingField, "service.name is missing, should be a string at resources[0].resource")
        );
    }
}

#[test]
fn every_format_and_every_kind_of_point_is_ruled() {
    let renamed = |signal| Schema { names: Names { semantic_conventions: true, ..Names::default() }, ..schema(signal, vec![]) };
    for (format, payload) in [
        (Format::Json, r#"{"msg":"m","http.method":"GET"}"#),
        (
            Format::OtlpJson,
            r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"attributes":[{"key":"http.method","value":{"stringValue":"GET"}}]}]}]}]}"#,
        ),
    ] {
        for format in [format, Format::Auto] {
            let payload = accepted(&mut ruled(format, renamed(Signal::Logs)), payload);
            assert_eq!(attributes(&payload), [("http.request.method".to_owned(), Some(string("GET")))]);
        }
    }
    let line = Field { default: Some(Scalar::Bool(true)), ..Field::new("raw", Kind::Bool) };
    let payload = accepted(&mut ruled(Format::Raw, schema(Signal::Logs, vec![line.clone()])), "a line");
    assert_eq!(attributes(&payload), [("raw".to_owned(), Some(Value::BoolValue(true)))]);
    // One point of each kind of metric, all other fields as they were.
    let (_, metrics) = sample(Signal::Metrics);
    let (_, payload) = normalize(&mut ruled(Format::OtlpProto, schema(Signal::Metrics, vec![line.clone()])), &metrics).unwrap();
    let mut expected = MetricsData::decode(&metrics[..]).unwrap();
    let metrics =
        expected.resource_metrics.iter_mut().flat_map(|group| &mut group.scope_metrics).flat_map(|scope| &mut scope.metrics);
    let mut kinds = 0;
    for metric in metrics {
        let added = attribute("raw", Value::BoolValue(true));
        macro_rules! add {
            ($data:expr) => {
                $data.data_points.iter_mut().for_each(|point| point.attributes.push(added.clone()))
            };
        }
        kinds += 1;
        match metric.data.as_mut().unwrap() {
            metric::Data::Gauge(data) => add!(data),
            metric::Data::Sum(data) => add!(data),
            metric::Data::Histogram(data) => add!(data),
            metric::Data::ExponentialHistogram(data) => add!(data),
            metric::Data::Summary(data) => add!(data),
        }
    }
    assert!(kinds >= 5, "{kinds}");
    // As bytes: one value is NaN, which is not equal to itself.
    assert_eq!(MetricsData::decode(&payload[..]).unwrap().encode_to_vec(), expected.encode_to_vec());
    let (_, traces) = sample(Signal::Traces);
    let (_, payload) = normalize(&mut ruled(Format::OtlpProto, schema(Signal::Traces, vec![line])), &traces).unwrap();
    let mut expected = TracesData::decode(&traces[..]).unwrap();
    expected.resource_spans[0].scope_spans[0].spans[0].attributes.push(attribute("raw", Value::BoolValue(true)));
    assert_eq!(TracesData::decode(&payload[..]).unwrap(), expected);
}

#[test]
fn the_first_schema_of_the_signal_that_fits_the_index_rules_it_and_no_other() {
    let named =
        |name: &str, index: &str, signal| Schema { name: name.into(), indexes: vec![index.into()], ..schema(signal, vec![]) };
    let datasets =
        [named("traces", "**", Signal::Traces), named("shop", "shop*", Signal::Logs), named("rest", "**", Signal::Logs)];
    let check = |topic: &str, datasets: &[Schema], expected: Option<&str>| {
        let config = Config { datasets: datasets.into(), ..config(Format::Json, Signal::Logs) };
        let normalized = Normalizer::new(config).unwrap().normalize(batch(topic, 0, 1, &[message(0, b"{\"a\":1}")]));
        let stamp = normalized.batch.schema;
        assert_eq!(stamp.as_ref().map(|stamp| &*stamp.name), expected, "{topic}");
    };
    check("shop-eu", &datasets, Some("shop"));
    check("cart", &datasets, Some("rest"));
    check("cart", &datasets[..2], None);
}

#[test]
fn a_schema_with_problems_is_refused() {
    let broken = Schema { version: 0, ..schema(Signal::Logs, vec![]) };
    let config = Config { datasets: [broken].into(), ..config(Format::Json, Signal::Logs) };
    let problems: Vec<String> = config.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["dataset test: version: must be at least 1"]);
    assert!(Normalizer::new(config).is_err());
}

#[test]
fn all_renames_are_documented() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/datasets.md"));
    let documented: Vec<&str> = text.split("## Former").nth(1).unwrap().lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = RENAMES.iter().map(|(old, new)| format!("| `{old}` | `{new}` |")).collect();
    assert_eq!(documented, expected);
}

/// A value of `kind`, in the form that is not changed.
fn conforming_value(kind: Kind) -> BoxedStrategy<Value> {
    match kind {
        Kind::String => ".{0,200}".prop_map(Value::StringValue).boxed(),
        Kind::Int => proptest::arbitrary::any::<i64>().prop_map(Value::IntValue).boxed(),
        Kind::Double => proptest::arbitrary::any::<f64>().prop_map(Value::DoubleValue).boxed(),
        Kind::Bool => proptest::arbitrary::any::<bool>().prop_map(Value::BoolValue).boxed(),
        Kind::Timestamp => (0..=i64::MAX).prop_map(Value::IntValue).boxed(),
        Kind::Bytes => proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..200).prop_map(Value::BytesValue).boxed(),
        Kind::List => (0..5usize).prop_map(list).boxed(),
        Kind::Map => (0..5usize).prop_map(map).boxed(),
    }
}

/// A field of every kind, each named after it.
fn field_of_every_kind() -> Vec<Field> {
    let field = |kind: Kind| Field {
        required: kind == Kind::Int,
        aliases: vec![format!("{}-alias", kind.name())],
        ..Field::new(kind.name(), kind)
    };
    Kind::ALL.map(field).to_vec()
}

/// Attributes that obey `field_of_every_kind`: each field at most once, the required one always, and some that are unknown.
fn conforming_attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let value = |kind: Kind| {
        let value = conforming_value(kind);
        let present = if kind == Kind::Int { Just(true).boxed() } else { proptest::arbitrary::any::<bool>().boxed() };
        (value, present).prop_map(move |(value, present)| present.then(|| attribute(kind.name(), value)))
    };
    let values = Kind::ALL.map(value).to_vec();
    let unknown = proptest::collection::vec(("u[a-z]{0,3}", ".{0,9}"), 0..4);
    (values, unknown)
        .prop_map(|(values, unknown)| {
            let unknown = unknown.into_iter().map(|(key, value)| text_attribute(&key, &value));
            values.into_iter().flatten().chain(unknown).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

/// Any attributes over few keys, so that they meet.
fn any_attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let keys = ["a", "A", "b_c", "bC", "b.c", "alias", "http.method", "http.request.method", "other"];
    let kinds = (0..Kind::ALL.len()).prop_flat_map(|kind| conforming_value(Kind::ALL[kind]));
    let value =
        prop_oneof![4 => kinds.prop_map(Some), 1 => Just(None), 2 => (0..2i64).prop_map(|n| Some(string(&n.to_string())))];
    let one = (0..keys.len(), value).prop_map(move |(key, value)| KeyValue {
        key: keys[key].to_owned(),
        value: Some(AnyValue { value }),
        key_strindex: 0,
    });
    proptest::collection::vec(one, 0..7)
}

proptest! {
    #[test]
    fn conforming_payloads_are_byte_identical(rows in proptest::collection::vec(conforming_attributes(), 1..4), resource in conforming_attributes()) {
        let mut schema = schema(Signal::Logs, field_of_every_kind());
        schema.resource = schema.attributes.clone();
        schema.names = Names { case: Case::Lower, semantic_conventions: true, ..Names::default() };
        let log_records = rows.into_iter().map(|attributes| LogRecord { attributes, ..LogRecord::default() }).collect();
        let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
        let resource = Some(Resource { attributes: resource, ..Resource::default() });
        let payload = LogsData { resource_logs: vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }] }.encode_to_vec();
        let result = normalize(&mut ruled(Format::OtlpProto, schema), &payload);
        prop_assert_eq!(result, Ok((Arena::Raw, payload)));
    }

    #[test]
    fn payloads_of_every_signal_without_anything_ruled_in_them_are_byte_identical(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..2_000)) {
        for signal in SIGNALS {
            // A field that no random payload has, so that everything is looked at.
            let schema = schema(signal, vec![Field::new("\u{1}never", Kind::Int)]);
            let (payload, _) = Draw(&bytes).data(signal);
            prop_assert_eq!(normalize(&mut ruled(Format::OtlpProto, schema), &payload), Ok((Arena::Raw, payload)));
        }
    }

    #[test]
    fn what_was_brought_into_form_stays_and_can_be_read(given in any_attributes(), policy in 0..3usize, kind in 0..Kind::ALL.len()) {
        let field = Field { aliases: vec!["alias".into()], required: policy == 1, ..Field::new("a", Kind::ALL[kind]) };
        let second = Field::new("b_c", Kind::Int);
        let mut schema = schema(Signal::Logs, vec![field, second]);
        schema.names = Names { case: Case::Snake, semantic_conventions: true, ..Names::default() };
        schema.attributes.unknown = [Unknown::Keep, Unknown::Drop, Unknown::Reject][policy];
        let mut normalizer = ruled(Format::OtlpProto, schema);
        if let Ok((_, once)) = normalize(&mut normalizer, &log(given.clone())) {
            let keys: Vec<String> = attributes(&once).into_iter().map(|(key, _)| key).collect();
            prop_assert!(keys.iter().filter(|key| *key == "a").count() <= 1, "{:?}", keys);
            let twice = normalize(&mut normalizer, &once).map(|(_, payload)| payload);
            prop_assert_eq!(twice, Ok(once));
        }
    }

    #[test]
    fn a_rule_of_another_signal_or_a_broken_payload_never_panics(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
        for signal in SIGNALS {
            let schema = schema(signal, field_of_every_kind());
            let _ = normalize(&mut ruled(Format::Auto, schema), &bytes);
        }
        let _ = wire::fields(&bytes).count();
    }
}
