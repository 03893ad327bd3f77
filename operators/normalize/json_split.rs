//! Cuts JSON into the texts of its parts without parsing them: elements of an array, members of an object.
//!
//! Only strings and brackets are looked at, so a cut is right only if the JSON is. Whoever takes the parts parses each of them, and
//! parts that parse, with commas between them, are a JSON array or object: nothing malformed is accepted by cutting it.

use crate::batch::Reason;

use super::failure::{Checked, Failure};

/// The parts of an array or object, without the white space around them.
pub(super) struct Parts<'t> {
    text: &'t str,
    at: usize,
    close: u8,
    /// True behind a comma, where a part must follow.
    owed: bool,
    ended: bool,
}

/// The parts of `text`, which starts with the bracket that opens it.
pub(super) fn parts(text: &str) -> Parts<'_> {
    let close = if text.starts_with('[') { b']' } else { b'}' };
    Parts { text, at: 1, close, owed: false, ended: false }
}

/// The key and the value of a member of an object, as texts.
pub(super) fn member(part: &str) -> Checked<(&str, &str)> {
    let key_end = string_end(part.as_bytes(), 1).filter(|_| part.starts_with('"'));
    let cut = key_end.and_then(|end| {
        let (key, rest) = part.split_at(end);
        rest.trim_ascii_start().strip_prefix(':').map(|value| (key, value.trim_ascii()))
    });
    cut.ok_or_else(|| malformed("a member that is no key and value"))
}

impl<'t> Iterator for Parts<'t> {
    type Item = Checked<&'t str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let Some(end) = part_end(self.text.as_bytes(), self.at) else {
            self.ended = true;
            return Some(Err(malformed("it ends inside an array or object")));
        };
        // Both ends are at ASCII characters.
        let part = self.text[self.at..end].trim_ascii();
        self.at = end + 1;
        let closed = self.text.as_bytes()[end] != b',';
        if closed {
            self.ended = true;
            if self.text.as_bytes()[end] != self.close || !self.text[self.at..].trim_ascii().is_empty() {
                return Some(Err(malformed("something follows the array or object")));
            }
        }
        if part.is_empty() {
            return if closed && !self.owed { None } else { Some(Err(malformed("a comma without a value"))) };
        }
        self.owed = !closed;
        Some(Ok(part))
    }
}

/// Where the part ends that starts at `at`: at its comma, or at the bracket that closes what it is in.
fn part_end(text: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match text.get(at)? {
            b'"' => at = string_end(text, at + 1)? - 1,
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 0 => return Some(at),
            b']' | b'}' => depth -= 1,
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

/// One past the quote that ends the string whose content starts at `at`.
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cold]
fn malformed(why: &str) -> Box<Failure> {
    Failure::new(Reason::Malformed, format_args!("JSON: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_cut_at_their_own_commas() {
        let cut = |text: &'static str| parts(text).collect::<Result<Vec<_>, _>>().map_err(|failure| failure.detail());
        let whole: [(&str, &[&str]); 5] = [
            ("[]", &[]),
            ("[ ] \n", &[]),
            ("[1]", &["1"]),
            (r#"[{"a":[1,2],"b":"]},\"\\"} , "x,y",{}]"#, &[r#"{"a":[1,2],"b":"]},\"\\"}"#, r#""x,y""#, "{}"]),
            ("{\"a\":1,\"b\":{\"c\":2}}", &["\"a\":1", "\"b\":{\"c\":2}"]),
        ];
        for (text, expected) in whole {
            assert_eq!(cut(text).as_deref(), Ok(expected), "{text}");
        }
        for broken in ["[", "[1", "[1,", "[1,]", "[,1]", "[,]", "[1]]", "[1] 2", "[1}", "[\"a]", "[\"\\", "[{]"] {
            assert!(cut(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn members_are_key_and_value() {
        assert_eq!(member(r#""a\"b" : {"c":1}"#), Ok((r#""a\"b""#, r#"{"c":1}"#)));
        for broken in ["", "a:1", "\"a\"", "\"a\" 1", "\"a"] {
            assert!(member(broken).is_err(), "{broken}");
        }
    }
}
