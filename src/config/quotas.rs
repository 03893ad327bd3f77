//! The quota file: what tenants and topics may send. All its problems at once, each with line and path. `docs/gateway.md` explains every
//! key.
//!
//! ```text
//! version: 1
//! default: {bytes_per_second: 1MiB}                            for tenants that are not named
//! tenants: [{tenant: shop, events_per_second: 50000, bytes_per_second: 10MiB, burst_seconds: 5, policy: throttle}]
//! topics:  [{topic: "v6.*.logs.**", bytes_per_second: 20MiB, policy: reject}]
//! ```

use std::path::Path;

use openwit_operators::kafka_source::topics::Glob;
use openwit_operators::quota::{Limit, Policy, Rules};
use openwit_operators::tenant::Tenant;

use super::key::bytes_number;
use super::problem::Problems;
use super::reader::Reader;
use super::rule;
use super::watched::WatchedFile;
use super::yaml::{self, Content, Node};

#[cfg(test)]
mod tests;

/// The version of the file's form.
const VERSION: u64 = 1;

const FILE_KEYS: [&str; 4] = ["version", "default", "tenants", "topics"];
const DEFAULT_KEYS: [&str; 5] = ["description", "events_per_second", "bytes_per_second", "burst_seconds", "policy"];
const TENANT_KEYS: [&str; 6] = ["tenant", "description", "events_per_second", "bytes_per_second", "burst_seconds", "policy"];
const TOPIC_KEYS: [&str; 6] = ["topic", "description", "events_per_second", "bytes_per_second", "burst_seconds", "policy"];

const POLICIES: [(&str, Policy); 2] = [("throttle", Policy::Throttle), ("reject", Policy::Reject)];

/// Where nothing else is said, a second's worth may be saved up.
const BURST_SECONDS: u64 = 1;
const BURST_SECONDS_MAX: u64 = 3_600;
/// More than any network brings.
const RATE_MAX: u64 = 1 << 50;

/// A quota file that is looked at again and again.
pub type QuotaFile = WatchedFile<Rules>;

impl QuotaFile {
    /// The file and what it holds.
    pub fn open(path: &Path) -> Result<(Self, Rules), Problems> {
        Self::watch(path, parse)
    }
}

/// The rules that `text` says.
pub fn parse(file: &str, text: &str) -> Result<Rules, Problems> {
    let mut reader = Reader::new(file);
    let root = yaml::parse(text, &mut reader.problems.list);
    let rules = root.map(|root| reader.quota_file(&root)).unwrap_or_default();
    if reader.problems.is_empty() { Ok(rules) } else { Err(reader.problems.sorted()) }
}

impl Reader {
    fn quota_file(&mut self, root: &Node) -> Rules {
        let mut rules = Rules::default();
        let Some(keys) = self.keys("", root, &FILE_KEYS) else { return rules };
        let is_known = |text: &str| text.parse().ok().filter(|version: &u64| *version == VERSION);
        self.required(&keys, "version", root.line, |reader, path, node| reader.read(path, node, "1", is_known));
        rules.default = keys.get("default").filter(|node| node.content != Content::Null).and_then(|node| {
            let keys = self.keys("default", node, &DEFAULT_KEYS)?;
            self.limit("default", node, &keys)
        });
        for (position, node) in self.entries(&keys, "tenants").iter().enumerate() {
            let path = format!("tenants[{position}]");
            let Some(keys) = self.keys(&path, node, &TENANT_KEYS) else { continue };
            let limit = self.limit(&path, node, &keys);
            let at = format!("{path}.tenant");
            let Some(name) = keys.get("tenant") else {
                self.refuse(node.line, &at, "must be given");
                continue;
            };
            let tenant = self.read(&at, name, rule::TENANT.says, |text| Tenant::new(text).ok());
            if let Some((tenant, limit)) = tenant.zip(limit)
                && rules.tenants.insert(tenant, limit).is_some()
            {
                self.refuse(name.line, &at, "is named twice");
            }
        }
        for (position, node) in self.entries(&keys, "topics").iter().enumerate() {
            let path = format!("topics[{position}]");
            let Some(keys) = self.keys(&path, node, &TOPIC_KEYS) else { continue };
            let limit = self.limit(&path, node, &keys);
            let at = format!("{path}.topic");
            let Some(name) = keys.get("topic") else {
                self.refuse(node.line, &at, "must be given");
                continue;
            };
            let glob = |text: &str| Glob::new(text).ok().filter(|_| (rule::TOPIC_GLOB.holds)(text));
            rules.topics.extend(self.read(&at, name, rule::TOPIC_GLOB.says, glob).zip(limit));
        }
        rules
    }

    /// The items of a list, which may be left out.
    fn entries<'n>(&mut self, keys: &std::collections::BTreeMap<&str, &'n Node>, key: &str) -> &'n [Node] {
        match keys.get(key).map(|node| (node.line, &node.content)) {
            Some((_, Content::List(items))) => items,
            Some((line, content)) if *content != Content::Null => {
                self.refuse(line, key, "must be a list");
                &[]
            }
            _ => &[],
        }
    }

    fn limit(&mut self, path: &str, node: &Node, keys: &std::collections::BTreeMap<&str, &Node>) -> Option<Limit> {
        let at = |key: &str| format!("{path}.{key}");
        let rate = |number: u64| (1..=RATE_MAX).contains(&number).then_some(number);
        let events = |text: &str| text.parse().ok().and_then(rate);
        let events =
            keys.get("events_per_second").map(|node| self.read(&at("events_per_second"), node, "a number from 1 on", events));
        let bytes = |text: &str| bytes_number(text).and_then(rate);
        let bytes = keys.get("bytes_per_second").map(|node| self.read(&at("bytes_per_second"), node, "a size like 10MiB", bytes));
        let is_burst = |text: &str| text.parse().ok().filter(|seconds| (1..=BURST_SECONDS_MAX).contains(seconds));
        let burst = keys
            .get("burst_seconds")
            .map_or(Some(BURST_SECONDS), |node| self.read(&at("burst_seconds"), node, "a whole number from 1 to 3600", is_burst));
        let policy = keys.get("policy").map_or(Some(Policy::Throttle), |node| self.choice(&at("policy"), node, &POLICIES));
        if events.is_none() && bytes.is_none() {
            self.refuse(node.line, path, "must have events_per_second, bytes_per_second or both");
            return None;
        }
        let burst_ms = burst? * 1_000;
        Some(Limit { events_per_second: events.flatten(), bytes_per_second: bytes.flatten(), burst_ms, policy: policy? })
    }
}
