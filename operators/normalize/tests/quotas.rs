//! What is charged to whom, what is refused, and which partitions are to wait.

use std::collections::BTreeMap;

use crate::kafka_source::topics::Glob;
use crate::quota::{Count, Limit, Policy, Quotas, Rules};

use super::*;

const NOW_MS: u64 = 1_000_000;

fn limit(events: Option<u64>, bytes: Option<u64>, policy: Policy) -> Limit {
    Limit { events_per_second: events, bytes_per_second: bytes, burst_ms: 1_000, policy }
}

fn by_header() -> Config {
    let tenants = Tenants { from: TenantFrom::Header("tenant".into()), default: None };
    Config { tenants, ..config(Format::Json, Signal::Logs) }
}

fn metered(config: Config, rules: Rules) -> (Normalizer, Arc<Quotas>) {
    let quotas = Arc::new(Quotas::new(rules));
    (Normalizer::new(config).unwrap().metered(Some(quotas.clone())), quotas)
}

fn of<'a>(offset: i64, tenant: &'a str, payload: &'a str) -> Message<'a> {
    Message { headers: vec![("tenant", Some(tenant.as_bytes()))], ..message(offset, payload.as_bytes()) }
}

/// Offsets that are accepted, and the codes of the others' rejects.
fn judged(normalizer: &mut Normalizer, messages: &[Message<'_>], polled_ms: u64) -> (Vec<i64>, Vec<(i64, &'static str)>) {
    let (first, last) = (messages[0].offset, messages[messages.len() - 1].offset);
    let raw = batch("topic", first, last + 1, messages);
    let Normalized { batch, rejects, .. } = normalizer.normalize(RawBatch { polled_ms, ..raw });
    let rejected = rejects.iter().map(|reject| (reject.record.offset, reject.reason.code())).collect();
    (batch.records.iter().map(|record| record.offset).collect(), rejected)
}

#[test]
fn records_and_bytes_as_they_came_are_charged_to_tenant_and_topic() {
    let rules = Rules {
        default: Some(limit(Some(1_000), Some(1_000), Policy::Throttle)),
        topics: vec![(Glob::new("top*").unwrap(), limit(Some(1_000), None, Policy::Throttle))],
        ..Rules::default()
    };
    let (mut normalizer, quotas) = metered(by_header(), rules);
    let three = "{\"msg\":\"a\"}\n{\"msg\":\"b\"}\n{\"msg\":\"c\"}";
    let one = "{\"msg\":\"d\"}";
    let tombstone = Message { payload: None, ..of(4, "b", "") };
    let messages = [of(0, "a", three), of(1, "a", one), of(2, "b", one), of(3, "b", "no json"), tombstone, message(5, b"{}")];
    let (accepted, rejected) = judged(&mut normalizer, &messages, NOW_MS);
    assert_eq!((accepted, rejected), (vec![0, 1, 2], vec![(3, "malformed"), (5, "no_tenant")]));
    let bytes = |text: &str| text.len() as u64;
    let count = |events: u64, bytes: u64| Count { events, bytes, ..Count::default() };
    let expected = [
        // What is refused for what it says has cost as much as a record; of whom nobody knows costs nobody.
        ("tenant a", count(4, bytes(three) + bytes(one))),
        ("tenant b", count(3, bytes(one) + bytes("no json"))),
        ("topic topic", count(7, bytes(three) + 2 * bytes(one) + bytes("no json"))),
    ];
    assert_eq!(quotas.counts(), BTreeMap::from(expected.map(|(name, count)| (name.to_owned(), count))));
}

#[test]
fn what_is_over_a_quota_that_rejects_is_a_dead_letter_and_what_is_not_goes_on() {
    let rules = Rules {
        tenants: BTreeMap::from([(Tenant::new("a").unwrap(), limit(Some(2), None, Policy::Reject))]),
        ..Rules::default()
    };
    let (mut normalizer, quotas) = metered(by_header(), rules);
    let one = "{\"msg\":\"d\"}";
    let messages = [of(0, "a", one), of(1, "b", one), of(2, "a", one), of(3, "a", one), of(4, "b", one), of(5, "a", one)];
    let (accepted, rejected) = judged(&mut normalizer, &messages, NOW_MS);
    assert_eq!((accepted, rejected), (vec![0, 1, 2, 4], vec![(3, "over_quota"), (5, "over_quota")]));
    // Half a second later there is room for one; a large one takes what comes after it, too.
    let large = format!("{one}\n{one}\n{one}");
    let messages = [of(0, "a", &large), of(1, "a", one)];
    assert_eq!(judged(&mut normalizer, &messages, NOW_MS + 500), (vec![0], vec![(1, "over_quota")]));
    assert_eq!(judged(&mut normalizer, &messages[1..], NOW_MS + 1_500).0, Vec::<i64>::new());
    assert_eq!(judged(&mut normalizer, &[of(0, "a", one)], NOW_MS + 2_000).0, [0]);
    let count = quotas.counts()["tenant a"];
    assert_eq!((count.events, count.rejected), (6, 4));
    assert!(quotas.take_held_back(|_| true, NOW_MS).is_empty(), "nobody waits");
}

#[test]
fn a_batch_that_leaves_a_debt_holds_its_partition_back_and_is_whole() {
    let rules = Rules { default: Some(limit(Some(100), None, Policy::Throttle)), ..Rules::default() };
    let (mut normalizer, quotas) = metered(by_header(), rules);
    let one = "{\"msg\":\"d\"}";
    let messages: Vec<_> = (0..105).map(|offset| of(offset, "a", one)).collect();
    assert_eq!(judged(&mut normalizer, &messages, NOW_MS).0.len(), 105);
    assert_eq!(quotas.news(), 0, "a debt of 50 ms is none to pause for");
    assert_eq!(judged(&mut normalizer, &messages[..15], NOW_MS).0.len(), 15);
    let held_back = quotas.take_held_back(|_| true, NOW_MS);
    assert_eq!(held_back.iter().map(|(_, debtors)| debtors[0].wait_ms(NOW_MS)).collect::<Vec<_>>(), [200]);
    // Without a tenant there is nobody to charge.
    let (mut normalizer, quotas) = metered(config(Format::Json, Signal::Logs), Rules::default());
    assert_eq!(judged(&mut normalizer, &messages, NOW_MS).0.len(), 105);
    assert!(quotas.counts().is_empty());
}
