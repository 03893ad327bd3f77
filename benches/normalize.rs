//! What does `normalize` cost per record, by format, by step, by rule of a dataset schema, by who is asked for a token and whose quota is
//! charged, beside the usual ways to parse the same bytes?
//!
//! Figures are CPU time of this thread, the median of several runs: on a shared machine compare ratios inside one run, nothing else.
//! The last column is the cost relative to the reference above it: `serde_json::Value` for JSON, `prost` for protobuf.

use std::fmt::Write;
use std::io::Write as _;
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, TracesData};
use openwit_operators::batch::{RawBatch, RawRecord, Signal, Span, push_header};
use openwit_operators::coverage::{PartitionKey, TopicKey};
use openwit_operators::dataset::{Case, Field, Kind, Level, Names, Scalar, Schema, Unknown};
use openwit_operators::kafka_source::topics::Glob;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{Auth, Config, Format, Normalizer, TenantFrom, Tenants};
use openwit_operators::quota::{Limit, Policy, Quotas, Rules};
use openwit_operators::tenant::Tenant;
use openwit_operators::tokens::{Store, Token, digest};
use prost::Message;

const RECORDS: usize = 100_000;
const ROWS_PER_EXPORT: usize = 50;
const MESSAGES_PER_BATCH: usize = 1_000;
const RUNS: usize = 7;
const WRONG_TOKEN: &str = "owt_wrong";

/// A generator that needs no seed from outside: every run measures the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

const SERVICES: [&str; 5] = ["checkout", "cart", "frontend", "recommendation", "fraud-detection"];
const ROUTES: [&str; 4] = ["/api/v1/orders", "/api/v1/orders/{id}", "/api/v2/products/{sku}/reviews", "/healthz"];
const AGENTS: [&str; 3] = ["Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0", "okhttp/4.12.0", "python-requests/2.32"];

fn main() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let logs: Vec<Vec<u8>> = (0..RECORDS).map(|_| log_line(&mut random).into_bytes()).collect();
    let raw: Vec<Vec<u8>> = (0..RECORDS)
        .map(|n| format!("<134>1 2026-11-23T12:01:02Z host app {n} - - completed in {} us", random.below(9_999)).into_bytes())
        .collect();
    let spans: Vec<TracesData> = (0..RECORDS / ROWS_PER_EXPORT).map(|_| traces(&mut random)).collect();
    let traces_proto: Vec<Vec<u8>> = spans.iter().map(Message::encode_to_vec).collect();
    let traces_json: Vec<Vec<u8>> = spans.iter().map(|data| traces_as_json(data).into_bytes()).collect();
    let metrics: Vec<Vec<u8>> = (0..RECORDS / ROWS_PER_EXPORT).map(|_| gauges(&mut random).encode_to_vec()).collect();

    println!("{:<44}{:>8}{:>12}{:>10}{:>12}{:>8}", "what", "B/rec", "ns CPU/rec", "MB/s", "records/s", "cost");
    let reference = measure("log line: serde_json::Value", &logs, None, || logs.iter().map(|line| parse_value(line)).sum());
    measure_format("log line: json", &logs, Format::Json, Signal::Logs, reference);
    measure_format("log line: auto", &logs, Format::Auto, Signal::Logs, reference);
    measure_framings(&logs, reference);
    measure_format("syslog line: raw", &raw, Format::Raw, Signal::Logs, reference);
    let reference = measure("spans, OTLP JSON: serde_json::Value", &traces_json, None, || {
        traces_json.iter().map(|text| parse_value(text)).sum()
    });
    measure_format("spans, OTLP JSON: otlp_json", &traces_json, Format::OtlpJson, Signal::Traces, reference);
    measure_format("spans, OTLP JSON: auto", &traces_json, Format::Auto, Signal::Traces, reference);
    let reference = measure("spans, OTLP protobuf: prost decode", &traces_proto, None, || {
        traces_proto.iter().map(|data| TracesData::decode(&data[..]).map_or(0, |data| data.resource_spans.len())).sum()
    });
    measure_format("spans, OTLP protobuf: otlp_proto", &traces_proto, Format::OtlpProto, Signal::Traces, reference);
    measure_format("spans, OTLP protobuf: auto", &traces_proto, Format::Auto, Signal::Traces, reference);
    measure_format("spans in a topic of logs: rejected", &traces_proto, Format::Auto, Signal::Logs, reference);
    let reference = measure("points, OTLP protobuf: prost decode", &metrics, None, || {
        metrics.iter().map(|data| MetricsData::decode(&data[..]).map_or(0, |data| data.resource_metrics.len())).sum()
    });
    measure_format("points, OTLP protobuf: otlp_proto", &metrics, Format::OtlpProto, Signal::Metrics, reference);

    measure_rules(&logs, &traces_proto);
    measure_senders(&logs);

    // What json costs beyond decoding what it wrote shows what normalizing at the edge saves everybody behind.
    let written = written_logs(&logs);
    measure("the log lines' protobuf: prost decode", &written, None, || {
        written.iter().map(|data| LogsData::decode(&data[..]).map_or(0, |data| data.resource_logs.len())).sum()
    });
}

/// The same lines, many to a message, and messages compressed by their producers. The figures stay those of one line.
fn measure_framings(logs: &[Vec<u8>], reference: f64) {
    let lines: Vec<Vec<u8>> = logs.chunks(ROWS_PER_EXPORT).map(|lines| lines.join(&b'\n')).collect();
    let arrays: Vec<Vec<u8>> = logs.chunks(ROWS_PER_EXPORT).map(|lines| [b"[", &lines.join(&b',')[..], b"]"].concat()).collect();
    measure_format("50 log lines, NDJSON: auto", &lines, Format::Auto, Signal::Logs, reference);
    measure_format("50 log lines, an array: auto", &arrays, Format::Auto, Signal::Logs, reference);
    let packed = |pack: fn(&[u8]) -> Vec<u8>, payloads: &[Vec<u8>]| -> Vec<Vec<u8>> {
        payloads.iter().map(|payload| pack(payload)).collect()
    };
    measure_format("50 log lines, gzip: auto", &packed(gzip, &lines), Format::Auto, Signal::Logs, reference);
    measure_format("50 log lines, zstd: auto", &packed(zstd, &lines), Format::Auto, Signal::Logs, reference);
    measure_format("log line, gzip: auto", &packed(gzip, logs), Format::Auto, Signal::Logs, reference);
    measure_format("log line, zstd: auto", &packed(zstd, logs), Format::Auto, Signal::Logs, reference);
}

/// What it costs to ask each message for a token, by how many producers take turns, and to charge it to its tenant's and its topic's quota.
/// All messages have the header in every row.
fn measure_senders(logs: &[Vec<u8>]) {
    let secrets: Vec<String> = (0..1_000).map(|number| format!("owt_{number:043}")).collect();
    let token = |secret: &String| Token {
        id: secret.as_str().into(),
        digest: digest(secret.as_bytes()),
        tenant: Tenant::new(&secret[40..]).ok(),
        topics: vec![Glob::new("bench.**").expect("a glob"), Glob::new("bench").expect("a glob")],
        signals: vec![Signal::Logs],
        good: 0..u64::MAX,
    };
    let auth = Auth { header: "authorization".into(), tokens: Arc::new(Store::new(secrets.iter().map(token).collect())) };
    let open = || config(Format::Json, Signal::Logs, vec![]);
    let guarded = || Config {
        auth: Some(auth.clone()),
        tenants: Tenants { from: TenantFrom::Token, default: None },
        ..config(Format::Json, Signal::Logs, vec![])
    };
    let wrong = [WRONG_TOKEN.to_owned()];
    let (one, ten) = (&secrets[..1], &secrets[..10]);
    let nobody = Sent { logs, reference: None, rejects: 0, quotas: None };
    let reference = nobody.measure("log line with a token: nobody is asked", open(), one);
    let sent = Sent { reference: Some(reference), ..nobody };
    sent.measure("log line: one producer", guarded(), one);
    sent.measure("log line: ten producers in turns", guarded(), ten);
    sent.measure("log line: a thousand producers in turns", guarded(), &secrets);
    Sent { rejects: logs.len(), ..sent.clone() }.measure("log line: a wrong token, rejected", guarded(), &wrong);
    let quotas = |default: bool, topics: bool, rate, policy| {
        // Time stands still here: what is saved up lasts for all runs, or there is nothing from the beginning.
        let burst_ms = if rate == u64::MAX { 1_000 } else { 0 };
        let limit = Limit { events_per_second: Some(rate), bytes_per_second: Some(rate), burst_ms, policy };
        let topics = topics.then(|| (Glob::new("bench").expect("a glob"), limit)).into_iter().collect();
        Some(Rules { default: default.then_some(limit), topics, ..Rules::default() })
    };
    let topic = Sent { quotas: quotas(false, true, u64::MAX, Policy::Throttle), ..sent.clone() };
    topic.measure("log line, a quota: of the topic", open(), one);
    let tenant = Sent { quotas: quotas(true, false, u64::MAX, Policy::Throttle), ..sent.clone() };
    tenant.measure("log line, a quota: of one producer", guarded(), one);
    let both = Sent { quotas: quotas(true, true, u64::MAX, Policy::Throttle), ..sent.clone() };
    both.measure("log line, a quota: of ten and the topic", guarded(), ten);
    let throttled = Sent { quotas: quotas(true, true, 1, Policy::Throttle), ..sent.clone() };
    throttled.measure("log line, a quota: ten are held back", guarded(), ten);
    let rejected = Sent { quotas: quotas(true, true, 1, Policy::Reject), rejects: logs.len(), ..sent };
    rejected.measure("log line, a quota: rejected", guarded(), one);
}

/// Log lines that show tokens in turns.
#[derive(Clone)]
struct Sent<'a> {
    logs: &'a [Vec<u8>],
    reference: Option<f64>,
    /// How many of them are to be rejected.
    rejects: usize,
    quotas: Option<Rules>,
}

impl Sent<'_> {
    fn measure(&self, name: &str, config: Config, tokens: &[String]) -> f64 {
        let batches: Vec<RawBatch> =
            self.logs.chunks(MESSAGES_PER_BATCH).map(|payloads| batch_with_tokens(payloads, tokens)).collect();
        let quotas = self.quotas.clone().map(|rules| Arc::new(Quotas::new(rules)));
        let mut normalizer = Normalizer::new(config).expect("the config has no problems").metered(quotas);
        let mut run = || batches.iter().map(|batch| normalizer.normalize(batch.clone()).rejects.len()).sum();
        assert_eq!(run(), self.rejects, "{name}: rejects");
        measure(name, self.logs, self.reference, run)
    }
}

fn gzip(payload: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(payload).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

fn zstd(payload: &[u8]) -> Vec<u8> {
    zstd::encode_all(payload, 3).expect("a slice can be compressed")
}

/// What each rule of a dataset schema costs, beside the same payloads without a schema. Down to `none to be changed` payloads pass
/// untouched; in the rows below every message is written anew.
fn measure_rules(logs: &[Vec<u8>], traces: &[Vec<u8>]) {
    let field = Field::new;
    let spans = |fields: Vec<Field>| schema(Signal::Traces, fields);
    let conforming = || {
        vec![
            Field { required: true, bytes_max: Some(16), ..field("http.request.method", Kind::String) },
            Field { bytes_max: Some(256), ..field("http.route", Kind::String) },
            field("http.response.status_code", Kind::Int),
            field("client.address", Kind::String),
            field("user_agent.original", Kind::String),
            Field { column: Some("body_size".into()), ..field("http.response.body.size", Kind::Int) },
            field("server.port", Kind::Int),
        ]
    };
    let mut of_resources = spans(vec![]);
    of_resources.resource.fields = vec![Field { required: true, ..field("service.name", Kind::String) }];
    let mut names = spans(vec![]);
    names.names = Names { case: Case::Lower, ..Names::default() };
    // Resources have `deployment.environment`.
    let mut conventions = spans(vec![]);
    conventions.names.semantic_conventions = true;
    let refusing = |mut schema: Schema| {
        schema.attributes.unknown = Unknown::Reject;
        schema
    };
    let allowed = vec![Scalar::Text("GET".into()), Scalar::Text("POST".into())];
    let allowed = Field { allowed, ..field("http.request.method", Kind::String) };
    let plan = |name: &str, schema: Schema, reference: f64| {
        measure_schema(&format!("spans: {name}"), traces, Format::OtlpProto, schema, Some(reference))
    };
    let reference = measure_schema("spans: a schema of another index", traces, Format::OtlpProto, elsewhere(), None);
    plan("rules for the resource only", of_resources, reference);
    plan("one field, type", spans(vec![field("http.route", Kind::String)]), reference);
    plan("one field, allowed values", spans(vec![allowed]), reference);
    plan("all seven fields, types and sizes", spans(conforming()), reference);
    plan("the same, unknown ones refused", refusing(spans(conforming())), reference);
    plan("names in one form, none to be changed", names, reference);
    plan("a former convention renamed", conventions, reference);
    plan("an alias renamed", spans(vec![alias("route", "http.route")]), reference);
    plan("int to double", spans(vec![field("http.response.body.size", Kind::Double)]), reference);
    let default = Field { default: Some(Scalar::Text("eu".into())), ..field("region", Kind::String) };
    plan("a default added", spans(vec![default]), reference);
    let mut dropping = spans(vec![field("http.request.method", Kind::String)]);
    dropping.attributes.unknown = Unknown::Drop;
    plan("six unknown ones dropped", dropping, reference);

    let reference = measure_schema("log line: a schema of another index", logs, Format::Json, elsewhere(), None);
    let plan =
        |name: &str, schema: Schema| measure_schema(&format!("log line: {name}"), logs, Format::Json, schema, Some(reference));
    plan("two fields, nothing to be changed", schema(Signal::Logs, vec![field("k8s", Kind::Map), field("attrs", Kind::Map)]));
    plan("an alias renamed", schema(Signal::Logs, vec![alias("kubernetes", "k8s")]));
}

/// A field that comes under another name.
fn alias(name: &str, alias: &str) -> Field {
    let kind = if alias == "k8s" { Kind::Map } else { Kind::String };
    Field { aliases: vec![alias.to_owned()], ..Field::new(name, kind) }
}

fn schema(signal: Signal, fields: Vec<Field>) -> Schema {
    Schema {
        name: "bench".into(),
        version: 1,
        indexes: vec!["bench".to_owned()],
        signal,
        names: Names::default(),
        attributes: Level { fields, ..Level::default() },
        resource: Level::default(),
    }
}

/// A schema that no topic here has.
fn elsewhere() -> Schema {
    Schema { indexes: vec!["elsewhere".to_owned()], ..schema(Signal::Traces, vec![Field::new("x", Kind::Int)]) }
}

fn measure_schema(name: &str, payloads: &[Vec<u8>], format: Format, schema: Schema, reference: Option<f64>) -> f64 {
    let batches: Vec<RawBatch> = payloads.chunks(MESSAGES_PER_BATCH).map(batch).collect();
    let signal = if format == Format::Json { Signal::Logs } else { Signal::Traces };
    let mut normalizer = normalizer(format, signal, vec![schema]);
    let rejected: usize = batches.iter().map(|batch| normalizer.normalize(batch.clone()).rejects.len()).sum();
    assert_eq!(rejected, 0, "{name}: a rule refuses what it should let pass");
    measure(name, payloads, reference, || {
        batches.iter().map(|batch| normalizer.normalize(batch.clone()).batch.payload_bytes()).sum()
    })
}

fn parse_value(text: &[u8]) -> usize {
    serde_json::from_slice::<serde_json::Value>(text).map_or(0, |value| usize::from(value.is_object()))
}

fn measure_format(name: &str, payloads: &[Vec<u8>], format: Format, signal: Signal, reference: f64) {
    let batches: Vec<RawBatch> = payloads.chunks(MESSAGES_PER_BATCH).map(batch).collect();
    let mut normalizer = normalizer(format, signal, vec![]);
    measure(name, payloads, Some(reference), || {
        batches.iter().map(|batch| normalizer.normalize(batch.clone()).batch.payload_bytes()).sum()
    });
}

fn config(format: Format, signal: Signal, datasets: Vec<Schema>) -> Config {
    let topics = IndexRules { default_index_position: Some(0), ..IndexRules::default() };
    Config { format, telemetry_type: Some(signal), topics, datasets: datasets.into(), ..Config::default() }
}

fn normalizer(format: Format, signal: Signal, datasets: Vec<Schema>) -> Normalizer {
    Normalizer::new(config(format, signal, datasets)).expect("the config has no problems")
}

fn written_logs(lines: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let batch = normalizer(Format::Json, Signal::Logs, vec![]).normalize(batch(lines)).batch;
    batch.records.iter().map(|record| batch.payload(record).to_vec()).collect()
}

fn batch(payloads: &[Vec<u8>]) -> RawBatch {
    batch_with_tokens(payloads, &[])
}

/// Messages with these tokens in turns.
fn batch_with_tokens(payloads: &[Vec<u8>], tokens: &[String]) -> RawBatch {
    let topic = TopicKey { cluster: "bench".into(), name: "bench".into(), id: "".into() };
    let mut arena = Vec::new();
    let mut records = Vec::new();
    for (payload, offset) in payloads.iter().zip(0..) {
        let span = Span { start: arena.len() as u32, len: payload.len() as u32 };
        arena.extend_from_slice(payload);
        let start = arena.len();
        if let Some(token) = tokens.get(offset as usize % tokens.len().max(1)) {
            push_header(&mut arena, b"authorization", Some(format!("Bearer {token}").as_bytes()));
        }
        let headers = Span { start: start as u32, len: (arena.len() - start) as u32 };
        records.push(RawRecord { offset, timestamp_ms: 1_795_435_262_123, key: None, payload: Some(span), headers });
    }
    let end = records.len() as i64;
    RawBatch {
        partition: PartitionKey { topic: Arc::new(topic), partition: 0 },
        start: 0,
        end,
        arena: arena.into(),
        records,
        polled_ms: 0,
        charge: Default::default(),
    }
}

/// Prints one row; gives the CPU nanoseconds per record.
fn measure(name: &str, payloads: &[Vec<u8>], reference: Option<f64>, mut run: impl FnMut() -> usize) -> f64 {
    let mut seconds: Vec<f64> = (0..=RUNS)
        .map(|_| {
            let start = thread_cpu_seconds();
            std::hint::black_box(run());
            thread_cpu_seconds() - start
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[RUNS / 2];
    let bytes: usize = payloads.iter().map(Vec::len).sum();
    let nanos = median * 1e9 / RECORDS as f64;
    let cost = reference.map_or("1.00".to_owned(), |reference| format!("{:.2}", nanos / reference));
    let megabytes = bytes as f64 / 1e6;
    let (per_record, rate) = (bytes / RECORDS, RECORDS as f64 / median);
    println!("{name:<44}{per_record:>8}{nanos:>12.0}{:>10.0}{rate:>12.0}{cost:>8}", megabytes / median);
    nanos
}

fn thread_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives until it returns.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A log line of about 300 bytes, as services write them.
fn log_line(random: &mut Random) -> String {
    let (service, route) = (random.pick(&SERVICES), random.pick(&ROUTES));
    let quoted = if random.below(10) == 0 { " \\\"retry\\\" path=C:\\\\tmp" } else { "" };
    format!(
        "{{\"ts\":{},\"level\":\"{}\",\"service\":\"{service}\",\"msg\":\"GET {route} completed in {} us for user {}{quoted}\",\
         \"trace_id\":\"{:016x}{:016x}\",\"k8s\":{{\"ns\":\"prod\",\"pod\":\"{service}-{:x}\",\"node\":\"ip-10-0-{}-17\"}},\
         \"attrs\":{{\"latency_ms\":{}.{},\"status\":{}}}}}",
        1_760_000_000_000_000_000 + random.below(1 << 40),
        random.pick(&["INFO", "WARN", "DEBUG", "ERROR"]),
        random.below(100_000),
        random.below(1_000_000),
        random.next(),
        random.next(),
        random.below(1 << 24),
        random.below(200),
        random.below(900),
        random.below(1_000),
        random.pick(&["200", "404", "500"]),
    )
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn resource(random: &mut Random) -> Resource {
    let attributes = vec![
        text("service.name", random.pick(&SERVICES)),
        text("service.version", "1.3.2"),
        text("host.name", "ip-10-0-12-17"),
        text("deployment.environment", "prod"),
        text("k8s.pod.name", "checkout-7f9c6b5d4-x2x7p"),
    ];
    Resource { attributes, ..Resource::default() }
}

/// One export of spans with seven attributes each.
fn traces(random: &mut Random) -> TracesData {
    let span = |random: &mut Random| OtlpSpan {
        trace_id: [random.next().to_le_bytes(), random.next().to_le_bytes()].concat(),
        span_id: random.next().to_le_bytes().to_vec(),
        parent_span_id: random.next().to_le_bytes().to_vec(),
        name: format!("GET {}", random.pick(&ROUTES)),
        kind: 2,
        start_time_unix_nano: 1_760_000_000_000_000_000 + random.below(1 << 40),
        end_time_unix_nano: 1_760_000_000_900_000_000 + random.below(1 << 40),
        attributes: vec![
            text("http.request.method", "GET"),
            text("http.route", random.pick(&ROUTES)),
            attribute("http.response.status_code", Value::IntValue(200)),
            text("client.address", &format!("10.{}.{}.7", random.below(256), random.below(256))),
            text("user_agent.original", random.pick(&AGENTS)),
            attribute("http.response.body.size", Value::IntValue(random.below(200_000) as i64)),
            attribute("server.port", Value::IntValue(8080)),
        ],
        status: Some(Status::default()),
        ..OtlpSpan::default()
    };
    let spans = (0..ROWS_PER_EXPORT).map(|_| span(random)).collect();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    TracesData {
        resource_spans: vec![ResourceSpans { resource: Some(resource(random)), scope_spans, schema_url: String::new() }],
    }
}

/// One export of gauges with one point each.
fn gauges(random: &mut Random) -> MetricsData {
    let metric = |random: &mut Random| Metric {
        name: "http.server.active_requests".to_owned(),
        unit: "{request}".to_owned(),
        data: Some(Data::Gauge(Gauge {
            data_points: vec![NumberDataPoint {
                attributes: vec![text("http.route", random.pick(&ROUTES)), text("http.request.method", "GET")],
                time_unix_nano: 1_760_000_000_000_000_000 + random.below(1 << 40),
                value: Some(number_data_point::Value::AsDouble(random.below(1_000) as f64)),
                ..NumberDataPoint::default()
            }],
        })),
        ..Metric::default()
    };
    let metrics = (0..ROWS_PER_EXPORT).map(|_| metric(random)).collect();
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    MetricsData {
        resource_metrics: vec![ResourceMetrics { resource: Some(resource(random)), scope_metrics, schema_url: String::new() }],
    }
}

/// The same export as an SDK's JSON exporter writes it.
fn traces_as_json(data: &TracesData) -> String {
    let resource_spans = &data.resource_spans[0];
    let attributes = |list: &[KeyValue]| {
        let one = |attribute: &KeyValue| {
            let value = match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::StringValue(text)) => format!("{{\"stringValue\":\"{text}\"}}"),
                Some(Value::IntValue(number)) => format!("{{\"intValue\":\"{number}\"}}"),
                _ => "{}".to_owned(),
            };
            format!("{{\"key\":\"{}\",\"value\":{value}}}", attribute.key)
        };
        list.iter().map(one).collect::<Vec<_>>().join(",")
    };
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    };
    let span = |span: &OtlpSpan| {
        format!(
            "{{\"traceId\":\"{}\",\"spanId\":\"{}\",\"parentSpanId\":\"{}\",\"name\":\"{}\",\"kind\":{},\"startTimeUnixNano\":\"{}\",\
             \"endTimeUnixNano\":\"{}\",\"attributes\":[{}],\"status\":{{}}}}",
            hex(&span.trace_id),
            hex(&span.span_id),
            hex(&span.parent_span_id),
            span.name,
            span.kind,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            attributes(&span.attributes),
        )
    };
    let spans = resource_spans.scope_spans[0].spans.iter().map(span).collect::<Vec<_>>().join(",");
    let resource = resource_spans.resource.as_ref().map(|resource| attributes(&resource.attributes)).unwrap_or_default();
    format!("{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{resource}]}},\"scopeSpans\":[{{\"spans\":[{spans}]}}]}}]}}")
}
