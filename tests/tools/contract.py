"""What a row of our Parquet files has to say: its columns, and when a value found may stand for the expected one.

verify.py's view of docs/schemas.md; a change of the schema is made in the tables below and nowhere else.
"""

import base64
import json
import math

import pyarrow as pa

# column: (how it is compared, accepted names). A trailing "?" makes the column optional. A name of the contract comes
# first; `None` expected means "not compared" (the source does not determine it).

COMMON = {
    "_kafka_timestamp": ("time_ms", "_kafka_timestamp"),
}
SCOPE = {
    "service_name": ("text", "service_name"),
    "resource_attributes": ("attributes", "resource_attributes"),
    "attributes": ("attributes", "attributes"),
    "scope_name": ("text", "scope_name?"),
    "scope_version": ("text", "scope_version?"),
    "scope_attributes": ("attributes", "scope_attributes?"),
}
COLUMNS = {
    "traces": {
        **COMMON,
        **SCOPE,
        "trace_id": ("id", "trace_id"),
        "span_id": ("id", "span_id"),
        "parent_span_id": ("id", "parent_span_id"),
        "trace_state": ("text", "trace_state"),
        "name": ("text", "name", "span_name"),
        "kind": ("span_kind", "kind", "span_kind"),
        "start_time": ("time", "start_time"),
        "end_time": ("time", "end_time"),
        "duration_ns": ("int", "duration_ns"),
        "status_code": ("status_code", "status_code"),
        "status_message": ("text", "status_message"),
        "events": ("records", "events"),
        "links": ("records", "links"),
    },
    "logs": {
        **COMMON,
        **SCOPE,
        "time": ("time", "time"),
        "observed_time": ("time", "observed_time"),
        "severity_number": ("int", "severity_number"),
        "severity_text": ("text", "severity_text"),
        "body": ("value", "body"),
        "trace_id": ("id", "trace_id"),
        "span_id": ("id", "span_id"),
    },
    "metrics": {
        **COMMON,
        **SCOPE,
        "metric_name": ("text", "metric_name?", "name?"),
        "description": ("text", "description?", "metric_description?"),
        "unit": ("text", "unit?", "metric_unit?"),
        "time": ("time", "time?"),
        "start_time": ("time", "start_time?"),
        "value": ("number", "value?"),
        "count": ("int", "count?"),
        "sum": ("number", "sum?"),
    },
}
# Members of the structs in events and links: (how it is compared, accepted names).
EVENT = {
    "time": ("time", "time", "time_unix_nano"),
    "name": ("text", "name"),
    "attributes": ("attributes", "attributes"),
}
LINK = {
    "trace_id": ("id", "trace_id"),
    "span_id": ("id", "span_id"),
    "trace_state": ("text", "trace_state"),
    "attributes": ("attributes", "attributes"),
}
SPAN_KIND = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
STATUS_CODE = ["UNSET", "OK", "ERROR"]
# Keys of a plain JSON log that are columns; the first that is present wins, every other key is an attribute.
JSON_KEYS = {
    "time": ("timestamp", "time", "@timestamp", "ts"),
    "severity_text": ("level", "severity", "severity_text"),
    "body": ("message", "msg", "body"),
    "service_name": ("service", "service_name", "service.name"),
    "trace_id": ("trace_id", "traceId"),
    "span_id": ("span_id", "spanId"),
}
SEVERITY_NUMBER = {
    "TRACE": 1,
    "DEBUG": 5,
    "INFO": 9,
    "WARN": 13,
    "WARNING": 13,
    "ERROR": 17,
    "FATAL": 21,
    "CRITICAL": 21,
}

# ---------------------------------------------------------------------------------------------- comparison of values
#
# Each says whether the value found may stand for the expected one. Lenient where the representation is a choice
# (null or "", enum number or name, order of a map), strict in the value.


def same_id(expected, found):
    if isinstance(found, str):
        found = bytes.fromhex(found)
    return (found or b"") == expected or (found is not None and not any(found) and not expected)


def same_text(expected, found):
    return (found or "") == (expected if isinstance(expected, str) else text_of(expected))


def same_int(expected, found):
    return (0 if found is None else found) == expected


def same_number(expected, found):
    return found is not None and (
        float(found) == float(expected) or math.isnan(float(expected)) and math.isnan(float(found))
    )


def same_time(expected, found):
    return found in (None, 0) if expected == ("unset",) else found == expected


def same_enum(names):
    def same(expected, found):
        if isinstance(found, str):
            name = found.upper().rsplit("_", 1)[-1]
            found = names.index(name) if name in names else int(found)
        return (found or 0) == expected

    return same


def text_of(value):
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def same_bytes(expected, found):
    return found.lower() == expected.hex() or found == base64.b64encode(expected).decode()


def same_structure(expected, found):
    """A nested value and what its JSON text was parsed to."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(expected) == len(found) and all(map(same_structure, expected, found))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and expected.keys() == found.keys()
            and all(same_structure(v, found[k]) for k, v in expected.items())
        )
    if isinstance(expected, bytes):
        return isinstance(found, str) and same_bytes(expected, found)
    if isinstance(expected, float) and not math.isfinite(expected):
        return True  # JSON has no such number.
    return expected == found and isinstance(expected, bool) == isinstance(found, bool)


def same_value(expected, found):
    """An AnyValue and its text in a map<utf8, utf8> or in `body`."""
    if expected is None:
        return found in (None, "", "null")
    if found is None:
        return expected == ""
    if isinstance(expected, str):
        return found == expected
    if isinstance(expected, bool):
        return found == ("true" if expected else "false")
    if isinstance(expected, bytes):
        return same_bytes(expected, found)
    try:
        if isinstance(expected, float):
            return same_number(expected, found)
        if isinstance(expected, int):
            return int(found) == expected
        return same_structure(expected, json.loads(found))
    except ValueError:
        return False


def flatten(prefix, value):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(f"{prefix}.{key}", inner)
    else:
        yield prefix, value


def same_attributes(expected, found):
    """Pairs in any order. A key given twice may be kept once (either value) or twice; a nested value may be JSON text or
    dotted keys; a null may be left out; service.name may have moved to its own column."""
    left = {}
    for key, value in found or ():
        left.setdefault(key, []).append(value)
    given = {}
    for key, value in expected:
        given.setdefault(key, []).append(value)
    for key, values in given.items():
        texts = left.pop(key, None)
        if texts is None:
            flat = [pair for value in values for pair in flatten(key, value) if isinstance(value, dict)]
            if flat and all(k in left and same_value(v, left.pop(k)[0]) for k, v in flat):
                continue
            if key != "service.name" and any(v is not None for v in values):
                return False
        elif not (
            len(texts) == len(values)
            and all(map(same_value, values, texts))
            or len(texts) == 1
            and any(same_value(v, texts[0]) for v in values)
        ):
            return False
    return not left


def same_records(expected, found):
    """A list of structs: events, links."""
    shape, records = expected
    if len(records) != len(found or ()):
        return False
    for want, have in zip(records, found or ()):
        for member, (how, *names) in shape.items():
            name = next((n for n in names if n in have), None)
            if name is None or want[member] is not None and not SAME[how](want[member], have[name]):
                return False
    return True


SAME = {
    "id": same_id,
    "text": same_text,
    "int": same_int,
    "number": same_number,
    "time": same_time,
    "time_ms": lambda expected, found: found == expected * 10**6,
    "span_kind": same_enum(SPAN_KIND),
    "status_code": same_enum(STATUS_CODE),
    "value": same_value,
    "attributes": same_attributes,
    "records": same_records,
}


def to_python(scalar):
    """as_py() with full precision: times as nanoseconds (pyarrow's own refuses them without pandas)."""
    if not scalar.is_valid:
        return None
    if pa.types.is_timestamp(scalar.type) or pa.types.is_duration(scalar.type):
        return scalar.value * {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[scalar.type.unit]
    if pa.types.is_map(scalar.type):
        return [(pair[0].as_py(), to_python(pair[1])) for pair in map(lambda s: list(s.values()), scalar.values)]
    if pa.types.is_list(scalar.type) or pa.types.is_large_list(scalar.type):
        return [to_python(s) for s in scalar.values]
    if pa.types.is_struct(scalar.type):
        return {name: to_python(value) for name, value in scalar.items()}
    return scalar.as_py()
