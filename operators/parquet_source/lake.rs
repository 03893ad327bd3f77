//! What a catalog lists in its object store.

use std::path::PathBuf;

use super::Error;
use super::place::Place;
use crate::catalog_commit::rebuild::list;
use crate::catalog_commit::{self, Catalog, FileFilter, Standing};
use crate::fault::chain;
use crate::object_upload::{ObjectStore, build_operator};

/// Files asked of the catalog at once.
const PAGE_FILES: usize = 10_000;

/// The objects of what is committed.
#[derive(Clone, Debug)]
pub struct Lake {
    /// The object store.
    pub store: ObjectStore,
    /// Files of rows, with their sizes.
    pub files: Vec<(PathBuf, u64)>,
    /// Coverage of commits without rows.
    pub coverage: Vec<PathBuf>,
}

/// Why it is not known what there is.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The catalog refused or cannot be reached.
    #[error(transparent)]
    Catalog(#[from] catalog_commit::Error),
    /// The object store refused or cannot be reached.
    #[error("the object store: {0}")]
    Store(String),
}

impl Lake {
    /// What `catalog` has as committed now in `store`, below the folder `prefix`.
    pub fn of_catalog(catalog: &dyn Catalog, store: ObjectStore, prefix: &str) -> Result<Self, LakeError> {
        let mut files = Vec::new();
        let mut filter = FileFilter { limit: Some(PAGE_FILES), ..FileFilter::default() };
        loop {
            let page = catalog.files(&filter)?;
            let Some(last) = page.last() else { break };
            filter.after = Some(last.file);
            files.extend(page.into_iter().map(|file| (PathBuf::from(file.path), file.bytes)));
        }
        let failed = |error: &dyn std::error::Error| LakeError::Store(chain(error));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let operator = build_operator(&store).map_err(|error| failed(&error))?;
        let mut coverage = Vec::new();
        // The catalog knows of these commits, and not of their objects.
        for (id, path) in runtime.block_on(list(&operator, prefix)).map_err(|error| failed(&error))? {
            if path.ends_with(".json") && catalog.standing(id)? == Standing::Registered {
                coverage.push(path.into());
            }
        }
        coverage.sort();
        Ok(Lake { store, files, coverage })
    }

    /// Where its files lie.
    pub(super) fn place(&self) -> Result<Place, Error> {
        Place::of(self)
    }
}
