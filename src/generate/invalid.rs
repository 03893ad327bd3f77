//! Messages that a pipeline must reject without harm, in the ways in which real producers and attackers break them.
//!
//! | kind | otlp | otlp-json | json | raw |
//! |---|---|---|---|---|
//! | empty: no bytes at all | x | x | x | x |
//! | truncated: a valid message cut in the middle | x | x | x | |
//! | random: bytes of no format and no text | x | x | x | x |
//! | deep: nested 1,000 levels, every sixteenth 20,000 (protobuf) or 100,000 (JSON) | x | x | x | |
//! | utf8: a valid message, one text of which is not UTF-8 | x | x | x | x |
//! | signal: a valid message of another signal | x | x | | |
//!
//! Plain JSON and raw text carry no signal, so for them no message is of a wrong one; and any text is valid raw text, however deep or short.

use super::random::Random;
use super::{Format, Invalid};

/// Levels of an ordinary deep message: beyond every sane limit, yet cheap to parse for who has none.
const LEVELS: usize = 1_000;
/// Levels of JSON that overflow the stack of a parser that recurses.
const LEVELS_JSON_MAX: usize = 100_000;
/// Levels of protobuf: eight bytes each, so kept well below Kafka's default message limit of 1 MB.
const LEVELS_PROTOBUF_MAX: usize = 20_000;
/// One in this many deep messages is of the greatest depth.
const DEEPEST_ONE_IN: u64 = 16;
/// Greatest length of random messages.
const RANDOM_BYTES_MAX: u64 = 600;

/// The kinds that a message of `format` can be made invalid in.
pub fn kinds(format: Format) -> &'static [Invalid] {
    match format {
        Format::Otlp | Format::OtlpJson => {
            &[Invalid::Empty, Invalid::Truncated, Invalid::Random, Invalid::Deep, Invalid::Utf8, Invalid::Signal]
        }
        Format::Json => &[Invalid::Empty, Invalid::Truncated, Invalid::Random, Invalid::Deep, Invalid::Utf8],
        Format::Raw => &[Invalid::Empty, Invalid::Random, Invalid::Utf8],
    }
}

/// Cuts a valid message somewhere in its middle half, so that neither its start nor its length gives it away.
pub fn truncate(payload: &mut Vec<u8>, random: &mut Random) {
    let quarter = payload.len() / 4;
    payload.truncate(quarter + random.below((2 * quarter) as u64) as usize);
}

/// Appends random bytes that are neither text, JSON nor protobuf.
pub fn push_random(out: &mut Vec<u8>, random: &mut Random) {
    // 0xff starts no UTF-8 text; as a protobuf tag it is field 15 or higher of the unknown wire type 7.
    out.push(0xff);
    let length = 16 + random.below(RANDOM_BYTES_MAX - 16);
    for _ in 0..length {
        out.push(random.bits() as u8);
    }
}

/// Appends a message of `format` that is well-formed, and nested far too deep.
pub fn push_deep(out: &mut Vec<u8>, format: Format, random: &mut Random) {
    let deepest = random.one_in(DEEPEST_ONE_IN);
    match format {
        Format::Otlp => push_deep_protobuf(out, if deepest { LEVELS_PROTOBUF_MAX } else { LEVELS }),
        Format::OtlpJson | Format::Json | Format::Raw => push_deep_json(out, if deepest { LEVELS_JSON_MAX } else { LEVELS }),
    }
}

fn push_deep_json(out: &mut Vec<u8>, levels: usize) {
    out.extend_from_slice(b"{\"message\":\"deep\",\"attributes\":{\"a\":");
    out.resize(out.len() + levels, b'[');
    out.resize(out.len() + levels, b']');
    out.extend_from_slice(b"}}");
}

/// Lists in lists as the attribute of a resource: the envelope is the same in all three signals.
///
/// Protobuf puts lengths first, so the message is written backwards, from its innermost byte, and turned round at the end.
fn push_deep_protobuf(out: &mut Vec<u8>, levels: usize) {
    let start = out.len();
    // AnyValue.array_value = 5 and ArrayValue.values = 1, alternating.
    for _ in 0..levels {
        push_header_backwards(out, 1, start);
        push_header_backwards(out, 5, start);
    }
    // KeyValue.value = 2 after KeyValue.key = 1 "a"; Resource.attributes = 1; ResourceSpans.resource = 1; TracesData.resource_spans = 1.
    push_header_backwards(out, 2, start);
    out.extend_from_slice(&[b'a', 1, 0x0a]);
    for _ in 0..3 {
        push_header_backwards(out, 1, start);
    }
    out[start..].reverse();
}

/// Puts the header of length-delimited `field` around all that was written since `start`, backwards.
fn push_header_backwards(out: &mut Vec<u8>, field: u8, start: usize) {
    let mut length = out.len() - start;
    let mut varint = Vec::with_capacity(4);
    while length >= 0x80 {
        varint.push(length as u8 | 0x80);
        length >>= 7;
    }
    varint.push(length as u8);
    out.extend(varint.iter().rev());
    out.push(field << 3 | 2);
}

/// Breaks the first text `needle` of a valid message, which all its messages contain: a byte of it becomes 0xff.
///
/// True if the text was found.
pub fn break_text(payload: &mut [u8], needle: &[u8]) -> bool {
    let found = payload.windows(needle.len()).position(|window| window == needle);
    if let Some(position) = found {
        payload[position + needle.len() / 2] = 0xff;
    }
    found.is_some()
}
