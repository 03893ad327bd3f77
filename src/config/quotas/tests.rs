use std::sync::Arc;

use openwit_operators::quota::{Holder, Quotas};
use openwit_operators::reload::File;

use super::*;

#[test]
fn rules_are_read_with_their_defaults() {
    let text = "
version: 1
default: {bytes_per_second: 1MiB}
tenants:
  - {tenant: shop, description: the shop, events_per_second: 50000, bytes_per_second: 10MiB, burst_seconds: 5, policy: reject}
topics:
  - {topic: \"v6.*.logs.**\", events_per_second: 7}
";
    let rules = parse("q.yaml", text).unwrap();
    let throttle = Policy::Throttle;
    let default = Limit { events_per_second: None, bytes_per_second: Some(1 << 20), burst_ms: 1_000, policy: throttle };
    assert_eq!(rules.default, Some(default));
    let shop =
        Limit { events_per_second: Some(50_000), bytes_per_second: Some(10 << 20), burst_ms: 5_000, policy: Policy::Reject };
    assert_eq!(rules.tenants.into_iter().collect::<Vec<_>>(), [(Tenant::new("shop").unwrap(), shop)]);
    let topic = Limit { events_per_second: Some(7), bytes_per_second: None, burst_ms: 1_000, policy: throttle };
    assert_eq!(rules.topics.iter().map(|(glob, limit)| (glob.pattern(), *limit)).collect::<Vec<_>>(), [("v6.*.logs.**", topic)]);
    for nothing in ["version: 1\n", "version: 1\ndefault:\ntenants: []\ntopics:\n"] {
        let rules = parse("q.yaml", nothing).unwrap();
        assert!(rules.default.is_none() && rules.tenants.is_empty() && rules.topics.is_empty());
    }
}

#[test]
fn every_problem_of_a_file_is_told_with_its_place() {
    let text = "
version: 2
default: {burst_seconds: 0, policy: drop}
tenants:
  - {tenant: a/b, events_per_second: 0}
  - {events_per_second: 1, bytes_per_second: 1MB}
  - {tenant: x, event_per_second: 1}
  - {tenant: y, events_per_second: 1}
  - {tenant: y, events_per_second: 2}
topics: {}
";
    let problems = parse("q.yaml", text).unwrap_err().to_string();
    for expected in [
        "q.yaml:2: version: value \"2\": must be 1",
        "q.yaml:3: default.burst_seconds: value \"0\": must be a whole number from 1 to 3600",
        "default.policy: value \"drop\": must be one of throttle, reject",
        "default: must have events_per_second, bytes_per_second or both",
        "q.yaml:5: tenants[0].tenant: value \"a/b\": must be",
        "tenants[0].events_per_second: value \"0\": must be a number from 1 on",
        "tenants[1].tenant: must be given",
        "tenants[1].bytes_per_second: value \"1MB\": must be a size like 10MiB",
        "tenants[2].event_per_second: unknown key: did you mean events_per_second?",
        "q.yaml:9: tenants[4].tenant: is named twice",
        "topics: must be a list",
    ] {
        assert!(problems.contains(expected), "{expected}\n{problems}");
    }
}

#[test]
fn a_new_file_counts_and_a_broken_one_leaves_the_former_in_force() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("quotas.yaml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("version: 1\ndefault: {events_per_second: 10}\n");
    let (file, rules) = QuotaFile::open(&path).unwrap();
    let quotas = Arc::new(Quotas::new(rules));
    let account = quotas.account(Holder::Tenant(Tenant::new("shop").unwrap()), 0).unwrap();
    account.charge(110, 0, 0);
    assert!(file.changed().is_none());
    write("version: 1\ndefault: {events_per_second: none}\n");
    assert!(file.changed().unwrap().unwrap_err().contains("default.events_per_second"));
    assert!(file.changed().is_none(), "a broken file is told once");
    assert_eq!(account.wait_ms(0), 10_000);
    write("version: 1\ntenants: [{tenant: shop, events_per_second: 100}]\n");
    quotas.replace(file.changed().unwrap().unwrap());
    assert_eq!(account.wait_ms(0), 1_000);
}
