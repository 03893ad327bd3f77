"""What a row of our Parquet files has to say: its columns, and when a value found may stand for the expected one.

verify.py's view of docs/schemas.md; a change of the schema is made in the tables below and nowhere else.
"""

import base64
import json
import math
from decimal import Decimal, InvalidOperation

import pyarrow as pa

NS = pa.timestamp("ns", "UTC")
MAP = pa.map_(pa.string(), pa.string())
ID16, ID8 = pa.binary(16), pa.binary(8)


def struct(**members):
    """A struct type; (type, True) is a member that may be null."""
    return pa.struct([pa.field(n, *(t if isinstance(t, tuple) else (t, False))) for n, t in members.items()])


TYPES = {
    "text": pa.string(),
    "bool": pa.bool_(),
    "i8": pa.int8(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "u32": pa.uint32(),
    "u64": pa.uint64(),
    "f64": pa.float64(),
    "ms": pa.timestamp("ms", "UTC"),
    "ns": NS,
    "id16": ID16,
    "id8": ID8,
    "map": MAP,
    "u64s": pa.list_(pa.uint64()),
    "f64s": pa.list_(pa.float64()),
    "events": pa.list_(struct(time=(NS, True), name=pa.string(), attributes=MAP, dropped_attributes_count=pa.uint32())),
    "links": pa.list_(
        struct(
            trace_id=ID16,
            span_id=ID8,
            trace_state=pa.string(),
            attributes=MAP,
            dropped_attributes_count=pa.uint32(),
            flags=pa.uint32(),
        )
    ),
    "quantiles": pa.list_(struct(quantile=pa.float64(), value=pa.float64())),
    "exemplars": pa.list_(
        struct(
            time=(NS, True),
            value_double=(pa.float64(), True),
            value_int=(pa.int64(), True),
            trace_id=(ID16, True),
            span_id=(ID8, True),
            filtered_attributes=MAP,
        )
    ),
}

# Attributes that are moved to a column of the same name, with _ for the dots, if they have its type.
PROMOTED_RESOURCE = {
    "service.name": "text",
    "service.namespace": "text",
    "service.version": "text",
    "service.instance.id": "text",
    "deployment.environment.name": "text",
    "host.name": "text",
    "k8s.cluster.name": "text",
    "k8s.namespace.name": "text",
    "k8s.pod.name": "text",
}
PROMOTED = {
    "http.request.method": "text",
    "http.response.status_code": "i32",
    "http.route": "text",
    "url.full": "text",
    "url.path": "text",
    "url.scheme": "text",
    "server.address": "text",
    "server.port": "i32",
    "client.address": "text",
    "user_agent.original": "text",
    "db.system.name": "text",
    "db.namespace": "text",
    "db.operation.name": "text",
    "db.collection.name": "text",
    "db.query.text": "text",
    "rpc.system": "text",
    "rpc.service": "text",
    "rpc.method": "text",
    "messaging.system": "text",
    "messaging.destination.name": "text",
    "messaging.operation.name": "text",
    "messaging.operation.type": "text",
    "error.type": "text",
    "exception.type": "text",
    "exception.message": "text",
    "exception.stacktrace": "text",
}


def column_of(attribute):
    return attribute.replace(".", "_")


def promoted(table):
    return " ".join(f"{column_of(attribute)} {kind}?" for attribute, kind in table.items())


# Columns and types in their order; "?" allows nulls.
IDENTITY = "_topic text _partition i32 _offset i64 _ordinal i32"
HEAD = f"""
    {IDENTITY} _kafka_timestamp ms? _tenant text?
    {promoted(PROMOTED_RESOURCE)} resource_attributes map resource_dropped_attributes_count u32 resource_schema_url text
    scope_name text scope_version text scope_attributes map scope_schema_url text
"""
SIGNALS = {
    "traces": f"""{HEAD}
        trace_id id16 span_id id8 parent_span_id id8? trace_state text flags u32 name text kind i8
        start_time ns end_time ns? duration_ns i64? status_code i8 status_message text
        dropped_attributes_count u32 dropped_events_count u32 dropped_links_count u32 events events links links
        {promoted(PROMOTED)} attributes map
    """,
    "logs": f"""{HEAD}
        time ns observed_time ns? severity_number i8 severity_text text body text? event_name text
        trace_id id16? span_id id8? flags u32 dropped_attributes_count u32
        {promoted(PROMOTED)} attributes map
    """,
    "metrics": f"""{HEAD}
        metric_name text description text unit text metric_type text temporality i8? is_monotonic bool?
        metric_metadata map start_time ns? time ns value_double f64? value_int i64?
        count u64? sum f64? min f64? max f64? bucket_counts u64s explicit_bounds f64s
        scale i32? zero_count u64? zero_threshold f64? positive_offset i32? positive_bucket_counts u64s
        negative_offset i32? negative_bucket_counts u64s quantiles quantiles exemplars exemplars
        flags u32 attributes map
    """,
}


def schema_of(text):
    words = text.split()
    return pa.schema(
        [
            pa.field(name, TYPES[kind.rstrip("?")], nullable=kind.endswith("?"))
            for name, kind in zip(words[::2], words[1::2])
        ]
    )


SCHEMAS = {signal: schema_of(text) for signal, text in SIGNALS.items()}


def same_type(want, have):
    """Types are equal but for the names that maps and lists give to what is in them, and whether that may be null."""
    if pa.types.is_map(want):
        return (
            pa.types.is_map(have)
            and same_type(want.key_type, have.key_type)
            and same_type(want.item_type, have.item_type)
        )
    if pa.types.is_list(want):
        return pa.types.is_list(have) and same_type(want.value_type, have.value_type)
    if pa.types.is_struct(want):
        return (
            pa.types.is_struct(have)
            and want.num_fields == have.num_fields
            and all(
                w.name == h.name and w.nullable == h.nullable and same_type(w.type, h.type)
                for w, h in zip(want, have)
            )
        )
    return want == have


# ---------------------------------------------------------------------------------------------- comparison of values
#
# Each says whether the value found is the expected one. Free are only the order of a map and how a JSON text is spaced
# and escaped.


class Pairs(list):
    """A key-value list: (key, value) in order, keys may repeat."""


def same_float(expected, found):
    if found is None or expected is None:
        return found is expected
    if math.isnan(expected):
        return math.isnan(found)
    return found == expected and math.copysign(1, found) == math.copysign(1, expected)


def same_decimal(expected, found):
    """A double and its text (or the number parsed from it): the shortest that reads back equal, as repr() has it."""
    try:
        want, have = Decimal(repr(expected)), Decimal(found)
    except InvalidOperation:
        return False
    return want == have and want.is_signed() == have.is_signed()


def double_name(value):
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def same_structure(expected, found):
    """A nested value and what its JSON text was parsed to: objects to Pairs, other numbers than integers to Decimal."""
    if isinstance(expected, Pairs):
        return (
            isinstance(found, Pairs)
            and len(expected) == len(found)
            and all(w[0] == h[0] and same_structure(w[1], h[1]) for w, h in zip(expected, found))
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and not isinstance(found, Pairs)
            and len(expected) == len(found)
            and all(map(same_structure, expected, found))
        )
    if isinstance(expected, bytes):
        return found == base64.b64encode(expected).decode()
    if isinstance(expected, float):
        if not math.isfinite(expected):
            return found == double_name(expected)
        return isinstance(found, (int, Decimal)) and not isinstance(found, bool) and same_decimal(expected, found)
    if isinstance(expected, int):
        return type(found) is type(expected) and found == expected
    return found == expected  # A text or None.


def same_value(expected, found):
    """A value and its text, in a map or a text column."""
    if expected is None or found is None:
        return found is expected
    if isinstance(expected, str):
        return found == expected
    if isinstance(expected, bytes):
        return found == base64.b64encode(expected).decode()
    if isinstance(expected, bool):
        return found == ("true" if expected else "false")
    if isinstance(expected, int):
        return found == str(expected)
    if isinstance(expected, float):
        return same_decimal(expected, found) if math.isfinite(expected) else found == double_name(expected)
    try:
        return same_structure(
            expected,
            json.loads(
                found,
                object_pairs_hook=Pairs,
                parse_float=Decimal,
                parse_int=lambda text: Decimal(text) if text == "-0" else int(text),
            ),
        )
    except ValueError:
        return False


def same_map(expected, found):
    """A map has each of its keys once, in any order."""
    texts = dict(found or ())
    return (
        found is not None
        and len(texts) == len(found)
        and texts.keys() == expected.keys()
        and all(same_value(value, texts[key]) for key, value in expected.items())
    )


def same(kind, expected, found):
    """The comparison for a column of this type. Maps are expected as dict, structs as dict, lists as list."""
    if pa.types.is_map(kind):
        return same_map(expected, found)
    if pa.types.is_list(kind):
        return (
            found is not None
            and len(expected) == len(found)
            and all(same(kind.value_type, w, h) for w, h in zip(expected, found))
        )
    if pa.types.is_struct(kind):
        return found is not None and all(same(f.type, expected[f.name], found[f.name]) for f in kind)
    if pa.types.is_floating(kind):
        return same_float(expected, found)
    if pa.types.is_string(kind):
        return same_value(expected, found)
    return expected == found


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
