//! Opens the catalog that a plan names.

use std::path::PathBuf;

use openwit_operators::catalog_commit::postgres_catalog::{self, PostgresCatalog};
use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{Catalog, Error};

/// Which catalog to use.
#[derive(Clone, Debug)]
pub enum Location {
    /// The embedded one, in this folder.
    Sled(PathBuf),
    /// PostgreSQL.
    Postgres(postgres_catalog::Config),
}

/// Opens the catalog; migrations run.
pub fn open(location: &Location) -> Result<Box<dyn Catalog>, Error> {
    Ok(match location {
        Location::Sled(path) => Box::new(SledCatalog::open(path)?),
        Location::Postgres(config) => Box::new(PostgresCatalog::open(config)?),
    })
}
