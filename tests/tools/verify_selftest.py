#!/usr/bin/env python3
"""Proves that verify.py says "equal" for a right result and finds each kind of defect.

A checker that cannot fail proves nothing. This writes messages to a real Kafka, and beside them the Parquet files, dead
letters and group offsets that a perfect pipeline would leave, made from the generated values and not from verify.py's
decoding. Then it plants one defect at a time and expects exactly its finding.

    eval "$(scripts/services env)"; $OPENWIT_TEST_PYTHON tests/tools/verify_selftest.py

`--load MESSAGES SPANS` and `--load-json MESSAGES` instead time verify.py on a big right result.
"""

import base64
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from contract import SCHEMAS  # Only the types; verify.py is run as a program.
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

HERE = os.path.dirname(os.path.abspath(__file__))
BROKERS = os.environ.get("OPENWIT_TEST_KAFKA") or sys.exit("OPENWIT_TEST_KAFKA is not set: scripts/services up")
PARTITIONS = 3
# Of each kind of message: enough that every defect finds a row it can be planted in.
MESSAGES = 120
# Checks at a time: each waits for Kafka about as long as it works.
AT_ONCE = 4

# What rows hold where a message says nothing: columns that are not null.
EMPTY = {
    "resource_attributes": [],
    "resource_dropped_attributes_count": 0,
    "resource_schema_url": "",
    "scope_name": "",
    "scope_version": "",
    "scope_attributes": [],
    "scope_schema_url": "",
    "flags": 0,
}
EMPTY_OF = {
    "traces": {
        **EMPTY,
        "dropped_attributes_count": 0,
        "dropped_events_count": 0,
        "dropped_links_count": 0,
        "events": [],
        "links": [],
    },
    "logs": {**EMPTY, "dropped_attributes_count": 0, "event_name": ""},
    "metrics": {
        **EMPTY,
        "description": "",
        "metric_metadata": [],
        "bucket_counts": [],
        "explicit_bounds": [],
        "positive_bucket_counts": [],
        "negative_bucket_counts": [],
        "quantiles": [],
        "exemplars": [],
    },
}

# ------------------------------------------------------------------------------------- messages and the rows they mean


def set_attribute(attributes, key, kind, value):
    attribute = attributes.add(key=key)
    if kind == "list":
        for v in value:
            attribute.value.array_value.values.add(string_value=v)
    elif kind:
        setattr(attribute.value, f"{kind}_value", value)


ATTRIBUTES = [  # key, OTLP kind, value, text in the map
    ("text", "string", 'GET /api/ünï " \\ \n', 'GET /api/ünï " \\ \n'),
    ("empty", "string", "", ""),
    ("code", "int", -503, "-503"),
    ("ratio", "double", 1e21, "1000000000000000000000"),
    ("third", "double", 1 / 3, "0.3333333333333333"),
    ("ok", "bool", True, "true"),
    ("raw", "bytes", b"\x00\xff", "AP8="),
    ("tags", "list", ["a", "b"], '["a","b"]'),
    ("none", None, None, None),
]
# key, OTLP kind, value, column, text in the map where the value has not the column's type
PROMOTED = [
    ("http.route", "string", "/a/{id}", "http_route", None),
    ("http.route", "int", 5, None, "5"),
    ("http.response.status_code", "int", 404, "http_response_status_code", None),
    ("http.response.status_code", "string", "404", None, "404"),
    ("server.port", "int", 1 << 31, None, "2147483648"),
    ("db.query.text", "string", "", "db_query_text", None),
    ("exception.stacktrace", "string", "a\nb", "exception_stacktrace", None),
]


def scoped(chance, resource, scope):
    """Fills resource and scope; returns their part of the row."""
    service = chance.choice(["checkout", "cart", "payment"])
    set_attribute(resource.attributes, "service.name", "string", service)
    set_attribute(resource.attributes, "host.id", "int", 7)
    scope.name, scope.version = "lib", "1.2"
    set_attribute(scope.attributes, "s", "bool", False)
    set_attribute(resource.attributes, "k8s.pod.name", "string", "pod-1")
    set_attribute(resource.attributes, "host.name", "int", 1)
    set_attribute(resource.attributes, "service.name", "string", "a second one")
    resource.dropped_attributes_count = 3
    return {
        "service_name": service,
        "k8s_pod_name": "pod-1",
        "resource_dropped_attributes_count": 3,
        "resource_attributes": [("host.id", "7"), ("host.name", "1")],
        "scope_name": "lib",
        "scope_version": "1.2",
        "scope_attributes": [("s", "false")],
    }


def fill(chance, attributes):
    chosen = chance.sample(ATTRIBUTES, chance.randrange(len(ATTRIBUTES) + 1))
    for key, kind, value, _ in chosen:
        set_attribute(attributes, key, kind, value)
    return [(key, text) for key, _, _, text in chosen]


def fill_promoted(chance, attributes):
    """The columns of a span or log record that its attributes fill."""
    row = {"attributes": fill(chance, attributes)}
    seen = set()
    for key, kind, value, column, text in chance.sample(PROMOTED, chance.randrange(len(PROMOTED) + 1)):
        set_attribute(attributes, key, kind, value)
        if key in seen:
            continue  # The first stays.
        seen.add(key)
        if column:
            row[column] = value
        else:
            row["attributes"].append((key, text))
    return row


def trace_message(chance, spans=5):
    data, rows = TracesData(), []
    for _ in range(2 if spans > 1 else 1):
        group = data.resource_spans.add()
        inside = group.scope_spans.add()
        base = scoped(chance, group.resource, inside.scope)
        for _ in range(spans // 2 or 1):
            start, length = 1_700_000_000_000_000_000 + chance.randrange(10**15), chance.randrange(10**10)
            span = inside.spans.add(
                trace_id=chance.randbytes(16),
                span_id=chance.randbytes(8),
                name=f"op {chance.randrange(9)}",
                kind=chance.randrange(6),
                parent_span_id=chance.choice([b"", chance.randbytes(8)]),
                trace_state=chance.choice(["", "k=v"]),
                start_time_unix_nano=start,
                end_time_unix_nano=start + length,
            )
            span.status.code, span.status.message = chance.randrange(3), chance.choice(["", "boom"])
            row = {
                **base,
                **fill_promoted(chance, span.attributes),
                "trace_id": span.trace_id,
                "span_id": span.span_id,
                "parent_span_id": span.parent_span_id or None,
                "trace_state": span.trace_state,
                "name": span.name,
                "kind": span.kind,
                "start_time": start,
                "end_time": start + length,
                "duration_ns": length,
                "status_code": span.status.code,
                "status_message": span.status.message,
                "events": [],
                "links": [],
            }
            for _ in range(chance.randrange(3)):
                event = span.events.add(time_unix_nano=start + 1, name="retry")
                row["events"].append(
                    {
                        "time": start + 1,
                        "name": "retry",
                        "attributes": fill(chance, event.attributes),
                        "dropped_attributes_count": 0,
                    }
                )
            if chance.random() < 0.3:
                link = span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
                row["links"].append(
                    {
                        "trace_id": b"t" * 16,
                        "span_id": b"s" * 8,
                        "trace_state": "",
                        "attributes": fill(chance, link.attributes),
                        "dropped_attributes_count": 0,
                        "flags": 0,
                    }
                )
            rows.append(row)
    return data.SerializeToString(), rows


def log_message(chance):
    data, rows = LogsData(), []
    group = data.resource_logs.add()
    inside = group.scope_logs.add()
    base = scoped(chance, group.resource, inside.scope)
    for _ in range(3):
        when = 1_700_000_000_000_000_000 + chance.randrange(10**15)
        record = inside.log_records.add(
            time_unix_nano=when,
            observed_time_unix_nano=when + 5,
            severity_number=9,
            severity_text="INFO",
            trace_id=chance.choice([b"", chance.randbytes(16)]),
        )
        record.body.string_value = f"line {chance.randrange(10**9)}"
        rows.append(
            {
                **base,
                **fill_promoted(chance, record.attributes),
                "time": when,
                "observed_time": when + 5,
                "severity_number": 9,
                "severity_text": "INFO",
                "body": record.body.string_value,
                "trace_id": record.trace_id or None,
                "span_id": None,
            }
        )
    return data.SerializeToString(), rows


def metric_message(chance):
    data, rows = MetricsData(), []
    group = data.resource_metrics.add()
    inside = group.scope_metrics.add()
    base = scoped(chance, group.resource, inside.scope)
    for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
        metric = inside.metrics.add(name=f"m.{kind}", unit="By", description="d")
        set_attribute(metric.metadata, "meta", "string", "x")
        data_of_kind = getattr(metric, kind)
        row = {**base, "metric_name": metric.name, "unit": "By", "description": "d", "metric_type": kind}
        row["metric_metadata"] = [("meta", "x")]
        if kind not in ("gauge", "summary"):
            row["temporality"] = data_of_kind.aggregation_temporality = 2
        if kind == "sum":
            row["is_monotonic"] = data_of_kind.is_monotonic = True
        for integer in (True, False):
            when = 1_700_000_000_000_000_000 + chance.randrange(10**15)
            point = data_of_kind.data_points.add(time_unix_nano=when, start_time_unix_nano=when - 1, flags=1)
            mine = {**row, "time": when, "start_time": when - 1, "flags": 1}
            mine["attributes"] = fill(chance, point.attributes)
            set_attribute(point.attributes, "http.route", "string", "/")  # Not promoted in metrics.
            mine["attributes"].append(("http.route", "/"))
            mine |= measure(chance, kind, integer, point)
            rows.append(mine)
    return data.SerializeToString(), rows


def measure(chance, kind, integer, point):
    """The values of a point, and their columns."""
    if kind in ("gauge", "sum"):
        if integer:
            point.as_int = -(1 << 63)
            row = {"value_int": -(1 << 63)}
        else:
            point.as_double = chance.choice([chance.random(), -0.0, float("inf"), float("nan")])
            row = {"value_double": point.as_double}
        exemplar = point.exemplars.add(time_unix_nano=7, as_double=0.5, trace_id=b"t" * 16)
        set_attribute(exemplar.filtered_attributes, "f", "int", 1)
        row["exemplars"] = [
            {
                "time": 7,
                "value_double": 0.5,
                "value_int": None,
                "trace_id": b"t" * 16,
                "span_id": None,
                "filtered_attributes": [("f", "1")],
            }
        ]
        return row
    point.count = 3
    row = {"count": 3}
    if kind == "summary":
        point.sum = row["sum"] = 1.5 if integer else 0.0  # It has no way to be absent.
        point.quantile_values.add(quantile=0.5, value=1 / 3)
        return {**row, "quantiles": [{"quantile": 0.5, "value": 1 / 3}]}
    if integer:
        point.sum, point.min, point.max = 1.5, 0.0, 9.25
        row |= {"sum": 1.5, "min": 0.0, "max": 9.25}
    if kind == "histogram":
        point.bucket_counts.extend([1, 2, (1 << 64) - 1])
        point.explicit_bounds.extend([0.1, 10])
        return {**row, "bucket_counts": [1, 2, (1 << 64) - 1], "explicit_bounds": [0.1, 10.0]}
    point.scale, point.zero_count, point.zero_threshold = -3, 4, 1e-9
    point.positive.offset = -7
    point.positive.bucket_counts.extend([5, 6])
    return {
        **row,
        "scale": -3,
        "zero_count": 4,
        "zero_threshold": 1e-9,
        "positive_offset": -7,
        "positive_bucket_counts": [5, 6],
    }


LEVELS = {"INFO": 9, "WARN": 13, "ERROR": 17}


def json_message(chance):
    level = chance.choice(list(LEVELS))
    nanos = 1_763_899_200_000_000_000 + chance.randrange(10**9)
    when = chance.choice([nanos, f"2025-11-23T12:00:00.{nanos % 10**9:09d}Z"])
    ids = chance.randbytes(16), chance.randbytes(8)
    value = {
        "timestamp": when,
        "level": level,
        "message": f"done in {chance.randrange(10**9)} us",
        "service": "cart",
        "trace_id": ids[0].hex(),
        "span_id": ids[1].hex(),
        "status": 200,
        "user": "ü",
        "ok": False,
        "k8s": {"ns": "prod", "n": 1},
        "nothing": None,
        "attributes": {"http.route": "/x", "server.port": 8080, "url.path": 5},
        "resource": {"k8s.pod.name": "pod-1", "rack": 4},
    }
    row = {
        "service_name": "cart",
        "k8s_pod_name": "pod-1",
        "resource_attributes": [("rack", "4")],
        "time": nanos,
        "severity_number": LEVELS[level],
        "severity_text": level,
        "body": value["message"],
        "trace_id": ids[0],
        "span_id": ids[1],
        "http_route": "/x",
        "server_port": 8080,
        "attributes": [
            ("status", "200"),
            ("user", "ü"),
            ("ok", "false"),
            ("k8s", '{"ns":"prod","n":1}'),
            ("url.path", "5"),
        ],
    }
    return json.dumps(value, ensure_ascii=False).encode(), [row]


def json_span(chance):
    ids, when = (chance.randbytes(16), chance.randbytes(8)), 1_700_000_000_000 + chance.randrange(10**9)
    value = {
        "trace_id": ids[0].hex(),
        "span_id": ids[1].hex(),
        "name": "op",
        "start": when,
        "duration_ms": 2,
        "kind": "client",
        "status": {"code": "error", "message": "boom"},
        "events": [{"name": "e", "timestamp": when, "attributes": {"a": 1}, "b": 0.5}],
        "tags": {"http.response.status_code": 500, "x": [1, None]},
    }
    row = {
        "trace_id": ids[0],
        "span_id": ids[1],
        "trace_state": "",
        "name": "op",
        "kind": 3,
        "start_time": when * 10**6,
        "end_time": (when + 2) * 10**6,
        "duration_ns": 2 * 10**6,
        "status_code": 2,
        "status_message": "boom",
        "events": [
            {
                "time": when * 10**6,
                "name": "e",
                "attributes": [("a", "1"), ("b", "0.5")],
                "dropped_attributes_count": 0,
            }
        ],
        "http_response_status_code": 500,
        "attributes": [("x", "[1,null]")],
    }
    return json.dumps(value).encode(), [row]


def json_metric(chance):
    value, when = chance.choice([chance.randrange(10**9), chance.random()]), 1_700_000_000 + chance.randrange(10**6)
    sent = {"name": "m", "value": value, "type": "counter", "unit": "By", "time": when, "labels": {"a": "b"}}
    row = {
        "metric_name": "m",
        "unit": "By",
        "metric_type": "sum",
        "temporality": 2,
        "is_monotonic": True,
        "time": when * 10**9,
        "value_int" if isinstance(value, int) else "value_double": value,
        "attributes": [("a", "b")],
    }
    return json.dumps(sent).encode(), [row]


def otlp_json_message(chance):
    """A trace without the values that differ only in their JSON form."""
    when = 1_700_000_000_000_000_000 + chance.randrange(10**15)
    ids = chance.randbytes(16), chance.randbytes(8)
    value = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "cart"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "lib"},
                        "unknownKey": 1,
                        "spans": [
                            {
                                "traceId": ids[0].hex().upper(),
                                "spanId": ids[1].hex(),
                                "name": "op",
                                "kind": 2,
                                "startTimeUnixNano": str(when),
                                "endTimeUnixNano": when + 7,
                                "attributes": [{"key": "n", "value": {"intValue": "5"}}],
                            }
                        ],
                    }
                ],
            }
        ]
    }
    row = {
        "service_name": "cart",
        "scope_name": "lib",
        "trace_id": ids[0],
        "span_id": ids[1],
        "parent_span_id": None,
        "trace_state": "",
        "name": "op",
        "kind": 2,
        "start_time": when,
        "end_time": when + 7,
        "duration_ns": 7,
        "status_code": 0,
        "status_message": "",
        "attributes": [("n", "5")],
    }
    return json.dumps(value).encode(), [row]


def bare_span(trace_id):
    """Parses as LogsData without an error, all its content being "unknown" there: only the wire types give it away."""
    data = TracesData()
    data.resource_spans.add().scope_spans.add().spans.add(trace_id=trace_id, span_id=b"12345678")
    return data.SerializeToString()


# (signal, format): how a valid message is made, and payloads that no pipeline may accept.
KINDS = {
    ("traces", "otlp"): (
        trace_message,
        [b"\xff\xff garbage", b"\x0a\x7f short", log_message(random.Random(3))[0], bare_span(b"15 bytes too few"[:15])],
    ),
    ("traces", "otlp-json"): (
        otlp_json_message,
        [b"{", b"[]", b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"zz"}]}]}]}'],
    ),
    ("logs", "otlp"): (
        log_message,
        [b"\xff\xff garbage", trace_message(random.Random(3))[0], bare_span(b"0123456789abcdef")],
    ),
    ("logs", "json"): (json_message, [b"{", b"no json", b'{"a":NaN}', b'{"a":"\\ud800"}', b"\xff{}", b"[1]"]),
    ("traces", "json"): (json_span, [b"{", b"{}", b'{"trace_id":"00","span_id":"11","name":"n","start":1}']),
    ("metrics", "json"): (json_metric, [b"[]", b'{"name":"m"}', b'{"name":"m","value":1,"type":"histogram"}']),
    ("metrics", "otlp"): (metric_message, [b"\xff\xff garbage", trace_message(random.Random(3))[0]]),
}

# ----------------------------------------------------------------------------------------- the result of a perfect run


class Run:
    """Messages in a fresh topic, and what a perfect pipeline leaves: rows, dead letters, committed offsets."""

    def __init__(self, signal, form, messages, seed=1, duplicates=0.1, invalid=0.1, maker=None, tenants=None):
        self.tenants = tenants  # None, or {value of the header `tenant`: whose the message then is}
        self.signal, self.form, self.schema = signal, form, SCHEMAS[signal]
        self.topic = f"verify-{uuid.uuid4().hex[:8]}"
        self.dead_topic, self.group = f"{self.topic}.dead", f"{self.topic}.group"
        admin = AdminClient({"bootstrap.servers": BROKERS})
        new = [NewTopic(self.topic, PARTITIONS, 1), NewTopic(self.dead_topic, 1, 1)]
        for future in admin.create_topics(new).values():
            future.result()
        chance = random.Random(seed)
        make, bad = KINDS[signal, form]
        make = maker or make
        self.producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 20, "queue.buffering.max.kbytes": 1 << 20})
        sent, past = [], []
        for _ in range(messages):
            dice = chance.random()
            if dice < invalid:
                what = [chance.choice(bad), None]
            elif dice < invalid + duplicates and past:
                what = chance.choice(past)
            else:
                what = list(make(chance))
                if len(past) < 1000:
                    past.append(what)
            sent.append(self.send(chance, what))
        sent.append(self.send(chance, [None, []]))  # A tombstone: no row, and a dead letter or none.
        self.producer.flush()
        self.rows, self.letters, self.ends, self.copies = [], [], {}, []
        winners = {}
        for m in sorted(sent, key=lambda m: m["place"]):
            _, partition, offset = m["place"]
            self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
            copied = m["tenant"], m["payload"]
            if m["rows"] is None or (tenants and m["tenant"] is None):
                self.letters.append(m)
            elif copied in winners:
                self.copies.append((m, winners[copied]))
            else:
                winners[copied] = m
                self.rows += self.as_rows(m)

    def send(self, chance, what):
        message = {"payload": what[0], "rows": what[1], "timestamp": 1_750_000_000_000 + chance.randrange(10**9)}
        message["key"] = chance.choice([None, b"", b"k\xff"])
        message["headers"] = chance.choice([[], [("h", b"\x00v"), ("h", None)]])
        message["tenant"] = None
        if self.tenants:
            value, message["tenant"] = chance.choice(list(self.tenants.items()))
            message["headers"] = [*message["headers"], ("Tenant", value)]

        def delivered(error, record):
            assert error is None, error
            message["place"] = record.topic(), record.partition(), record.offset()

        while True:
            try:
                self.producer.produce(
                    self.topic,
                    what[0],
                    key=message["key"],
                    headers=message["headers"],
                    on_delivery=delivered,
                    partition=chance.randrange(PARTITIONS),
                    timestamp=message["timestamp"],
                )
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)
        return message

    def as_rows(self, message):
        topic, partition, offset = message["place"]
        identity = {
            "_topic": topic,
            "_partition": partition,
            "_offset": offset,
            "_kafka_timestamp": message["timestamp"],
            "_tenant": message["tenant"],
        }
        if (self.signal, self.form) == ("logs", "json"):
            identity["observed_time"] = message["timestamp"] * 10**6
        empty = EMPTY_OF[self.signal]
        return [{**identity, **empty, "_ordinal": ordinal, **row} for ordinal, row in enumerate(message["rows"])]

    def write(self, folder):
        files = os.path.join(folder, "parquet/index/day=23")
        os.makedirs(files)
        os.makedirs(os.path.join(folder, "dead"))
        os.makedirs(os.path.join(folder, "parquet/active"))
        with open(os.path.join(folder, "parquet/active/unfinished.parquet"), "wb") as out:
            out.write(b"PAR1")
        third = len(self.rows) // 3 + 1
        for n in range(3):
            part = self.rows[n * third : (n + 1) * third]
            schema = self.schema
            table = pa.table({f.name: pa.array([r.get(f.name) for r in part], f.type) for f in schema}, schema)
            pq.write_table(table, f"{files}/{n}.parquet", row_group_size=1 + third // 2)
        with open(os.path.join(folder, "dead/1.ndjson"), "w") as out:
            for m in self.letters:
                topic, partition, offset = m["place"]

                def text(data):
                    return None if data is None else base64.b64encode(data).decode()

                letter = {
                    "reason": "decode",
                    "detail": "?",
                    "topic": topic,
                    "partition": partition,
                    "offset": offset,
                    "timestamp_ms": m["timestamp"],
                    "key_base64": text(m["key"]),
                    "payload_base64": text(m["payload"]),
                    "headers": [[name, text(value)] for name, value in m["headers"]],
                }
                out.write(json.dumps(letter) + "\n")

    def send_letters(self, letters):
        for m in letters:
            place = zip(("topic", "partition", "offset"), m["place"])
            headers = (
                m["headers"] + [("openwit.reason", b"decode")] + [(f"openwit.{k}", str(v).encode()) for k, v in place]
            )
            self.producer.produce(self.dead_topic, m["payload"], key=m["key"], headers=headers)
        self.producer.flush()

    def commit(self, behind=0):
        ends = [TopicPartition(self.topic, p, end - (behind if p == 0 else 0)) for p, end in self.ends.items()]
        client = Consumer({"bootstrap.servers": BROKERS, "group.id": self.group})
        client.commit(offsets=ends, asynchronous=False)
        client.close()

    def verify(self, folder, *more):
        command = [
            sys.executable,
            f"{HERE}/verify.py",
            "--brokers",
            BROKERS,
            "--topics",
            self.topic,
            "--signal",
            self.signal,
            "--format",
            self.form,
            "--parquet",
            f"{folder}/parquet",
            "--dead-letter-dir",
            f"{folder}/dead",
            "--dead-letter-topic",
            self.dead_topic,
            "--group",
            self.group,
            "--sample",
            "100000",
            "--json",
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        report = json.loads(done.stdout)
        assert (done.returncode == 0) == report["equal"], done.stdout
        return report


# ------------------------------------------------------------------------------------------------------------- defects


def row_lost(run):
    del run.rows[0]


def message_lost(run):
    place = run.rows[0]["_partition"], run.rows[0]["_offset"]
    run.rows = [r for r in run.rows if (r["_partition"], r["_offset"]) != place]


def row_doubled(run):
    run.rows.append(run.rows[0])


def both_copies_delivered(run):
    run.rows += run.as_rows(run.copies[0][0])


def other_copy_delivered(run):
    """No defect: which of the copies wins is the pipeline's choice."""
    copy_, winner = run.copies[0]
    run.rows = [r for r in run.rows if (r["_topic"], r["_partition"], r["_offset"]) != winner["place"]] + run.as_rows(
        copy_
    )


def unknown_message(run):
    run.rows.append({**run.rows[0], "_offset": 10**6})


def ordinal_too_high(run):
    run.rows.append({**run.rows[0], "_ordinal": 99})


def invalid_message_stored(run):
    topic, partition, offset = run.letters[0]["place"]
    run.rows.append({**run.rows[0], "_partition": partition, "_offset": offset, "_ordinal": 0})


def letter_missing(run):
    del run.letters[0]


def letter_for_valid(run):
    row = run.rows[0]
    run.letters.append({**run.letters[0], "place": (row["_topic"], row["_partition"], row["_offset"])})


def letter_altered(run):
    run.letters[0]["payload"] += b"!"


def letter_key_altered(run):
    run.letters[0]["key"] = b"another"


def letter_twice(run):
    """No defect: a dead letter is at least once."""
    run.letters.append(run.letters[0])


def changed(column, value, where=lambda row: True):
    """Another value in the first row that it fits."""

    def defect(run):
        next(row for row in run.rows if where(row))[column] = value

    defect.__name__ = f"changed_{column}"
    return defect


def has(column):
    return lambda row: row.get(column) not in (None, [])


def copied_not_moved(run):
    row = next(filter(has("http_route"), run.rows))
    row["attributes"] = [*row["attributes"], ("http.route", row["http_route"])]


def moved_although_text(run):
    row = next(r for r in run.rows if ("http.response.status_code", "404") in r["attributes"])
    row["http_response_status_code"] = 404
    row["attributes"] = [a for a in row["attributes"] if a[0] != "http.response.status_code"]


def text_of_a_null(run):
    row = next(r for r in run.rows if ("none", None) in r["attributes"])
    row["attributes"] = [(k, "" if k == "none" else v) for k, v in row["attributes"]]


def column_lacking(run):
    run.schema = run.schema.remove(run.schema.get_field_index("url_path"))


def column_of_another_type(run):
    run.schema = run.schema.set(run.schema.get_field_index("server_port"), pa.field("server_port", pa.int64()))


def column_more(run):
    run.schema = run.schema.append(pa.field("more", pa.int64()))


def columns_exchanged(run):
    run.schema = pa.schema([run.schema.field(i) for i in (1, 0, *range(2, len(run.schema)))])


DEFECTS = [  # what is planted, the findings it must give
    (row_lost, {"message_incomplete", "row_count"}),
    (message_lost, {"message_lost", "row_count"}),
    (row_doubled, {"row_identity_twice", "row_count"}),
    (both_copies_delivered, {"duplicate_delivered", "row_count"}),
    (other_copy_delivered, set()),
    (unknown_message, {"row_without_message", "row_count"}),
    (ordinal_too_high, {"ordinal_out_of_range", "row_count"}),
    (invalid_message_stored, {"row_of_invalid_message", "row_count"}),
    (letter_missing, {"dead_letter_missing"}),
    (letter_for_valid, {"dead_letter_unexpected"}),
    (letter_altered, {"dead_letter_payload_differs"}),
    (letter_key_altered, {"dead_letter_key_differs"}),
    (letter_twice, set()),
    (changed("_kafka_timestamp", 1), {"field_differs._kafka_timestamp"}),
    (changed("_tenant", "shop"), {"field_differs._tenant"}),
    (changed("service_name", "other"), {"field_differs.service_name"}),
    (changed("attributes", [("other", "x")]), {"field_differs.attributes"}),
    (
        changed("resource_attributes", [("host.id", "8"), ("host.name", "1")]),
        {"field_differs.resource_attributes"},
    ),
    (changed("scope_attributes", []), {"field_differs.scope_attributes"}),
    (changed("trace_id", b"x" * 16), {"field_differs.trace_id"}),
    (changed("parent_span_id", b"x" * 8), {"field_differs.parent_span_id"}),
    (changed("name", "other"), {"field_differs.name"}),
    (changed("kind", 77), {"field_differs.kind"}),
    (changed("start_time", 1_700_000_000_000_000_001), {"field_differs.start_time"}),
    (changed("duration_ns", -1), {"field_differs.duration_ns"}),
    (changed("status_code", 9), {"field_differs.status_code"}),
    (changed("flags", 1), {"field_differs.flags"}),
    (changed("scope_schema_url", "x"), {"field_differs.scope_schema_url"}),
    (changed("resource_dropped_attributes_count", 4), {"field_differs.resource_dropped_attributes_count"}),
    (changed("dropped_links_count", 4), {"field_differs.dropped_links_count"}),
    (changed("k8s_pod_name", None), {"field_differs.k8s_pod_name"}),
    (changed("host_name", "1"), {"field_differs.host_name"}),
    (changed("http_route", "/a", has("http_route")), {"field_differs.http_route"}),
    (
        changed("http_response_status_code", 405, has("http_response_status_code")),
        {"field_differs.http_response_status_code"},
    ),
    (changed("db_query_text", None, lambda row: row.get("db_query_text") == ""), {"field_differs.db_query_text"}),
    (copied_not_moved, {"field_differs.attributes"}),
    (moved_although_text, {"field_differs.attributes", "field_differs.http_response_status_code"}),
    (text_of_a_null, {"field_differs.attributes"}),
    (
        changed("events", [{"time": 1, "name": "x", "attributes": [], "dropped_attributes_count": 0}] * 9),
        {"field_differs.events"},
    ),
    (changed("links", [], has("links")), {"field_differs.links"}),
    (column_lacking, {"column_missing"}),
    (column_of_another_type, {"column_type"}),
    (column_more, {"column_unknown"}),
    (columns_exchanged, {"column_order"}),
]


def of(kind):
    return lambda row: row["metric_type"] == kind


METRIC_DEFECTS = [
    (changed("value_double", 0.123, has("value_double")), {"field_differs.value_double"}),
    (changed("value_double", 0.0, lambda row: str(row.get("value_double")) == "-0.0"), {"field_differs.value_double"}),
    (changed("value_int", 1, has("value_int")), {"field_differs.value_int"}),
    (changed("metric_type", "sum"), {"field_differs.metric_type"}),
    (changed("temporality", 1, of("sum")), {"field_differs.temporality"}),
    (changed("temporality", 0, of("gauge")), {"field_differs.temporality"}),
    (changed("is_monotonic", None, of("sum")), {"field_differs.is_monotonic"}),
    (changed("metric_metadata", []), {"field_differs.metric_metadata"}),
    (changed("description", ""), {"field_differs.description"}),
    (changed("count", 4, of("summary")), {"field_differs.count"}),
    (changed("sum", None, of("summary")), {"field_differs.sum"}),
    (changed("min", None, lambda row: row.get("min") == 0), {"field_differs.min"}),
    (changed("max", 1.0, of("gauge")), {"field_differs.max"}),
    (changed("bucket_counts", [1, 2, 3], of("histogram")), {"field_differs.bucket_counts"}),
    (changed("explicit_bounds", [0.1], of("histogram")), {"field_differs.explicit_bounds"}),
    (changed("scale", 3, of("exponential_histogram")), {"field_differs.scale"}),
    (changed("zero_count", 0, of("histogram")), {"field_differs.zero_count"}),
    (changed("zero_threshold", 0.0, of("exponential_histogram")), {"field_differs.zero_threshold"}),
    (changed("positive_offset", 7, of("exponential_histogram")), {"field_differs.positive_offset"}),
    (changed("positive_bucket_counts", [6, 5], of("exponential_histogram")), {"field_differs.positive_bucket_counts"}),
    (changed("negative_offset", 0, of("exponential_histogram")), {"field_differs.negative_offset"}),
    (changed("negative_bucket_counts", [1]), {"field_differs.negative_bucket_counts"}),
    (
        changed("quantiles", [{"quantile": 0.5, "value": 0.3333333333333334}], of("summary")),
        {"field_differs.quantiles"},
    ),
    (changed("exemplars", [], of("gauge")), {"field_differs.exemplars"}),
]


def expect(name, report, codes):
    if set(report["differences"]) != codes:
        sys.exit(f"FAILED {name}: expected {sorted(codes)}\n{json.dumps(report, indent=2)}")
    print(f"ok {name}: {', '.join(sorted(codes)) or 'equal'}", flush=True)


def check_tenants():
    named = {b"shop": "shop", b" cart.2 ": "cart.2", b"": None, b"a/b": None, None: None}
    run = Run("logs", "json", 300, tenants=named)
    run.commit()
    run.send_letters(run.letters)
    by_header = "--tenants", "header:tenant"
    with tempfile.TemporaryDirectory() as folder:
        run.write(folder)
        report = run.verify(folder, *by_header)
        expect("tenants by header", report, set())
        assert report["counts"]["rows_compared"] == len(run.rows) > 0 and run.copies and run.letters, report
        lost = {"message_lost", "row_count", "dead_letter_unexpected", "dead_letter_record_unexpected"}
        expect("a default tenant", run.verify(folder, *by_header, "--tenant-default", "rest"), lost)
    next(row for row in run.rows if row["_tenant"] == "shop")["_tenant"] = "cart.2"
    with tempfile.TemporaryDirectory() as folder:
        run.write(folder)
        expect("a row of another tenant", run.verify(folder, *by_header), {"field_differs._tenant"})

    run = Run("logs", "json", 100)
    run.commit()
    run.send_letters(run.letters)
    for row in run.rows:
        row["_tenant"] = run.topic
    with tempfile.TemporaryDirectory() as folder:
        run.write(folder)
        expect("tenants by topic", run.verify(folder, "--tenants", "topic:0"), set())
        expect("no tenants", run.verify(folder), {"field_differs._tenant"})
        nobodys = {"row_of_invalid_message", "row_count", "dead_letter_missing", "dead_letter_record_missing"}
        expect("topic without a tenant", run.verify(folder, "--tenants", "topic:1"), nobodys)
    return 6


def check_all():
    count = 0
    for signal, form in KINDS:
        run = Run(signal, form, MESSAGES)
        run.commit()
        run.send_letters(run.letters)
        with tempfile.TemporaryDirectory() as folder:
            run.write(folder)
            report = run.verify(folder)
            expect(f"{signal} {form}", report, set())
            counts = report["counts"]
            assert counts["rows_compared"] == counts["rows_expected"] == len(run.rows), counts
            assert counts["duplicates"] == len(run.copies) > 0 and counts["invalid"] == len(run.letters) > 0, counts
            assert counts["empty"] == 1 and counts["messages"] == MESSAGES + 1, counts
            count += 1
            defects = {("traces", "otlp"): DEFECTS, ("metrics", "otlp"): METRIC_DEFECTS}.get((signal, form), [])
            perfect = run.rows, run.letters
            with ThreadPoolExecutor(AT_ONCE) as pool, tempfile.TemporaryDirectory() as others:
                reports = []
                for number, (defect, _) in enumerate(defects):
                    run.rows, run.letters = copy.deepcopy(perfect)
                    run.schema = SCHEMAS[signal]
                    defect(run)
                    other = os.path.join(others, str(number))
                    run.write(other)
                    reports.append(pool.submit(run.verify, other))
                for (defect, codes), report in zip(defects, reports, strict=True):
                    expect(defect.__name__, report.result(), codes)
                    count += 1
            run.rows, run.letters = perfect
            run.schema = SCHEMAS[signal]
            if (signal, form) != ("traces", "otlp"):
                continue
            run.commit(behind=2)
            expect("commit behind the end", run.verify(folder), {"group_lag"})
            run.commit()
            run.send_letters([{**run.letters[0], "place": (run.topic, 0, 10**6)}])
            expect("letter on the topic for no message", run.verify(folder), {"dead_letter_record_unexpected"})
            expect(
                "another idea of copies",
                run.verify(folder, "--dedup", "none"),
                {
                    "message_lost",
                    "row_count",
                    "dead_letter_record_unexpected",
                },
            )
            os.truncate(f"{folder}/parquet/index/day=23/2.parquet", 100)
            report = run.verify(folder)
            assert {"file_unreadable", "message_lost"} <= set(report["differences"]), report
            print("ok torn file")
            count += 4
    count += check_tenants()
    missing = [
        sys.executable,
        f"{HERE}/verify.py",
        "--topics",
        "none-such",
        "--signal",
        "logs",
        "--format",
        "json",
        "--parquet",
        ".",
    ]
    assert subprocess.run(missing, capture_output=True).returncode == 2
    print("ok no topic: cannot check")
    count += 1
    print(f"{count} passed, 0 failed")


def load(signal, form, messages, maker=None):
    began = time.monotonic()
    run = Run(signal, form, messages, duplicates=0.02, invalid=0.01, maker=maker)
    run.commit()
    run.send_letters(run.letters)
    with tempfile.TemporaryDirectory() as folder:
        run.write(folder)
        print(f"generated {messages} messages, {len(run.rows)} rows in {time.monotonic() - began:.1f} s", flush=True)
        began = time.monotonic()
        command = [
            "--sample",
            "1000",
            "--topics",
            run.topic,
            "--signal",
            signal,
            "--format",
            form,
            "--parquet",
            f"{folder}/parquet",
            "--dead-letter-dir",
            f"{folder}/dead",
            "--dead-letter-topic",
            run.dead_topic,
            "--group",
            run.group,
        ]
        done = subprocess.run([sys.executable, f"{HERE}/verify.py", *command])
        print(f"verify.py: {time.monotonic() - began:.1f} s, exit {done.returncode}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        count, spans = map(int, sys.argv[2:])
        load("traces", "otlp", count, lambda chance: trace_message(chance, spans))
    elif sys.argv[1:2] == ["--load-json"]:
        load("logs", "json", int(sys.argv[2]))
    else:
        check_all()
