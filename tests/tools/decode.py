"""Decoding of messages for verify.py, written from docs/formats.md and docs/schemas.md and not from our own decoder.

A decoder says how many rows a payload means, or raises Undecodable when it has to end as a dead letter; and what the
columns of chosen rows must hold, with the values as Python objects for contract.py to compare.

Not decided here: values nested deeper than protobuf's parser goes (100 messages, about 30 levels of key-value lists)
count as undecodable, though the pipeline takes 64 levels.
"""

import base64
import json
import re
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation

from contract import PROMOTED, PROMOTED_RESOURCE, Pairs, column_of

MAX_I64 = (1 << 63) - 1
DEPTH_MAX = 64
JSON_DEPTH_MAX = 128
ROW_BYTES_MAX = 3 << 20


class Undecodable(Exception):
    """The message has to end as a dead letter; the text says why we think so."""


def first_wins(pairs):
    given = {}
    for key, value in pairs:
        given.setdefault(key, value)
    return given


def promote(pairs, table):
    """The columns that attributes are moved to, and the map of the others."""
    rest, columns = first_wins(pairs), {}
    for attribute, kind in table.items():
        value = rest.get(attribute)
        if kind == "text":
            fits = isinstance(value, str)
        else:
            fits = type(value) is int and -(1 << 31) <= value < 1 << 31
        columns[column_of(attribute)] = rest.pop(attribute) if fits else None
    return columns, rest


def with_promoted(pairs):
    columns, rest = promote(pairs, PROMOTED)
    return {**columns, "attributes": rest}


def resource_columns(pairs, dropped=0, url=""):
    columns, rest = promote(pairs, PROMOTED_RESOURCE)
    return {
        **columns,
        "resource_attributes": rest,
        "resource_dropped_attributes_count": dropped,
        "resource_schema_url": url,
    }


def span_times(start, end, kafka):
    return {
        "start_time": start or kafka or 0,
        "end_time": end or None,
        "duration_ns": end - start if start and end else None,
    }


def small(number):
    """An enumeration's number: what 8 bits cannot hold is 0."""
    return number if -128 <= number < 128 else 0


# ------------------------------------------------------------------------------------------------------------------ OTLP

ANY_VALUE = ("string_value", "bool_value", "int_value", "double_value", "array_value", "kvlist_value", "bytes_value")


def any_value(value):
    """An OTLP AnyValue as str, bool, int, float, bytes, list, Pairs or None."""
    kind = value.WhichOneof("value")
    if kind not in ANY_VALUE:
        return None
    if kind == "array_value":
        return [any_value(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return pairs(value.kvlist_value.values)
    return getattr(value, kind)


def pairs(attributes):
    return Pairs((kv.key, any_value(kv.value)) for kv in attributes)


def plain_map(attributes):
    return first_wins(pairs(attributes))


def wire_type_conflict(message):
    """A field whose number is known but whose wire type is not, or nothing but unknown fields: a payload of another
    signal, not a newer schema. Protobuf parsers pass both over in silence."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    known, unknown = message.DESCRIPTOR.fields_by_number, UnknownFieldSet(message)
    if any(field.field_number in known for field in unknown):
        return True
    if len(unknown) and not message.ListFields() and message.DESCRIPTOR.name in WITH_CONTENT:
        return True
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            values = value if isinstance(value, (list, tuple)) or hasattr(value, "add") else [value]
            if any(wire_type_conflict(v) for v in values):
                return True
    return False


WITH_CONTENT = {"LogRecord", "Metric"} | {
    f"{level}{signal}" for level in ("Resource", "Scope") for signal in ("Spans", "Logs", "Metrics")
}


def check_id(value, *lengths, zeros=True):
    if len(value) not in lengths or not zeros and not any(value):
        raise Undecodable("a trace or span id of the wrong length or all zeros")


def check_times(*times):
    if max(times) > MAX_I64:
        raise Undecodable("a time after the year 2262")


class Otlp:
    """OTLP protobuf: TracesData, LogsData or MetricsData, one row per span, log record or data point."""

    def __init__(self, signal):
        self.check_scope = lambda _: None
        if signal == "traces":
            from opentelemetry.proto.trace.v1 import trace_pb2

            self.kind, self.resources, self.scopes = trace_pb2.TracesData, "resource_spans", "scope_spans"
            self.items, self.check, self.fields = self.spans, self.check_span, self.span_fields
        elif signal == "logs":
            from opentelemetry.proto.logs.v1 import logs_pb2

            self.kind, self.resources, self.scopes = logs_pb2.LogsData, "resource_logs", "scope_logs"
            self.items, self.check, self.fields = self.log_records, self.check_log, self.log_fields
        else:
            from opentelemetry.proto.metrics.v1 import metrics_pb2

            self.kind, self.resources, self.scopes = metrics_pb2.MetricsData, "resource_metrics", "scope_metrics"
            self.items, self.check, self.fields = self.data_points, self.check_point, self.point_fields
            self.check_scope = self.check_metrics

    def parse(self, payload):
        try:
            message = self.kind.FromString(payload)
        except Exception as error:
            raise Undecodable(f"not {self.kind.__name__}: {error}") from None
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size and wire_type_conflict(self.kind.FromString(payload)):
            raise Undecodable(f"a field of {self.kind.__name__} has another wire type, or all its fields are unknown")
        return message

    def count(self, payload):
        """Number of rows; Undecodable when the message has to be rejected."""
        message, check, count = self.parse(payload), self.check, 0
        resources = getattr(message, self.resources)
        if not resources:
            raise Undecodable("no resource")
        for resource in resources:
            for scope in getattr(resource, self.scopes):
                self.check_scope(scope)
                for item in self.items(scope):
                    check(item)
                    count += 1
                    if len(payload) > ROW_BYTES_MAX:
                        parts = item if isinstance(item, tuple) else (item,)
                        own = sum(p.ByteSize() for p in parts[-1:])
                        if own + resource.resource.ByteSize() + scope.scope.ByteSize() > ROW_BYTES_MAX:
                            raise Undecodable("a row over the limit")
        return count

    def rows(self, payload, wanted, timestamp):
        """{ordinal: {column: expected value}} for the wanted ordinals; the Kafka timestamp in ns may be None."""
        found, ordinal = {}, -1
        for resource in getattr(self.parse(payload), self.resources):
            for scope in getattr(resource, self.scopes):
                for item in self.items(scope):
                    ordinal += 1
                    if ordinal in wanted:
                        found[ordinal] = {
                            **resource_columns(
                                pairs(resource.resource.attributes),
                                resource.resource.dropped_attributes_count,
                                resource.schema_url,
                            ),
                            "scope_name": scope.scope.name,
                            "scope_version": scope.scope.version,
                            "scope_attributes": plain_map(scope.scope.attributes),
                            "scope_schema_url": scope.schema_url,
                            **self.fields(item, timestamp),
                        }
        return found

    @staticmethod
    def spans(scope):
        return scope.spans

    @staticmethod
    def check_span(span):
        check_id(span.trace_id, 16, zeros=False)
        check_id(span.span_id, 8, zeros=False)
        check_id(span.parent_span_id, 0, 8)
        check_times(span.start_time_unix_nano, span.end_time_unix_nano)
        for event in span.events:
            check_times(event.time_unix_nano)
        for link in span.links:
            check_id(link.trace_id, 0, 16)
            check_id(link.span_id, 0, 8)

    @staticmethod
    def span_fields(span, timestamp):
        return {
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id or None,
            "trace_state": span.trace_state,
            "flags": span.flags,
            "name": span.name,
            "kind": small(span.kind),
            **span_times(span.start_time_unix_nano, span.end_time_unix_nano, timestamp),
            "status_code": small(span.status.code),
            "status_message": span.status.message,
            "dropped_attributes_count": span.dropped_attributes_count,
            "dropped_events_count": span.dropped_events_count,
            "dropped_links_count": span.dropped_links_count,
            **with_promoted(pairs(span.attributes)),
            "events": [
                {
                    "time": e.time_unix_nano or None,
                    "name": e.name,
                    "attributes": plain_map(e.attributes),
                    "dropped_attributes_count": e.dropped_attributes_count,
                }
                for e in span.events
            ],
            "links": [
                {
                    "trace_id": k.trace_id or bytes(16),
                    "span_id": k.span_id or bytes(8),
                    "trace_state": k.trace_state,
                    "attributes": plain_map(k.attributes),
                    "dropped_attributes_count": k.dropped_attributes_count,
                    "flags": k.flags,
                }
                for k in span.links
            ],
        }

    @staticmethod
    def log_records(scope):
        return scope.log_records

    @staticmethod
    def check_log(record):
        check_id(record.trace_id, 0, 16)
        check_id(record.span_id, 0, 8)
        check_times(record.time_unix_nano, record.observed_time_unix_nano)

    @staticmethod
    def log_fields(record, timestamp):
        return {
            "time": record.time_unix_nano or record.observed_time_unix_nano or timestamp or 0,
            "observed_time": record.observed_time_unix_nano or None,
            "severity_number": small(record.severity_number),
            "severity_text": record.severity_text,
            "body": any_value(record.body),
            "event_name": record.event_name,
            "trace_id": record.trace_id or None,
            "span_id": record.span_id or None,
            "flags": record.flags,
            "dropped_attributes_count": record.dropped_attributes_count,
            **with_promoted(pairs(record.attributes)),
        }

    @staticmethod
    def data_points(scope):
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points if kind else ():
                yield metric, point

    @staticmethod
    def check_metrics(scope):
        if not all(metric.name for metric in scope.metrics):
            raise Undecodable("a metric without a name")

    @staticmethod
    def check_point(item):
        point = item[1]
        check_times(point.time_unix_nano, point.start_time_unix_nano)
        for exemplar in getattr(point, "exemplars", ()):
            check_id(exemplar.trace_id, 0, 16)
            check_id(exemplar.span_id, 0, 8)
            check_times(exemplar.time_unix_nano)

    @staticmethod
    def point_fields(item, timestamp):
        metric, point = item
        kind = metric.WhichOneof("data")
        data = getattr(metric, kind)
        counted = kind not in ("gauge", "sum")
        exponential = kind == "exponential_histogram"

        def present(field, optional=True):
            """An optional field; a field that this kind has not is null, too."""
            if field not in point.DESCRIPTOR.fields_by_name or optional and not point.HasField(field):
                return None
            return getattr(point, field)

        def buckets(side):
            if not exponential or not point.HasField(side):
                return {f"{side}_offset": None, f"{side}_bucket_counts": []}
            range_ = getattr(point, side)
            return {f"{side}_offset": range_.offset, f"{side}_bucket_counts": list(range_.bucket_counts)}

        def number(value, of):
            return {f"value_{t}": getattr(value, f"as_{t}") if of == f"as_{t}" else None for t in ("double", "int")}

        return {
            "metric_name": metric.name,
            "description": metric.description,
            "unit": metric.unit,
            "metric_type": kind,
            "temporality": None if kind in ("gauge", "summary") else small(data.aggregation_temporality),
            "is_monotonic": data.is_monotonic if kind == "sum" else None,
            "metric_metadata": plain_map(metric.metadata),
            "start_time": point.start_time_unix_nano or None,
            "time": point.time_unix_nano or timestamp or 0,
            **number(point, None if counted else point.WhichOneof("value")),
            "count": present("count", optional=False) if counted else None,
            "sum": present("sum", optional=kind != "summary") if counted else None,
            "min": present("min"),
            "max": present("max"),
            "bucket_counts": list(point.bucket_counts) if kind == "histogram" else [],
            "explicit_bounds": list(point.explicit_bounds) if kind == "histogram" else [],
            "scale": present("scale", optional=False),
            "zero_count": present("zero_count", optional=False),
            "zero_threshold": present("zero_threshold", optional=False),
            **buckets("positive"),
            **buckets("negative"),
            "quantiles": [
                {"quantile": q.quantile, "value": q.value} for q in getattr(point, "quantile_values", ())
            ],
            "exemplars": [
                {
                    "time": e.time_unix_nano or None,
                    **number(e, e.WhichOneof("value")),
                    "trace_id": e.trace_id or None,
                    "span_id": e.span_id or None,
                    "filtered_attributes": plain_map(e.filtered_attributes),
                }
                for e in getattr(point, "exemplars", ())
            ],
            "flags": point.flags,
            "attributes": plain_map(point.attributes),
        }


class OtlpJson(Otlp):
    """OTLP JSON, turned into the protobuf messages: ids are hex there, where protobuf's JSON mapping has base64."""

    IDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")

    def parse(self, payload):
        from google.protobuf import json_format

        def hex_to_base64(value):
            if isinstance(value, list):
                return [hex_to_base64(v) for v in value]
            if isinstance(value, dict):
                ids = {k: value[k] for k in self.IDS if value.get(k) is not None}
                ids = {k: base64.b64encode(bytes.fromhex(v)).decode() for k, v in ids.items()}
                return {k: ids[k] if k in ids else hex_to_base64(v) for k, v in value.items()}
            return value

        try:
            value = load_json(payload, unique, int)
            return json_format.ParseDict(hex_to_base64(value), self.kind(), ignore_unknown_fields=True)
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"not OTLP JSON: {error}") from None


# -------------------------------------------------------------------------------------------- decoding of plain JSON


class Digits(str):
    """An integer of JSON that only its digits can stand for."""


def no_constant(name):
    raise Undecodable(f"{name} is not JSON")


def finite(text):
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Undecodable(f"{text[:20]} is not a double")
    return value


def integer(text):
    value = int(text)
    if -(1 << 63) <= value <= MAX_I64:
        return value
    return Digits(value) if 0 < value < 1 << 64 else finite(text)


def unique(members):
    if len({key for key, _ in members}) != len(members):
        raise Undecodable("a field that comes twice")
    return dict(members)


def load_json(payload, objects=Pairs, integers=integer):
    """Strict JSON: Python's reader accepts NaN and lone surrogates, which are neither JSON nor UTF-8."""
    try:
        text = payload.decode("utf-8-sig")
        value = json.loads(
            text, parse_constant=no_constant, parse_float=finite, parse_int=integers, object_pairs_hook=objects
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"not JSON: {error}") from None
    if not isinstance(value, (dict, Pairs)):
        raise Undecodable("not a JSON object")
    if text.count("[") + text.count("{") >= DEPTH_MAX and depth(value) > JSON_DEPTH_MAX:
        raise Undecodable("JSON nested too deep")
    return value


def depth(value):
    """Levels of nesting; a plain value is one."""
    levels, deepest = [(value, 1)], 1
    while levels:
        value, level = levels.pop()
        deepest = max(deepest, level)
        if isinstance(value, dict):
            value = list(value.values())
        elif isinstance(value, Pairs):
            value = [v for _, v in value]
        if isinstance(value, list):
            levels += [(v, level + 1) for v in value]
    return deepest


def without_nulls(value):
    """Members of objects that are null are left out; inside an array a null stays, as an empty value."""
    if isinstance(value, Pairs):
        return Pairs((k, without_nulls(v)) for k, v in value if v is not None)
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return str(value) if isinstance(value, Digits) else value


# What a slot takes: each function gives what the value means there, or None if the slot cannot use it.


def text(value, key=None):
    return value if isinstance(value, str) and not isinstance(value, Digits) else None


def anything(value, key=None):
    return value


def an_object(value, key=None):
    return value if isinstance(value, Pairs) else None


def number(value):
    """A number as Decimal, for exact arithmetic; texts of digits are numbers, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", value):
        return None
    return Decimal(repr(value) if isinstance(value, float) else value)


RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?(Z|z|[+-]\d\d:?\d\d)?$")


def a_time(value, key=""):
    """Nanoseconds of an RFC 3339 text or of a number, whose unit follows from its size unless the key names it."""
    if isinstance(value, str) and (match := RFC3339.match(value)):
        day, clock, fraction, zone = match.groups()
        zone = "+00:00" if zone in (None, "Z", "z") else zone
        try:
            seconds = int(datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(timezone.utc).timestamp())
        except ValueError:
            return None
        nanos = seconds * 10**9 + int((fraction or "0").ljust(9, "0"))
        return nanos if nanos >= 0 else None
    value = number(value)
    if value is None or value < 0:
        return None
    if key.endswith(("unix_nano", "UnixNano")):
        return int(value)
    for least, unit in ((10**17, 1), (10**14, 10**3), (10**11, 10**6), (10**8, 10**9)):
        if value >= least:
            return int(value) * unit if value == int(value) else int(round(value * unit / 1000)) * 1000
    return None


UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def a_duration(value, key):
    unit = UNITS.get(key.rpartition("_")[2], 1)
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?) *(ns|us|µs|ms|s|m|h)", value)):
        value, unit = match[1], UNITS[match[2]]
    elif isinstance(value, str):
        return None
    value = number(value)
    return None if value is None or value < 0 else int(round(value * unit))


def hex_id(size, empty=True, zeros=True):
    def take(value, key=None):
        if value == "" and empty:
            return b""
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", value):
            return None
        data = bytes.fromhex(value)
        return data if zeros or any(data) else None

    return take


def small_integer(least, greatest):
    def take(value, key=None):
        return value if type(value) is int and least <= value <= greatest else None

    return take


def named(prefix, *names):
    def take(value, key=None):
        if isinstance(value, str):
            name = value.upper().removeprefix(prefix)
            return names.index(name) if name in names else None
        return small_integer(0, len(names) - 1)(value)

    return take


SPAN_KIND = named("SPAN_KIND_", "UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS_CODE = named("STATUS_CODE_", "UNSET", "OK", "ERROR")
TEMPORALITY = {"delta": 1, "cumulative": 2}
METRIC_TYPES = {"gauge": ("gauge", None), "sum": ("sum", False), "counter": ("sum", True)}
DOUBLES = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", "+Inf": "inf", "-Inf": "-inf"}
LEVELS = {
    1: "trace verbose finest finer",
    5: "debug dbg fine",
    9: "info inf information",
    10: "notice",
    13: "warn warning wrn",
    17: "error err severe",
    18: "critical crit dpanic",
    19: "alert",
    21: "fatal ftl",
    22: "panic emergency emerg",
}
LEVELS = {name: n for n, names in LEVELS.items() for name in names.split()}
for name in ("trace", "debug", "info", "warn", "error", "fatal"):
    LEVELS |= {f"{name}{more}": LEVELS[name] + more - 1 for more in (2, 3, 4)}


def level(value, key=None):
    return text(value) if isinstance(value, str) else small_integer(1, 24)(value)


def status(value, key=None):
    """(code, message); message None where the value does not say."""
    if isinstance(value, Pairs):
        members = first_wins(value)
        code = STATUS_CODE(members.get("code")) if members.get("code") is not None else 0
        return None if code is None else (code, text(members.get("message")))
    code = STATUS_CODE(value)
    return None if code is None else (code, None)


def events(value, key=None):
    if not isinstance(value, list) or isinstance(value, Pairs) or not all(isinstance(e, Pairs) for e in value):
        return None
    found = []
    for event in value:
        taken, rest = fill(event, EVENT)
        found.append(
            {
                "time": taken.get("time") or None,
                "name": taken.get("name", ""),
                "attributes": first_wins(rest),
                "dropped_attributes_count": 0,
            }
        )
    return found


def metric_value(value, key=None):
    if isinstance(value, Digits):
        return float(value)
    if isinstance(value, str):
        return float(DOUBLES[value]) if value in DOUBLES else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def boolean(value, key=None):
    return value if isinstance(value, bool) else None


# slot: (its keys by rank, what it takes)
RESOURCE = {
    "resource": ("resource", an_object),
    "service": ("service service.name service_name", text),
}
TIME = "timestamp time ts @timestamp datetime"
EVENT = {
    "name": ("name", text),
    "time": ("time timestamp", a_time),
    "attributes": ("attributes", an_object),
}
SLOTS = {
    "logs": {
        **RESOURCE,
        "time": (TIME, a_time),
        "level": ("level severity severity_text severityText lvl", level),
        "severity_number": ("severity_number severityNumber", small_integer(1, 24)),
        "body": ("message msg body log text", anything),
        "trace_id": ("trace_id traceId", hex_id(16)),
        "span_id": ("span_id spanId", hex_id(8)),
        "attributes": ("attributes", an_object),
    },
    "traces": {
        **RESOURCE,
        "trace_id": ("trace_id traceId", hex_id(16, empty=False, zeros=False)),
        "span_id": ("span_id spanId", hex_id(8, empty=False, zeros=False)),
        "parent_span_id": ("parent_span_id parentSpanId parent_id", hex_id(8)),
        "name": ("name operation_name operationName", text),
        "start": ("start_time startTime start_time_unix_nano startTimeUnixNano start timestamp", a_time),
        "end": ("end_time endTime end_time_unix_nano endTimeUnixNano end", a_time),
        "duration": ("duration_ns duration_us duration_ms duration", a_duration),
        "kind": ("kind span_kind", SPAN_KIND),
        "status": ("status status_code statusCode", status),
        "status_message": ("status_message statusMessage", text),
        "events": ("events", events),
        "trace_state": ("trace_state traceState", text),
        "attributes": ("attributes tags", an_object),
    },
    "metrics": {
        **RESOURCE,
        "name": ("name metric metric_name", text),
        "value": ("value", metric_value),
        "type": ("type metric_type", anything),
        "unit": ("unit", text),
        "description": ("description", text),
        "time": (TIME, a_time),
        "start": ("start_time startTime", a_time),
        "monotonic": ("is_monotonic isMonotonic monotonic", boolean),
        "temporality": ("temporality aggregation_temporality", lambda value, key: TEMPORALITY.get(text(value))),
        "attributes": ("attributes labels tags", an_object),
    },
}
REQUIRED = {"logs": (), "traces": ("trace_id", "span_id", "name", "start"), "metrics": ("name", "value")}


def fill(members, slots):
    """({slot: what it took}, the attributes): a usable key of the least rank, then the first of its kind, has the slot."""
    best = {}
    for index, (key, value) in enumerate(members):
        for slot, (keys, take) in slots.items():
            keys = keys.split()
            if key in keys and value is not None:
                taken = take(value, key)
                if taken is not None:
                    best[slot] = min(best.get(slot, (99, 0)), (keys.index(key), index, taken), key=lambda b: b[:2])
    if "end" in best:
        best.pop("duration", None)  # It stays an attribute.
    if "resource" in best and "service" in best and any(k == "service.name" for k, _ in best["resource"][2]):
        del best["service"]
    used = {index for _, index, _ in best.values()}
    rest = []
    for index, (key, value) in enumerate(members):
        if "attributes" in best and best["attributes"][1] == index:
            rest += without_nulls(value)
        elif index not in used and value is not None:
            rest.append((key, without_nulls(value)))
    return {slot: taken for slot, (_, _, taken) in best.items()}, rest


class PlainJson:
    """One JSON object per message, one row."""

    def __init__(self, signal):
        self.signal = signal

    def read(self, payload):
        members = load_json(payload)
        for key, value in members:
            if key in ENVELOPES:
                raise Undecodable("an OTLP message")  # By format auto; alone, as another signal than the topic's.
            if isinstance(value, list) and depth(value) > DEPTH_MAX + (key in OPENED):
                raise Undecodable("a value nested too deep")
        taken, rest = fill(members, SLOTS[self.signal])
        lacking = [slot for slot in REQUIRED[self.signal] if slot not in taken]
        if lacking:
            raise Undecodable(f"a {self.signal[:-1]} without {lacking[0]}")
        if self.signal == "metrics" and taken.get("type", "gauge") not in METRIC_TYPES:
            raise Undecodable("an unknown type of metric")
        return taken, rest

    def count(self, payload):
        self.read(payload)
        return 1

    def rows(self, payload, wanted, timestamp):
        taken, rest = self.read(payload)
        resource = without_nulls(taken.get("resource", Pairs()))
        if "service" in taken:
            resource = [*resource, ("service.name", taken["service"])]
        row = {
            **resource_columns(resource),
            "scope_name": "",
            "scope_version": "",
            "scope_attributes": {},
            "scope_schema_url": "",
            "flags": 0,
            **getattr(self, self.signal)(taken, timestamp),
            **({"attributes": first_wins(rest)} if self.signal == "metrics" else with_promoted(rest)),
        }
        return {0: row}

    @staticmethod
    def logs(taken, timestamp):
        level = taken.get("level", "")
        number = LEVELS.get(level.lower(), 0) if isinstance(level, str) else level
        return {
            "time": taken.get("time") or timestamp or 0,
            "observed_time": timestamp or None,
            "severity_number": taken.get("severity_number") or number,
            "severity_text": level if isinstance(level, str) else "",
            "body": without_nulls(taken.get("body")),
            "event_name": "",
            "trace_id": taken.get("trace_id") or None,
            "span_id": taken.get("span_id") or None,
            "dropped_attributes_count": 0,
        }

    @staticmethod
    def traces(taken, timestamp):
        start = taken["start"]
        end = taken.get("end") or (start + taken["duration"] if "duration" in taken else 0)
        code, message = taken.get("status", (0, None))
        return {
            "trace_id": taken["trace_id"],
            "span_id": taken["span_id"],
            "parent_span_id": taken.get("parent_span_id") or None,
            "trace_state": taken.get("trace_state", ""),
            "name": taken["name"],
            "kind": taken.get("kind", 0),
            **span_times(start, end, timestamp),
            "status_code": code,
            "status_message": taken.get("status_message", message) or "",
            "dropped_attributes_count": 0,
            "dropped_events_count": 0,
            "dropped_links_count": 0,
            "events": taken.get("events", []),
            "links": [],
        }

    @staticmethod
    def metrics(taken, timestamp):
        kind, monotonic = METRIC_TYPES[taken.get("type", "gauge")]
        value = taken["value"]
        absent = "count sum min max scale zero_count zero_threshold positive_offset negative_offset".split()
        lists = "bucket_counts explicit_bounds positive_bucket_counts negative_bucket_counts quantiles exemplars".split()
        return {
            "metric_name": taken["name"],
            "description": taken.get("description", ""),
            "unit": taken.get("unit", ""),
            "metric_type": kind,
            "temporality": taken.get("temporality", 2) if kind == "sum" else None,
            "is_monotonic": (monotonic or taken.get("monotonic", False)) if kind == "sum" else None,
            "metric_metadata": {},
            "start_time": taken.get("start") or None,
            "time": taken.get("time") or timestamp or 0,
            "value_double": value if isinstance(value, float) else None,
            "value_int": value if isinstance(value, int) else None,
            **dict.fromkeys(absent),
            **{name: [] for name in lists},
        }


# Their members are attributes themselves.
OPENED = {"attributes", "labels", "tags", "resource"}
ENVELOPES = {
    "resourceSpans", "resourceLogs", "resourceMetrics", "resource_spans", "resource_logs", "resource_metrics"
}  # fmt: skip

DECODERS = {"otlp": Otlp, "otlp-json": OtlpJson, "json": PlainJson}
