//! A number that stands for all a row holds, computed alike from a Kafka message and from a row of Parquet.

use std::hash::{DefaultHasher, Hasher};

/// What precedes a value: without it an absent text and an empty one, or `ab` `c` and `a` `bc`, would look alike.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// The digest of a row, or of a part of one. Values are put in the order of the columns.
#[derive(Default)]
pub struct Digest(DefaultHasher);

impl Digest {
    /// A text.
    pub fn text(&mut self, text: Option<&str>) {
        self.bytes(text.map(str::as_bytes));
    }

    /// An identifier.
    pub fn bytes(&mut self, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else { return self.0.write_u8(ABSENT) };
        self.0.write_u64(bytes.len() as u64 + u64::from(PRESENT));
        self.0.write(bytes);
    }

    /// A whole number, a time, a truth value.
    pub fn number(&mut self, number: Option<i64>) {
        let Some(number) = number else { return self.0.write_u8(ABSENT) };
        self.0.write_u8(PRESENT);
        self.0.write_i64(number);
    }

    /// A floating-point number, to the bit.
    pub fn double(&mut self, number: Option<f64>) {
        self.number(number.map(|number| number.to_bits() as i64));
    }

    /// A map, in any order: its entries' digests are added up.
    pub fn map<'a>(&mut self, entries: impl Iterator<Item = (&'a str, Option<&'a str>)>) {
        let (mut count, mut sum) = (0_u64, 0_u64);
        for (key, value) in entries {
            let mut entry = Digest::default();
            entry.text(Some(key));
            entry.text(value);
            sum = sum.wrapping_add(entry.finish());
            count += 1;
        }
        self.0.write_u64(count);
        self.0.write_u64(sum);
    }

    /// The number of values of a list, which follow.
    pub fn length(&mut self, length: usize) {
        self.0.write_u64(length as u64);
    }

    /// The number.
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Columns that tell where a row came from come first, beside those that name its message.
pub const ORIGIN: [&str; 3] = ["_ordinal", "_kafka_timestamp", "_tenant"];

/// Columns of the resource, with the attribute each is taken from.
pub const RESOURCE: [(&str, &str); 9] = [
    ("service.name", "service_name"),
    ("service.namespace", "service_namespace"),
    ("service.version", "service_version"),
    ("service.instance.id", "service_instance_id"),
    ("deployment.environment.name", "deployment_environment_name"),
    ("host.name", "host_name"),
    ("k8s.cluster.name", "k8s_cluster_name"),
    ("k8s.namespace.name", "k8s_namespace_name"),
    ("k8s.pod.name", "k8s_pod_name"),
];

/// The further columns of resource and scope.
pub const SCOPE: [&str; 7] = [
    "resource_attributes",
    "resource_dropped_attributes_count",
    "resource_schema_url",
    "scope_name",
    "scope_version",
    "scope_attributes",
    "scope_schema_url",
];

/// Columns of spans and log records that are taken from attributes; true where the attribute must be a number.
pub const PROMOTED: [(&str, &str, bool); 26] = [
    ("http.request.method", "http_request_method", false),
    ("http.response.status_code", "http_response_status_code", true),
    ("http.route", "http_route", false),
    ("url.full", "url_full", false),
    ("url.path", "url_path", false),
    ("url.scheme", "url_scheme", false),
    ("server.address", "server_address", false),
    ("server.port", "server_port", true),
    ("client.address", "client_address", false),
    ("user_agent.original", "user_agent_original", false),
    ("db.system.name", "db_system_name", false),
    ("db.namespace", "db_namespace", false),
    ("db.operation.name", "db_operation_name", false),
    ("db.collection.name", "db_collection_name", false),
    ("db.query.text", "db_query_text", false),
    ("rpc.system", "rpc_system", false),
    ("rpc.service", "rpc_service", false),
    ("rpc.method", "rpc_method", false),
    ("messaging.system", "messaging_system", false),
    ("messaging.destination.name", "messaging_destination_name", false),
    ("messaging.operation.name", "messaging_operation_name", false),
    ("messaging.operation.type", "messaging_operation_type", false),
    ("error.type", "error_type", false),
    ("exception.type", "exception_type", false),
    ("exception.message", "exception_message", false),
    ("exception.stacktrace", "exception_stacktrace", false),
];

/// The columns of spans, up to the promoted attributes.
pub const TRACES: [&str; 17] = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "trace_state",
    "flags",
    "name",
    "kind",
    "start_time",
    "end_time",
    "duration_ns",
    "status_code",
    "status_message",
    "dropped_attributes_count",
    "dropped_events_count",
    "dropped_links_count",
    "events",
    "links",
];

/// The columns of log records, up to the promoted attributes.
pub const LOGS: [&str; 10] = [
    "time",
    "observed_time",
    "severity_number",
    "severity_text",
    "body",
    "event_name",
    "trace_id",
    "span_id",
    "flags",
    "dropped_attributes_count",
];

/// The columns of data points, up to the attributes.
pub const METRICS: [&str; 27] = [
    "metric_name",
    "description",
    "unit",
    "metric_type",
    "temporality",
    "is_monotonic",
    "metric_metadata",
    "start_time",
    "time",
    "value_double",
    "value_int",
    "count",
    "sum",
    "min",
    "max",
    "bucket_counts",
    "explicit_bounds",
    "scale",
    "zero_count",
    "zero_threshold",
    "positive_offset",
    "positive_bucket_counts",
    "negative_offset",
    "negative_bucket_counts",
    "quantiles",
    "exemplars",
    "flags",
];

/// The last column of every signal.
pub const ATTRIBUTES: &str = "attributes";
