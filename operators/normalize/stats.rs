//! What `normalize` counts: messages by what became of them, rejects by reason, and both by tenant.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::batch::Reason;
use crate::tenant::Tenant;

use super::Normalized;

/// Tenants that are counted one by one; headers can name any number. Those met later are counted together.
const TENANTS_MAX: usize = 1_000;

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages accepted.
    pub accepted: AtomicU64,
    /// Messages dropped by policy.
    pub skipped: AtomicU64,
    /// Messages rejected.
    pub rejected: AtomicU64,
    by_reason: Mutex<BTreeMap<Reason, u64>>,
    by_tenant: Mutex<ByTenant>,
}

/// What came from one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TenantCount {
    /// Messages accepted.
    pub accepted: u64,
    /// Bytes of their payloads, as they came.
    pub accepted_bytes: u64,
    /// Messages rejected of which the tenant was known: not those without a good token.
    pub rejected: u64,
    /// Bytes of their payloads.
    pub rejected_bytes: u64,
}

/// Counts of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByTenant {
    /// Of each of the first that came.
    pub tenants: BTreeMap<Tenant, TenantCount>,
    /// Of all others together.
    pub others: TenantCount,
}

impl TenantCount {
    pub(super) fn accept(&mut self, bytes: u64) {
        self.accepted += 1;
        self.accepted_bytes += bytes;
    }

    pub(super) fn reject(&mut self, bytes: u64) {
        self.rejected += 1;
        self.rejected_bytes += bytes;
    }

    fn add(&mut self, other: TenantCount) {
        self.accepted += other.accepted;
        self.accepted_bytes += other.accepted_bytes;
        self.rejected += other.rejected;
        self.rejected_bytes += other.rejected_bytes;
    }
}

/// The counts of one batch, whose neighbours mostly are of one tenant.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: BTreeMap<Tenant, TenantCount>,
    last: Option<(Tenant, TenantCount)>,
}

impl Tally {
    /// The counts of `tenant`.
    pub fn of(&mut self, tenant: &Tenant) -> &mut TenantCount {
        if self.last.as_ref().is_none_or(|(last, _)| last != tenant) {
            self.settle();
        }
        &mut self.last.get_or_insert_with(|| (tenant.clone(), TenantCount::default())).1
    }

    pub fn finish(mut self) -> BTreeMap<Tenant, TenantCount> {
        self.settle();
        self.counted
    }

    fn settle(&mut self) {
        if let Some((tenant, count)) = self.last.take() {
            self.counted.entry(tenant).or_default().add(count);
        }
    }
}

impl Stats {
    /// Messages rejected, by reason.
    pub fn by_reason(&self) -> BTreeMap<Reason, u64> {
        self.by_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What came from whom.
    pub fn by_tenant(&self) -> ByTenant {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note(&self, normalized: &Normalized) {
        self.accepted.fetch_add(normalized.batch.records.len() as u64, Ordering::Relaxed);
        self.skipped.fetch_add(normalized.batch.coverage.skipped.len() as u64, Ordering::Relaxed);
        self.note_tenants(&normalized.tenants);
        if normalized.rejects.is_empty() {
            return;
        }
        self.rejected.fetch_add(normalized.rejects.len() as u64, Ordering::Relaxed);
        let mut by_reason = self.by_reason.lock().unwrap_or_else(PoisonError::into_inner);
        for reject in &normalized.rejects {
            *by_reason.entry(reject.reason).or_default() += 1;
        }
    }

    fn note_tenants(&self, tenants: &BTreeMap<Tenant, TenantCount>) {
        if tenants.is_empty() {
            return;
        }
        let mut by_tenant = self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        let ByTenant { tenants: known, others } = &mut *by_tenant;
        for (tenant, count) in tenants {
            let is_full = known.len() >= TENANTS_MAX;
            match known.get_mut(tenant) {
                Some(known) => known.add(*count),
                None if is_full => others.add(*count),
                None => drop(known.insert(tenant.clone(), *count)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_limit_are_counted_together() {
        let stats = Stats::default();
        let of =
            |name: String| BTreeMap::from([(Tenant::new(&name).unwrap(), TenantCount { accepted: 1, ..Default::default() })]);
        for number in 0..TENANTS_MAX + 5 {
            stats.note_tenants(&of(format!("t{number}")));
        }
        stats.note_tenants(&of("t0".to_owned()));
        let found = stats.by_tenant();
        assert_eq!((found.tenants.len(), found.others.accepted), (TENANTS_MAX, 5));
        assert_eq!(found.tenants[&Tenant::new("t0").unwrap()].accepted, 2);
    }
}
