//! The catalog in PostgreSQL: shared by any number of storage nodes.
//!
//! ```text
//! partitions   id, cluster, topic, topic_id, partition      its row lock puts the commits of a partition into an order
//! coverage     partition_id, offsets int8range, counts      exclusion constraint: no two rows of a partition overlap
//! commits      commit_id, digest, state                     a repeated commit is recognized, one that was given up refused
//! files        file_id, group, path, uri, times, sizes, state
//! index_queue  file_id                                      with NOTIFY on channel `openwit_index`
//! topics       cluster, topic, topic_id, group
//! migrations   version
//! ```
//! The tables lie in a schema of their own. Migrations run at open, in order, under an advisory lock, each in one transaction. A role that
//! may not change tables is enough to run: where the tables have this version, opening changes nothing (`grants.sql`).
//!
//! Connections are kept in a small pool. A lost one is opened again by the next call; the call that lost it fails as retriable. The
//! client blocks: never call it from asynchronous code.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, Row, Transaction};
use postgres_openssl::MakeTlsConnector;
use ulid::Ulid;

use crate::batch::{Group, Signal};
use crate::catalog_commit::{
    Binding, Catalog, Commit, Committed, CompleteThrough, Error, FileFilter, FileRow, IndexBacklog, IndexWork, Standing,
};
use crate::coverage::{Dispositions, PartitionKey, TopicKey};
use crate::object_upload::{Secret, StoreUri};
use crate::parquet_roll::{CoverageRow, Day};

pub mod tls;

pub use tls::Tls;

/// The channel on which indexers are told that there is work.
pub const INDEX_CHANNEL: &str = "openwit_index";

/// Only added to, never edited: databases in the field have run them.
const MIGRATIONS: [&str; 3] = [
    include_str!("migrations/0001_catalog.sql"),
    include_str!("migrations/0002_states.sql"),
    include_str!("migrations/0003_uri.sql"),
];
/// What a role needs that only runs.
const GRANTS: &str = include_str!("migrations/grants.sql");
/// Any number, the same in all versions: "openwit" in ASCII.
const ADVISORY_LOCK: i64 = 0x006f_7065_6e77_6974;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished without a word (power, network) is given up after this long, while asked and while idle. Longer than
/// `statement_timeout` would be in vain, much shorter would break off commits at a short network outage that TCP survives.
const TCP_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections kept open. The registrar's thread and the janitor's use the catalog, each one at a time: two are never waited for, and a
/// third would idle. More callers than that open connections of their own and close them.
const IDLE_MAX: usize = 2;
/// Files that get their URI in one statement: a second.
const LOCATED_AT_ONCE: i64 = if cfg!(test) { 1 } else { 10_000 };
/// A commit takes milliseconds. One that waits longer for a lock is rolled back and repeated. A node that is stopped in the middle of
/// one (a paused machine) holds its partitions' locks: the server takes them back soon, or the nodes that stand in would wait as long.
const SESSION: &str = "SET lock_timeout = '20s'; SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '5s'; \
                       SET default_transaction_isolation = 'read committed'; SET synchronous_commit = 'on';";

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct Config {
    /// A connection string, `postgres://user:password@host:port/database` or `host=.. user=..`.
    pub url: Secret,
    /// The schema that holds the tables; created when missing.
    pub schema: String,
    /// How connections are encrypted.
    pub tls: Tls,
}

/// A catalog in PostgreSQL.
pub struct PostgresCatalog {
    config: postgres::Config,
    connector: MakeTlsConnector,
    schema: String,
    idle: Mutex<Vec<Client>>,
}

/// True for failures of the connection or of the server's moment, not of the statement.
pub(crate) fn is_retriable(error: &postgres::Error) -> bool {
    let Some(code) = error.code() else { return true };
    let momentary = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    // Classes 08: connection, 53: resources (connections, memory, disk), 58: the server's own I/O.
    momentary.contains(code) || ["08", "53", "58"].iter().any(|class| code.code().starts_with(class))
}

fn failed(doing: &'static str) -> impl Fn(postgres::Error) -> Error {
    move |source| Error::Postgres { doing, source }
}

impl PostgresCatalog {
    /// Connects, and brings the schema to this version where it is not and the role may.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let catalog = Self::unopened(config)?;
        catalog.with(|client| {
            let found = catalog.version(client)?;
            if found == MIGRATIONS.len() as u32 {
                return Ok(());
            }
            catalog.migrate_tables(client).map_err(|error| catalog.not_migrated(found, error))
        })?;
        Ok(catalog)
    }

    /// Brings the schema to this version, with the role of its owner, and lets `grant` run with it. Gives the versions before and after.
    pub fn migrate(config: &Config, grant: Option<&str>) -> Result<(u32, u32), Error> {
        let catalog = Self::unopened(config)?;
        catalog.with(|client| {
            let found = catalog.version(client)?;
            catalog.migrate_tables(client)?;
            if let Some(role) = grant {
                let role = format!("\"{}\"", role.replace('"', "\"\""));
                let grants = GRANTS.replace("{schema}", &format!("\"{}\"", catalog.schema)).replace("{role}", &role);
                client.batch_execute(&grants).map_err(failed("grant privileges"))?;
            }
            Ok((found, MIGRATIONS.len() as u32))
        })
    }

    fn unopened(config: &Config) -> Result<Self, Error> {
        let refused = |key, detail: &str| Error::Config { key, detail: detail.to_string() };
        let schema = config.schema.as_str();
        let plain = schema.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !plain
            || schema.is_empty()
            || schema.len() > 63
            || schema.starts_with(|first: char| first.is_ascii_digit())
            || schema.starts_with("pg_")
        {
            return Err(refused("schema", "a name of lower-case letters, digits and underscores is needed"));
        }
        // The error's own text is left out: it may quote the connection string.
        let parsed = config.url.reveal().parse::<postgres::Config>();
        let mut parsed = parsed.map_err(|_| refused("url", "it is not a PostgreSQL connection string"))?;
        if parsed.get_connect_timeout().is_none() {
            parsed.connect_timeout(CONNECT_TIMEOUT);
        }
        if parsed.get_application_name().is_none() {
            parsed.application_name("openwit-ingest");
        }
        parsed.ssl_mode(config.tls.ssl_mode());
        parsed.tcp_user_timeout(TCP_TIMEOUT);
        parsed.keepalives(true).keepalives_idle(TCP_TIMEOUT / 2).keepalives_interval(TCP_TIMEOUT / 6).keepalives_retries(3);
        let connector = config.tls.connector()?;
        Ok(PostgresCatalog { config: parsed, connector, schema: schema.to_string(), idle: Mutex::default() })
    }

    fn connect(&self) -> Result<Client, Error> {
        let mut client = self.config.connect(self.connector.clone()).map_err(|source| match tls::is_about(&source) {
            true => Error::Encryption { source },
            false => failed("connect")(source),
        })?;
        let session = format!("{SESSION} SET search_path = \"{}\", public", self.schema);
        client.batch_execute(&session).map_err(failed("set up a session"))?;
        Ok(client)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        // Who panicked held a list of whole connections.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `action` on an idle connection, or a new one, which is kept unless it broke.
    fn with<T>(&self, action: impl FnOnce(&mut Client) -> Result<T, Error>) -> Result<T, Error> {
        let idle = self.idle().pop();
        let mut client = match idle.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connect()?,
        };
        let done = action(&mut client);
        let is_broken = matches!(&done, Err(Error::Postgres { source, .. }) if source.code().is_none() || source.is_closed());
        let mut idle = self.idle();
        if is_broken {
            // Of a server that went away the others are broken, too: one failed call, not one for each.
            idle.clear();
        } else if idle.len() < IDLE_MAX {
            idle.push(client);
        }
        done
    }

    /// The version of the tables, 0 where there are none; a newer one than ours is an error.
    fn version(&self, client: &mut Client) -> Result<u32, Error> {
        let failed = failed("read the version of the tables");
        let table = format!("{}.migrations", self.schema);
        let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).map_err(&failed)?;
        if !exists.get::<_, bool>(0) {
            return Ok(0);
        }
        let row = client.query_one("SELECT coalesce(max(version), 0) FROM migrations", &[]).map_err(&failed)?;
        let found: i32 = row.get(0);
        let known = u32::try_from(found).ok().filter(|found| *found <= MIGRATIONS.len() as u32);
        known.ok_or_else(|| Error::Version {
            catalog: format!("the PostgreSQL catalog in schema {}", self.schema),
            found: found.to_string(),
            known: MIGRATIONS.len() as u32,
        })
    }

    fn not_migrated(&self, found: u32, error: Error) -> Error {
        match error {
            Error::Postgres { source, .. } if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                Error::NotMigrated { schema: self.schema.clone(), found, known: MIGRATIONS.len() as u32, source }
            }
            other => other,
        }
    }

    fn migrate_tables(&self, client: &mut Client) -> Result<(), Error> {
        let failed = failed("migrate the tables");
        client.execute("SELECT pg_advisory_lock($1)", &[&ADVISORY_LOCK]).map_err(&failed)?;
        let migrated = self.migrate_locked(client);
        // Losing the connection releases it too, so only a success matters here.
        let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&ADVISORY_LOCK]).map_err(&failed);
        migrated.and(unlocked.map(|_| ()))
    }

    fn migrate_locked(&self, client: &mut Client) -> Result<(), Error> {
        let failed = failed("migrate the tables");
        let begin = format!(
            "CREATE SCHEMA IF NOT EXISTS \"{}\"; CREATE TABLE IF NOT EXISTS migrations (version int PRIMARY KEY)",
            self.schema
        );
        client.batch_execute(&begin).map_err(&failed)?;
        // Another process may have migrated while this one waited for the lock.
        let done = self.version(client)? as usize;
        for (number, migration) in MIGRATIONS.iter().enumerate().skip(done) {
            let mut transaction = client.transaction().map_err(&failed)?;
            transaction.batch_execute(migration).map_err(&failed)?;
            transaction.execute("INSERT INTO migrations (version) VALUES ($1)", &[&(number as i32 + 1)]).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
        }
        Ok(())
    }
}

/// PostgreSQL's bigint is signed. No count of ours reaches 2^63.
fn int8(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn signal_of(name: &str) -> Result<Signal, Error> {
    let signals = [Signal::Traces, Signal::Logs, Signal::Metrics];
    let damaged = || Error::Damaged { catalog: "the PostgreSQL catalog".into(), detail: format!("unknown signal {name:?}") };
    signals.into_iter().find(|signal| signal.name() == name).ok_or_else(damaged)
}

fn ulid_of(text: &str) -> Result<Ulid, Error> {
    let damaged = |_| Error::Damaged { catalog: "the PostgreSQL catalog".into(), detail: format!("{text:?} is no ULID") };
    Ulid::from_string(text).map_err(damaged)
}

fn commit_in(transaction: &mut Transaction<'_>, commit: &Commit) -> Result<Committed, Error> {
    let failed = failed("commit");
    let (commit_id, digest) = (commit.commit_id.to_string(), format!("{:032x}", commit.digest()));
    let (index, signal) = (&*commit.group.index, commit.group.signal.name());
    // 1. Recognize a repeated commit. Of two at once the second waits here for the first.
    let insert =
        "INSERT INTO commits (commit_id, digest, index_name, signal, node) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    let inserted = transaction.execute(insert, &[&commit_id, &digest, &index, &signal, &&*commit.node]).map_err(&failed)?;
    if inserted == 0 {
        let select = "SELECT digest, state FROM commits WHERE commit_id = $1";
        let row = transaction.query_one(select, &[&commit_id]).map_err(&failed)?;
        let (known, state): (String, &str) = (row.get(0), row.get(1));
        if standing_of(state) == Standing::Abandoned {
            return Err(Error::Abandoned { commit_id });
        }
        return if known == digest { Ok(Committed::AlreadyCommitted) } else { Err(Error::Clash { commit_id }) };
    }
    // 2. Coverage, partitions in one order for all nodes, so that no two commits wait for each other.
    let mut rows: Vec<&CoverageRow> = commit.coverage.iter().collect();
    rows.sort_by(|left, right| (&left.partition, left.range.start).cmp(&(&right.partition, right.range.start)));
    let mut partition: Option<(&PartitionKey, i64)> = None;
    for row in rows {
        let id = match partition {
            Some((same, id)) if *same == row.partition => id,
            _ => lock_partition(transaction, &row.partition)?,
        };
        partition = Some((&row.partition, id));
        add_coverage(transaction, commit, id, row)?;
    }
    // 3. Files and the work they make.
    for file in &commit.files {
        insert_file(transaction, file).map_err(&failed)?;
    }
    if !commit.files.is_empty() {
        let payload =
            serde_json::json!({ "index": index, "signal": signal, "commit": commit_id, "files": commit.files.len() }).to_string();
        transaction.execute("SELECT pg_notify($1, $2)", &[&INDEX_CHANNEL, &payload]).map_err(&failed)?;
    }
    Ok(Committed::New)
}

const FILE_COLUMNS: &str = "file_id, commit_id, index_name, signal, node, path, day, rows, bytes, time_min_ns, time_max_ns, schema_hash, schema_version, uri";

/// Inserts a file and its index work; 0 where the file is known.
fn insert_file(transaction: &mut Transaction<'_>, file: &FileRow) -> Result<u64, postgres::Error> {
    let insert = format!(
        "INSERT INTO files ({FILE_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING"
    );
    let (file_id, commit_id) = (file.file.to_string(), file.commit_id.to_string());
    let (index, signal, node) = (&*file.group.index, file.group.signal.name(), &*file.node);
    let (rows, bytes, schema_version) = (int8(file.rows), int8(file.bytes), file.schema_version as i32);
    let inserted = transaction.execute(
        &insert,
        &[
            &file_id,
            &commit_id,
            &index,
            &signal,
            &node,
            &file.path,
            &file.day.0,
            &rows,
            &bytes,
            &file.time_min_ns,
            &file.time_max_ns,
            &&*file.schema_hash,
            &schema_version,
            &file.uri,
        ],
    )?;
    if inserted > 0 {
        transaction.execute("INSERT INTO index_queue (file_id) VALUES ($1)", &[&file_id])?;
    }
    Ok(inserted)
}

fn standing_of(state: &str) -> Standing {
    if state == "abandoned" { Standing::Abandoned } else { Standing::Registered }
}

/// Finds or makes the partition's row and locks it until the transaction ends: what follows sees all earlier commits of the partition.
fn lock_partition(transaction: &mut Transaction<'_>, partition: &PartitionKey) -> Result<i64, Error> {
    let upsert = "INSERT INTO partitions (cluster, topic, topic_id, partition) VALUES ($1, $2, $3, $4) \
                  ON CONFLICT (cluster, topic, topic_id, partition) DO UPDATE SET commits = partitions.commits + 1 RETURNING id";
    let TopicKey { cluster, name, id } = &*partition.topic;
    let row = transaction
        .query_one(upsert, &[&&**cluster, &&**name, &&**id, &partition.partition])
        .map_err(failed("lock a partition"))?;
    Ok(row.get(0))
}

/// Checks for overlap and merges the row with those it touches. The exclusion constraint stands behind the check.
fn add_coverage(transaction: &mut Transaction<'_>, commit: &Commit, partition_id: i64, row: &CoverageRow) -> Result<(), Error> {
    let failed = failed("register coverage");
    let Range { start, end } = row.range;
    let find =
        "SELECT lower(offsets), upper(offsets) FROM coverage WHERE partition_id = $1 AND offsets && int8range($2, $3) LIMIT 1";
    if let Some(known) = transaction.query_opt(find, &[&partition_id, &start, &end]).map_err(&failed)? {
        let known = known.get(0)..known.get(1);
        let (commit_id, partition) = (commit.commit_id.to_string(), row.partition.clone());
        return Err(Error::Overlap { commit_id, partition, wanted: row.range.clone(), known });
    }
    let mut merged = row.clone();
    let touching = "DELETE FROM coverage WHERE partition_id = $1 AND offsets -|- int8range($2, $3) \
                    RETURNING lower(offsets), upper(offsets), stored, duplicates, rejected, skipped, absent, rows, kafka_time_max_ms";
    for neighbour in transaction.query(touching, &[&partition_id, &start, &end]).map_err(&failed)? {
        let neighbour = coverage_row(row.partition.clone(), &neighbour, 0);
        merged.range = merged.range.start.min(neighbour.range.start)..merged.range.end.max(neighbour.range.end);
        merged.dispositions += neighbour.dispositions;
        merged.rows += neighbour.rows;
        merged.kafka_time_max_ms = merged.kafka_time_max_ms.max(neighbour.kafka_time_max_ms);
    }
    let insert = "INSERT INTO coverage (partition_id, offsets, stored, duplicates, rejected, skipped, absent, rows, kafka_time_max_ms) \
                  VALUES ($1, int8range($2, $3), $4, $5, $6, $7, $8, $9, $10)";
    let Dispositions { stored, duplicates, rejected, skipped, absent } = merged.dispositions;
    let [stored, duplicates, rejected, skipped, absent, rows] =
        [stored, duplicates, rejected, skipped, absent, merged.rows].map(int8);
    transaction
        .execute(
            insert,
            &[
                &partition_id,
                &merged.range.start,
                &merged.range.end,
                &stored,
                &duplicates,
                &rejected,
                &skipped,
                &absent,
                &rows,
                &merged.kafka_time_max_ms,
            ],
        )
        .map_err(&failed)?;
    Ok(())
}

/// Reads lower, upper, the six counts and the time from `first` on.
fn coverage_row(partition: PartitionKey, row: &Row, first: usize) -> CoverageRow {
    let count = |position: usize| row.get::<_, i64>(first + position) as u64;
    let dispositions =
        Dispositions { stored: count(2), duplicates: count(3), rejected: count(4), skipped: count(5), absent: count(6) };
    CoverageRow {
        partition,
        range: row.get(first)..row.get(first + 1),
        dispositions,
        rows: count(7),
        kafka_time_max_ms: row.get(first + 8),
    }
}

fn file_row(row: &Row) -> Result<FileRow, Error> {
    let text = |position: usize| row.get::<_, &str>(position);
    Ok(FileRow {
        file: ulid_of(text(0))?,
        commit_id: ulid_of(text(1))?,
        group: Group { index: text(2).into(), signal: signal_of(text(3))? },
        node: text(4).into(),
        path: text(5).into(),
        day: Day(row.get(6)),
        rows: row.get::<_, i64>(7) as u64,
        bytes: row.get::<_, i64>(8) as u64,
        time_min_ns: row.get(9),
        time_max_ns: row.get(10),
        schema_hash: text(11).into(),
        schema_version: row.get::<_, i32>(12) as u32,
        uri: row.get(13),
    })
}

impl Catalog for PostgresCatalog {
    fn commit(&self, commit: &Commit) -> Result<Committed, Error> {
        commit.check()?;
        if commit.is_empty() {
            return Ok(Committed::New);
        }
        self.with(|client| {
            let mut transaction = client.transaction().map_err(failed("begin a commit"))?;
            let committed = commit_in(&mut transaction, commit)?;
            transaction.commit().map_err(failed("commit"))?;
            Ok(committed)
        })
    }

    fn standing(&self, commit_id: Ulid) -> Result<Standing, Error> {
        let (commit_id, select) = (commit_id.to_string(), "SELECT state FROM commits WHERE commit_id = $1");
        let row = self.with(|client| client.query_opt(select, &[&commit_id]).map_err(failed("look for a commit")))?;
        Ok(row.map_or(Standing::Unknown, |row| standing_of(row.get(0))))
    }

    fn abandon(&self, commit_id: Ulid, group: &Group, node: &str) -> Result<Standing, Error> {
        let (id, index, signal) = (commit_id.to_string(), &*group.index, group.signal.name());
        let insert = "INSERT INTO commits (commit_id, digest, index_name, signal, node, state) VALUES ($1, '', $2, $3, $4, 'abandoned') \
                      ON CONFLICT DO NOTHING";
        self.with(|client| client.execute(insert, &[&id, &index, &signal, &node]).map_err(failed("give up a commit")))?;
        self.standing(commit_id)
    }

    fn complete_through(&self) -> Result<BTreeMap<PartitionKey, CompleteThrough>, Error> {
        let select =
            "SELECT cluster, topic, topic_id, partition, start_offset, complete_through, kafka_time_max_ms FROM complete_through";
        let rows = self.with(|client| client.query(select, &[]).map_err(failed("read how far partitions are complete")))?;
        let complete = |row: &Row| {
            let text = |position: usize| Arc::<str>::from(row.get::<_, &str>(position));
            let topic = Arc::new(TopicKey { cluster: text(0), name: text(1), id: text(2) });
            let complete = CompleteThrough { start: row.get(4), offset: row.get(5), kafka_time_max_ms: row.get(6) };
            (PartitionKey { topic, partition: row.get(3) }, complete)
        };
        Ok(rows.iter().map(complete).collect())
    }

    fn coverage(&self) -> Result<BTreeMap<PartitionKey, Vec<CoverageRow>>, Error> {
        let select = "SELECT cluster, topic, topic_id, partition, lower(offsets), upper(offsets), stored, duplicates, rejected, skipped, absent, rows, kafka_time_max_ms \
                      FROM coverage JOIN partitions ON partitions.id = partition_id ORDER BY partition_id, lower(offsets)";
        let rows = self.with(|client| client.query(select, &[]).map_err(failed("read coverage")))?;
        let mut coverage: BTreeMap<PartitionKey, Vec<CoverageRow>> = BTreeMap::new();
        let mut topic = Arc::new(TopicKey { cluster: "".into(), name: "".into(), id: "".into() });
        for row in rows {
            let (cluster, name, id): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
            // Partitions of a topic were mostly made one after the other: share the key.
            if (&*topic.cluster, &*topic.name, &*topic.id) != (cluster, name, id) {
                topic = Arc::new(TopicKey { cluster: cluster.into(), name: name.into(), id: id.into() });
            }
            let partition = PartitionKey { topic: topic.clone(), partition: row.get(3) };
            coverage.entry(partition.clone()).or_default().push(coverage_row(partition, &row, 4));
        }
        Ok(coverage)
    }

    fn files(&self, filter: &FileFilter) -> Result<Vec<FileRow>, Error> {
        let select = format!(
            "SELECT {FILE_COLUMNS} FROM files WHERE state = 'published' \
             AND ($1::text IS NULL OR (index_name = $1 AND signal = $2)) \
             AND ($3::int8 IS NULL OR time_min_ns IS NULL OR (time_min_ns < $4 AND time_max_ns >= $3)) \
             AND ($5::int4 IS NULL OR day < $5) AND ($6::text IS NULL OR file_id > $6) ORDER BY file_id LIMIT $7"
        );
        let index = filter.group.as_ref().map(|group| &*group.index);
        let signal = filter.group.as_ref().map(|group| group.signal.name());
        let (start, end) = (filter.time_ns.as_ref().map(|time| time.start), filter.time_ns.as_ref().map(|time| time.end));
        let (before, after) = (filter.before.map(|day| day.0), filter.after.map(|file| file.to_string()));
        let limit = filter.limit.map(|limit| int8(limit as u64));
        let rows = self.with(|client| {
            client.query(&select, &[&index, &signal, &start, &end, &before, &after, &limit]).map_err(failed("list files"))
        })?;
        rows.iter().map(file_row).collect()
    }

    fn retire_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        let ids: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        let retire = "UPDATE files SET state = 'retired' WHERE file_id = ANY($1) AND state = 'published'";
        let unqueue = "DELETE FROM index_queue WHERE file_id = ANY($1)";
        let failed = failed("retire files");
        self.with(|client| {
            let mut transaction = client.transaction().map_err(&failed)?;
            let retired = transaction.execute(retire, &[&ids]).map_err(&failed)?;
            transaction.execute(unqueue, &[&ids]).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
            Ok(retired)
        })
    }

    fn retired_files(&self, limit: usize) -> Result<Vec<FileRow>, Error> {
        let select = format!("SELECT {FILE_COLUMNS} FROM files WHERE state = 'retired' ORDER BY file_id LIMIT $1");
        let limit = int8(limit as u64);
        let rows = self.with(|client| client.query(&select, &[&limit]).map_err(failed("list retired files")))?;
        rows.iter().map(file_row).collect()
    }

    fn remove_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        let ids: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        let remove = "DELETE FROM files WHERE file_id = ANY($1) AND state = 'retired'";
        self.with(|client| client.execute(remove, &[&ids]).map_err(failed("remove files")))
    }

    fn restore_files(&self, files: &[FileRow]) -> Result<u64, Error> {
        let failed = failed("restore files");
        self.with(|client| {
            let mut transaction = client.transaction().map_err(&failed)?;
            let mut restored = 0;
            for file in files {
                restored += insert_file(&mut transaction, file).map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)?;
            Ok(restored)
        })
    }

    fn locate_files(&self, store: &StoreUri) -> Result<u64, Error> {
        let update = "UPDATE files SET uri = $1 || path WHERE uri IS NULL AND file_id IN \
                      (SELECT file_id FROM files WHERE uri IS NULL AND state = 'published' LIMIT $2)";
        let mut located = 0;
        // In parts: all of them at once may take longer than a statement may.
        loop {
            let part =
                self.with(|client| client.execute(update, &[&store.as_str(), &LOCATED_AT_ONCE]).map_err(failed("locate files")))?;
            located += part;
            if part < LOCATED_AT_ONCE as u64 {
                return Ok(located);
            }
        }
    }

    fn index_pending(&self, limit: usize) -> Result<Vec<IndexWork>, Error> {
        let select =
            "SELECT file_id, index_name, signal, path FROM index_queue JOIN files USING (file_id) ORDER BY file_id LIMIT $1";
        let limit = int8(limit as u64);
        let rows = self.with(|client| client.query(select, &[&limit]).map_err(failed("read index work")))?;
        let work = |row: &Row| {
            let group = Group { index: row.get::<_, &str>(1).into(), signal: signal_of(row.get(2))? };
            Ok(IndexWork { file: ulid_of(row.get(0))?, group, path: row.get(3) })
        };
        rows.iter().map(work).collect()
    }

    fn index_backlog(&self) -> Result<IndexBacklog, Error> {
        let select = "SELECT count(*), min(file_id) FROM index_queue";
        let row = self.with(|client| client.query_one(select, &[]).map_err(failed("read index work")))?;
        let oldest = row.get::<_, Option<&str>>(1).map(ulid_of).transpose()?;
        Ok(IndexBacklog { files: row.get::<_, i64>(0) as u64, oldest_ms: oldest.map(|file| file.timestamp_ms()) })
    }

    fn index_done(&self, file: Ulid) -> Result<bool, Error> {
        let file_id = file.to_string();
        let remove = "DELETE FROM index_queue WHERE file_id = $1";
        let removed = self.with(|client| client.execute(remove, &[&file_id]).map_err(failed("finish index work")))?;
        Ok(removed > 0)
    }

    fn bind_topic(&self, topic: &TopicKey, group: &Group) -> Result<Binding, Error> {
        let failed = failed("bind a topic");
        let TopicKey { cluster, name, id } = topic;
        let (cluster, name, id, index, signal) = (&**cluster, &**name, &**id, &*group.index, group.signal.name());
        let insert = "INSERT INTO topics (cluster, topic, topic_id, index_name, signal) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        let select = "SELECT index_name, signal FROM topics WHERE cluster = $1 AND topic = $2 AND topic_id = $3";
        self.with(|client| {
            if client.execute(insert, &[&cluster, &name, &id, &index, &signal]).map_err(&failed)? > 0 {
                return Ok(Binding::New);
            }
            let row = client.query_one(select, &[&cluster, &name, &id]).map_err(&failed)?;
            let bound = Group { index: row.get::<_, &str>(0).into(), signal: signal_of(row.get(1))? };
            if bound == *group {
                return Ok(Binding::Same);
            }
            Err(Error::Bound { topic: topic.clone(), bound, wanted: group.clone() })
        })
    }

    fn rebind_topic(&self, topic: &TopicKey, group: &Group) -> Result<(), Error> {
        let TopicKey { cluster, name, id } = topic;
        let (cluster, name, id, index, signal) = (&**cluster, &**name, &**id, &*group.index, group.signal.name());
        let upsert = "INSERT INTO topics (cluster, topic, topic_id, index_name, signal) VALUES ($1, $2, $3, $4, $5) \
                      ON CONFLICT (cluster, topic, topic_id) DO UPDATE SET index_name = excluded.index_name, signal = excluded.signal";
        self.with(|client| {
            client.execute(upsert, &[&cluster, &name, &id, &index, &signal]).map_err(failed("bind a topic"))?;
            Ok(())
        })
    }

    fn topics(&self) -> Result<BTreeMap<TopicKey, Group>, Error> {
        let select = "SELECT cluster, topic, topic_id, index_name, signal FROM topics";
        let rows = self.with(|client| client.query(select, &[]).map_err(failed("read topics")))?;
        let text = |row: &Row, position: usize| Arc::<str>::from(row.get::<_, &str>(position));
        let topic = |row: &Row| {
            let group = Group { index: text(row, 3), signal: signal_of(row.get(4))? };
            Ok((TopicKey { cluster: text(row, 0), name: text(row, 1), id: text(row, 2) }, group))
        };
        rows.iter().map(topic).collect()
    }
}

#[cfg(test)]
mod tests;
