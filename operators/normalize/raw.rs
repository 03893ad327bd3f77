//! Format `raw`: the payload is a line of text, and becomes the body of one log record.

use crate::batch::Reason;

use super::failure::{Checked, Failure};
use super::json::Options;
use super::json_text::put_text_attribute;
use crate::otlp::write::{put_bytes, put_envelope, put_fixed64, put_header, varint_len};

/// Writes `payload` as `LogsData` with one record. Its times are left out where they are 0, unknown.
pub(super) fn write(payload: &[u8], options: Options<'_>, out: &mut Vec<u8>) -> Checked<()> {
    let Options { kafka_nanos, record_nanos, .. } = options;
    if let Err(error) = simdutf8::compat::from_utf8(payload) {
        let position = error.valid_up_to();
        return Err(Failure::new(Reason::InvalidUtf8, format_args!("raw text is not UTF-8 from byte {position} on")));
    }
    let mut attributes = Vec::new();
    options.attributes.iter().for_each(|(name, value)| put_text_attribute(&mut attributes, 6, name, value));
    // AnyValue { string_value }, inside body, beside the two times of nine bytes each.
    let body = 1 + varint_len(payload.len() as u64) + payload.len();
    let times = [kafka_nanos, record_nanos].iter().filter(|nanos| **nanos != 0).count() * 9;
    let record = times + 1 + varint_len(body as u64) + body + attributes.len();
    put_envelope(out, &[], record);
    if record_nanos != 0 {
        put_fixed64(out, 1, record_nanos);
    }
    put_header(out, 5, body);
    put_bytes(out, 1, payload);
    out.extend_from_slice(&attributes);
    if kafka_nanos != 0 {
        put_fixed64(out, 11, kafka_nanos);
    }
    Ok(())
}
