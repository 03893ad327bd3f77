-- Files, coverage and index work of openwit-ingest. Never edit: add a migration.
-- The extension belongs to the database, not to this schema: another catalog in the same database shares it.
CREATE EXTENSION IF NOT EXISTS btree_gist WITH SCHEMA public;

CREATE TABLE commits (
    commit_id    text COLLATE "C" PRIMARY KEY,
    digest       text NOT NULL,
    index_name   text NOT NULL,
    signal       text NOT NULL,
    node         text NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE files (
    file_id     text COLLATE "C" PRIMARY KEY,
    commit_id   text COLLATE "C" NOT NULL REFERENCES commits,
    index_name  text NOT NULL,
    signal      text NOT NULL,
    node        text NOT NULL,
    path        text NOT NULL,
    day         int4 NOT NULL,            -- days since 1970-01-01 UTC
    rows        int8 NOT NULL,
    bytes       int8 NOT NULL,
    time_min_ns int8,
    time_max_ns int8,
    schema_hash text NOT NULL
);
CREATE INDEX files_by_time ON files (index_name, signal, time_min_ns, time_max_ns);
CREATE INDEX files_by_day ON files (day);

CREATE TABLE partitions (
    id        int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cluster   text NOT NULL,
    topic     text NOT NULL,
    topic_id  text NOT NULL,
    partition int4 NOT NULL,
    UNIQUE (cluster, topic, topic_id, partition)
);

CREATE TABLE coverage (
    partition_id int8 NOT NULL REFERENCES partitions,
    offsets      int8range NOT NULL CHECK (NOT isempty(offsets) AND lower(offsets) >= 0 AND NOT upper_inf(offsets)),
    stored       int8 NOT NULL,
    duplicates   int8 NOT NULL,
    rejected     int8 NOT NULL,
    skipped      int8 NOT NULL,
    absent       int8 NOT NULL,
    rows         int8 NOT NULL,
    CHECK (stored + duplicates + rejected + skipped + absent = upper(offsets) - lower(offsets)),
    EXCLUDE USING gist (partition_id WITH =, offsets WITH &&)
);

CREATE TABLE index_queue (
    file_id   text COLLATE "C" PRIMARY KEY REFERENCES files ON DELETE CASCADE,
    queued_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE topics (
    cluster    text NOT NULL,
    topic      text NOT NULL,
    topic_id   text NOT NULL,
    index_name text NOT NULL,
    signal     text NOT NULL,
    PRIMARY KEY (cluster, topic, topic_id)
);
