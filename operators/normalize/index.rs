//! Which index, signal and format a topic's messages have, told by the topic's name alone.
//!
//! ```text
//! v6.qtw.traces.shop.eu      position 3 (counted from 0): index "shop"
//! ```
//! The first pattern of `topic_index_config` that matches the topic decides; without one the default position does. Where the name has
//! no such token, or it is no index name, `auto_generate` makes one from the whole topic name if it is enabled.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::batch::Signal;
use crate::kafka_source::topics::{self, Glob};

use super::Format;

/// Characters of an index's name: it becomes a segment of paths and of object keys.
const NAME_CHARS_MAX: usize = 128;

/// Characters of `auto_generate.prefix`: leaves room for what is generated.
const PREFIX_CHARS_MAX: usize = 64;

/// The index of batches whose topic has none. No index can have this name, and no row ever does: only the coverage of rejected
/// messages is kept under it.
pub const UNINDEXED: &str = "_unindexed";

/// `topic_index_config` and `auto_generate`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexRules {
    /// Which token of a topic's name is its index, counted from 0, where no pattern says otherwise. `None`: no token is.
    pub default_index_position: Option<usize>,
    /// Exceptions, the first that matches wins.
    pub patterns: Vec<IndexPattern>,
    /// What to do for a topic without such a token.
    pub auto_generate: AutoGenerate,
}

/// One entry of `topic_index_config.patterns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexPattern {
    /// The topics this is about, as a glob of the form that `kafka_source::topics` reads.
    pub matches: String,
    /// Which token is the index, counted from 0. `None`: as by default.
    pub index_position: Option<usize>,
    /// The topics' signal instead of `telemetry_type`.
    pub signal: Option<Signal>,
    /// The topics' format instead of the source's.
    pub format: Option<Format>,
}

/// `auto_generate`: makes up an index for topics that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoGenerate {
    /// Off: messages of such topics are rejected (`no_index`).
    pub enabled: bool,
    /// What each such index starts with.
    pub prefix: String,
    /// What follows.
    pub strategy: Strategy,
    /// How many indexes `Strategy::Numbers` shares topics among.
    pub numbers: u32,
}

impl Default for AutoGenerate {
    fn default() -> Self {
        AutoGenerate { enabled: false, prefix: "auto_".to_owned(), strategy: Strategy::Hash, numbers: 16 }
    }
}

/// How `auto_generate` names an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// xxh3_64 of the topic's name as 16 hex digits: the same on every machine, in every version.
    #[default]
    Hash,
    /// The topic's name, in lower case.
    Topic,
    /// A number below `numbers`, by the hash of the topic's name: so many topics share so few indexes. Padded with zeros, so that names
    /// sort.
    Numbers,
}

/// Why index rules were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A pattern is no glob.
    #[error("topic_index_config.patterns[{position}].match is invalid")]
    Pattern {
        /// Which pattern.
        position: usize,
        /// Why.
        #[source]
        source: topics::Error,
    },
    /// The prefix could not start an index's name.
    #[error(
        "auto_generate.prefix '{prefix}' must be lower-case letters, digits, '.', '_' and '-', start with a letter or digit, and have at most {PREFIX_CHARS_MAX} characters"
    )]
    Prefix {
        /// The prefix.
        prefix: String,
    },
}

/// What a topic's name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The index, or why there is none.
    pub index: Result<String, String>,
    pub signal: Option<Signal>,
    pub format: Option<Format>,
}

/// The rules, ready to be asked.
#[derive(Clone, Debug)]
pub(super) struct Router {
    rules: IndexRules,
    globs: Vec<Glob>,
}

impl Router {
    pub fn new(rules: IndexRules) -> Result<Self, Error> {
        let mut globs = Vec::with_capacity(rules.patterns.len());
        for (position, pattern) in rules.patterns.iter().enumerate() {
            globs.push(Glob::new(&pattern.matches).map_err(|source| Error::Pattern { position, source })?);
        }
        let prefix = &rules.auto_generate.prefix;
        let fits = prefix.is_empty() || (prefix.len() <= PREFIX_CHARS_MAX && index_name(prefix).as_ref() == Ok(prefix));
        if rules.auto_generate.enabled && !fits {
            return Err(Error::Prefix { prefix: prefix.clone() });
        }
        Ok(Router { rules, globs })
    }

    pub fn route(&self, topic: &str) -> Route {
        let pattern = self.globs.iter().position(|glob| glob.matches(topic)).map(|position| &self.rules.patterns[position]);
        let position = pattern.and_then(|pattern| pattern.index_position).or(self.rules.default_index_position);
        let index = token(topic, position).and_then(index_name).or_else(|reason| self.generate(topic, reason));
        Route { index, signal: pattern.and_then(|pattern| pattern.signal), format: pattern.and_then(|pattern| pattern.format) }
    }

    fn generate(&self, topic: &str, reason: String) -> Result<String, String> {
        let AutoGenerate { enabled, prefix, strategy, numbers } = &self.rules.auto_generate;
        if !enabled {
            return Err(reason);
        }
        let hashed = XxHash3_64::oneshot(topic.as_bytes());
        let hash = format!("{hashed:016x}");
        match strategy {
            Strategy::Numbers => {
                let last = numbers.saturating_sub(1);
                let width = last.to_string().len();
                Ok(format!("{prefix}{:0width$}", hashed % u64::from(last + 1)))
            }
            Strategy::Hash => Ok(format!("{prefix}{hash}")),
            Strategy::Topic => {
                let name = index_name(&format!("{prefix}{topic}"));
                // A name too long, or with a start or dots that paths must not have: what remains readable of it, told apart by its hash.
                Ok(name.unwrap_or_else(|_| match readable(topic) {
                    nothing if nothing.is_empty() => format!("{prefix}{hash}"),
                    readable => format!("{prefix}{readable}-{hash}"),
                }))
            }
        }
    }
}

fn token(topic: &str, position: Option<usize>) -> Result<&str, String> {
    let Some(position) = position else { return Err("no index position is configured for this topic".to_owned()) };
    match topic.split('.').nth(position) {
        Some("") | None => Err(format!("the topic's name has no token at position {position}, counted from 0")),
        Some(token) => Ok(token),
    }
}

/// `name` in lower case, if that can be an index: `[a-z0-9][a-z0-9._-]{0,127}`, and no two dots in a row.
fn index_name(name: &str) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let starts = name.bytes().next().is_some_and(legal);
    let continues = name.bytes().all(|byte| legal(byte) || b"._-".contains(&byte));
    if !starts || !continues || name.contains("..") || name.len() > NAME_CHARS_MAX {
        return Err(format!(
            "'{name}' cannot be an index: it must match [a-z0-9][a-z0-9._-]{{0,127}} and have no two dots in a row"
        ));
    }
    Ok(name)
}

/// The start of a topic's name with nothing in it that an index's name may not have.
fn readable(topic: &str) -> String {
    let clean = topic
        .to_ascii_lowercase()
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { byte as char } else { '-' })
        .collect::<String>();
    // Prefix, this, a hyphen and 16 digits stay below the limit of an index's name.
    clean.trim_start_matches('-').chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn router(default: Option<usize>, patterns: &[(&str, usize)], auto_generate: AutoGenerate) -> Router {
        let pattern = |&(matches, position): &(&str, usize)| IndexPattern {
            matches: matches.to_owned(),
            index_position: Some(position),
            ..IndexPattern::default()
        };
        let patterns = patterns.iter().map(pattern).collect();
        Router::new(IndexRules { default_index_position: default, patterns, auto_generate }).unwrap()
    }

    fn auto(strategy: Strategy) -> AutoGenerate {
        AutoGenerate { enabled: true, strategy, ..AutoGenerate::default() }
    }

    #[test]
    fn the_specified_example_maps_the_fourth_token() {
        let router = router(Some(3), &[("v6.qtw.*.*.*", 3)], AutoGenerate::default());
        assert_eq!(router.route("v6.qtw.traces.Shop.eu").index.as_deref(), Ok("shop"));
    }

    #[test]
    fn the_first_matching_pattern_decides_and_the_default_fills_in() {
        let router = router(Some(0), &[("a.**", 1), ("a.b.*", 2)], AutoGenerate::default());
        for (topic, index) in [("a.b.c", "b"), ("x.y.z", "x"), ("single", "single")] {
            assert_eq!(router.route(topic).index.as_deref(), Ok(index), "{topic}");
        }
    }

    #[test]
    fn topics_without_a_usable_token_have_no_index() {
        let router = router(Some(1), &[], AutoGenerate::default());
        for topic in ["short", "a..b", "a._b", "a.-b", &format!("a.{}", "x".repeat(129))] {
            assert!(router.route(topic).index.is_err(), "{topic}");
        }
    }

    #[test]
    fn generated_indexes_are_stable_and_fit_for_paths() {
        let hash = router(Some(3), &[], auto(Strategy::Hash));
        // Golden: a change here would split the data of running systems over two indexes.
        assert_eq!(hash.route("orders").index.as_deref(), Ok("auto_a88ccdc9fa4974fb"));
        assert_eq!(hash.route("a.b.c.d").index.as_deref(), Ok("d"), "a topic with the token keeps it");
        let numbers = |numbers| router(Some(3), &[], AutoGenerate { numbers, ..auto(Strategy::Numbers) });
        assert_eq!(numbers(16).route("orders").index.as_deref(), Ok("auto_11"));
        assert_eq!(numbers(1_000).route("orders").index.as_deref(), Ok("auto_739"));
        assert_eq!(numbers(1).route("orders").index.as_deref(), Ok("auto_0"));
        let names: BTreeSet<_> = (0..500).map(|topic| numbers(16).route(&format!("t{topic}")).index.unwrap()).collect();
        assert_eq!(names, (0..16).map(|number| format!("auto_{number:02}")).collect());
        let topic = router(Some(3), &[], auto(Strategy::Topic));
        assert_eq!(topic.route("Orders.EU").index.as_deref(), Ok("auto_orders.eu"));
        for name in ["x".repeat(249), "a..b".to_owned(), "..".to_owned(), "-".repeat(249)] {
            for prefix in ["auto_", "", "a."] {
                let rules = AutoGenerate { prefix: prefix.to_owned(), ..auto(Strategy::Topic) };
                let index = router(Some(3), &[], rules).route(&name).index.unwrap();
                assert_eq!(index_name(&index).as_ref(), Ok(&index), "{name}");
            }
        }
    }

    #[test]
    fn no_topics_name_makes_an_index_that_a_path_a_label_or_a_query_must_not_have() {
        // Kafka allows none but the first few of these names; other clusters and their clients may.
        let long = "x".repeat(10_000);
        let hostile = [
            "",
            ".",
            "..",
            "...",
            "a/b",
            "../../etc/passwd",
            "a\\b",
            "a b",
            "a\0b",
            "a\n",
            "a'; drop table files; --",
            "a\"",
            "münchen",
            "İ",
            "%2e%2e",
            "_unindexed",
            &long,
        ];
        let is_safe = |index: &str| {
            let is_plain = index.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
            is_plain && (1..=128).contains(&index.len()) && !index.starts_with(['.', '_', '-']) && !index.contains("..")
        };
        let off = AutoGenerate::default();
        for rules in [off, auto(Strategy::Hash), auto(Strategy::Topic)] {
            let by_token = [Some(0), Some(1), None].map(|position| router(position, &[], rules.clone()));
            for name in hostile {
                for (router, topic) in
                    by_token.iter().flat_map(|router| [(router, name.to_owned()), (router, format!("a.{name}"))])
                {
                    match router.route(&topic).index {
                        Ok(index) => assert!(is_safe(&index), "{topic:?} became {index:?}"),
                        Err(why) => assert!(!rules.enabled, "{topic:?}: {why}"),
                    }
                }
            }
        }
    }

    #[test]
    fn bad_rules_are_refused() {
        let prefix = |prefix: &str| IndexRules {
            auto_generate: AutoGenerate { prefix: prefix.to_owned(), ..auto(Strategy::Hash) },
            ..IndexRules::default()
        };
        for wrong in ["../", "_x", "A", "a b", &"x".repeat(65)] {
            assert!(matches!(Router::new(prefix(wrong)), Err(Error::Prefix { .. })), "{wrong}");
        }
        assert!(Router::new(prefix("")).is_ok());
        let patterns = vec![IndexPattern { matches: "a**".to_owned(), ..IndexPattern::default() }];
        let rules = IndexRules { patterns, ..IndexRules::default() };
        assert!(matches!(Router::new(rules), Err(Error::Pattern { position: 0, .. })));
    }
}
