//! Accounts by the caller's clock: every number is exact.

use super::*;
use crate::coverage::TopicKey;

fn limit(events: Option<u64>, bytes: Option<u64>, policy: Policy) -> Limit {
    Limit { events_per_second: events, bytes_per_second: bytes, burst_ms: 1_000, policy }
}

fn tenant(name: &str) -> Holder {
    Holder::Tenant(Tenant::new(name).unwrap())
}

fn quotas(default: Limit) -> Quotas {
    Quotas::new(Rules { default: Some(default), ..Rules::default() })
}

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
    PartitionKey { topic: topic.into(), partition: number }
}

#[test]
fn an_account_pays_with_what_it_saved_then_with_time() {
    let quotas = quotas(limit(Some(100), Some(1_000), Policy::Throttle));
    let account = quotas.account(tenant("shop"), 5_000).unwrap();
    account.charge(100, 1_000, 5_000);
    assert_eq!(account.wait_ms(5_000), 0, "a second's worth was saved up");
    account.charge(50, 0, 5_000);
    assert_eq!((account.wait_ms(5_000), account.wait_ms(5_200), account.wait_ms(5_500)), (500, 300, 0));
    // Whichever of the two takes longer.
    account.charge(0, 3_000, 5_500);
    assert_eq!(account.wait_ms(5_500), 2_500, "500 of 3,000 had come in");
    // Saving ends at the burst, and time does not go back.
    account.charge(100, 1_000, 100_000);
    assert_eq!(account.wait_ms(100_000), 0);
    account.charge(1, 0, 99_000);
    assert_eq!(account.wait_ms(99_000), 10);
    assert_eq!(quotas.counts()["tenant shop"], Count { events: 251, bytes: 5_000, ..Count::default() });
}

#[test]
fn over_any_time_an_account_gets_its_rate_and_one_burst_however_large_what_it_charges() {
    for cost in [1, 7, 90, 5_000] {
        let quotas = quotas(limit(None, Some(1_000), Policy::Reject));
        let account = quotas.account(tenant("shop"), 0).unwrap();
        let mut taken = 0;
        for now_ms in 0..60_000 {
            // More is asked for than there is.
            for _ in 0..20 {
                if !account.refuses(now_ms) {
                    account.charge(1, cost, now_ms);
                    taken += cost;
                }
            }
        }
        let (least, most) = (60 * 1_000, 61 * 1_000 + cost);
        assert!((least..=most).contains(&taken), "{taken} bytes of {cost} each");
        assert_eq!(quotas.counts()["tenant shop"].rejected, 20 * 60_000 - taken / cost);
    }
}

#[test]
fn throttling_never_refuses_and_rejecting_never_holds_back() {
    for (policy, refuses, waits) in [(Policy::Throttle, false, 4_000), (Policy::Reject, true, 0)] {
        let quotas = quotas(limit(Some(10), None, policy));
        let account = quotas.account(tenant("shop"), 0).unwrap();
        account.charge(50, 1_000_000, 0);
        assert_eq!((account.refuses(0), account.wait_ms(0)), (refuses, waits), "{policy:?}: bytes have no limit");
    }
}

#[test]
fn rules_are_those_of_the_tenant_or_else_the_default_and_of_the_first_glob_that_fits() {
    let [one, two, three] = [1, 2, 3].map(|rate| limit(Some(rate), None, Policy::Throttle));
    let glob = |text: &str| Glob::new(text).unwrap();
    let rules = Rules {
        default: Some(one),
        tenants: BTreeMap::from([(Tenant::new("shop").unwrap(), two)]),
        topics: vec![(glob("a.b"), three), (glob("a.*"), one)],
    };
    let quotas = Quotas::new(rules);
    let rate = |holder: Holder| {
        let account = quotas.account(holder, 0)?;
        account.charge(6_000, 0, 0);
        Some(account.wait_ms(0).div_ceil(1_000))
    };
    assert_eq!((rate(tenant("shop")), rate(tenant("other"))), (Some(2_999), Some(5_999)));
    let topic = |name: &str| Holder::Topic(name.into());
    assert_eq!((rate(topic("a.b")), rate(topic("a.c")), rate(topic("b"))), (Some(1_999), Some(5_999), None));
    // Each has its own.
    assert_eq!(rate(topic("a.d")), Some(5_999));
    assert_eq!(quotas.counts().len(), 5);
}

#[test]
fn new_rules_count_at_once_and_a_debt_is_repaid_at_the_new_rate() {
    let quotas = quotas(limit(Some(10), None, Policy::Throttle));
    let account = quotas.account(tenant("shop"), 0).unwrap();
    account.charge(1_010, 0, 0);
    assert_eq!(account.wait_ms(0), 100_000);
    let replace = |default: Option<Limit>| quotas.replace(Rules { default, ..Rules::default() });
    replace(Some(limit(Some(1_000), None, Policy::Throttle)));
    assert_eq!((account.wait_ms(0), account.wait_ms(999), account.wait_ms(1_000)), (1_000, 1, 0));
    // What was saved is no more than the new burst.
    assert_eq!(account.wait_ms(10_000), 0);
    replace(Some(limit(Some(10), None, Policy::Throttle)));
    account.charge(20, 0, 10_000);
    assert_eq!(account.wait_ms(10_000), 1_000);
    replace(None);
    assert_eq!((account.wait_ms(10_000), account.policy()), (0, None));
    account.charge(1_000_000, 0, 10_000);
    replace(Some(limit(Some(10), Some(10), Policy::Reject)));
    assert!(!account.refuses(10_000), "what it had without a quota is no debt");
    assert!(quotas.account(tenant("new"), 0).is_some());
}

#[test]
fn a_partition_waits_for_the_accounts_whose_messages_it_brought() {
    let quotas = quotas(limit(Some(10), None, Policy::Throttle));
    let [one, other] = ["one", "other"].map(|name| quotas.account(tenant(name), 0).unwrap());
    one.charge(20, 0, 0);
    other.charge(40, 0, 0);
    let before = quotas.news();
    quotas.hold_back(&partition(0), vec![one.clone()]);
    quotas.hold_back(&partition(0), vec![one.clone(), other.clone()]);
    quotas.hold_back(&partition(1), vec![one.clone()]);
    assert!(quotas.news() > before);
    // Another consumer's partition is left to it.
    let taken = quotas.take_held_back(|partition| partition.partition == 0, 0);
    assert_eq!(taken.iter().map(|(partition, debtors)| (partition.partition, debtors.len())).collect::<Vec<_>>(), [(0, 2)]);
    assert!(quotas.take_held_back(|_| true, 1_000).is_empty(), "its debt is repaid by now");
}

#[test]
fn tenants_beyond_the_limit_share_an_account() {
    let quotas = quotas(limit(Some(10), None, Policy::Throttle));
    for number in 0..ACCOUNTS_MAX {
        quotas.account(tenant(&format!("t{number}")), 0).unwrap();
    }
    let [one, other] = ["x", "y"].map(|name| quotas.account(tenant(name), 0).unwrap());
    assert!(Arc::ptr_eq(&one, &other) && *one.holder() == Holder::OtherTenants);
    assert_eq!(quotas.counts().len(), ACCOUNTS_MAX + 1);
}
