//! Opens the catalog that a plan names.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use opendal::Operator;
use openwit_operators::catalog_commit::janitor;
use openwit_operators::catalog_commit::postgres_catalog::{self, PostgresCatalog};
use openwit_operators::catalog_commit::rebuild::{Depth, Options, Stop, rebuild_from_footers};
use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{Catalog, Error};
use openwit_operators::fault::chain;
use openwit_operators::object_upload::StoreUri;
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

/// Opens the catalog for whoever is no storage process; migrations run. An embedded one that is not complete is left so.
pub fn open(location: &Location) -> Result<Box<dyn Catalog>, Error> {
    Ok(match location {
        Location::Sled(path) => Box::new(open_sled(path, SledCatalog::look)?),
        Location::Postgres(config) => Box::new(PostgresCatalog::open(config)?),
    })
}

/// Opens the catalog to look at it, if there is one: nothing is created, and an embedded one that another process has is not waited for.
pub fn open_to_look(location: &Location) -> Result<Option<Box<dyn Catalog>>, Error> {
    match location {
        Location::Sled(path) if !path.exists() => Ok(None),
        Location::Sled(path) => Ok(Some(Box::new(SledCatalog::look(path)?))),
        Location::Postgres(_) => open(location).map(Some),
    }
}

/// Waits between two attempts to reach a catalog that is away. The longest is also what a stop may have to wait.
const REACH_WAIT_MIN: Duration = Duration::from_millis(100);
const REACH_WAIT_MAX: Duration = Duration::from_secs(2);

/// Repeats `call` until the catalog can be reached, or `is_stopping`: a database that is away or starting is waited for, as a broker is.
pub fn reach<T>(is_stopping: &dyn Fn() -> bool, call: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let mut wait = REACH_WAIT_MIN;
    loop {
        match call() {
            Err(error) if error.is_retriable() && !is_stopping() => {
                warn!(error = chain(&error), "the catalog cannot be reached, trying again");
                std::thread::sleep(wait);
                wait = (wait * 2).min(REACH_WAIT_MAX);
            }
            result => return result,
        }
    }
}

/// How long a locked embedded catalog is waited for: sled gives its lock up a moment after the catalog was dropped, so an audit at the end
/// of a run, or a restart of the graphs, may come too early.
const LOCK_WAIT: Duration = Duration::from_secs(5);

fn open_sled(path: &Path, open: fn(&Path) -> Result<SledCatalog, Error>) -> Result<SledCatalog, Error> {
    let since = Instant::now();
    loop {
        match open(path) {
            Err(Error::Locked { .. }) if since.elapsed() < LOCK_WAIT => std::thread::sleep(Duration::from_millis(20)),
            opened => return opened,
        }
    }
}

/// Opens the catalog for the process that writes it. The embedded one is rebuilt from the files' own footers when it is new, or was not
/// closed cleanly: it may then lack commits whose files are complete in the object store (design D-2). PostgreSQL is waited for.
pub fn open_for_writing(
    location: &Location,
    files: Option<&Files<'_>>,
    runtime: &Handle,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Box<dyn Catalog>, String> {
    let Location::Sled(path) = location else {
        let catalog = reach(is_stopping, || open(location)).map_err(|error| chain(&error))?;
        locate(&*catalog, files);
        return Ok(catalog);
    };
    let catalog = open_sled(path, SledCatalog::open).map_err(|error| chain(&error))?;
    if let (Some(files), true) = (files, catalog.state().needs_rebuild()) {
        let report = rebuild_from_footers(files.store, files.prefix, &catalog, runtime).map_err(|error| chain(&error))?;
        if let Some(detail) = report.damaged.first() {
            let damaged = Error::Damaged { catalog: format!("catalog {}", path.display()), detail: detail.clone() };
            return Err(damaged.to_string());
        }
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
        for problem in report.findings() {
            warn!(problem, "found while completing the catalog");
        }
    }
    locate(&catalog, files);
    Ok(Box::new(catalog))
}

/// Completes what former versions wrote without a URI. Readers find such files by their path, so that a process can do without.
fn locate(catalog: &dyn Catalog, files: Option<&Files<'_>>) {
    let Some(files) = files else { return };
    match catalog.locate_files(&StoreUri::of(files.store)) {
        Ok(0) => {}
        Ok(located) => info!(files = located, "files of a former version have their URI now"),
        Err(error) => warn!(error = chain(&error), "files of a former version stay without their URI until the next start"),
    }
}

/// Where the files are that a catalog describes.
pub struct Files<'a> {
    /// The object store.
    pub store: &'a Operator,
    /// The folder in it below which all groups lie.
    pub prefix: &'a str,
}

/// What a janitor's pass from the command line came to.
#[derive(Debug)]
pub struct Tidied {
    /// What was found and done.
    pub report: janitor::Report,
    /// Where a damaged catalog was moved to.
    pub aside: Option<PathBuf>,
}

/// Makes one pass of the janitor. An embedded catalog that is damaged is moved aside and rebuilt from the object store; one that is new,
/// or was not closed, is completed. A rehearsal changes nothing, so for a damaged catalog it can only say so.
pub fn tidy(
    location: &Location,
    store: &Operator,
    config: &janitor::Config,
    now_ms: u64,
    is_rehearsal: bool,
    runtime: &Handle,
) -> Result<Tidied, String> {
    let pass = |catalog: &dyn Catalog, depth: Depth| {
        let (options, stop) = (Options { depth, is_rehearsal }, Stop::never());
        let pass = janitor::Pass { store, catalog, runtime, config, options, now_ms, stop: &stop };
        pass.run().map_err(|error| chain(&error))
    };
    let Location::Sled(path) = location else {
        let catalog = open(location).map_err(|error| chain(&error))?;
        return Ok(Tidied { report: pass(&*catalog, Depth::Unknown)?, aside: None });
    };
    let damage = match open_sled(path, SledCatalog::open) {
        Ok(catalog) => {
            let depth = if catalog.state().needs_rebuild() { Depth::Everything } else { Depth::Unknown };
            let report = pass(&catalog, depth)?;
            if report.found.damaged.is_empty() || is_rehearsal {
                return Ok(Tidied { report, aside: None });
            }
            report.found.damaged.join("; ")
        }
        Err(error @ Error::Damaged { .. }) if !is_rehearsal => chain(&error),
        Err(error) => return Err(chain(&error)),
    };
    warn!(damage, "the catalog is moved aside and rebuilt from the object store");
    let aside = SledCatalog::set_aside(path, now_ms).map_err(|error| format!("moving {} aside: {error}", path.display()))?;
    let catalog = open_sled(path, SledCatalog::open).map_err(|error| chain(&error))?;
    Ok(Tidied { report: pass(&catalog, Depth::Everything)?, aside: Some(aside) })
}
