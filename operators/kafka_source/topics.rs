//! Topic patterns: which topics a source reads, as globs over dot-separated tokens.
//!
//! ```text
//! *        alone between dots: exactly one token, not empty       v6.*.logs   v6.qtw.logs
//! **       alone between dots: one or more tokens                 v6.**       v6.a, v6.a.b
//! log-*    inside a token: any characters but a dot, or none      log-*.x     log-.x, log-eu.x
//! others   themselves
//! ```
//!
//! Each pattern is translated once, to one anchored regular expression that librdkafka (POSIX extended) and the `regex` crate read
//! alike, so what the broker's metadata is filtered by and what this process believes cannot differ. Kafka's own topics (`__*`) are
//! matched only by a pattern that is their very name.

use regex::Regex;

/// Kafka's limit for a topic's name.
const NAME_CHARS_MAX: usize = 249;

/// The topics of Kafka itself, up to version 4.
const KAFKAS_OWN: [&str; 4] = ["__cluster_metadata", "__consumer_offsets", "__share_group_state", "__transaction_state"];

/// Why a topic pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No pattern at all.
    #[error("no topic pattern is given")]
    NoPattern,
    /// A pattern without characters.
    #[error("a topic pattern is empty")]
    Empty,
    /// Longer than any topic's name can be.
    #[error("topic pattern '{pattern}' is longer than a topic's name can be ({NAME_CHARS_MAX} characters)")]
    TooLong {
        /// The pattern.
        pattern: String,
    },
    /// A character that no topic's name has.
    #[error(
        "topic pattern '{pattern}' has '{character}', which no topic's name has; patterns are globs, not regular expressions"
    )]
    Character {
        /// The pattern.
        pattern: String,
        /// The first such character.
        character: char,
    },
    /// `**` beside other characters.
    #[error("topic pattern '{pattern}' has '**' beside other characters; it stands alone between dots")]
    DoubleStar {
        /// The pattern.
        pattern: String,
    },
    /// All patterns together are too much for the regular expression engine.
    #[error("the topic patterns are too large")]
    TooLarge,
}

/// One topic pattern.
#[derive(Clone, Debug)]
pub struct Glob {
    pattern: String,
    regex: Regex,
}

impl Glob {
    /// Reads `pattern`.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(&anchored(&translate(pattern)?)).map_err(|_| Error::TooLarge)?;
        Ok(Glob { pattern: pattern.to_owned(), regex })
    }

    /// The pattern as it was given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// True if the topic `name` fits. Unlike `TopicPatterns` this makes no exception for Kafka's own topics.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

/// The topics a source reads: some patterns, less those of an exclude list.
#[derive(Clone, Debug)]
pub struct TopicPatterns {
    include: Vec<String>,
    exclude: Vec<String>,
    included: Regex,
    excluded: Option<Regex>,
}

impl TopicPatterns {
    /// Reads both lists. At least one pattern to include is needed; excluding wins.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, Error> {
        let included = union(include)?.ok_or(Error::NoPattern)?;
        let excluded = union(exclude)?;
        Ok(TopicPatterns { include: include.to_vec(), exclude: exclude.to_vec(), included, excluded })
    }

    /// True if the source reads the topic `name`.
    pub fn matches(&self, name: &str) -> bool {
        let internal = name.starts_with("__") && !self.include.iter().any(|pattern| pattern == name);
        let excluded = self.excluded.as_ref().is_some_and(|excluded| excluded.is_match(name));
        !internal && !excluded && self.included.is_match(name)
    }

    /// What to subscribe to: literal names as they are, globs as regular expressions starting with `^`.
    pub fn librdkafka_subscriptions(&self) -> Vec<String> {
        self.include.iter().map(|pattern| if is_literal(pattern) { pattern.clone() } else { regex_of(pattern) }).collect()
    }

    /// What to put, joined by commas, into `topic.blacklist`: librdkafka then does not even keep metadata of these topics, so that no
    /// subscription matches them.
    ///
    /// Kafka's own topics are among them, but for those that are read on purpose.
    pub fn librdkafka_exclusions(&self) -> Vec<String> {
        let internal_wanted = self.include.iter().any(|pattern| is_literal(pattern) && pattern.starts_with("__"));
        let internal = match internal_wanted {
            false => vec!["^__.*$".to_owned()],
            // POSIX expressions know no exceptions.
            true => KAFKAS_OWN.iter().filter(|name| !self.matches(name)).map(|name| (*name).to_owned()).collect(),
        };
        self.exclude.iter().map(|pattern| regex_of(pattern)).chain(internal).collect()
    }
}

fn is_literal(pattern: &str) -> bool {
    !pattern.contains('*')
}

fn anchored(expression: &str) -> String {
    format!("^{expression}$")
}

/// Only for patterns that `translate` has accepted before.
fn regex_of(pattern: &str) -> String {
    anchored(&translate(pattern).unwrap_or_default())
}

/// One expression for all `patterns`; `None` for none.
fn union(patterns: &[String]) -> Result<Option<Regex>, Error> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let expressions = patterns.iter().map(|pattern| translate(pattern)).collect::<Result<Vec<_>, _>>()?;
    let union = anchored(&format!("(?:{})", expressions.join("|")));
    Regex::new(&union).map(Some).map_err(|_| Error::TooLarge)
}

/// `pattern` as a regular expression without anchors. Uses nothing that POSIX extended expressions lack, and no comma.
fn translate(pattern: &str) -> Result<String, Error> {
    if pattern.is_empty() {
        return Err(Error::Empty);
    }
    if pattern.len() > NAME_CHARS_MAX {
        return Err(Error::TooLong { pattern: pattern.to_owned() });
    }
    let legal = |character: char| character.is_ascii_alphanumeric() || "._-*".contains(character);
    if let Some(character) = pattern.chars().find(|&character| !legal(character)) {
        return Err(Error::Character { pattern: pattern.to_owned(), character });
    }
    let mut tokens = Vec::new();
    for token in pattern.split('.') {
        tokens.push(match token {
            "*" => "[^.]+".to_owned(),
            "**" => ".+".to_owned(),
            mixed if mixed.contains("**") => return Err(Error::DoubleStar { pattern: pattern.to_owned() }),
            mixed => mixed.replace('*', "[^.]*"),
        });
    }
    Ok(tokens.join("\\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(include: &[&str], exclude: &[&str]) -> TopicPatterns {
        let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>();
        TopicPatterns::new(&owned(include), &owned(exclude)).unwrap()
    }

    #[test]
    fn globs_match_whole_tokens() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            (
                "v6.qtw.traces.*.*",
                &["v6.qtw.traces.a.b"],
                &["v6.qtw.traces.a", "v6.qtw.traces.a.b.c", "v6.qtw.traces..b", "xv6.qtw.traces.a.b"],
            ),
            ("v6.**", &["v6.a", "v6.a.b.c"], &["v6", "v6.", "v60.a"]),
            ("a.**.z", &["a.b.z", "a.b.c.z"], &["a.z", "a..z.y"]),
            ("**", &["a", "a.b", "_a"], &["__consumer_offsets", "__transaction_state"]),
            ("*", &["logs"], &["a.b", "__consumer_offsets"]),
            ("log-*", &["log-", "log-eu"], &["log-eu.x", "log"]),
            ("*-*.x", &["a-b.x", "-.x"], &["a.b-c.x", "ab.x"]),
            ("plain.name", &["plain.name"], &["plainxname", "plain.name2"]),
            ("__consumer_offsets", &["__consumer_offsets"], &["__transaction_state"]),
        ];
        for (pattern, fit, unfit) in cases {
            let patterns = patterns(&[pattern], &[]);
            for name in fit {
                assert!(patterns.matches(name), "{pattern} should match {name}");
            }
            for name in unfit {
                assert!(!patterns.matches(name), "{pattern} should not match {name}");
            }
        }
    }

    #[test]
    fn excluding_wins_over_including() {
        let patterns = patterns(&["v6.**", "other"], &["v6.*.debug"]);
        assert!(patterns.matches("v6.a.info") && patterns.matches("other"));
        assert!(!patterns.matches("v6.a.debug"));
    }

    #[test]
    fn librdkafka_is_given_literals_or_anchored_expressions() {
        let patterns = patterns(&["v6.qtw.*.log-*", "plain.name", "a.**"], &["a.b"]);
        let expected = ["^v6\\.qtw\\.[^.]+\\.log-[^.]*$", "plain.name", "^a\\..+$"];
        assert_eq!(patterns.librdkafka_subscriptions(), expected);
        assert_eq!(patterns.librdkafka_exclusions(), ["^a\\.b$", "^__.*$"]);
    }

    #[test]
    fn a_kafka_topic_read_on_purpose_is_not_blacklisted() {
        let patterns = patterns(&["__consumer_offsets", "**"], &[]);
        assert_eq!(patterns.librdkafka_exclusions(), ["__cluster_metadata", "__share_group_state", "__transaction_state"]);
        assert!(patterns.matches("__consumer_offsets") && !patterns.matches("__transaction_state"));
    }

    #[test]
    fn what_is_no_glob_is_refused_with_its_reason() {
        let error = |pattern: &str| Glob::new(pattern).map(|_| ()).unwrap_err();
        assert_eq!(error(""), Error::Empty);
        assert_eq!(error("^v6\\..*"), Error::Character { pattern: "^v6\\..*".into(), character: '^' });
        assert_eq!(error("a.b**"), Error::DoubleStar { pattern: "a.b**".into() });
        assert_eq!(error("a.***"), Error::DoubleStar { pattern: "a.***".into() });
        assert!(matches!(error(&"a".repeat(250)), Error::TooLong { .. }));
        assert_eq!(TopicPatterns::new(&[], &[]).map(|_| ()).unwrap_err(), Error::NoPattern);
    }

    proptest::proptest! {
        #[test]
        fn globs_agree_with_a_matcher_written_from_the_definition(
            pattern in proptest::collection::vec("(\\*|\\*\\*|[ab]{0,2}|a\\*|\\*b)", 1..5),
            name in proptest::collection::vec("[ab]{0,3}", 1..6),
        ) {
            let (pattern, name) = (pattern.join("."), name.join("."));
            if let Ok(glob) = Glob::new(&pattern) {
                let pattern: Vec<&str> = pattern.split('.').collect();
                let name_tokens: Vec<&str> = name.split('.').collect();
                proptest::prop_assert_eq!(glob.matches(&name), naive(&pattern, &name_tokens));
            }
        }
    }

    fn naive(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            // `**` needs something to match, but a single empty token beside another is a dot, which it takes.
            (Some((&"**", rest)), Some(_)) => {
                (1..=name.len()).any(|taken| !name[..taken].join(".").is_empty() && naive(rest, &name[taken..]))
            }
            (Some((token, rest)), Some((first, others))) => naive_token(token, first) && naive(rest, others),
            _ => false,
        }
    }

    fn naive_token(token: &str, text: &str) -> bool {
        match token.split_once('*') {
            _ if token == "*" => !text.is_empty(),
            Some((before, after)) => text.len() + 1 >= token.len() && text.starts_with(before) && text.ends_with(after),
            None => token == text,
        }
    }
}
