//! `janitor`: one pass that brings catalog and object store together.

use openwit_graphs::catalog::{self, Tidied};
use openwit_operators::catalog_commit::janitor::Report;
use openwit_operators::clock::{Clock, SystemClock};
use openwit_operators::fault::chain;
use openwit_operators::object_upload;
use serde_json::json;

use super::{Ended, Failure, load};
use crate::cli::JanitorArgs;
use crate::plan::{catalog_location, janitor_config, object_store};

/// Runs the command.
pub fn run(args: &JanitorArgs) -> Ended {
    let config = load(&args.config)?;
    if !config.has_storage() {
        return Err(Failure::usage("graph: ingest has no object store; give the configuration of a storage node"));
    }
    let store = object_upload::build_operator(&object_store(&config)).map_err(|error| Failure::fault(chain(&error)))?;
    // The catalog blocks, so requests to the store run on other threads than this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::fault)?;
    let (location, now_ms) = (catalog_location(&config), SystemClock::default().now_ms());
    let tidied = catalog::tidy(&location, &store, &janitor_config(&config), now_ms, args.dry_run, runtime.handle());
    let Tidied { report, aside } = tidied.map_err(Failure::fault)?;
    if args.json {
        let mut summary = serde_json::to_value(&report).map_err(Failure::fault)?;
        summary["dry_run"] = json!(args.dry_run);
        summary["catalog_moved_to"] = json!(aside);
        println!("{summary}");
    } else {
        if let Some(aside) = &aside {
            println!("the damaged catalog lies in {}; remove it when all is well", aside.display());
        }
        print!("{}", text(&report, args.dry_run));
    }
    match report.found.findings().count() {
        0 => Ok(()),
        count => {
            let first = report.found.findings().next().unwrap_or_default();
            Err(Failure::difference(format!("{count} findings need a person, the first: {first}")))
        }
    }
}

fn text(report: &Report, dry_run: bool) -> String {
    let Report { found, removed, expired } = report;
    let would = if dry_run { "would be " } else { "" };
    let mut lines = vec![format!("{} objects, {} commits {would}registered", found.objects, found.registered)];
    let mut list = |what: &str, paths: &[String]| lines.extend(paths.iter().map(|path| format!("{what}: {path}")));
    list(&format!("{would}restored to the catalog"), &found.restored);
    list(&format!("{would}removed, of a commit never finished"), removed);
    list(&format!("{would}removed, past its retention"), expired);
    let left = found.incomplete.iter().chain(&found.superseded).flat_map(|leftover| &leftover.paths);
    let left: Vec<String> = left.filter(|path| !removed.contains(path)).cloned().collect();
    list("not published; an upload that is under way, or a leftover within its grace period", &left);
    list("found", &found.findings().collect::<Vec<_>>());
    lines.join("\n") + "\n"
}
