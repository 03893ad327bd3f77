#!/usr/bin/env python3
"""Checks a finished run from the outside: what is in Kafka must be in Parquet or in the dead letters, exactly once.

It shares nothing with openwit-ingest. It reads the source topics itself (earliest to the end), decodes them with its
own decoding, decides what the pipeline had to do with every message, and compares that with the files:

    message in Kafka ──┬─ undecodable, nobody's ────> one dead letter, payload byte-equal, no row
                       ├─ same payload and tenant ──> of these copies exactly one is delivered (any one of them)
                       └─ valid ────────────────────> one row per span / log record / data point,
                                                      each identity (_topic, _partition, _offset, _ordinal) once
    group's offset ────── behind an unread message ─> lag, which must be 0

and the schema of every file, and for a sample of rows every column with the value decoded from Kafka.

What it cannot see: a dedup window shorter than the run (pass --dedup none and count), messages that arrive while it
reads, and rows in files under active/ (they are not published).

Run it with the Python of `scripts/services` ($OPENWIT_TEST_PYTHON). Exit: 0 equal, 1 differences, 2 cannot check.
"""

import argparse
import array
import base64
import hashlib
import heapq
import json
import math
import os
import random
import re
import sys
import time
import traceback

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition

from contract import IDENTITY as IDENTITY_COLUMNS, SCHEMAS, same, same_type, to_python
from decode import DECODERS, Undecodable

DEAD_LETTER_PREFIX = "openwit."  # Headers that the dead letter topic adds to the original ones.
IDENTITY = IDENTITY_COLUMNS.split()[::2]
# The payloads of sampled messages are kept until the files are read; 20 MB messages must not fill the memory.
SAMPLE_BYTES = 256 << 20

VALID, INVALID, EMPTY = 0, 1, 2
NO_TIMESTAMP = -1
TENANT = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class CannotCheck(Exception):
    """Neither equal nor different: exit 2."""


# ------------------------------------------------------------------------------------------------------------ report


class Report:
    """Findings by code: how many, and the first few. Any finding fails the run; notes do not."""

    def __init__(self, limit):
        self.limit, self.counts, self.findings, self.notes, self.began = limit, {}, {}, {}, time.monotonic()

    def found(self, code, count, examples=()):
        if count:
            entry = self.findings.setdefault(code, {"count": 0, "first": []})
            entry["count"] += count
            entry["first"] += [str(e) for e in examples][: self.limit - len(entry["first"])]

    def progress(self, text):
        print(f"verify: {time.monotonic() - self.began:6.1f} s  {text}", file=sys.stderr, flush=True)

    def as_dict(self):
        return {"equal": not self.findings, "counts": self.counts, "differences": self.findings, "notes": self.notes}

    def as_text(self):
        lines = [f"{name.replace('_', ' '):<34} {value:>12}" for name, value in self.counts.items()]
        lines += [f"note: {name}: {value}" for name, value in self.notes.items()]
        for code, entry in self.findings.items():
            lines.append(f"DIFFERENCE {code}: {entry['count']}")
            lines += [f"    {example}" for example in entry["first"]]
            if entry["count"] > len(entry["first"]):
                lines.append(f"    ... and {entry['count'] - len(entry['first'])} more")
        lines.append("equal" if not self.findings else "NOT equal")
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- Kafka


def consumer(brokers):
    return Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"verify-{os.getpid()}",  # Never committed to: it only reads.
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
            "fetch.message.max.bytes": 32 << 20,
            "queued.max.messages.kbytes": 256 << 10,
            "check.crcs": True,
        }
    )


def matching(pattern, names):
    """The topics that a pattern of the pipeline's configuration means: * is one dot-separated token, ** any rest."""
    parts = {"**": ".*", "*": "[^.]+"}
    regex = "".join(parts.get(p, re.escape(p)) for p in re.split(r"(\*\*?)", pattern))
    return [n for n in names if re.fullmatch(regex, n)]


def read_all(brokers, topics, each, besides=None):
    """Calls each(message) for all that is in the topics now; returns {(topic, partition): (low, high)}.

    Partitions end by the end-of-partition event: the last offsets may be gaps (compaction, transaction markers)."""
    source = consumer(brokers)
    try:
        known = source.list_topics(timeout=20).topics
        matched = {t: [n for n in matching(t, sorted(known)) if n != besides] for t in topics}
        missing = [t for t, names in matched.items() if not names]
        if missing:
            raise CannotCheck(f"no such topic: {', '.join(missing)}")
        ends = {}
        for name in dict.fromkeys(n for names in matched.values() for n in names):
            for partition in known[name].partitions:
                ends[name, partition] = source.get_watermark_offsets(TopicPartition(name, partition), timeout=20)
        open_ = {key for key, (low, high) in ends.items() if high > low}
        source.assign([TopicPartition(*key, ends[key][0]) for key in open_])
        while open_:
            for message in source.consume(1_000, 0.1):
                key = message.topic(), message.partition()
                if message.error() is None:
                    if message.offset() < ends[key][1]:
                        each(message)
                    if message.offset() >= ends[key][1] - 1:
                        open_.discard(key)
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    open_.discard(key)
                else:
                    raise KafkaException(message.error())
        return ends
    finally:
        source.close()


def digest(data):
    return hashlib.blake2b(data, digest_size=16).digest()


def headers_of(message):
    return [(name, value) for name, value in message.headers() or ()]


class Source:
    """Everything the topics hold, as columns: one entry per message, and groups of messages that are copies."""

    def __init__(self, args, decoder):
        self.decoder, self.dedup, self.sample_size, self.seed = decoder, args.dedup, args.sample, args.seed
        self.tenants, self.tenant_default = args.tenants, args.tenant_default
        self.topics, self.topic_ids = [], {}
        self.topic, self.partition = array.array("i"), array.array("i")
        self.offset, self.timestamp = array.array("q"), array.array("q")
        self.rows, self.status, self.group = array.array("q"), array.array("b"), array.array("q")
        self.verdicts = {}  # payload digest -> (status, rows)
        self.groups = {}  # dedup key -> number of the group
        self.rejected = {}  # (topic, partition, offset) -> (status, payload digest, key, headers, reason)
        self.sample = []  # heap of (-priority, group, payload, tenant): the groups of least priority
        self.sample_bytes = self.bytes = 0
        self.reasons = {}

    def verdict(self, payload):
        if not payload:
            return EMPTY, 0, "no payload"
        try:
            return VALID, self.decoder.count(payload), ""
        except Undecodable as reason:
            return INVALID, 0, str(reason)

    def tenant_of(self, message):
        """Whose a message is, and why it is nobody's and must be rejected."""
        source, _, which = self.tenants.partition(":")
        if source == "none":
            return None, ""
        if source == "topic":
            named = dict(enumerate(message.topic().split("."))).get(int(which), "")
            named = named if TENANT.fullmatch(named) else ""
        else:
            values = [value for name, value in headers_of(message) if name.lower() == which.lower()]
            named = ((values[-1] if values else None) or b"").strip(b" \t\n\x0c\r").decode("utf-8", "replace")
            if named and not TENANT.fullmatch(named):
                return None, "no name of a tenant"
        tenant = named or self.tenant_default
        return tenant, "" if tenant else "no tenant"

    def dedup_key(self, message, content):
        if self.dedup == "payload":
            return content
        if self.dedup == "key" and message.key() is not None:
            return message.key()
        if self.dedup.startswith("header:"):
            value = dict(headers_of(message)).get(self.dedup[7:])
            if value is not None:
                return value
        elif self.dedup == "none":
            return message.topic(), message.partition(), message.offset()
        return content

    def add(self, message):
        payload = message.value() or b""
        self.bytes += len(payload)
        content = digest(payload)
        verdict = self.verdicts.get(content)
        if verdict is None:
            verdict = self.verdicts[content] = self.verdict(payload)
        status, rows, reason = verdict
        tenant, nobodys = self.tenant_of(message)
        if nobodys:
            status, rows, reason = INVALID, 0, nobodys
        group = -1
        if status == VALID:
            key = self.dedup_key(message, content)
            key = key if tenant is None else (tenant, key)
            group = self.groups.get(key)
            if group is None:
                group = self.groups[key] = len(self.groups)
                if rows:
                    self.consider(group, content, payload, tenant)
        else:
            where = message.topic(), message.partition(), message.offset()
            self.rejected[where] = status, content, message.key(), headers_of(message), message.timestamp()[1]
            self.reasons[reason.split(":")[0]] = self.reasons.get(reason.split(":")[0], 0) + 1
        topic = self.topic_ids.get(message.topic())
        if topic is None:
            topic = self.topic_ids[message.topic()] = len(self.topics)
            self.topics.append(message.topic())
        self.topic.append(topic)
        self.partition.append(message.partition())
        self.offset.append(message.offset())
        kind, timestamp = message.timestamp()
        self.timestamp.append(NO_TIMESTAMP if kind == TIMESTAMP_NOT_AVAILABLE else timestamp)
        self.rows.append(rows)
        self.status.append(status)
        self.group.append(group)

    def consider(self, group, content, payload, tenant):
        """Keeps the payloads whose digests come first in a seeded order: an even sample whatever the reading order."""
        priority = int.from_bytes(digest(content + self.seed.to_bytes(8, "little"))[:8], "little")
        if len(self.sample) >= self.sample_size and (not self.sample or -self.sample[0][0] < priority):
            return
        heapq.heappush(self.sample, (-priority, group, payload, tenant))
        self.sample_bytes += len(payload)
        while len(self.sample) > self.sample_size or self.sample_bytes > SAMPLE_BYTES and len(self.sample) > 1:
            self.sample_bytes -= len(heapq.heappop(self.sample)[2])

    def table(self):
        times = pa.array(self.timestamp, pa.int64())
        names = pa.DictionaryArray.from_arrays(pa.array(self.topic, pa.int32()), pa.array(self.topics, pa.string()))
        return pa.table(
            {
                "topic": names.cast(pa.string()),
                "part": pa.array(self.partition, pa.int32()),
                "off": pa.array(self.offset, pa.int64()),
                "ts": pc.if_else(pc.equal(times, NO_TIMESTAMP), None, times),
                "n": pa.array(self.rows, pa.int64()),
                "status": pa.array(self.status, pa.int8()),
                "grp": pa.array(self.group, pa.int64()),
            }
        )


# ----------------------------------------------------------------------------------------------------------- Parquet


def open_store(where):
    """(file system, root): a local folder, or s3://, gs://, az://bucket/prefix at the endpoint of the test services."""
    from pyarrow import fs

    def endpoint_of(store):
        return os.environ[f"OPENWIT_TEST_{store}_ENDPOINT"].removeprefix("http://").split("/")[0]

    if where.startswith("gs://"):
        return fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=endpoint_of("GCS")), where[5:].rstrip("/")
    if where.startswith("az://"):
        azure = fs.AzureFileSystem(
            account_name=os.environ["OPENWIT_TEST_AZBLOB_ACCOUNT"],
            account_key=os.environ["OPENWIT_TEST_AZBLOB_KEY"],
            blob_storage_authority=endpoint_of("AZBLOB"),
            blob_storage_scheme="http",
            dfs_storage_authority=endpoint_of("AZBLOB"),
            dfs_storage_scheme="http",
        )
        return azure, where[5:].rstrip("/")

    if where.startswith("s3://"):
        endpoint = os.environ.get("OPENWIT_TEST_S3_ENDPOINT", "")
        scheme, _, host = endpoint.partition("://")
        return fs.S3FileSystem(endpoint_override=host or None, scheme=scheme or "https"), where[5:].rstrip("/")
    return fs.LocalFileSystem(), where.rstrip("/")


def parquet_files(store, root):
    from pyarrow import fs

    found = store.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    inside = ((f.path, f.path[len(root) :].split("/")) for f in found if f.type == fs.FileType.File)
    # active/ holds files that are still written: not published, and without a footer.
    return sorted(path for path, parts in inside if path.endswith(".parquet") and "active" not in parts)


def read_identities(store, files, report):
    """All rows' identities as one table: topic, part, off, ord, file (index into files), pos (row in the file)."""
    tables = []
    for index, path in enumerate(files):
        try:
            table = pq.ParquetFile(path, filesystem=store).read(columns=IDENTITY)
        except (OSError, pa.ArrowException) as error:
            report.found("file_unreadable", 1, [f"{path}: {error}"])
            continue
        lacking = [c for c in IDENTITY if c not in table.column_names]
        if lacking:
            report.found("column_missing", 1, [f"{path}: {', '.join(lacking)}"])
            continue
        for name in IDENTITY:
            if table[name].null_count:
                report.found("identity_null", table[name].null_count, [f"{path}: {name}"])
        tables.append(
            pa.table(
                {
                    "topic": table["_topic"].cast(pa.string()),
                    "part": table["_partition"].cast(pa.int32()),
                    "off": table["_offset"].cast(pa.int64()),
                    "ord": table["_ordinal"].cast(pa.int32()),
                    "file": pa.repeat(pa.scalar(index, pa.int32()), len(table)),
                    "pos": pa.array(range(len(table)), pa.int64()),
                }
            )
        )
    empty = pa.table(
        {
            "topic": pa.array([], pa.string()),
            "part": pa.array([], pa.int32()),
            "off": pa.array([], pa.int64()),
            "ord": pa.array([], pa.int32()),
            "file": pa.array([], pa.int32()),
            "pos": pa.array([], pa.int64()),
        }
    )
    return pa.concat_tables([empty, *tables])


def rows_at(store, path, positions):
    """The rows of a file at ascending positions, read one row group at a time."""
    file = pq.ParquetFile(path, filesystem=store)
    start, parts = 0, []
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        inside = [p - start for p in positions if start <= p < end]
        if inside:
            parts.append(file.read_row_group(group).take(pa.array(inside, pa.int64())))
        start = end
    return pa.concat_tables(parts)


def compare_sets(db, report):
    """Identities and counts: everything that needs no look at the values."""

    def check(code, text, sql):
        total = db.execute(f"select count(*) from ({sql})").fetchall()[0][0]
        if total:
            report.found(
                code, total, [text.format(*row) for row in db.execute(f"{sql} limit {report.limit}").fetchall()]
            )

    db.execute("""
        create table got as
          select topic, part, off, count(*) rows, count(distinct ord) ords, min(ord) lo, max(ord) hi
          from found group by topic, part, off;
        create table pairs as
          select topic, part, off, coalesce(g.rows, 0) rows, coalesce(g.ords, 0) ords, g.lo, g.hi, m.n, m.status, m.grp
          from messages m full join got g using (topic, part, off);
        create table copies as
          select grp, count(*) copies, min(n) n, count(*) filter (rows > 0) delivered,
                 list((topic || '/' || part || '@' || off) order by topic, part, off) places
          from pairs where status = 0 group by grp;
    """)
    check(
        "row_identity_twice",
        "{0}/{1}@{2} ordinal {3}: {4} rows",
        "select topic, part, off, ord, count(*) from found group by all having count(*) > 1 order by all",
    )
    check(
        "row_without_message",
        "{0}/{1}@{2}: {3} rows, but Kafka has no such message",
        "select topic, part, off, rows from pairs where status is null order by all",
    )
    check(
        "row_of_invalid_message",
        "{0}/{1}@{2}: {3} rows",
        f"select topic, part, off, rows from pairs where status = {INVALID} and rows > 0 order by all",
    )
    check(
        "message_incomplete",
        "{0}/{1}@{2}: {3} of {4} ordinals",
        "select topic, part, off, ords, n from pairs where status = 0 and rows > 0 and ords < n order by all",
    )
    check(
        "ordinal_out_of_range",
        "{0}/{1}@{2}: ordinals {3} to {4}, the message has {5} rows",
        "select topic, part, off, lo, hi, n from pairs where status = 0 and rows > 0 and (lo < 0 or hi >= n)",
    )
    check(
        "message_lost",
        "{0}: none of {1} copies delivered",
        "select places[1], copies from copies where n > 0 and delivered = 0 order by all",
    )
    check(
        "duplicate_delivered",
        "{0} of these copies delivered: {1}",
        "select delivered, places[:5] from copies where delivered > 1 order by places[1]",
    )
    messages, invalid, empty, copies_, rows, expected = db.execute(f"""
        select (select count(*) from messages), (select count(*) from messages where status = {INVALID}),
               (select count(*) from messages where status = {EMPTY}),
               (select sum(copies - 1) from copies), (select count(*) from found), (select sum(n) from copies)
    """).fetchall()[0]
    report.counts.update(
        messages=messages,
        invalid=invalid,
        empty=empty,
        duplicates=int(copies_ or 0),
        rows_expected=int(expected or 0),
        rows_found=rows,
    )
    if rows != int(expected or 0):
        report.found("row_count", 1, [f"{rows} rows, {int(expected or 0)} expected"])


def choose_sample(db, source, size, seed):
    """{file: {position: (topic, partition, offset, ordinal, timestamp, payload, tenant)}} of about `size` delivered rows."""
    payloads = {group: (payload, tenant) for _, group, payload, tenant in source.sample}
    if not payloads:
        return {}
    db.register("wanted", pa.table({"grp": pa.array(payloads, pa.int64())}))
    places = db.execute("""
        select m.grp, f.topic, f.part, f.off, f.ord, m.ts, f.file, f.pos
        from wanted join messages m using (grp) join found f using (topic, part, off)
        order by m.grp, f.topic, f.part, f.off, f.ord, f.file, f.pos
    """).fetchall()
    by_group = {}
    for grp, *place in places:
        by_group.setdefault(grp, []).append(place)
    each, chance, chosen = max(1, math.ceil(size / max(1, len(by_group)))), random.Random(seed), {}
    for grp, rows in by_group.items():
        for topic, part, off, ordinal, ts, file, pos in chance.sample(rows, min(each, len(rows))):
            chosen.setdefault(file, {})[pos] = (topic, part, off, ordinal, ts, *payloads[grp])
    return chosen


def compare_schema(have, want, report):
    """A file's columns: names, order, types, and whether they may be null."""
    for field in want:
        index = have.get_field_index(field.name)
        if index < 0:
            report.found("column_missing", 1, [field.name])
            continue
        found = have.field(index)
        if not same_type(field.type, found.type):
            report.found("column_type", 1, [f"{field.name}: {clip(str(found.type))} for {clip(str(field.type))}"])
        elif found.nullable != field.nullable:
            report.found("column_nullable", 1, [f"{field.name}: {found.nullable} for {field.nullable}"])
    unknown = [name for name in have.names if name not in want.names]
    report.found("column_unknown", len(unknown), unknown)
    ours = [name for name in want.names if name in have.names]
    theirs = [name for name in have.names if name in want.names]
    if ours != theirs:
        report.found("column_order", 1, [next(f"{t} for {o}" for t, o in zip(theirs, ours) if t != o)])


def compare_fields(chosen, store, files, signal, decoder, report):
    checked, schema = 0, SCHEMAS[signal]
    for path in files:
        try:
            compare_schema(pq.ParquetFile(path, filesystem=store).schema_arrow, schema, report)
        except (OSError, pa.ArrowException):
            pass  # Reported as file_unreadable.
    for index, wanted in chosen.items():
        positions = sorted(wanted)
        table = rows_at(store, files[index], positions)
        columns = [
            (field.name, field.type, table[field.name])
            for field in schema
            if field.name not in IDENTITY and field.name in table.column_names
        ]
        messages = {}  # place -> ordinals; a message is decoded once, its rows mostly are neighbours.
        for topic, part, off, ordinal, *_ in wanted.values():
            messages.setdefault((topic, part, off), set()).add(ordinal)
        decoded = None, {}
        for row, position in enumerate(positions):
            topic, part, off, ordinal, ts, payload, tenant = wanted[position]
            nanos = None if ts is None else ts * 10**6
            if decoded[0] != (topic, part, off):
                decoded = (topic, part, off), decoder.rows(payload, messages[topic, part, off], nanos)
            expected = decoded[1].get(ordinal)
            if expected is None:
                continue  # Reported as ordinal_out_of_range.
            expected["_kafka_timestamp"], expected["_tenant"] = nanos, tenant
            checked += 1
            for column, kind, values in columns:
                want, have = expected[column], to_python(values[row])
                try:
                    equal = same(kind, want, have)
                except (TypeError, ValueError, KeyError):
                    equal = False  # Of another type than the contract's.
                if not equal:
                    have, want = clip_to_difference(have, want)
                    text = f"{topic}/{part}@{off} ordinal {ordinal}: {have} in the file, {want} in Kafka"
                    report.found(f"field_differs.{column}", 1, [text])
    report.counts["rows_compared"] = checked


def clip_to_difference(have, want):
    """Both values for the report; of maps only the entries that differ."""
    if isinstance(have, list) and isinstance(want, dict):
        texts = dict(have)
        want_ = {k: v for k, v in want.items() if k not in texts or not same(pa.string(), v, texts[k])}
        have_ = [(k, v) for k, v in have if k not in want or k in want_]
        if want_ or have_:
            have, want = have_, want_
    return clip(have), clip(want)


def clip(value):
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


# ------------------------------------------------------------------------------------------- dead letters, group lag


def local_letters(folder, report):
    """(place, payload, key, headers, timestamp, reason) of every line of *.ndjson below the folder."""

    def decoded(text):
        return None if text is None else base64.b64decode(text, validate=True)

    for path in sorted(
        os.path.join(top, f) for top, _, names in os.walk(folder) for f in names if f.endswith(".ndjson")
    ):
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    letter = json.loads(line)
                    headers = [(name, decoded(value)) for name, value in letter.get("headers") or ()]
                    yield (
                        (letter["topic"], letter["partition"], letter["offset"]),
                        decoded(letter["payload_base64"]),
                        decoded(letter.get("key_base64")),
                        headers,
                        letter.get("timestamp_ms"),
                        letter.get("reason"),
                    )
                except (ValueError, KeyError, TypeError) as error:
                    report.found("dead_letter_unreadable", 1, [f"{path}:{number}: {error!r}"])


def topic_letters(brokers, topic, report):
    """The same from the dead letter topic: the original key, payload and headers, plus openwit.* headers."""
    letters = []

    def each(message):
        ours, original = {}, []
        for name, value in headers_of(message):
            if name.startswith(DEAD_LETTER_PREFIX):
                ours[name[len(DEAD_LETTER_PREFIX) :]] = (value or b"").decode("utf-8", "replace")
            else:
                original.append((name, value))
        try:
            place = ours["topic"], int(ours["partition"]), int(ours["offset"])
        except (KeyError, ValueError) as error:
            where = f"{message.topic()}/{message.partition()}@{message.offset()}"
            report.found("dead_letter_unreadable", 1, [f"{where}: header {error}"])
            return
        letters.append((place, message.value(), message.key(), original, None, ours.get("reason")))

    read_all(brokers, [topic], each)
    return letters


def compare_letters(letters, rejected, read, name, report):
    """They must be exactly the invalid messages. An empty payload may be one or not: it is decodable and has no row."""
    seen, twice, by_reason = set(), 0, {}

    def differs(what, place, text=""):
        report.found(f"{name}_{what}", 1, [f"{place[0]}/{place[1]}@{place[2]}{text}"])

    for place, payload, key, headers, timestamp, reason in letters:
        by_reason[reason or "?"] = by_reason.get(reason or "?", 0) + 1
        if place in seen:
            twice += 1
            continue
        seen.add(place)
        if place not in rejected:
            what = "this message is valid" if place in read else "no such message"
            differs("unexpected", place, f": {what}, reason {reason!r}")
            continue
        _, content, want_key, want_headers, want_timestamp = rejected[place]
        if digest(payload or b"") != content:
            differs("payload_differs", place, f": {len(payload or b'')} bytes")
        if (key or b"") != (want_key or b""):
            differs("key_differs", place, f": {key!r} for {want_key!r}")
        if headers != want_headers:
            differs("headers_differ", place, f": {clip(headers)} for {clip(want_headers)}")
        if timestamp is not None and timestamp != want_timestamp:
            differs("timestamp_differs", place, f": {timestamp} for {want_timestamp}")
        if not reason:
            differs("without_reason", place)
    for place, (status, *_) in sorted(rejected.items()):
        if status == INVALID and place not in seen:
            differs("missing", place)
    report.counts[f"{name}s"] = len(seen)
    report.notes[f"{name} reasons"] = ", ".join(f"{r} {n}" for r, n in sorted(by_reason.items())) or "none"
    if twice:
        # At least once is what a dead letter promises: after a crash one may be written again.
        report.notes[f"{name}s written again"] = twice


def compare_lag(brokers, group, ends, source, report):
    """Unread messages behind the committed offset. Counted in messages, as the last offsets may be gaps."""
    client = Consumer({"bootstrap.servers": brokers, "group.id": group, "enable.auto.commit": False})
    try:
        committed = client.committed([TopicPartition(*key) for key in ends], timeout=20)
    finally:
        client.close()
    start = {}
    for place in committed:
        if place.error is not None:
            raise KafkaException(place.error)
        key = place.topic, place.partition
        start[key] = place.offset if place.offset >= 0 else ends[key][0]
        if place.offset > ends[key][1]:
            report.found("group_beyond_end", 1, [f"{key[0]}/{key[1]}: committed {place.offset}, end {ends[key][1]}"])
    lag = {}
    for topic, partition, offset in zip(source.topic, source.partition, source.offset):
        key = source.topics[topic], partition
        if offset >= start[key]:
            lag[key] = lag.get(key, 0) + 1
    report.counts["group_lag"] = sum(lag.values())
    behind = [f"{t}/{p}: {n} messages from {start[t, p]}" for (t, p), n in sorted(lag.items())]
    report.found("group_lag", len(behind), behind)


# -------------------------------------------------------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default=os.environ.get("OPENWIT_TEST_KAFKA"), help="default: $OPENWIT_TEST_KAFKA")
    parser.add_argument(
        "--topics", required=True, help="comma-separated names or patterns: * is one dot-separated token, ** any rest"
    )
    parser.add_argument("--signal", required=True, choices=list(SCHEMAS))
    parser.add_argument("--format", required=True, choices=list(DECODERS))
    parser.add_argument("--parquet", required=True, help="folder, or s3://, gs://, az://bucket/prefix of the test services")
    parser.add_argument("--dead-letter-dir")
    parser.add_argument("--dead-letter-topic")
    parser.add_argument("--group", help="consumer group whose lag must be 0")
    parser.add_argument(
        "--dedup", default="payload", help="what makes two messages copies: payload, key, header:NAME, none"
    )
    parser.add_argument(
        "--tenants", default="none", help="what says whose a message is: none, topic:POSITION (from 0), header:NAME"
    )
    parser.add_argument("--tenant-default", help="whose the others are; without it they must be rejected")
    parser.add_argument("--sample", type=int, default=1000, help="rows compared field by field")
    parser.add_argument("--seed", type=int, default=1, help="chooses the sample")
    parser.add_argument("--max-differences", type=int, default=5, help="shown of each kind")
    parser.add_argument("--json", action="store_true", help="report as one JSON object")
    args = parser.parse_args()
    if not args.brokers:
        parser.error("--brokers is needed")
    if args.dedup not in ("payload", "key", "none") and not args.dedup.startswith("header:"):
        parser.error(f"--dedup {args.dedup}: one of payload, key, header:NAME, none")
    if not re.fullmatch("none|topic:[0-9]+|header:.+", args.tenants):
        parser.error(f"--tenants {args.tenants}: one of none, topic:POSITION, header:NAME")
    return args


def verify(args, report):
    decoder = DECODERS[args.format](args.signal)
    source = Source(args, decoder)
    topics = [t.strip() for t in args.topics.split(",") if t.strip()]
    ends = read_all(args.brokers, topics, source.add, besides=args.dead_letter_topic)
    report.progress(f"read {len(source.offset)} messages, {source.bytes >> 20} MiB from Kafka")

    store, root = open_store(args.parquet)
    files = parquet_files(store, root)
    found = read_identities(store, files, report)
    report.progress(f"read the identities of {len(found)} rows from {len(files)} files")

    db = duckdb.connect()
    db.register("messages", source.table())
    db.register("found", found)
    report.counts["files"] = len(files)
    compare_sets(db, report)
    report.progress("compared identities")
    chosen = choose_sample(db, source, args.sample, args.seed)
    compare_fields(chosen, store, files, args.signal, decoder, report)
    report.progress(f"compared {report.counts['rows_compared']} rows field by field")

    read = {(source.topics[t], p, o) for t, p, o in zip(source.topic, source.partition, source.offset)}
    if args.dead_letter_dir:
        compare_letters(local_letters(args.dead_letter_dir, report), source.rejected, read, "dead_letter", report)
    if args.dead_letter_topic:
        letters = topic_letters(args.brokers, args.dead_letter_topic, report)
        compare_letters(letters, source.rejected, read, "dead_letter_record", report)
    if not (args.dead_letter_dir or args.dead_letter_topic):
        report.notes["dead letters"] = "not checked"
    if source.reasons:
        report.notes["rejected by us"] = ", ".join(f"{r} {n}" for r, n in sorted(source.reasons.items()))
    if args.group:
        compare_lag(args.brokers, args.group, ends, source, report)
    else:
        report.notes["group lag"] = "not checked"
    report.progress("done")


def main():
    args = arguments()
    report = Report(args.max_differences)
    try:
        verify(args, report)
    except (CannotCheck, KafkaException, OSError) as error:
        print(f"verify: cannot check: {error}", file=sys.stderr)
        return 2
    except Exception:  # A mistake of ours is not a difference: Python's own exit code for it would be 1.
        traceback.print_exc()
        return 2
    print(json.dumps(report.as_dict(), indent=2) if args.json else report.as_text())
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
