//! Stamping a message that is already encoded: eight times as fast as stamping its structs and encoding those.
//!
//! All messages of one template have the same layout, because everything stamped has a fixed length. So a template is encoded once, the
//! places of its stamped values are found, and a message is a copy of those bytes with new values written over the old.
//!
//! ```text
//! template structs --stamp A--> bytes A          places: where the values of A lie in bytes A, in order
//! bytes A --patch with B--> must equal <--encode-- template structs stamped with B        or the template is not used this way
//! ```

use super::stamp::Stamp;

/// A value that a stamp determines, and of which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A trace identifier.
    TraceId(u64),
    /// A span identifier.
    SpanId(u64),
    /// The record's event time, and nanoseconds after it.
    Time(u64, u64),
    /// An integer attribute.
    Amount(u64),
    /// An address.
    Address(u64),
    /// An order number.
    Order(u64),
}

impl Value {
    /// Writes the value over the start of `place`, as protobuf has it; returns its length.
    #[inline]
    fn put(self, place: &mut [u8], stamp: &Stamp) -> usize {
        match self {
            Value::TraceId(local) => put(place, stamp.trace_id(local)),
            Value::SpanId(local) => put(place, stamp.span_id(local)),
            Value::Time(local, after_ns) => put(place, stamp.time_ns(local).wrapping_add(after_ns).to_le_bytes()),
            Value::Amount(local) => {
                let amount = stamp.amount(local);
                // The tag of AnyValue.int_value, so that the three bytes are not mistaken for others; then a varint of three bytes.
                put(place, [0x18, amount as u8 | 0x80, (amount >> 7) as u8 | 0x80, (amount >> 14) as u8])
            }
            Value::Address(local) => put(place, stamp.address(local)),
            Value::Order(local) => put(place, stamp.order(local)),
        }
    }
}

#[inline]
fn put<const N: usize>(place: &mut [u8], value: [u8; N]) -> usize {
    place[..N].copy_from_slice(&value);
    N
}

/// Longest value.
const VALUE_BYTES_MAX: usize = 16;

/// An encoded message, and where in it the values of its stamp lie.
#[derive(Debug)]
pub struct Patched {
    bytes: Vec<u8>,
    places: Vec<(usize, Value)>,
}

impl Patched {
    /// The template that `encode` turns into a message of a stamp, naming its values in the order in which they lie on the wire.
    ///
    /// `None` if the values are not found, or if patching does not give what encoding gives: then the caller goes on encoding.
    pub fn of(mut encode: impl FnMut(&Stamp, &mut Vec<Value>) -> Vec<u8>, stamps: [Stamp; 2]) -> Option<Self> {
        let mut values = Vec::new();
        let bytes = encode(&stamps[0], &mut values);
        let places = places(&bytes, &values, &stamps[0])?;
        let patched = Patched { bytes, places };
        let mut out = Vec::new();
        patched.push(&mut out, &stamps[1]);
        (out == encode(&stamps[1], &mut Vec::new())).then_some(patched)
    }

    /// Appends the message of `stamp`.
    pub fn push(&self, out: &mut Vec<u8>, stamp: &Stamp) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let message = &mut out[start..];
        for &(position, value) in &self.places {
            value.put(&mut message[position..], stamp);
        }
    }
}

/// Where each of `values` lies, looking for each behind the one before.
fn places(bytes: &[u8], values: &[Value], stamp: &Stamp) -> Option<Vec<(usize, Value)>> {
    let mut cursor = 0;
    let mut places = Vec::with_capacity(values.len());
    for &value in values {
        let mut wanted = [0; VALUE_BYTES_MAX];
        let length = value.put(&mut wanted, stamp);
        let position = cursor + bytes[cursor..].windows(length).position(|window| window == &wanted[..length])?;
        places.push((position, value));
        cursor = position + length;
    }
    Some(places)
}
