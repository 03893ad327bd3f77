//! OTLP's messages as tables: field number, kind, and the two names that JSON may use.
//!
//! Made from the `.proto` files of OTLP 1.x (<https://github.com/open-telemetry/opentelemetry-proto>). A JSON name that is not here is
//! an unknown field and is passed over.

use crate::batch::Signal;

/// One message.
pub(super) struct Message {
    pub fields: &'static [Field],
}

/// One field of a message.
pub(super) struct Field {
    /// lowerCamelCase, as OTLP/JSON writes it.
    pub json: &'static str,
    /// snake_case, as the `.proto` file names it and some producers write it.
    pub proto: &'static str,
    pub number: u32,
    pub kind: Kind,
}

/// How a field's value is read from JSON and written as protobuf.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    String,
    /// Base64.
    Bytes,
    /// Hex, as OTLP asks for ids.
    Id,
    Bool,
    Enum(&'static [(&'static str, i32)]),
    Int64,
    Uint32,
    Sint32,
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    /// Members of a oneof and `optional` fields: written even when zero.
    Set(&'static Kind),
    Message(&'static Message),
    /// A repeated field; numbers are packed.
    Repeated(&'static Kind),
    /// Elements of a packed list of varints.
    Uint64,
    /// A field that carried data before OTLP 1.0: reading over it would lose rows.
    Removed,
}

const fn field(json: &'static str, proto: &'static str, number: u32, kind: Kind) -> Field {
    Field { json, proto, number, kind }
}

/// A field whose two names are one.
const fn word(name: &'static str, number: u32, kind: Kind) -> Field {
    field(name, name, number, kind)
}

const fn time(number: u32) -> Field {
    field("timeUnixNano", "time_unix_nano", number, Kind::Fixed64)
}

const fn start_time(number: u32) -> Field {
    field("startTimeUnixNano", "start_time_unix_nano", number, Kind::Fixed64)
}

const fn attributes(number: u32) -> Field {
    word("attributes", number, Kind::Repeated(&ONE_KEY_VALUE))
}

const fn dropped_attributes(number: u32) -> Field {
    field("droppedAttributesCount", "dropped_attributes_count", number, Kind::Uint32)
}

const fn schema_url() -> Field {
    field("schemaUrl", "schema_url", 3, Kind::String)
}

const fn trace_id(number: u32) -> Field {
    field("traceId", "trace_id", number, Kind::Id)
}

const fn span_id(number: u32) -> Field {
    field("spanId", "span_id", number, Kind::Id)
}

const fn exemplars(number: u32) -> Field {
    word("exemplars", number, Kind::Repeated(&ONE_EXEMPLAR))
}

const fn set_double(name: &'static str, number: u32) -> Field {
    word(name, number, Kind::Set(&Kind::Double))
}

const fn temporality() -> Field {
    field("aggregationTemporality", "aggregation_temporality", 2, Kind::Enum(&TEMPORALITIES))
}

const fn points(point: &'static Kind) -> Field {
    field("dataPoints", "data_points", 1, Kind::Repeated(point))
}

/// The outermost field of each signal's data.
pub(super) static DATA: [(Signal, Field); 3] = [
    (Signal::Traces, field("resourceSpans", "resource_spans", 1, Kind::Repeated(&Kind::Message(&RESOURCE_SPANS)))),
    (Signal::Logs, field("resourceLogs", "resource_logs", 1, Kind::Repeated(&Kind::Message(&RESOURCE_LOGS)))),
    (Signal::Metrics, field("resourceMetrics", "resource_metrics", 1, Kind::Repeated(&Kind::Message(&RESOURCE_METRICS)))),
];

static RESOURCE_SPANS: Message = Message {
    fields: &[
        word("resource", 1, Kind::Message(&RESOURCE)),
        field("scopeSpans", "scope_spans", 2, Kind::Repeated(&Kind::Message(&SCOPE_SPANS))),
        schema_url(),
        field("instrumentationLibrarySpans", "instrumentation_library_spans", 1000, Kind::Removed),
    ],
};

static RESOURCE_LOGS: Message = Message {
    fields: &[
        word("resource", 1, Kind::Message(&RESOURCE)),
        field("scopeLogs", "scope_logs", 2, Kind::Repeated(&Kind::Message(&SCOPE_LOGS))),
        schema_url(),
        field("instrumentationLibraryLogs", "instrumentation_library_logs", 1000, Kind::Removed),
    ],
};

static RESOURCE_METRICS: Message = Message {
    fields: &[
        word("resource", 1, Kind::Message(&RESOURCE)),
        field("scopeMetrics", "scope_metrics", 2, Kind::Repeated(&Kind::Message(&SCOPE_METRICS))),
        schema_url(),
        field("instrumentationLibraryMetrics", "instrumentation_library_metrics", 1000, Kind::Removed),
    ],
};

static SCOPE_SPANS: Message = Message {
    fields: &[word("scope", 1, Kind::Message(&SCOPE)), word("spans", 2, Kind::Repeated(&Kind::Message(&SPAN))), schema_url()],
};

static SCOPE_LOGS: Message = Message {
    fields: &[
        word("scope", 1, Kind::Message(&SCOPE)),
        field("logRecords", "log_records", 2, Kind::Repeated(&Kind::Message(&LOG_RECORD))),
        schema_url(),
    ],
};

static SCOPE_METRICS: Message = Message {
    fields: &[word("scope", 1, Kind::Message(&SCOPE)), word("metrics", 2, Kind::Repeated(&Kind::Message(&METRIC))), schema_url()],
};

static RESOURCE: Message = Message {
    fields: &[
        attributes(1),
        dropped_attributes(2),
        field("entityRefs", "entity_refs", 3, Kind::Repeated(&Kind::Message(&ENTITY_REF))),
    ],
};

static ENTITY_REF: Message = Message {
    fields: &[
        field("schemaUrl", "schema_url", 1, Kind::String),
        word("type", 2, Kind::String),
        field("idKeys", "id_keys", 3, Kind::Repeated(&Kind::String)),
        field("descriptionKeys", "description_keys", 4, Kind::Repeated(&Kind::String)),
    ],
};

static SCOPE: Message =
    Message { fields: &[word("name", 1, Kind::String), word("version", 2, Kind::String), attributes(3), dropped_attributes(4)] };

static ONE_KEY_VALUE: Kind = Kind::Message(&KEY_VALUE);

static KEY_VALUE: Message = Message { fields: &[word("key", 1, Kind::String), word("value", 2, Kind::Message(&ANY_VALUE))] };

static ANY_VALUE: Message = Message {
    fields: &[
        field("stringValue", "string_value", 1, Kind::Set(&Kind::String)),
        field("boolValue", "bool_value", 2, Kind::Set(&Kind::Bool)),
        field("intValue", "int_value", 3, Kind::Set(&Kind::Int64)),
        field("doubleValue", "double_value", 4, Kind::Set(&Kind::Double)),
        field("arrayValue", "array_value", 5, Kind::Message(&ARRAY_VALUE)),
        field("kvlistValue", "kvlist_value", 6, Kind::Message(&KEY_VALUE_LIST)),
        field("bytesValue", "bytes_value", 7, Kind::Set(&Kind::Bytes)),
    ],
};

static ARRAY_VALUE: Message = Message { fields: &[word("values", 1, Kind::Repeated(&Kind::Message(&ANY_VALUE)))] };

static KEY_VALUE_LIST: Message = Message { fields: &[word("values", 1, Kind::Repeated(&ONE_KEY_VALUE))] };

static SPAN: Message = Message {
    fields: &[
        trace_id(1),
        span_id(2),
        field("traceState", "trace_state", 3, Kind::String),
        field("parentSpanId", "parent_span_id", 4, Kind::Id),
        word("flags", 16, Kind::Fixed32),
        word("name", 5, Kind::String),
        word("kind", 6, Kind::Enum(&SPAN_KINDS)),
        start_time(7),
        field("endTimeUnixNano", "end_time_unix_nano", 8, Kind::Fixed64),
        attributes(9),
        dropped_attributes(10),
        word("events", 11, Kind::Repeated(&Kind::Message(&EVENT))),
        field("droppedEventsCount", "dropped_events_count", 12, Kind::Uint32),
        word("links", 13, Kind::Repeated(&Kind::Message(&LINK))),
        field("droppedLinksCount", "dropped_links_count", 14, Kind::Uint32),
        word("status", 15, Kind::Message(&STATUS)),
    ],
};

static EVENT: Message = Message { fields: &[time(1), word("name", 2, Kind::String), attributes(3), dropped_attributes(4)] };

static LINK: Message = Message {
    fields: &[
        trace_id(1),
        span_id(2),
        field("traceState", "trace_state", 3, Kind::String),
        attributes(4),
        dropped_attributes(5),
        word("flags", 6, Kind::Fixed32),
    ],
};

static STATUS: Message = Message { fields: &[word("message", 2, Kind::String), word("code", 3, Kind::Enum(&STATUS_CODES))] };

static LOG_RECORD: Message = Message {
    fields: &[
        time(1),
        field("observedTimeUnixNano", "observed_time_unix_nano", 11, Kind::Fixed64),
        field("severityNumber", "severity_number", 2, Kind::Enum(&SEVERITIES)),
        field("severityText", "severity_text", 3, Kind::String),
        word("body", 5, Kind::Message(&ANY_VALUE)),
        attributes(6),
        dropped_attributes(7),
        word("flags", 8, Kind::Fixed32),
        trace_id(9),
        span_id(10),
        field("eventName", "event_name", 12, Kind::String),
    ],
};

static METRIC: Message = Message {
    fields: &[
        word("name", 1, Kind::String),
        word("description", 2, Kind::String),
        word("unit", 3, Kind::String),
        word("gauge", 5, Kind::Message(&GAUGE)),
        word("sum", 7, Kind::Message(&SUM)),
        word("histogram", 9, Kind::Message(&HISTOGRAM)),
        field("exponentialHistogram", "exponential_histogram", 10, Kind::Message(&EXPONENTIAL_HISTOGRAM)),
        word("summary", 11, Kind::Message(&SUMMARY)),
        word("metadata", 12, Kind::Repeated(&ONE_KEY_VALUE)),
        field("intGauge", "int_gauge", 4, Kind::Removed),
        field("intSum", "int_sum", 6, Kind::Removed),
        field("intHistogram", "int_histogram", 8, Kind::Removed),
    ],
};

static GAUGE: Message = Message { fields: &[points(&Kind::Message(&NUMBER_POINT))] };

static SUM: Message = Message {
    fields: &[points(&Kind::Message(&NUMBER_POINT)), temporality(), field("isMonotonic", "is_monotonic", 3, Kind::Bool)],
};

static HISTOGRAM: Message = Message { fields: &[points(&Kind::Message(&HISTOGRAM_POINT)), temporality()] };

static EXPONENTIAL_HISTOGRAM: Message = Message { fields: &[points(&Kind::Message(&EXPONENTIAL_POINT)), temporality()] };

static SUMMARY: Message = Message { fields: &[points(&Kind::Message(&SUMMARY_POINT))] };

static NUMBER_POINT: Message = Message {
    fields: &[
        attributes(7),
        start_time(2),
        time(3),
        field("asDouble", "as_double", 4, Kind::Set(&Kind::Double)),
        field("asInt", "as_int", 6, Kind::Set(&Kind::Sfixed64)),
        exemplars(5),
        word("flags", 8, Kind::Uint32),
        word("labels", 1, Kind::Removed),
    ],
};

static HISTOGRAM_POINT: Message = Message {
    fields: &[
        attributes(9),
        start_time(2),
        time(3),
        word("count", 4, Kind::Fixed64),
        set_double("sum", 5),
        field("bucketCounts", "bucket_counts", 6, Kind::Repeated(&Kind::Fixed64)),
        field("explicitBounds", "explicit_bounds", 7, Kind::Repeated(&Kind::Double)),
        exemplars(8),
        word("flags", 10, Kind::Uint32),
        set_double("min", 11),
        set_double("max", 12),
        word("labels", 1, Kind::Removed),
    ],
};

static EXPONENTIAL_POINT: Message = Message {
    fields: &[
        attributes(1),
        start_time(2),
        time(3),
        word("count", 4, Kind::Fixed64),
        set_double("sum", 5),
        word("scale", 6, Kind::Sint32),
        field("zeroCount", "zero_count", 7, Kind::Fixed64),
        word("positive", 8, Kind::Message(&BUCKETS)),
        word("negative", 9, Kind::Message(&BUCKETS)),
        word("flags", 10, Kind::Uint32),
        exemplars(11),
        set_double("min", 12),
        set_double("max", 13),
        field("zeroThreshold", "zero_threshold", 14, Kind::Double),
    ],
};

static BUCKETS: Message = Message {
    fields: &[word("offset", 1, Kind::Sint32), field("bucketCounts", "bucket_counts", 2, Kind::Repeated(&Kind::Uint64))],
};

static SUMMARY_POINT: Message = Message {
    fields: &[
        attributes(7),
        start_time(2),
        time(3),
        word("count", 4, Kind::Fixed64),
        word("sum", 5, Kind::Double),
        field("quantileValues", "quantile_values", 6, Kind::Repeated(&Kind::Message(&QUANTILE))),
        word("flags", 8, Kind::Uint32),
        word("labels", 1, Kind::Removed),
    ],
};

static QUANTILE: Message = Message { fields: &[word("quantile", 1, Kind::Double), word("value", 2, Kind::Double)] };

static ONE_EXEMPLAR: Kind = Kind::Message(&EXEMPLAR);

static EXEMPLAR: Message = Message {
    fields: &[
        field("filteredAttributes", "filtered_attributes", 7, Kind::Repeated(&ONE_KEY_VALUE)),
        time(2),
        field("asDouble", "as_double", 3, Kind::Set(&Kind::Double)),
        field("asInt", "as_int", 6, Kind::Set(&Kind::Sfixed64)),
        span_id(4),
        trace_id(5),
        field("filteredLabels", "filtered_labels", 1, Kind::Removed),
    ],
};

static SPAN_KINDS: [(&str, i32); 6] = [
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
];

static STATUS_CODES: [(&str, i32); 3] = [("STATUS_CODE_UNSET", 0), ("STATUS_CODE_OK", 1), ("STATUS_CODE_ERROR", 2)];

static TEMPORALITIES: [(&str, i32); 3] =
    [("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0), ("AGGREGATION_TEMPORALITY_DELTA", 1), ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2)];

static SEVERITIES: [(&str, i32); 25] = [
    ("SEVERITY_NUMBER_UNSPECIFIED", 0),
    ("SEVERITY_NUMBER_TRACE", 1),
    ("SEVERITY_NUMBER_TRACE2", 2),
    ("SEVERITY_NUMBER_TRACE3", 3),
    ("SEVERITY_NUMBER_TRACE4", 4),
    ("SEVERITY_NUMBER_DEBUG", 5),
    ("SEVERITY_NUMBER_DEBUG2", 6),
    ("SEVERITY_NUMBER_DEBUG3", 7),
    ("SEVERITY_NUMBER_DEBUG4", 8),
    ("SEVERITY_NUMBER_INFO", 9),
    ("SEVERITY_NUMBER_INFO2", 10),
    ("SEVERITY_NUMBER_INFO3", 11),
    ("SEVERITY_NUMBER_INFO4", 12),
    ("SEVERITY_NUMBER_WARN", 13),
    ("SEVERITY_NUMBER_WARN2", 14),
    ("SEVERITY_NUMBER_WARN3", 15),
    ("SEVERITY_NUMBER_WARN4", 16),
    ("SEVERITY_NUMBER_ERROR", 17),
    ("SEVERITY_NUMBER_ERROR2", 18),
    ("SEVERITY_NUMBER_ERROR3", 19),
    ("SEVERITY_NUMBER_ERROR4", 20),
    ("SEVERITY_NUMBER_FATAL", 21),
    ("SEVERITY_NUMBER_FATAL2", 22),
    ("SEVERITY_NUMBER_FATAL3", 23),
    ("SEVERITY_NUMBER_FATAL4", 24),
];
