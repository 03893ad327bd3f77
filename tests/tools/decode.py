"""Decoding of messages for verify.py, written from the formats and not from our own decoder.

A decoder says how many rows a payload means, or raises Undecodable when it has to end as a dead letter; and what the
columns of chosen rows must hold, with the values as Python objects for contract.py to compare.
"""

import base64
import json
import re
from datetime import datetime, timezone

from contract import EVENT, JSON_KEYS, LINK, SEVERITY_NUMBER

MAX_I64 = (1 << 63) - 1


class Undecodable(Exception):
    """The message has to end as a dead letter; the text says why we think so."""


# ------------------------------------------------------------------------------------------------------------------ OTLP


def any_value(value):
    """An OTLP AnyValue as str, bool, int, float, bytes, list, dict or None."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [any_value(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return {kv.key: any_value(kv.value) for kv in value.kvlist_value.values}
    return getattr(value, kind)


def pairs(attributes):
    return [(kv.key, any_value(kv.value)) for kv in attributes]


def nanos(value):
    """0 means "not set" in OTLP; what lies beyond the signed range of the column is not ours to prescribe."""
    return ("unset",) if value == 0 else None if value > MAX_I64 else value


def wire_type_conflict(message):
    """A field whose number is known but whose wire type is not: a payload of another signal, not a newer schema.

    Protobuf parsers drop it silently as unknown, so garbage and other signals would else count as valid."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    known = message.DESCRIPTOR.fields_by_number
    if any(field.field_number in known for field in UnknownFieldSet(message)):
        return True
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            values = value if isinstance(value, (list, tuple)) or hasattr(value, "add") else [value]
            if any(wire_type_conflict(v) for v in values):
                return True
    return False


class Otlp:
    """OTLP protobuf: TracesData, LogsData or MetricsData, one row per span, log record or data point."""

    def __init__(self, signal):
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
            self.items, self.check, self.fields = self.data_points, lambda _: None, self.point_fields

    def parse(self, payload):
        try:
            message = self.kind.FromString(payload)
        except Exception as error:
            raise Undecodable(f"not {self.kind.__name__}: {error}") from None
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size and wire_type_conflict(self.kind.FromString(payload)):
            raise Undecodable(f"a field of {self.kind.__name__} has another wire type")
        return message

    def walk(self, message):
        """(resource, scope, item) in the order of the ordinals."""
        for resource in getattr(message, self.resources):
            for scope in getattr(resource, self.scopes):
                for item in self.items(scope):
                    yield resource, scope, item

    def count(self, payload):
        """Number of rows; Undecodable when the message has to be rejected."""
        check, count = self.check, 0
        for _, _, item in self.walk(self.parse(payload)):
            check(item)
            count += 1
        return count

    def rows(self, payload, wanted):
        """{ordinal: {column: expected value}} for the wanted ordinals."""
        found = {}
        for ordinal, (resource, scope, item) in enumerate(self.walk(self.parse(payload))):
            if ordinal in wanted:
                attributes = pairs(resource.resource.attributes)
                found[ordinal] = {
                    "service_name": next((v for k, v in attributes if k == "service.name"), ""),
                    "resource_attributes": attributes,
                    "scope_name": scope.scope.name,
                    "scope_version": scope.scope.version,
                    "scope_attributes": pairs(scope.scope.attributes),
                    **self.fields(item),
                }
        return found

    @staticmethod
    def spans(scope):
        return scope.spans

    @staticmethod
    def check_span(span):
        if len(span.trace_id) != 16 or len(span.span_id) != 8 or len(span.parent_span_id) not in (0, 8):
            raise Undecodable("a trace or span id of the wrong length")

    @staticmethod
    def span_fields(span):
        start, end = span.start_time_unix_nano, span.end_time_unix_nano
        return {
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "trace_state": span.trace_state,
            "name": span.name,
            "kind": span.kind,
            "start_time": nanos(start),
            "end_time": nanos(end),
            "duration_ns": end - start if start <= end <= MAX_I64 else None,
            "status_code": span.status.code,
            "status_message": span.status.message,
            "attributes": pairs(span.attributes),
            "events": (
                EVENT,
                [
                    {"time": nanos(e.time_unix_nano), "name": e.name, "attributes": pairs(e.attributes)}
                    for e in span.events
                ],
            ),
            "links": (
                LINK,
                [
                    {
                        "trace_id": k.trace_id,
                        "span_id": k.span_id,
                        "trace_state": k.trace_state,
                        "attributes": pairs(k.attributes),
                    }
                    for k in span.links
                ],
            ),
        }

    @staticmethod
    def log_records(scope):
        return scope.log_records

    @staticmethod
    def check_log(record):
        if len(record.trace_id) not in (0, 16) or len(record.span_id) not in (0, 8):
            raise Undecodable("a trace or span id of the wrong length")

    @staticmethod
    def log_fields(record):
        # A record without a time may be filed under the time it was observed.
        time_ = nanos(record.time_unix_nano)
        return {
            "time": None if time_ == ("unset",) else time_,
            "observed_time": nanos(record.observed_time_unix_nano),
            "severity_number": record.severity_number,
            "severity_text": record.severity_text,
            "body": any_value(record.body),
            "trace_id": record.trace_id,
            "span_id": record.span_id,
            "attributes": pairs(record.attributes),
        }

    @staticmethod
    def data_points(scope):
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            for point in getattr(metric, kind).data_points if kind else ():
                yield metric, point

    @staticmethod
    def point_fields(item):
        metric, point = item
        fields = {
            "metric_name": metric.name,
            "description": metric.description,
            "unit": metric.unit,
            "time": nanos(point.time_unix_nano),
            "start_time": nanos(point.start_time_unix_nano),
            "attributes": pairs(point.attributes),
        }
        if metric.WhichOneof("data") in ("gauge", "sum"):
            kind = point.WhichOneof("value")
            fields["value"] = getattr(point, kind) if kind else None
        else:
            fields["count"], fields["sum"] = point.count, point.sum
        return fields


class OtlpJson(Otlp):
    """OTLP JSON, turned into the protobuf messages: ids are hex there, where protobuf's JSON mapping has base64."""

    def parse(self, payload):
        from google.protobuf import json_format

        def hex_to_base64(value):
            if isinstance(value, list):
                return [hex_to_base64(v) for v in value]
            if isinstance(value, dict):
                ids = {k: value[k] for k in ("traceId", "spanId", "parentSpanId") if k in value}
                ids = {k: base64.b64encode(bytes.fromhex(v)).decode() for k, v in ids.items()}
                return {k: ids[k] if k in ids else hex_to_base64(v) for k, v in value.items()}
            return value

        try:
            return json_format.ParseDict(hex_to_base64(load_json(payload)), self.kind(), ignore_unknown_fields=True)
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"not OTLP JSON: {error}") from None


# -------------------------------------------------------------------------------------------- decoding of plain JSON


def no_constant(name):
    raise Undecodable(f"{name} is not JSON")


def load_json(payload):
    """Strict JSON: Python's reader accepts NaN and lone surrogates, which are neither JSON nor UTF-8."""
    try:
        text = payload.decode("utf-8")
        value = json.loads(text, parse_constant=no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Undecodable("not a JSON object")
    return value


RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|z|[+-]\d\d:?\d\d)?$")


def json_time(value):
    """Nanoseconds of an RFC 3339 text or of a number, whose unit follows from its size (years 1973 to 5138)."""
    if isinstance(value, str):
        match = RFC3339.match(value)
        if not match:
            return json_time(int(value)) if value.isdigit() else None
        day, clock, fraction, zone = match.groups()
        zone = "+00:00" if zone in (None, "Z", "z") else zone
        seconds = int(datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(timezone.utc).timestamp())
        return seconds * 10**9 + int((fraction or "0").ljust(9, "0"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    for limit, unit in ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3)):
        if abs(value) < limit:
            return round(value * unit)
    return int(value)


class JsonLogs:
    """One JSON object per message, one row."""

    def __init__(self, signal):
        assert signal == "logs", "verify.py's options exclude it"

    def count(self, payload):
        load_json(payload)
        return 1

    def rows(self, payload, wanted):
        rest = load_json(payload)
        row = {}
        for column, keys in JSON_KEYS.items():
            key = next((k for k in keys if rest.get(k) is not None), None)
            row[column] = None if key is None else rest.pop(key)
        row["time"] = json_time(row["time"])
        row["severity_number"] = SEVERITY_NUMBER.get(str(row["severity_text"]).upper())
        for column in ("trace_id", "span_id"):
            try:
                row[column] = bytes.fromhex(row[column] or "")
            except (TypeError, ValueError):
                row[column] = None
        row["attributes"] = list(rest.items())
        # How the resource of a plain log is filled is the pipeline's choice; service_name is compared by itself.
        row["resource_attributes"] = None
        return {0: row}


DECODERS = {"otlp": Otlp, "otlp-json": OtlpJson, "json": JsonLogs}
