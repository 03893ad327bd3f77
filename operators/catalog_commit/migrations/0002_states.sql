-- States of files, how far partitions are complete, and what a role that only runs needs. Never edit: add a migration.
ALTER TABLE files
    ADD COLUMN schema_version int4 NOT NULL DEFAULT 0,              -- 0: its writer did not tell
    ADD COLUMN state text NOT NULL DEFAULT 'published'              -- retired: its object is about to be removed; do not read it
        CHECK (state IN ('published', 'retired'));
CREATE INDEX files_retired ON files (file_id) WHERE state = 'retired';

-- A commit that was given up is kept, so that it can never be registered: its objects may be gone.
ALTER TABLE commits
    ADD COLUMN state text NOT NULL DEFAULT 'registered' CHECK (state IN ('registered', 'abandoned'));

-- What a commit changes to take the partition's lock, so that the role needs to be able to change nothing else of it.
ALTER TABLE partitions ADD COLUMN commits int8 NOT NULL DEFAULT 0;

ALTER TABLE coverage ADD COLUMN kafka_time_max_ms int8;             -- greatest Kafka timestamp of its rows

-- Up to which offset a partition is published without a gap, from its first covered offset on. Where the broker stamps messages
-- (LogAppendTime), all that was appended before kafka_time is published; where producers do, stragglers may come behind it.
CREATE VIEW complete_through AS
    SELECT DISTINCT ON (partition_id)
        cluster, topic, topic_id, partition,
        lower(offsets) AS start_offset,
        upper(offsets) AS complete_through,
        to_timestamp(kafka_time_max_ms / 1000.0) AS kafka_time,
        kafka_time_max_ms
    FROM coverage JOIN partitions ON partitions.id = partition_id
    ORDER BY partition_id, lower(offsets);
