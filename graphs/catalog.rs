//! Opens the catalog that a plan names.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use opendal::Operator;
use openwit_operators::catalog_commit::postgres_catalog::{self, PostgresCatalog};
use openwit_operators::catalog_commit::rebuild::rebuild_from_footers;
use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{Catalog, Error};
use openwit_operators::fault::chain;
use tokio::runtime::Handle;
use tracing::{info, warn};

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
        Location::Sled(path) => Box::new(open_sled(path)?),
        Location::Postgres(config) => Box::new(PostgresCatalog::open(config)?),
    })
}

/// How long a locked embedded catalog is waited for: sled gives its lock up a moment after the catalog was dropped, so an audit at the end
/// of a run, or a restart of the graphs, may come too early.
const LOCK_WAIT: Duration = Duration::from_secs(5);

fn open_sled(path: &Path) -> Result<SledCatalog, Error> {
    let since = Instant::now();
    loop {
        match SledCatalog::open(path) {
            Err(Error::Locked { .. }) if since.elapsed() < LOCK_WAIT => std::thread::sleep(Duration::from_millis(20)),
            opened => return opened,
        }
    }
}

/// Opens the catalog for the process that writes it. The embedded one is rebuilt from the files' own footers when it is new, or was not
/// closed cleanly: it may then lack commits whose files are complete in the object store (design D-2).
pub fn open_for_writing(location: &Location, files: Option<&Files<'_>>, runtime: &Handle) -> Result<Box<dyn Catalog>, String> {
    let Location::Sled(path) = location else { return open(location).map_err(|error| chain(&error)) };
    let catalog = open_sled(path).map_err(|error| chain(&error))?;
    if let (Some(files), true) = (files, catalog.state().needs_rebuild()) {
        let report = rebuild_from_footers(files.store, files.prefix, &catalog, runtime).map_err(|error| chain(&error))?;
        if report.objects > 0 {
            info!(
                objects = report.objects,
                registered = report.registered,
                known = report.known,
                "catalog completed from the files' footers"
            );
        }
        let leftovers = report.incomplete.len() + report.superseded.len();
        if leftovers > 0 {
            warn!(objects = leftovers, "objects of commits that were never finished remain; no row of the catalog names them");
        }
        for problem in report.conflicting.iter().chain(&report.unreadable).chain(&report.missing_objects) {
            warn!(problem, "found while completing the catalog");
        }
    }
    Ok(Box::new(catalog))
}

/// Where the files are that a catalog describes.
pub struct Files<'a> {
    /// The object store.
    pub store: &'a Operator,
    /// The folder in it below which all groups lie.
    pub prefix: &'a str,
}
