//! The token file: who may send what, as whom. All its problems at once, each with line and path; none of them shows what might be a
//! token. `docs/gateway.md` explains every key.
//!
//! ```text
//! version: 1
//! tokens:
//!   - {id: shop-1, sha256: 9f86.., tenant: shop, topics: ["v6.shop.**"], signals: [logs], not_before: .., expires: ..}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use openwit_operators::batch::Signal;
use openwit_operators::kafka_source::topics::Glob;
use openwit_operators::tenant::Tenant;
use openwit_operators::tokens::{Digest, Token};

use super::problem::Problems;
use super::reader::Reader;
use super::rule;
use super::watched::WatchedFile;
use super::yaml::{self, Content, Node};
use crate::generate::time;

#[cfg(test)]
mod tests;

/// The version of the file's form.
const VERSION: u64 = 1;

const FILE_KEYS: [&str; 2] = ["version", "tokens"];
const TOKEN_KEYS: [&str; 8] = ["id", "description", "sha256", "tenant", "topics", "signals", "not_before", "expires"];

/// A token file that is looked at again and again.
pub type TokenFile = WatchedFile<Vec<Token>>;

impl TokenFile {
    /// The file and what it holds.
    pub fn open(path: &Path) -> Result<(Self, Vec<Token>), Problems> {
        Self::watch(path, parse)
    }
}

/// The tokens that `text` says.
pub fn parse(file: &str, text: &str) -> Result<Vec<Token>, Problems> {
    let mut reader = Reader::new(file);
    let root = yaml::parse(text, &mut reader.problems.list);
    let tokens = root.map(|root| reader.token_file(&root)).unwrap_or_default();
    if reader.problems.is_empty() { Ok(tokens) } else { Err(reader.problems.sorted()) }
}

impl Reader {
    fn token_file(&mut self, root: &Node) -> Vec<Token> {
        let Some(keys) = self.keys("", root, &FILE_KEYS) else { return Vec::new() };
        let is_known = |text: &str| text.parse().ok().filter(|version: &u64| *version == VERSION);
        self.required(&keys, "version", root.line, |reader, path, node| reader.read(path, node, "1", is_known));
        let items: &[Node] = match keys.get("tokens").map(|node| (node.line, &node.content)) {
            Some((_, Content::List(items))) => items,
            Some((line, _)) => {
                self.refuse(line, "tokens", "must be a list; [] lets nobody in");
                &[]
            }
            None => {
                self.refuse(root.line, "tokens", "must be given; [] lets nobody in");
                &[]
            }
        };
        let mut list: Vec<Token> = Vec::new();
        let (mut ids, mut digests) = (BTreeMap::new(), BTreeMap::new());
        for (position, node) in items.iter().enumerate() {
            let path = format!("tokens[{position}]");
            let Some(token) = self.token(&path, node) else { continue };
            if let Some(earlier) = ids.insert(token.id.clone(), position) {
                self.refuse(node.line, &format!("{path}.id"), format!("is that of tokens[{earlier}], too"));
            }
            if let Some(earlier) = digests.insert(token.digest, position) {
                self.refuse(node.line, &format!("{path}.sha256"), format!("is that of tokens[{earlier}], too"));
            }
            list.push(token);
        }
        list
    }

    fn token(&mut self, path: &str, node: &Node) -> Option<Token> {
        let keys = self.keys(path, node, &TOKEN_KEYS)?;
        let at = |key: &str| format!("{path}.{key}");
        for key in ["id", "sha256"].into_iter().filter(|key| !keys.contains_key(key)) {
            self.refuse(node.line, &at(key), "must be given");
        }
        let name = |text: &str| (rule::NAME.holds)(text).then(|| text.to_owned());
        let id = keys.get("id").and_then(|node| self.read(&at("id"), node, rule::NAME.says, name));
        let digest = keys.get("sha256").and_then(|node| self.digest(&at("sha256"), node));
        let tenant = |text: &str| Tenant::new(text).ok();
        let tenant = keys.get("tenant").and_then(|node| self.read(&at("tenant"), node, rule::TENANT.says, tenant));
        let topics = keys.get("topics").map(|node| self.globs(&at("topics"), node)).unwrap_or_default();
        let names = [Signal::Traces, Signal::Logs, Signal::Metrics].map(|signal| (signal.name(), signal));
        let signals = keys.get("signals").map(|node| self.choices(&at("signals"), node, &names)).unwrap_or_default();
        // Nothing in a list would be taken for no limit.
        for (key, is_empty) in [("topics", topics.is_empty()), ("signals", signals.is_empty())] {
            if let Some(node) = keys.get(key).filter(|_| is_empty && !self.problems.blames(&at(key))) {
                self.refuse(node.line, &at(key), "must have at least one entry; leave the key out to allow all");
            }
        }
        let starts = keys.get("not_before").and_then(|node| self.time(&at("not_before"), node));
        let ends = keys.get("expires").and_then(|node| self.time(&at("expires"), node));
        let good = starts.unwrap_or(Token::ALWAYS.start)..ends.unwrap_or(Token::ALWAYS.end);
        if good.is_empty() {
            self.refuse(node.line, &at("expires"), "must be later than not_before");
        }
        Some(Token { id: id?.into(), digest: digest?, tenant, topics, signals, good })
    }

    /// Whatever stands there is not shown: it may be the token itself, pasted into the wrong place.
    fn digest(&mut self, path: &str, node: &Node) -> Option<Digest> {
        let digest = if let Content::Scalar(text) = &node.content { digest_of(text) } else { None };
        if digest.is_none() {
            self.refuse(
                node.line,
                path,
                "must be 64 hex digits, the SHA-256 of a token; make one with `openwit-ingest token new`",
            );
        }
        digest
    }

    fn globs(&mut self, path: &str, node: &Node) -> Vec<Glob> {
        let glob = |text: &str| Glob::new(text).ok().filter(|_| (rule::TOPIC_GLOB.holds)(text));
        self.items(path, node).into_iter().filter_map(|node| self.read(path, node, rule::TOPIC_GLOB.says, glob)).collect()
    }

    /// A time in Unix milliseconds.
    fn time(&mut self, path: &str, node: &Node) -> Option<u64> {
        let read = |text: &str| time::parse(text).ok().filter(|_| text.contains('T')).map(|nanos| nanos / 1_000_000);
        self.read(path, node, "a time in UTC like 2027-01-31T00:00:00Z", read)
    }
}

fn digest_of(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if text.len() != 2 * digest.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

/// The id of a token, as the file takes it.
pub fn id(text: &str) -> Result<String, String> {
    if (rule::NAME.holds)(text) { Ok(text.to_owned()) } else { Err(format!("must be {}", rule::NAME.says)) }
}

/// A token as an entry of the file.
pub fn entry(token: &Token) -> String {
    let mut entry = format!("  - id: {}\n    sha256: {}\n", yaml::scalar(&token.id), hex(&token.digest));
    let mut line = |key: &str, value: String| entry.push_str(&format!("    {key}: {value}\n"));
    if let Some(tenant) = &token.tenant {
        line("tenant", yaml::scalar(tenant.name()));
    }
    if !token.topics.is_empty() {
        let topics: Vec<String> = token.topics.iter().map(|glob| format!("{:?}", glob.pattern())).collect();
        line("topics", format!("[{}]", topics.join(", ")));
    }
    if !token.signals.is_empty() {
        let signals: Vec<&str> = token.signals.iter().map(|signal| signal.name()).collect();
        line("signals", format!("[{}]", signals.join(", ")));
    }
    if token.good.start != Token::ALWAYS.start {
        line("not_before", time_text(token.good.start));
    }
    if token.good.end != Token::ALWAYS.end {
        line("expires", time_text(token.good.end));
    }
    entry
}

/// A time as it stands in the file.
pub fn time_text(unix_ms: u64) -> String {
    let mut text = Vec::new();
    time::push_rfc3339(&mut text, unix_ms * 1_000_000);
    String::from_utf8_lossy(&text).replace(".000000000", "")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
