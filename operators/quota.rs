//! How much each tenant and each topic may send: token buckets that can be in debt (ADR 0021).
//!
//! ```text
//! file > Rules > Quotas::replace                     reloader's thread
//!                   |  accounts: one per tenant, one per topic that a rule names
//! normalize > Account::charge, is_over               what was read already is charged: the account may go into debt
//!           > Quotas::hold_back(partition, accounts) of policy `throttle`, in debt
//! consumer  < Quotas::take_held_back                 pauses the partition until no account of these is in debt
//! ```
//!
//! An account begins full: what a process that ended had used up is not known. Whose debt is repaid when depends on the times that callers
//! give and on nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::coverage::PartitionKey;
use crate::kafka_source::topics::Glob;
use crate::tenant::Tenant;

/// Tenants and topics with an account of their own. Those met later share one of each kind under the default rule: headers can name any
/// number of tenants.
pub const ACCOUNTS_MAX: usize = 2_000;

/// Debts below this hold nobody back: each pause throws away what was read ahead, so there must not be one for each batch.
pub const DEBT_MS_MIN: u64 = 100;

/// What happens to what is over a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The partitions it comes from wait.
    Throttle,
    /// It goes to the dead letter.
    Reject,
}

/// What one account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Records per second; `None`: any number.
    pub events_per_second: Option<u64>,
    /// Payload bytes per second, as they come; `None`: any number.
    pub bytes_per_second: Option<u64>,
    /// How many milliseconds' worth may be saved up.
    pub burst_ms: u64,
    /// What happens beyond.
    pub policy: Policy,
}

/// The rules of one state of the file.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// For tenants that have none of their own.
    pub default: Option<Limit>,
    /// By tenant.
    pub tenants: BTreeMap<Tenant, Limit>,
    /// By topic; the first that fits counts. Each topic has an account of its own.
    pub topics: Vec<(Glob, Limit)>,
}

impl Rules {
    fn limit(&self, holder: &Holder) -> Option<Limit> {
        match holder {
            Holder::Tenant(tenant) => self.tenants.get(tenant).copied().or(self.default),
            Holder::Topic(topic) => self.topics.iter().find(|(glob, _)| glob.matches(topic)).map(|(_, limit)| *limit),
            Holder::OtherTenants => self.default,
            Holder::OtherTopics => None,
        }
    }
}

/// Whose an account is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A tenant's.
    Tenant(Tenant),
    /// A topic's.
    Topic(Arc<str>),
    /// That of all tenants beyond `ACCOUNTS_MAX`.
    OtherTenants,
    /// That of all topics beyond `ACCOUNTS_MAX`: they have no limit.
    OtherTopics,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Tenant(tenant) => write!(f, "tenant {tenant}"),
            Holder::Topic(topic) => write!(f, "topic {topic}"),
            Holder::OtherTenants => f.write_str("other tenants"),
            Holder::OtherTopics => f.write_str("other topics"),
        }
    }
}

/// What is left of one of an account's rates, in thousandths: a rate times milliseconds, so that nothing is ever rounded. Below zero: a debt.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(i128);

impl Bucket {
    fn refill(&mut self, rate: Option<u64>, limit: &Limit, elapsed_ms: u64) {
        let Some(rate) = rate else { return };
        self.0 = (self.0 + i128::from(rate) * i128::from(elapsed_ms)).min(full(rate, limit));
    }

    fn take(&mut self, rate: Option<u64>, amount: u64) {
        if rate.is_some() {
            self.0 -= i128::from(amount) * 1_000;
        }
    }

    fn debt_ms(self, rate: Option<u64>) -> u64 {
        let Some(rate) = rate.filter(|_| self.0 < 0) else { return 0 };
        u64::try_from(self.0.unsigned_abs().div_ceil(u128::from(rate))).unwrap_or(u64::MAX)
    }
}

fn full(rate: u64, limit: &Limit) -> i128 {
    i128::from(rate) * i128::from(limit.burst_ms)
}

#[derive(Debug)]
struct State {
    limit: Option<Limit>,
    events: Bucket,
    bytes: Bucket,
    /// When it was refilled last; never goes back.
    at_ms: u64,
}

impl State {
    fn new(limit: Option<Limit>, now_ms: u64) -> Self {
        let begin = |rate: Option<u64>| Bucket(limit.zip(rate).map_or(0, |(limit, rate)| full(rate, &limit)));
        let (events, bytes) = (limit.and_then(|limit| limit.events_per_second), limit.and_then(|limit| limit.bytes_per_second));
        State { limit, events: begin(events), bytes: begin(bytes), at_ms: now_ms }
    }

    fn refill(&mut self, now_ms: u64) -> Option<Limit> {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let limit = self.limit?;
        self.events.refill(limit.events_per_second, &limit, elapsed_ms);
        self.bytes.refill(limit.bytes_per_second, &limit, elapsed_ms);
        Some(limit)
    }

    fn replace(&mut self, limit: Option<Limit>) {
        if self.limit == limit {
            return;
        }
        let (before, fresh) = (self.limit, State::new(limit, self.at_ms));
        let rates = |limit: Option<Limit>| {
            (limit.and_then(|limit| limit.events_per_second), limit.and_then(|limit| limit.bytes_per_second))
        };
        let (had, has) = (rates(before), rates(limit));
        // A debt stays one, and is repaid at the new rate; what was saved up never is more than the new burst.
        let keep =
            |kept: Bucket, fresh: Bucket, had: Option<u64>| if had.is_some() { Bucket(kept.0.min(fresh.0)) } else { fresh };
        self.events = if has.0.is_some() { keep(self.events, fresh.events, had.0) } else { Bucket::default() };
        self.bytes = if has.1.is_some() { keep(self.bytes, fresh.bytes, had.1) } else { Bucket::default() };
        self.limit = limit;
    }
}

/// The account of a tenant or a topic.
#[derive(Debug)]
pub struct Account {
    holder: Holder,
    state: Mutex<State>,
    events: AtomicU64,
    bytes: AtomicU64,
    rejected: AtomicU64,
    pauses: AtomicU64,
    throttled_ms: AtomicU64,
}

/// What an account was charged, and how often it was held to its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Records it was charged.
    pub events: u64,
    /// Bytes of payloads it was charged.
    pub bytes: u64,
    /// Messages rejected because it was over its quota. They are not charged.
    pub rejected: u64,
    /// Times a partition was paused for its debt.
    pub pauses: u64,
    /// Milliseconds these pauses took, added up.
    pub throttled_ms: u64,
}

impl Account {
    /// Whose it is.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// What happens to what is over the quota; `None` if it has none.
    pub fn policy(&self) -> Option<Policy> {
        self.state().limit.map(|limit| limit.policy)
    }

    /// True if a message must be rejected, which is counted: the account has nothing left, and that is its policy.
    pub fn refuses(&self, now_ms: u64) -> bool {
        let mut state = self.state();
        let Some(limit) = state.refill(now_ms).filter(|limit| limit.policy == Policy::Reject) else { return false };
        let has_none = |rate: Option<u64>, bucket: Bucket| rate.is_some() && bucket.0 <= 0;
        let refuses = has_none(limit.events_per_second, state.events) || has_none(limit.bytes_per_second, state.bytes);
        self.rejected.fetch_add(u64::from(refuses), Ordering::Relaxed);
        refuses
    }

    /// Takes what was read, into debt if need be.
    pub fn charge(&self, events: u64, bytes: u64, now_ms: u64) {
        let mut state = self.state();
        if let Some(limit) = state.refill(now_ms) {
            state.events.take(limit.events_per_second, events);
            state.bytes.take(limit.bytes_per_second, bytes);
        }
        self.events.fetch_add(events, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How long it takes until what it owes is repaid; 0 if it owes nothing, or those over it are rejected and not held back.
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        let mut state = self.state();
        let Some(limit) = state.refill(now_ms).filter(|limit| limit.policy == Policy::Throttle) else { return 0 };
        state.events.debt_ms(limit.events_per_second).max(state.bytes.debt_ms(limit.bytes_per_second))
    }

    /// A partition is paused for its debt.
    pub fn note_pause(&self) {
        self.pauses.fetch_add(1, Ordering::Relaxed);
    }

    /// Such a pause is over.
    pub fn note_resume(&self, waited_ms: u64) {
        self.throttled_ms.fetch_add(waited_ms, Ordering::Relaxed);
    }

    fn count(&self) -> Count {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Count {
            events: of(&self.events),
            bytes: of(&self.bytes),
            rejected: of(&self.rejected),
            pauses: of(&self.pauses),
            throttled_ms: of(&self.throttled_ms),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Accounts whose debt a partition waits for.
pub type Debtors = Vec<Arc<Account>>;

/// All accounts of a process, and which partitions are to wait for them.
#[derive(Debug)]
pub struct Quotas {
    rules: Mutex<Rules>,
    accounts: Mutex<BTreeMap<Holder, Arc<Account>>>,
    held_back: Mutex<BTreeMap<PartitionKey, Debtors>>,
    /// Rises with each change of `held_back`.
    news: AtomicU64,
}

impl Quotas {
    /// With the rules that the file holds at the start.
    pub fn new(rules: Rules) -> Self {
        let (accounts, held_back) = (Mutex::default(), Mutex::default());
        Quotas { rules: Mutex::new(rules), accounts, held_back, news: AtomicU64::new(0) }
    }

    /// Puts other rules in force, for the accounts there are as well.
    pub fn replace(&self, rules: Rules) {
        // The accounts are locked throughout: one that is opened meanwhile would keep to the former rules.
        let accounts = lock(&self.accounts);
        for account in accounts.values() {
            account.state().replace(rules.limit(&account.holder));
        }
        *lock(&self.rules) = rules;
    }

    /// The account of `holder`; `None` if no rule is for it and it has none from before.
    pub fn account(&self, holder: Holder, now_ms: u64) -> Option<Arc<Account>> {
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.get(&holder) {
            return Some(account.clone());
        }
        let holder = match holder {
            Holder::Tenant(_) if accounts.len() >= ACCOUNTS_MAX => Holder::OtherTenants,
            Holder::Topic(_) if accounts.len() >= ACCOUNTS_MAX => Holder::OtherTopics,
            holder => holder,
        };
        let limit = lock(&self.rules).limit(&holder)?;
        let account = accounts.entry(holder.clone()).or_insert_with(|| {
            let state = Mutex::new(State::new(Some(limit), now_ms));
            let (events, bytes, rejected) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Account {
                holder,
                state,
                events,
                bytes,
                rejected,
                pauses: AtomicU64::new(0),
                throttled_ms: AtomicU64::new(0),
            })
        });
        Some(account.clone())
    }

    /// A partition brought messages of accounts that owe something now: it is to wait for them.
    pub fn hold_back(&self, partition: &PartitionKey, debtors: Debtors) {
        let mut held_back = lock(&self.held_back);
        let all = held_back.entry(partition.clone()).or_default();
        for debtor in debtors {
            if !all.iter().any(|known| Arc::ptr_eq(known, &debtor)) {
                all.push(debtor);
            }
        }
        self.news.fetch_add(1, Ordering::AcqRel);
    }

    /// Rises when a partition is to be held back. Cheap.
    pub fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    /// Partitions to be held back of those that are the caller's, with whom they wait for. What is repaid by now is forgotten.
    pub fn take_held_back(&self, is_mine: impl Fn(&PartitionKey) -> bool, now_ms: u64) -> Vec<(PartitionKey, Debtors)> {
        let mut held_back = lock(&self.held_back);
        held_back.retain(|_, debtors| debtors.iter().any(|debtor| debtor.wait_ms(now_ms) > 0));
        held_back.extract_if(.., |partition, _| is_mine(partition)).collect()
    }

    /// What each account was charged, by its holder's name.
    pub fn counts(&self) -> BTreeMap<String, Count> {
        lock(&self.accounts).iter().map(|(holder, account)| (holder.to_string(), account.count())).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
