//! Opens the catalog that a plan names.

use std::path::PathBuf;

use openwit_operators::catalog_commit::{Catalog, Error, PostgresCatalog, SledCatalog};

/// Which catalog to use.
#[derive(Clone, Debug)]
pub enum Location {
    /// The embedded one, in this folder.
    Sled(PathBuf),
    /// PostgreSQL, by its connection string. May hold a password: never shown.
    Postgres(String),
}

/// Opens the catalog; migrations run.
pub fn open(location: &Location) -> Result<Box<dyn Catalog>, Error> {
    Ok(match location {
        Location::Sled(path) => Box::new(SledCatalog::open(path)?),
        Location::Postgres(url) => Box::new(PostgresCatalog::open(url)?),
    })
}
