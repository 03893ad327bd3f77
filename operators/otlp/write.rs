//! Writing the protobuf wire format. Every length is minimal, so what is written is what any encoder would write.

use crate::otlp::wire::Value;

/// Wire types, as the low three bits of a tag.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// Bytes that `value` takes as a varint.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    // One byte for each started group of seven bits.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
fn put_tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    put_varint(out, u64::from(field << 3 | wire_type));
}

/// A field of wire type 0.
#[inline]
pub(crate) fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_tag(out, field, VARINT);
    put_varint(out, value);
}

/// A `fixed64`, `sfixed64` or, by its bits, `double` field.
#[inline]
pub(crate) fn put_fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    put_tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A `fixed32` field.
#[inline]
pub(crate) fn put_fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    put_tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// The start of a string, bytes or message field whose `len` bytes the caller appends.
#[inline]
pub(crate) fn put_header(out: &mut Vec<u8>, field: u32, len: usize) {
    put_tag(out, field, BYTES);
    put_varint(out, len as u64);
}

/// A string, bytes or ready-made message field.
#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_header(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// A field as it was read.
pub(crate) fn put_value(out: &mut Vec<u8>, field: u32, value: Value<'_>) {
    match value {
        Value::Varint(number) => put_number(out, field, number),
        Value::Fixed64(bits) => put_fixed64(out, field, bits),
        Value::Bytes(bytes) => put_bytes(out, field, bytes),
        Value::Fixed32(bits) => put_fixed32(out, field, bits),
    }
}

/// A message whose length is not known yet: where its content starts.
#[must_use = "a message that was opened must be closed"]
pub(crate) struct Open {
    content: usize,
}

/// Starts a message field. Its length is set by `close`, which moves the content if the length needs more than one byte: most do not,
/// and moving is at memory speed.
#[inline]
pub(crate) fn open(out: &mut Vec<u8>, field: u32) -> Open {
    put_tag(out, field, BYTES);
    out.push(0);
    Open { content: out.len() }
}

/// Ends the message that `open` started; all messages opened inside must be closed.
#[inline]
pub(crate) fn close(out: &mut Vec<u8>, message: Open) {
    let content = message.content;
    let len = out.len() - content;
    if len < 0x80 {
        out[content - 1] = len as u8;
        return;
    }
    let more = varint_len(len as u64) - 1;
    out.resize(out.len() + more, 0);
    out.copy_within(content..content + len, content + more);
    let mut rest = len as u64;
    for byte in &mut out[content - 1..content + more] {
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    out[content + more - 1] &= 0x7f;
}

/// The levels around a single item, which are alike in all signals; the caller appends the item's `item_len` bytes.
///
/// `resource` is the content of the resource message; it is left out when empty.
pub(crate) fn put_envelope(out: &mut Vec<u8>, resource: &[u8], item_len: usize) {
    let field_len = |len: usize| 1 + varint_len(len as u64) + len;
    let scope = field_len(item_len);
    let resource_field = if resource.is_empty() { 0 } else { field_len(resource.len()) };
    put_header(out, 1, resource_field + field_len(scope));
    if !resource.is_empty() {
        put_bytes(out, 1, resource);
    }
    put_header(out, 2, scope);
    put_header(out, 2, item_len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::wire::fields;

    #[test]
    fn varints_take_as_many_bytes_as_said() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }

    #[test]
    fn closed_messages_of_every_length_class_are_read_back() {
        for len in [0usize, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let mut out = Vec::new();
            put_number(&mut out, 1, 7);
            let outer = open(&mut out, 2);
            let inner = open(&mut out, 3);
            out.resize(out.len() + len, b'x');
            close(&mut out, inner);
            close(&mut out, outer);
            put_fixed32(&mut out, 4, 9);
            let read: Vec<_> = fields(&out).collect::<Result<_, _>>().unwrap();
            let mut content = Vec::new();
            put_bytes(&mut content, 3, &vec![b'x'; len]);
            assert_eq!(read, [(1, Value::Varint(7)), (2, Value::Bytes(&content)), (4, Value::Fixed32(9))], "{len}");
        }
    }
}
