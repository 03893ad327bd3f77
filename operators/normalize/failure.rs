//! Why one payload is rejected, before it is tied to its message.

use std::fmt::{Display, Write};

use crate::batch::Reason;

/// Characters of a detail: enough for a field, its place and both values; a header of the dead letter, so kept small.
const DETAIL_CHARS_MAX: usize = 256;

/// Characters of a producer's own text quoted inside a detail.
const QUOTE_CHARS_MAX: usize = 40;

/// A payload's failure. Boxed wherever it is returned: the walks' happy path then moves one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub reason: Reason,
    message: String,
    place: String,
}

/// The result of checking or reading a payload.
pub(super) type Checked<T> = Result<T, Box<Failure>>;

impl Failure {
    #[cold]
    pub fn new(reason: Reason, message: impl Display) -> Box<Self> {
        Box::new(Failure { reason, message: message.to_string(), place: String::new() })
    }

    /// The same failure, seen from one level further out.
    #[cold]
    pub fn within(mut self: Box<Self>, place: impl Display) -> Box<Self> {
        // A hostile payload nests, so what lies deepest is left out once the place says enough.
        if self.place.is_empty() {
            self.place = place.to_string();
        } else if self.place.len() < DETAIL_CHARS_MAX {
            self.place = format!("{place}.{}", self.place);
        }
        self
    }

    /// The failure of a line, whose number serde_json does not know.
    #[cold]
    pub fn in_line(mut self: Box<Self>, place: impl Display) -> Box<Self> {
        self.message = self.message.replace(" at line 1 column ", " at column ");
        self.within(place)
    }

    /// The same failure, if a compression that nobody here knows may be behind it.
    #[cold]
    pub fn hinting_at(mut self: Box<Self>, encoding: &[u8]) -> Box<Self> {
        if matches!(self.reason, Reason::Undecodable | Reason::Malformed | Reason::InvalidUtf8) {
            let encoding = quote(&String::from_utf8_lossy(encoding));
            self.message = format!("content-encoding {encoding} is none of gzip, zstd, snappy; {}", self.message);
        }
        self
    }

    /// Message and place, in at most `DETAIL_CHARS_MAX` characters, none of them a control character.
    pub fn detail(&self) -> String {
        let mut detail = shorten(&self.message, DETAIL_CHARS_MAX);
        if !self.place.is_empty() && detail.chars().count() + 8 < DETAIL_CHARS_MAX {
            let room = DETAIL_CHARS_MAX - detail.chars().count() - 4;
            // Writing to a String cannot fail.
            let _ = write!(detail, " at {}", shorten(&self.place, room));
        }
        detail
    }
}

impl From<crate::otlp::wire::WireError> for Box<Failure> {
    #[cold]
    fn from(error: crate::otlp::wire::WireError) -> Self {
        Failure::new(Reason::Malformed, error)
    }
}

/// A producer's own text, fit to stand in a detail.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", shorten(text, QUOTE_CHARS_MAX))
}

/// `text` without control characters, cut at `chars_max` with a mark that it was cut.
pub(super) fn shorten(text: &str, chars_max: usize) -> String {
    let clean = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    if text.chars().nth(chars_max).is_none() {
        return text.chars().map(clean).collect();
    }
    text.chars().take(chars_max - 1).map(clean).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_and_without_control_characters() {
        let mut failure = Failure::new(Reason::Malformed, format_args!("bad {}", quote(&"é\n".repeat(400))));
        for depth in 0..1_000 {
            failure = failure.within(format_args!("level\u{7}[{depth}]"));
        }
        let detail = failure.detail();
        assert!(detail.chars().count() <= DETAIL_CHARS_MAX && !detail.chars().any(char::is_control), "{detail}");
        let long = Failure::new(Reason::Malformed, "x".repeat(1_000)).within("somewhere").detail();
        assert_eq!(long.chars().count(), DETAIL_CHARS_MAX);
    }

    #[test]
    fn a_detail_says_what_and_where() {
        let failure =
            Failure::new(Reason::InvalidField, "trace_id is 15 bytes long, not 16").within("spans[3]").within("scopes[0]");
        assert_eq!(failure.detail(), "trace_id is 15 bytes long, not 16 at scopes[0].spans[3]");
    }
}
