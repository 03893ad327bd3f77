//! What a replay sends: which letters, to where, and with which mark. No producer, no clock.
//!
//! A message that is sent back says so in headers, and where it lay first. If it is rejected again its letter has them, and so a replay
//! tells it from one that was never sent:
//!
//! ```text
//! message 7 rejected -> letter of 7 -> replay: message 31, attempt 1, origin 7 -> rejected -> letter of 31, attempt 1, origin 7
//!                                         the next replay leaves out both letters; with --again it sends the later one, as attempt 2
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::letter::{Header, Letter, REDACTED};
use super::read::{Error, Found, Met, Place, Source};
use super::resend::Message;
use crate::coverage::{PartitionKey, TopicKey};

/// What the names of the headers that a replay adds begin with.
const PREFIX: &[u8] = b"openwit.replay.";
const ATTEMPT: &str = "openwit.replay.attempt";
const CLUSTER: &str = "openwit.replay.cluster";
const TOPIC: &str = "openwit.replay.topic";
const TOPIC_ID: &str = "openwit.replay.topic_id";
const PARTITION: &str = "openwit.replay.partition";
const OFFSET: &str = "openwit.replay.offset";
const TIMESTAMP_MS: &str = "openwit.replay.timestamp_ms";

/// True for the headers by which a message says that, and from where, it was sent back.
pub fn is_mark(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// Where a message lay when it was rejected first, and how often it was sent back since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which replay this is of, from 1.
    pub attempt: u32,
    /// The first partition.
    pub partition: PartitionKey,
    /// The offset there.
    pub offset: i64,
    /// The Kafka timestamp there; -1 where it had none.
    pub timestamp_ms: i64,
}

impl Mark {
    /// The mark among a message's headers; `None` where it lacks any of them.
    pub fn find(headers: &[Header]) -> Option<Self> {
        let text = |name: &str| {
            let (_, value) = headers.iter().rfind(|(found, _)| found == name.as_bytes())?;
            std::str::from_utf8(value.as_deref()?).ok()
        };
        let topic = TopicKey { cluster: text(CLUSTER)?.into(), name: text(TOPIC)?.into(), id: text(TOPIC_ID)?.into() };
        Some(Mark {
            attempt: text(ATTEMPT)?.parse().ok()?,
            partition: PartitionKey { topic: Arc::new(topic), partition: text(PARTITION)?.parse().ok()? },
            offset: text(OFFSET)?.parse().ok()?,
            timestamp_ms: text(TIMESTAMP_MS)?.parse().ok()?,
        })
    }

    /// The mark of a letter's message as it lies there: attempt 0 is its own place.
    fn of(letter: &Letter) -> Self {
        Self::find(&letter.headers).unwrap_or_else(|| Mark {
            attempt: 0,
            partition: letter.partition.clone(),
            offset: letter.offset,
            timestamp_ms: letter.timestamp_ms,
        })
    }

    /// `headers` with this mark in the place of an earlier one.
    fn put(&self, mut headers: Vec<Header>) -> Vec<Header> {
        headers.retain(|(name, _)| !name.starts_with(PREFIX));
        let topic = &self.partition.topic;
        let ours = [
            (ATTEMPT, self.attempt.to_string()),
            (CLUSTER, topic.cluster.to_string()),
            (TOPIC, topic.name.to_string()),
            (TOPIC_ID, topic.id.to_string()),
            (PARTITION, self.partition.partition.to_string()),
            (OFFSET, self.offset.to_string()),
            (TIMESTAMP_MS, self.timestamp_ms.to_string()),
        ];
        headers.extend(ours.map(|(name, value)| (name.as_bytes().to_vec(), Some(value.into_bytes()))));
        headers
    }
}

/// The last letter of each message that was rejected again after a replay. As long as those are few this is small: some 200 bytes each.
#[derive(Debug, Default)]
pub struct RejectedAgain(BTreeMap<(PartitionKey, i64), (u32, Place)>);

impl RejectedAgain {
    /// Reads all of `source`. Damage is passed over here: whoever reads the letters themselves meets it again, and tells it.
    pub fn survey(source: &Source) -> Result<Self, Error> {
        let mut known = RejectedAgain::default();
        for found in source.letters(None) {
            match found {
                Ok(found) => known.note(&found),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    fn note(&mut self, found: &Found) {
        let Some(mark) = Mark::find(&found.letter.headers) else { return };
        let last = self.0.entry((mark.partition, mark.offset)).or_insert_with(|| (mark.attempt, found.place.clone()));
        *last = std::cmp::max(last.clone(), (mark.attempt, found.place.clone()));
    }
}

/// How a replay is told to work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where to; `None` is the topic and the partition in which each message was rejected.
    pub to: Option<String>,
    /// Send the original's Kafka timestamp; else a message has the time it is sent at.
    pub keep_timestamp: bool,
    /// Also send what was rejected after a replay.
    pub again: bool,
    /// The token that each message is sent with, in the place of its producer's, which letters do not hold.
    pub token: Option<Token>,
}

/// A header with a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The header's name; messages may have it in any case.
    pub header: String,
    /// Its value.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Token {
    /// `headers` with this token in the place of any other.
    fn put(&self, mut headers: Vec<Header>) -> Vec<Header> {
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case(self.header.as_bytes()));
        headers.push((self.header.clone().into_bytes(), Some(self.value.clone())));
        headers
    }
}

/// What becomes of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is sent.
    Send(Message),
    /// This run has sent its message, or another letter is the latest of it.
    Repeated,
    /// It was replayed and rejected again, and `Config::again` is off.
    RejectedAgain,
    /// It lacks what was too large for the dead letter topic.
    Incomplete(String),
    /// Its producer's token was left out of the letter, and there is no other one.
    WithoutToken,
}

/// Decides letter by letter, and sends no message twice.
pub struct Chooser {
    config: Config,
    again: RejectedAgain,
    sent: Met,
}

impl Chooser {
    /// Decides by `config` and what `again` knows.
    pub fn new(config: Config, again: RejectedAgain) -> Self {
        Chooser { config, again, sent: Met::default() }
    }

    /// What becomes of a letter.
    pub fn choose(&mut self, Found { place, letter }: Found) -> Choice {
        let mark = Mark::of(&letter);
        let latest = self.again.0.get(&(mark.partition.clone(), mark.offset));
        if let Some((_, latest)) = latest {
            if !self.config.again {
                return Choice::RejectedAgain;
            }
            if *latest != place {
                return Choice::Repeated;
            }
        }
        if let Some(omitted) = letter.omitted {
            return Choice::Incomplete(omitted);
        }
        let is_redacted = |(_, value): &Header| value.as_deref() == Some(REDACTED);
        if self.config.token.is_none() && letter.headers.iter().any(is_redacted) {
            return Choice::WithoutToken;
        }
        if !self.sent.first(&mark.partition, mark.offset) {
            return Choice::Repeated;
        }
        let headers = match &self.config.token {
            Some(token) => token.put(letter.headers),
            None => letter.headers,
        };
        let (topic, partition) = match &self.config.to {
            Some(to) => (to.clone(), None),
            None => (letter.partition.topic.name.to_string(), Some(letter.partition.partition)),
        };
        let mark = Mark { attempt: mark.attempt.saturating_add(1), ..mark };
        Choice::Send(Message {
            place,
            topic,
            partition,
            key: letter.key,
            payload: letter.payload,
            headers: mark.put(headers),
            timestamp_ms: Some(letter.timestamp_ms).filter(|_| self.config.keep_timestamp),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "spans".into(), id: "id".into() };
        PartitionKey { topic: Arc::new(topic), partition: number }
    }

    fn found(line: u64, offset: i64, headers: Vec<Header>) -> Found {
        let letter = Letter {
            partition: partition(2),
            offset,
            timestamp_ms: 5,
            rejected_at_ms: 9,
            reason: "malformed".into(),
            detail: String::new(),
            key: Some(b"key".to_vec()),
            payload: None,
            headers,
            omitted: None,
        };
        Found { place: Place::Line { file: "f".into(), line }, letter }
    }

    fn chooser(config: Config, found: &[&Found]) -> Chooser {
        let mut again = RejectedAgain::default();
        found.iter().for_each(|found| again.note(found));
        Chooser::new(config, again)
    }

    fn sent(choice: Choice) -> Message {
        match choice {
            Choice::Send(message) => message,
            other => panic!("not sent: {other:?}"),
        }
    }

    #[test]
    fn a_message_goes_back_whole_and_marked_with_where_it_lay() {
        let own: Vec<Header> = vec![(b"tenant".to_vec(), None), (b"openwit.reason".to_vec(), Some(b"its own".to_vec()))];
        let letter = found(1, 7, own.clone());
        let message = sent(chooser(Config::default(), &[]).choose(letter.clone()));
        assert_eq!((&*message.topic, message.partition, message.timestamp_ms), ("spans", Some(2), None));
        assert_eq!((message.key.as_deref(), message.payload.as_deref()), (Some(&b"key"[..]), None));
        assert!(message.headers.starts_with(&own), "{:?}", message.headers);
        let mark = Mark { attempt: 1, partition: partition(2), offset: 7, timestamp_ms: 5 };
        assert_eq!(Mark::find(&message.headers), Some(mark));
        let elsewhere = Config { to: Some("other".into()), keep_timestamp: true, ..Config::default() };
        let message = sent(chooser(elsewhere, &[]).choose(letter));
        assert_eq!((&*message.topic, message.partition, message.timestamp_ms), ("other", None, Some(5)));
    }

    #[test]
    fn what_was_rejected_again_is_sent_only_when_asked_for_and_then_once() {
        let first = found(1, 7, vec![]);
        let marked = |attempt| sent(chooser(Config::default(), &[]).choose(found(attempt, 7, vec![]))).headers;
        let second = found(2, 31, marked(1));
        let again = Config { again: true, ..Config::default() };
        let third = found(3, 40, sent(chooser(again.clone(), &[&second]).choose(second.clone())).headers);
        assert_eq!(Mark::find(&third.letter.headers).map(|mark| (mark.attempt, mark.offset)), Some((2, 7)));
        let all = [&first, &second, &third];
        let mut never = chooser(Config::default(), &all);
        for one in all {
            assert_eq!(never.choose(one.clone()), Choice::RejectedAgain);
        }
        let mut asked = chooser(again, &all);
        assert_eq!((asked.choose(first.clone()), asked.choose(second.clone())), (Choice::Repeated, Choice::Repeated));
        let message = sent(asked.choose(third.clone()));
        assert_eq!(Mark::find(&message.headers).map(|mark| (mark.attempt, mark.offset)), Some((3, 7)));
        let marks = message.headers.iter().filter(|(name, _)| name.starts_with(PREFIX)).count();
        assert_eq!(marks, 7, "one mark, not three");
    }

    #[test]
    fn no_message_is_sent_twice_and_none_without_its_payload() {
        let mut chooser = chooser(Config::default(), &[]);
        let mut bare = found(1, 7, vec![]);
        bare.letter.omitted = Some("payload:9".into());
        assert_eq!(chooser.choose(bare), Choice::Incomplete("payload:9".into()));
        // The same message, whole: a letter that lacks something must not stand in its way.
        sent(chooser.choose(found(2, 7, vec![])));
        assert_eq!(chooser.choose(found(3, 7, vec![])), Choice::Repeated);
        sent(chooser.choose(found(4, 8, vec![])));
    }

    #[test]
    fn a_message_whose_token_was_left_out_is_sent_only_with_another_one() {
        let own: Vec<Header> = vec![(b"a".to_vec(), Some(b"b".to_vec())), (b"Authorization".to_vec(), Some(REDACTED.to_vec()))];
        let letter = found(1, 7, own);
        assert_eq!(chooser(Config::default(), &[]).choose(letter.clone()), Choice::WithoutToken);
        let token = Token { header: "authorization".into(), value: b"Bearer other".to_vec() };
        assert!(!format!("{token:?}").contains("other"));
        let message = sent(chooser(Config { token: Some(token), ..Config::default() }, &[]).choose(letter));
        let headers: Vec<_> = message.headers.iter().filter(|(name, _)| !is_mark(name)).cloned().collect();
        let expected: Vec<Header> =
            vec![(b"a".to_vec(), Some(b"b".to_vec())), (b"authorization".to_vec(), Some(b"Bearer other".to_vec()))];
        assert_eq!(headers, expected);
    }

    #[test]
    fn headers_that_only_look_like_a_mark_are_none() {
        let headers: Vec<Header> = vec![(ATTEMPT.into(), Some(b"1".to_vec())), (OFFSET.into(), Some(b"x".to_vec()))];
        assert_eq!(Mark::find(&headers), None);
    }
}
