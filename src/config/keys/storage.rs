//! The keys of storage: from Arrow to Parquet files in an object store, and the catalog of these.

use std::path::PathBuf;

use super::{BYTES_MAX, GIB, KIB, MIB, SECONDS_MAX};
use crate::config::key::Key;
use crate::config::rule;
use crate::config::secret::Secret;
use crate::config::table::{choices, section};

section! {
    /// From Arrow to Parquet files in an object store.
    Storage {
        /// The Flight endpoints that the graph `ingest` delivers to. Empty: this process's own, in the graph `standalone`.
        /// With several, each partition belongs to one of them.
        endpoints: Vec<String> = Key::list("[]", rule::ENDPOINT);
        /// When another endpoint stands in for one that is away.
        failover: Failover;
        /// The folder of files that are being written (`active`) or wait for their upload (`stable`).
        local_directory: PathBuf = Key::path("{data_directory}/storage");
        /// Uploads at the same time.
        upload_concurrency: usize = Key::number("2", 1, 64, "uploads")
            .too_small("files wait while the network idles")
            .too_large("memory, and throttling by the store");
        /// How an upload goes.
        upload: Upload;
        /// Where finished files go.
        object_store: ObjectStore;
        /// How Parquet files are written.
        parquet: Parquet;
        /// When a file is finished. The first limit that is reached counts.
        rotation: Rotation;
        /// How indexers learn of new files.
        index_trigger: IndexTrigger;
        /// Keeps catalog and object store tidy, beside the running graph.
        janitor: Janitor;
    }
}

section! {
    /// When another endpoint stands in for one that is away. With a single endpoint nothing can: it is waited for.
    Failover {
        /// How long an endpoint may fail before its partitions go to the others.
        after_ms: u64 = Key::number("10000", 100, 86_400_000, "ms")
            .too_small("each restart of a storage node moves its partitions, and everything it had not published is sent again")
            .too_large("rows of its partitions stay unpublished this long; they are safe in the write-ahead log");
        /// How long it must stay connected before it takes its partitions back. Doubled each time it goes away again, up to 16 times.
        recover_after_ms: u64 = Key::number("30000", 100, 86_400_000, "ms")
            .too_small("an endpoint that comes and goes moves its partitions each time")
            .too_large("the others carry its load this long");
    }
}

section! {
    /// How an upload goes.
    Upload {
        /// Bytes of a part of a file.
        chunk_bytes: u64 = Key::bytes("8MiB", 5 * MIB, GIB)
            .too_small("requests; a store takes at most ten thousand parts of a file")
            .too_large("memory, and more to send again after an error");
        /// Parts of one file at the same time.
        chunks_concurrent: usize = Key::number("2", 1, 64, "parts")
            .too_small("one connection limits the rate")
            .too_large("memory, and throttling by the store");
        /// Attempts at one file in a row. After that the upload waits longer, up to a minute, and begins anew: a store that is away
        /// holds the offsets that wait for publication, it does not stop the process.
        attempts_max: u32 = Key::number("12", 1, 1_000, "attempts")
            .too_small("a short outage of the store stops the process")
            .too_large("nobody notices an outage but by its lag");
        /// A request that brings nothing for this long has failed, and is tried again.
        timeout_seconds: u64 = Key::number("60", 1, 3_600, "seconds")
            .too_small("a slow store is taken for one that hangs: parts are sent again and again")
            .too_large("a store that hangs is noticed late");
        /// First wait between attempts; it doubles each time.
        backoff_ms: u64 = Key::number("200", 1, 600_000, "ms")
            .too_small("load on a store that is in trouble")
            .too_large("a passing error costs this long");
        /// Longest wait between attempts.
        backoff_max_ms: u64 = Key::number("30000", 1, 3_600_000, "ms")
            .too_small("attempts are used up during a short outage")
            .too_large("uploads resume late after an outage");
    }
}

section! {
    /// How indexers learn of new files.
    IndexTrigger {
        /// Files announced and not indexed yet; later ones wait in the catalog.
        announced_max: usize = Key::number("1000", 1, 1_000_000, "files")
            .too_small("many indexers idle")
            .too_large("memory");
        /// A file that is not indexed for this long is announced again, as its indexer may have died.
        repeat_after_seconds: u64 = Key::number("300", 1, SECONDS_MAX, "seconds")
            .too_small("two indexers take the same file")
            .too_large("a file of a dead indexer waits this long");
    }
}

section! {
    /// Keeps catalog and object store tidy, beside the running graph.
    Janitor {
        /// Time between two passes, each of which lists the object store. 0 makes none: run `openwit-ingest janitor` instead.
        interval_seconds: u64 = Key::number("3600", 0, SECONDS_MAX, "seconds")
            .too_small("requests to the store")
            .too_large("leftovers and old files take room for longer");
        /// Objects of a commit that was never finished are removed when the youngest is this old. The commit is given up: a node that
        /// still meant to finish it has its rows delivered again.
        grace_seconds: u64 = Key::number("86400", 60, SECONDS_MAX, "seconds")
            .too_small("commits are given up during an outage of the store or the catalog, and their rows written once more")
            .too_large("leftovers take room for longer");
        /// Removes files all of whose rows are of days before the last so many, for good. 0 keeps everything.
        retention_days: u32 = Key::number("0", 0, 36_500, "days")
            .too_small("data that is still wanted is gone")
            .too_large("room, and slower listings");
    }
}

section! {
    /// Where finished files go.
    ObjectStore {
        /// `fs`: a folder. `s3`: S3 or a store that speaks its protocol. `gcs`: Google Cloud Storage. `azblob`: Azure Blob Storage.
        scheme: ObjectStoreScheme = Key::choice("fs", ObjectStoreScheme::NAMES);
        /// The folder, for `fs`.
        root: PathBuf = Key::path("{data_directory}/objects");
        /// The bucket, for `s3` and `gcs`.
        bucket: Option<String> = Key::text("null", rule::BUCKET).or_null();
        /// The container, for `azblob`.
        container: Option<String> = Key::text("null", rule::CONTAINER).or_null();
        /// The URL of the store: for `azblob` that of the account, `https://ACCOUNT.blob.core.windows.net`; for `s3` that is not
        /// Amazon's; for `gcs` that of an emulator, which is spoken to unsigned where no credential_path is given.
        endpoint: Option<String> = Key::text("null", rule::URL).or_null();
        /// The region, for `s3`.
        region: String = Key::text("us-east-1", rule::NAME);
        /// Access key, for `s3`; without it the credentials of the environment or the machine are taken. Give it as
        /// `${VARIABLE}`.
        access_key_id: Option<Secret> = Key::secret();
        /// Its secret. Give it as `${VARIABLE}`.
        secret_access_key: Option<Secret> = Key::secret();
        /// The JSON file of a service account, for `gcs`; without it the credentials of the environment or the machine are taken.
        credential_path: Option<PathBuf> = Key::path("null").or_null();
        /// The name of the account, for `azblob`.
        account_name: Option<String> = Key::text("null", rule::NAME).or_null();
        /// The key of the account, for `azblob`; without it the credentials of the environment or the machine are taken. Give it as
        /// `${VARIABLE}`.
        account_key: Option<Secret> = Key::secret();
        /// The front of every object's path.
        prefix: String = Key::text("", rule::OBJECT_PREFIX);
    }
}

choices! {
    /// Kinds of object stores.
    ObjectStoreScheme {
        /// A folder.
        Fs = "fs",
        /// S3 and its like.
        S3 = "s3",
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Azure Blob Storage.
        Azblob = "azblob",
    }
}

section! {
    /// How Parquet files are written.
    Parquet {
        /// Rows of a row group, the unit that queries skip.
        row_group_rows: usize = Key::number("65536", 1_000, 10_000_000, "rows")
            .too_small("larger files, slower scans")
            .too_large("memory for each open file, and less to skip");
        /// Compression of pages.
        compression: Compression = Key::choice_with("zstd", Compression::NAMES, &[
            ("snappy", "it is not built in"),
            ("lz4", "it is not built in"),
            ("gzip", "it is not built in"),
        ]);
        /// Level of zstd.
        compression_level: u32 = Key::number("1", 1, 22, "")
            .too_small("larger files")
            .too_large("CPU: from 10 on the pipeline waits for it");
        /// Writes a bloom filter on trace_id, so that a search for one trace opens few files.
        bloom_filter_enabled: bool = Key::bool("true");
    }
}

choices! {
    /// Compression of Parquet pages.
    Compression {
        /// Zstandard.
        Zstd = "zstd",
        /// None.
        Uncompressed = "none",
    }
}

section! {
    /// When a file is finished. The first limit that is reached counts.
    Rotation {
        /// Size of a file.
        file_bytes_max: u64 = Key::bytes("64MiB", 64 * KIB, 5 * 1024 * GIB)
            .too_small("many small files: slow queries, cost per request")
            .too_large("rows become visible late; the log must hold all of it until then");
        /// Age of a file, from its first row.
        age_max_seconds: u64 = Key::number("300", 1, SECONDS_MAX, "seconds")
            .too_small("many small files")
            .too_large("rows become visible late; the log must hold all of it until then");
        /// Time without a new row after which a file is finished.
        idle_seconds: u64 = Key::number("10", 1, SECONDS_MAX, "seconds")
            .too_small("many small files")
            .too_large("no effect beyond age_max_seconds");
        /// Files being written at the same time; beyond it the one unused for longest is finished early.
        open_writers_max: usize = Key::number("16", 1, 4_096, "files")
            .too_small("small files where there are many indexes or late data")
            .too_large("file handles, and small row groups where memory_bytes_max is shared by many");
        /// Memory of the row groups that are being built, all files together. Beyond it the largest is ended early.
        memory_bytes_max: u64 = Key::bytes("128MiB", MIB, BYTES_MAX)
            .too_small("small row groups: larger files, slower scans")
            .too_large("memory");
        /// How far the time of an event may be from the time its message was sent to decide the day its row is filed under.
        /// Beyond it the message's own day counts.
        event_time_skew_days_max: u32 = Key::number("30", 0, 36_500, "days")
            .too_small("late data is filed under the day it arrived: queries by time open more files")
            .too_large("a producer with a wrong clock opens a file for every day it makes up");
    }
}

section! {
    /// The catalog of files and of what they cover.
    Metastore {
        /// `sled`: embedded, for one storage process. `postgres`: shared by all nodes.
        r#type: MetastoreType = Key::choice("sled", MetastoreType::NAMES);
        /// The folder, for `sled`.
        path: PathBuf = Key::path("{data_directory}/catalog");
        /// The schema that holds the tables, for `postgres`.
        schema: String = Key::text("openwit", rule::SCHEMA);
        /// The address, for `postgres`: `postgres://user:password@host:5432/database`. Give it as `${VARIABLE}`; it is not shown.
        url: Option<Secret> = Key::secret();
        /// Encryption, for `postgres`.
        tls: MetastoreTls;
    }
}

section! {
    /// Encryption, for `postgres`.
    MetastoreTls {
        /// `disable`: none. `prefer`: if the server offers it, unchecked. `require`: always, unchecked. `verify-full`: always, and the
        /// server's certificate must lead to a known authority and name the host.
        mode: TlsMode = Key::choice("prefer", TlsMode::NAMES);
        /// PEM file of the authorities that the server's certificate is checked against; `null` takes those of the system.
        ca_location: Option<PathBuf> = Key::path("null").or_null();
        /// PEM file of this client's own certificate, where the server asks for one.
        certificate_location: Option<PathBuf> = Key::path("null").or_null();
        /// PEM file of the certificate's private key, without a password.
        key_location: Option<PathBuf> = Key::path("null").or_null();
    }
}

choices! {
    /// When a connection is encrypted, and what is checked.
    TlsMode {
        /// Never.
        Disable = "disable",
        /// If the server offers it.
        Prefer = "prefer",
        /// Always, with whoever answers.
        Require = "require",
        /// Always, with the host that the certificate names.
        VerifyFull = "verify-full",
    }
}

choices! {
    /// Kinds of catalogs.
    MetastoreType {
        /// Embedded.
        Sled = "sled",
        /// PostgreSQL.
        Postgres = "postgres",
    }
}
