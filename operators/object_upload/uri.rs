//! What objects are called outside of this program.
//!
//! ```text
//! s3://BUCKET/ROOT/PATH    gs://BUCKET/PATH    az://CONTAINER/PATH    file:///ROOT/PATH    memory:///PATH
//! ```
//! Nothing is percent-encoded: engines that read Parquet take keys as they are. Neither is the service's address in it, nor an account: the same
//! bucket is reached by more than one, and readers have their own.

use opendal::Operator;

/// The URI of an object store's root folder, with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUri(String);

impl StoreUri {
    /// That of the store behind `operator`.
    pub fn of(operator: &Operator) -> StoreUri {
        let info = operator.info();
        let scheme = match info.scheme() {
            "fs" => "file",
            "gcs" => "gs",
            "azblob" => "az",
            other => other,
        };
        // A folder and memory have no bucket; what `name` says of them is not part of a URI.
        let bucket = if matches!(scheme, "file" | "memory") { String::new() } else { info.name() };
        let root = info.root();
        let root = root.trim_matches('/');
        let slash = if root.is_empty() { "" } else { "/" };
        StoreUri(format!("{scheme}://{bucket}/{root}{slash}"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI of the object at `path` in the store.
    pub fn object(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_upload::{Azblob, Gcs, ObjectStore, S3, Secret, build_operator};

    #[test]
    fn objects_of_every_store_have_the_uri_by_which_others_find_them() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let key = Some(Secret::new("a2V5"));
        let s3 = |root: &str| {
            ObjectStore::S3(S3 {
                bucket: "lake".into(),
                root: root.into(),
                endpoint: Some("http://127.0.0.1:9".into()),
                access_key_id: key.clone(),
                secret_access_key: key.clone(),
                ..S3::default()
            })
        };
        let gcs = Gcs { bucket: "lake".into(), endpoint: Some("http://127.0.0.1:9".into()), credential_path: None };
        let azblob = Azblob {
            container: "lake".into(),
            endpoint: "https://shop.blob.core.windows.net".into(),
            account_name: Some("shop".into()),
            account_key: key.clone(),
        };
        let expected = [
            (s3(""), "s3://lake/a/b.parquet".to_owned()),
            (s3("/deep/er/"), "s3://lake/deep/er/a/b.parquet".to_owned()),
            (ObjectStore::Gcs(gcs), "gs://lake/a/b.parquet".to_owned()),
            (ObjectStore::Azblob(azblob), "az://lake/a/b.parquet".to_owned()),
            (ObjectStore::Fs { root: folder.path().into() }, format!("file://{}/a/b.parquet", real.display())),
            (ObjectStore::Memory, "memory:///a/b.parquet".to_owned()),
        ];
        for (store, uri) in expected {
            assert_eq!(StoreUri::of(&build_operator(&store).unwrap()).object("a/b.parquet"), uri);
        }
    }
}
