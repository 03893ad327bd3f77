//! Files in Azure Blob Storage and Google Cloud Storage are as exact as in S3: killed and started again, read back by another make of
//! reader, listed by the janitor, missed by the audit. The services are emulators (see `scripts/services`), and optional.

use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{Catalog, FileFilter};
use openwit_operators::object_upload::{Azblob, Gcs, ObjectStore, Secret, build_operator};

use crate::setup::{Setup, optional};
use crate::support::binary::{Process, openwit};

/// Runs everything on the store that `yaml` and `store` name, whose files verify.py reads by `scheme`.
fn check(test: &str, scheme: &str, bucket: &str, yaml: &str, store: &ObjectStore) {
    let Some(setup) = Setup::new(test, "traces") else { return };
    let prefix = setup.group.clone();
    let setup = setup.with(&format!("storage: {{object_store: {{{yaml}, prefix: {prefix}}}}}\n"));
    let (config, url) = (setup.config(), format!("{scheme}://{bucket}/{prefix}"));
    let checked = openwit(["check", "--connect", "--config", &config]).expect(0);
    assert!(checked.stdout.contains("object store: reachable"), "{}", checked.stdout);
    setup.generate("otlp", 600, 61);
    let mut process = Process::start(["run", "--config", &config, "--until-end", "--workers", "2"]);
    process.wait_for("flight stream open");
    process.kill();
    setup.run_to_end();
    setup.verify("otlp", Some(&url));
    setup.audit();
    // What the catalog says of where files lie is what the other reader was told, and what the janitor finds.
    let located = || -> Vec<String> {
        let catalog = SledCatalog::open(&setup.path("data/catalog")).expect("no process has it");
        let files = catalog.files(&FileFilter::default()).expect("it can be read");
        files.into_iter().map(|file| file.uri.expect("files have a URI")).collect()
    };
    let uris = located();
    assert!(!uris.is_empty() && uris.iter().all(|uri| uri.starts_with(&format!("{url}/"))), "{uris:?}");

    // The catalog lost, the janitor lists the store and reads the files' footers.
    std::fs::remove_dir_all(setup.path("data/catalog")).expect("the catalog is a folder");
    let tidied = openwit(["janitor", "--config", &config, "--json"]).expect(0).json();
    assert!(tidied["registered"].as_u64().is_some_and(|commits| commits > 0), "{tidied}");
    assert_eq!(located(), uris);
    setup.audit();
    let summary = setup.run_to_end().json();
    assert_eq!((&summary["messages"], &summary["rows"]), (&0.into(), &0.into()), "{summary}");

    // An object that somebody removed is missed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let operator = build_operator(store).expect("the settings are valid");
    let listed =
        runtime.block_on(async { operator.list_with(&format!("{prefix}/")).recursive(true).await }).expect("the store lists");
    let file = listed.iter().map(|entry| entry.path()).find(|path| path.ends_with(".parquet")).expect("there are files");
    runtime.block_on(operator.delete(file)).expect("the store deletes");
    let audited = openwit(["audit", "--config", &config]).expect(3);
    assert!(audited.stdout.contains(file), "{}", audited.stdout);
}

#[test]
fn files_in_azure_blob_storage_are_as_exact() {
    let needed = ["ENDPOINT", "CONTAINER", "ACCOUNT", "KEY"].map(|name| format!("OPENWIT_TEST_AZBLOB_{name}"));
    let found: Vec<String> = needed.iter().filter_map(|variable| optional("azblob", variable)).collect();
    let [endpoint, container, account, key] = &found[..] else { return };
    let yaml = format!(
        "scheme: azblob, container: {container}, endpoint: '{endpoint}', account_name: {account}, account_key: \
         '${{OPENWIT_TEST_AZBLOB_KEY}}'"
    );
    let store = ObjectStore::Azblob(Azblob {
        container: container.clone(),
        endpoint: endpoint.clone(),
        account_name: Some(account.clone()),
        account_key: Some(Secret::new(key)),
    });
    check("azblob", "az", container, &yaml, &store);
}

#[test]
fn files_in_google_cloud_storage_are_as_exact() {
    let needed = ["ENDPOINT", "BUCKET"].map(|name| format!("OPENWIT_TEST_GCS_{name}"));
    let found: Vec<String> = needed.iter().filter_map(|variable| optional("gcs", variable)).collect();
    let [endpoint, bucket] = &found[..] else { return };
    let yaml = format!("scheme: gcs, bucket: {bucket}, endpoint: '{endpoint}'");
    let store = ObjectStore::Gcs(Gcs { bucket: bucket.clone(), endpoint: Some(endpoint.clone()), credential_path: None });
    check("gcs", "gs", bucket, &yaml, &store);
}
