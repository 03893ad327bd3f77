//! Reading the protobuf wire format without decoding to structs.
//!
//! Trusts nothing: every length is checked against the slice it lies in, groups and unknown wire types are errors.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// Why bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends inside a value.
    #[error("protobuf message ends inside a field")]
    Truncated,
    /// A varint is longer than ten bytes or does not fit 64 bits.
    #[error("protobuf varint does not fit 64 bits")]
    Varint,
    /// Field number 0, or a group or an unknown wire type.
    #[error("protobuf field has an invalid tag")]
    Tag,
}

/// One value as it lies on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1, little endian: `fixed64`, `sfixed64`, `double`.
    Fixed64(u64),
    /// Wire type 2: string, bytes, message or packed repeated.
    Bytes(&'a [u8]),
    /// Wire type 5, little endian: `fixed32`, `sfixed32`, `float`.
    Fixed32(u32),
}

/// The fields of one message, in wire order. Ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of `message`, as (field number, value).
#[inline]
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// The values of a packed list of varints. Ends after the first error.
pub fn varints(packed: &[u8]) -> impl Iterator<Item = Result<u64, WireError>> + '_ {
    let mut values = fields(packed);
    std::iter::from_fn(move || {
        if values.rest.is_empty() {
            return None;
        }
        let value = values.varint();
        if value.is_err() {
            values.rest = &[];
        }
        Some(value)
    })
}

impl<'a> Fields<'a> {
    #[inline(always)]
    fn varint(&mut self) -> Result<u64, WireError> {
        let (&first, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
        if first < 0x80 {
            self.rest = rest;
            return Ok(u64::from(first));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (position, &byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                // The tenth byte holds bit 63 alone: whatever else it says would be lost.
                if position == 9 && byte > 1 {
                    return Err(WireError::Varint);
                }
                self.rest = &self.rest[position + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { WireError::Truncated } else { WireError::Varint })
    }

    #[inline(always)]
    fn take(&mut self, length: u64) -> Result<&'a [u8], WireError> {
        if length > self.rest.len() as u64 {
            return Err(WireError::Truncated);
        }
        let (taken, rest) = self.rest.split_at(length as usize);
        self.rest = rest;
        Ok(taken)
    }

    #[inline(always)]
    fn field(&mut self) -> Result<(u32, Value<'a>), WireError> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return Err(WireError::Tag);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| WireError::Truncated)?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| WireError::Truncated)?)),
            _ => return Err(WireError::Tag),
        };
        Ok((number as u32, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), WireError>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_wire_type_are_read_in_order() {
        let message = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 0, 0, 0, 0x21, 2, 0, 0, 0, 0, 0, 0, 0];
        let read: Result<Vec<_>, _> = fields(&message).collect();
        let expected = vec![(1, Value::Varint(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed32(1)), (4, Value::Fixed64(2))];
        assert_eq!(read, Ok(expected));
    }

    #[test]
    fn packed_varints_are_read_up_to_the_first_error() {
        let read: Vec<_> = varints(&[0x01, 0x96, 0x01, 0x80]).collect();
        assert_eq!(read, [Ok(1), Ok(150), Err(WireError::Truncated)]);
    }

    #[test]
    fn malformed_messages_end_with_one_error() {
        let cases: [(&[u8], WireError); 6] = [
            (&[0x12, 0x05, b'x'], WireError::Truncated),
            (&[0x08], WireError::Truncated),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], WireError::Varint),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], WireError::Varint),
            (&[0x0b], WireError::Tag),
            (&[0x00], WireError::Tag),
        ];
        for (message, expected) in cases {
            let read: Vec<_> = fields(message).collect();
            assert_eq!(read, vec![Err(expected)], "{message:?}");
        }
    }
}
