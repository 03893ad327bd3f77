//! Charges messages to the accounts of their tenant and topic, and refuses those that are over a quota of policy `reject`.
//!
//! By the time of the batch's poll: so nothing here asks a clock.

use std::sync::Arc;

use crate::batch::Reason;
use crate::coverage::PartitionKey;
use crate::quota::{Account, DEBT_MS_MIN, Holder, Policy, Quotas};
use crate::tenant::Tenant;

use super::failure::{Checked, Failure};

/// The accounts that one batch is charged to.
pub(super) struct Metering {
    quotas: Arc<Quotas>,
    now_ms: u64,
    topic: Option<Used>,
    /// Of the tenant at hand; neighbours mostly have the same.
    tenant: Option<(Tenant, Option<Used>)>,
    /// Accounts of policy `throttle` that were charged.
    charged: Vec<Arc<Account>>,
}

/// An account, and what it is still to be charged.
struct Used {
    account: Arc<Account>,
    policy: Option<Policy>,
    events: u64,
    bytes: u64,
}

impl Used {
    fn new(account: Arc<Account>) -> Self {
        Used { policy: account.policy(), account, events: 0, bytes: 0 }
    }

    fn settle(&mut self, now_ms: u64) {
        let (events, bytes) = (std::mem::take(&mut self.events), std::mem::take(&mut self.bytes));
        if events + bytes > 0 {
            self.account.charge(events, bytes, now_ms);
        }
    }
}

impl Metering {
    /// For a batch of `topic` that was polled at `polled_ms`.
    pub fn begin(quotas: &Arc<Quotas>, topic: &Arc<str>, polled_ms: u64) -> Self {
        let used = quotas.account(Holder::Topic(topic.clone()), polled_ms).map(Used::new);
        Metering { quotas: quotas.clone(), now_ms: polled_ms, topic: used, tenant: None, charged: Vec::new() }
    }

    /// A message of `tenant`: rejected if an account of it has nothing left and that is its policy.
    pub fn admit(&mut self, tenant: Option<&Tenant>) -> Checked<()> {
        if self.tenant.as_ref().map(|(tenant, _)| tenant) != tenant {
            self.settle_tenant();
            self.tenant = tenant.map(|tenant| {
                let account = self.quotas.account(Holder::Tenant(tenant.clone()), self.now_ms);
                (tenant.clone(), account.map(Used::new))
            });
        }
        for used in self.used().into_iter().flatten().filter(|used| used.policy == Some(Policy::Reject)) {
            if used.account.refuses(self.now_ms) {
                return Err(Failure::new(Reason::OverQuota, format_args!("{} is over its quota", used.account.holder())));
            }
        }
        Ok(())
    }

    /// What the message was that came in last.
    pub fn charge(&mut self, events: u64, bytes: u64) {
        let now_ms = self.now_ms;
        for used in [self.topic.as_mut(), self.tenant.as_mut().and_then(|(_, used)| used.as_mut())].into_iter().flatten() {
            used.events += events;
            used.bytes += bytes;
            // The next message may be one too many. Where none is refused, a batch is charged at once.
            if used.policy == Some(Policy::Reject) {
                used.settle(now_ms);
            }
        }
    }

    /// The batch is done: its partition is to wait for those that owe something now.
    pub fn finish(mut self, partition: &PartitionKey) {
        self.settle_tenant();
        if let Some(used) = self.topic.take() {
            self.settle(used);
        }
        let mut debtors = std::mem::take(&mut self.charged);
        debtors.retain(|account| account.wait_ms(self.now_ms) >= DEBT_MS_MIN);
        if !debtors.is_empty() {
            self.quotas.hold_back(partition, debtors);
        }
    }

    fn used(&self) -> [Option<&Used>; 2] {
        [self.topic.as_ref(), self.tenant.as_ref().and_then(|(_, used)| used.as_ref())]
    }

    fn settle_tenant(&mut self) {
        if let Some((_, Some(used))) = self.tenant.take() {
            self.settle(used);
        }
    }

    fn settle(&mut self, mut used: Used) {
        used.settle(self.now_ms);
        if used.policy == Some(Policy::Throttle) && !self.charged.iter().any(|known| Arc::ptr_eq(known, &used.account)) {
            self.charged.push(used.account);
        }
    }
}
