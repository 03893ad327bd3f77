//! `migrate`: brings the PostgreSQL catalog's tables to this version, with the role that owns them.

use openwit_graphs::catalog::Location;
use openwit_operators::catalog_commit::postgres_catalog::PostgresCatalog;
use openwit_operators::fault::chain;

use super::{Ended, Failure, load};
use crate::cli::MigrateArgs;
use crate::plan::catalog_location;

/// Runs the command.
pub fn run(args: &MigrateArgs) -> Ended {
    let config = load(&args.config)?;
    let Location::Postgres(location) = catalog_location(&config) else {
        return Err(Failure::usage("metastore.type is sled: its folder is brought to this version when it is opened"));
    };
    let migrated = PostgresCatalog::migrate(&location, args.grant.as_deref());
    let (before, after) = migrated.map_err(|error| Failure::fault(chain(&error)))?;
    match before == after {
        true => println!("the tables in schema {} have version {after} already", location.schema),
        false => println!("the tables in schema {} were brought from version {before} to {after}", location.schema),
    }
    if let Some(role) = &args.grant {
        println!("role {role} may run on them");
    }
    Ok(())
}
