//! Format `auto`: which decoder a payload is for.
//!
//! ```text
//! starts with                          tried
//! 0x0A (field 1 of OTLP protobuf)      otlp_proto; if white space and '{' or '[' follow, then JSON: 0x0A is a line feed too
//! white space or a mark, '{' or '['    JSON: each record is otlp_json if a top-level key is one of OTLP's, else json
//! anything else                        otlp_proto, whose first field may be an unknown one
//! ```
//! A payload that only one decoder could mean fails with that decoder's reason; all else is `undecodable`, with what each said. `raw`
//! is never tried: it accepts anything, so it would hide every fault.

use crate::batch::Reason;

use super::failure::{Failure, shorten};
use super::json_text::without_mark;

/// The tag of field 1 as bytes: how conforming OTLP protobuf starts.
const RESOURCE_TAG: u8 = 0x0a;

/// True if `payload` could be JSON records.
pub(super) fn looks_like_json(payload: &[u8]) -> bool {
    // As protobuf a bracket would start a group, which OTLP has none of.
    matches!(without_mark(payload).trim_ascii_start().first(), Some(b'{' | b'['))
}

/// True if protobuf is to be tried before JSON.
pub(super) fn protobuf_first(payload: &[u8]) -> bool {
    payload.first() == Some(&RESOURCE_TAG) || !looks_like_json(payload)
}

/// The verdict on a payload that protobuf refused and that is no JSON.
pub(super) fn only_protobuf(failure: Box<Failure>) -> Box<Failure> {
    if is_of_otlp(&failure) {
        return failure;
    }
    Failure::new(Reason::Undecodable, format_args!("otlp_proto: {}; json: not an object", shorten(&failure.detail(), 120)))
}

/// The verdict on a payload that both protobuf and JSON refused.
pub(super) fn neither(protobuf: Box<Failure>, json: &Failure) -> Box<Failure> {
    if is_of_otlp(&protobuf) {
        return protobuf;
    }
    let (protobuf, json) = (shorten(&protobuf.detail(), 110), shorten(&json.detail(), 110));
    Failure::new(Reason::Undecodable, format_args!("otlp_proto: {protobuf}; json: {json}"))
}

/// True for what is only said of a payload whose structure is OTLP's; the other reasons might be given for any bytes.
fn is_of_otlp(failure: &Failure) -> bool {
    matches!(
        failure.reason,
        Reason::WrongSignal | Reason::InvalidField | Reason::InvalidUtf8 | Reason::TooLarge | Reason::TooDeep
    )
}
