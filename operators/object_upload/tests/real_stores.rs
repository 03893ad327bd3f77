//! Uploads to stores that speak for themselves: S3 (SeaweedFS) always, Azure Blob Storage (Azurite) and Google Cloud Storage
//! (fake-gcs-server) where `scripts/services` has them.

use super::*;

/// In a folder of its own; `None` where it does not run, after saying so, as for those below.
fn s3() -> Option<S3> {
    let Ok(endpoint) = std::env::var("OPENWIT_TEST_S3_ENDPOINT") else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "OPENWIT_TEST_S3_ENDPOINT must be set under CI");
        return not_run("OPENWIT_TEST_S3_ENDPOINT");
    };
    let secret = |name: &str| std::env::var(name).ok().map(Secret::new);
    Some(S3 {
        bucket: std::env::var("OPENWIT_TEST_S3_BUCKET").unwrap_or("lake".into()),
        root: format!("upload-test-{}", std::process::id()),
        endpoint: Some(endpoint),
        access_key_id: secret("AWS_ACCESS_KEY_ID"),
        secret_access_key: secret("AWS_SECRET_ACCESS_KEY"),
        ..S3::default()
    })
}

fn azblob() -> Option<Azblob> {
    let variable = |name: &str| std::env::var(format!("OPENWIT_TEST_AZBLOB_{name}")).ok();
    let (Some(endpoint), Some(container)) = (variable("ENDPOINT"), variable("CONTAINER")) else {
        return not_run("OPENWIT_TEST_AZBLOB_ENDPOINT");
    };
    Some(Azblob { container, endpoint, account_name: variable("ACCOUNT"), account_key: variable("KEY").map(Secret::new) })
}

fn gcs() -> Option<Gcs> {
    let variable = |name: &str| std::env::var(format!("OPENWIT_TEST_GCS_{name}")).ok();
    let (endpoint, Some(bucket)) = (variable("ENDPOINT"), variable("BUCKET")) else {
        return not_run("OPENWIT_TEST_GCS_BUCKET");
    };
    Some(Gcs { bucket, endpoint, credential_path: None })
}

fn not_run<T>(what: &str) -> Option<T> {
    eprintln!("\n*** NOT RUN: {what} is not set; `scripts/services up` says what is missing ***\n");
    None
}

/// The emulator of Google's store does not know uploads in parts (see `gcs_is_sent_a_large_object_in_parts`).
fn in_one_piece() -> Config {
    Config { chunk_bytes: 16 << 20, ..config() }
}

/// A wrong key is an error that is not repeated, and not shown.
async fn is_refused(store: ObjectStore, key: &str) {
    let folder = tempfile::tempdir().unwrap();
    let operator = build_operator(&store).unwrap();
    let refused = upload_file(&operator, &file(folder.path(), 1, b"x"), &config()).await.expect_err("wrong key");
    assert!(!refused.is_retriable() && !format!("{refused:?} {refused}").contains(&format!("{key}\"")), "{refused:?}");
}

#[tokio::test]
async fn objects_in_a_real_s3_come_back_whole() {
    let Some(store) = s3() else { return };
    uploads_come_back_whole(&build_operator(&ObjectStore::S3(store.clone())).unwrap()).await;
    is_refused(ObjectStore::S3(S3 { secret_access_key: Some(Secret::new("wrong")), ..store }), "wrong").await;
}

#[tokio::test]
async fn objects_in_a_real_azure_blob_storage_come_back_whole() {
    let Some(store) = azblob() else { return };
    uploads_come_back_whole(&build_operator(&ObjectStore::Azblob(store.clone())).unwrap()).await;
    is_refused(ObjectStore::Azblob(Azblob { account_key: Some(Secret::new("d3Jvbmc=")), ..store }), "d3Jvbmc=").await;
}

#[tokio::test]
async fn objects_in_a_real_google_cloud_storage_come_back_whole() {
    let Some(store) = gcs() else { return };
    uploads_come_back_whole_by(&build_operator(&ObjectStore::Gcs(store)).unwrap(), &in_one_piece()).await;
}

/// SIGSTOP to the real one: its port goes on taking connections.
async fn outlast_a_hang(service: &str, store: ObjectStore, config: Config) {
    if std::env::var("OPENWIT_SERVICES_DIR").is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "OPENWIT_SERVICES_DIR must be set under CI");
        not_run::<()>("OPENWIT_SERVICES_DIR");
        return;
    }
    let services = |action: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services");
        let done = std::process::Command::new(script).args([action, service]).status().unwrap();
        assert!(done.success(), "scripts/services {action} {service}");
    };
    let operator = build_patient_operator(&store, Duration::from_millis(500)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let large = content(11 << 20);
    let mut file = file(folder.path(), 1, &large);
    file.path = format!("hang-test-{}/{}", std::process::id(), file.path);
    let config = Config { attempts_max: 200, ..config };
    services("pause");
    let resumed = async {
        // Its timeouts are the attempts' clock: the store stays silent for two of them.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        services("resume");
    };
    let (uploaded, ()) = tokio::join!(upload_file(&operator, &file, &config), resumed);
    let uploaded = uploaded.unwrap();
    assert!(uploaded.failures >= 1, "{uploaded:?}");
    assert!(operator.read(&file.path).await.unwrap().to_vec() == large);
    operator.delete(&file.path).await.unwrap();
}

#[tokio::test]
async fn uploads_outlast_a_real_s3_that_hangs() {
    let Some(store) = s3() else { return };
    outlast_a_hang("s3", ObjectStore::S3(store), config()).await;
}

#[tokio::test]
async fn uploads_outlast_a_real_azure_blob_storage_that_hangs() {
    let Some(store) = azblob() else { return };
    outlast_a_hang("azblob", ObjectStore::Azblob(store), config()).await;
}

#[tokio::test]
async fn uploads_outlast_a_real_google_cloud_storage_that_hangs() {
    let Some(store) = gcs() else { return };
    outlast_a_hang("gcs", ObjectStore::Gcs(store), in_one_piece()).await;
}
