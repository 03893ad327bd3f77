//! Format `raw`: the payload is a line of text, and becomes the body of one log record.

use crate::batch::Reason;

use super::failure::{Checked, Failure};
use super::write::{put_bytes, put_envelope, put_fixed64, put_header, varint_len};

/// Writes `payload` as `LogsData` with one record. Both its times are Kafka's; 0, unknown, where the broker gave none.
pub(super) fn write(payload: &[u8], kafka_nanos: u64, out: &mut Vec<u8>) -> Checked<()> {
    if let Err(error) = simdutf8::compat::from_utf8(payload) {
        let position = error.valid_up_to();
        return Err(Failure::new(Reason::InvalidUtf8, format_args!("raw text is not UTF-8 from byte {position} on")));
    }
    // AnyValue { string_value }, inside body, beside the two times of nine bytes each.
    let body = 1 + varint_len(payload.len() as u64) + payload.len();
    let times = if kafka_nanos == 0 { 0 } else { 2 * 9 };
    let record = times + 1 + varint_len(body as u64) + body;
    put_envelope(out, &[], record);
    if kafka_nanos != 0 {
        put_fixed64(out, 1, kafka_nanos);
    }
    put_header(out, 5, body);
    put_bytes(out, 1, payload);
    if kafka_nanos != 0 {
        put_fixed64(out, 11, kafka_nanos);
    }
    Ok(())
}
