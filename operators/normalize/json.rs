//! Format `json`: one flat JSON object is one log record, span or data point.
//!
//! Well-known keys fill *slots* (time, severity, body, ids, ..); each slot has several names, in order of rank. Whatever fills no slot
//! is an attribute and keeps its type, so nothing a producer wrote is lost:
//!
//! ```text
//! a key no slot knows                      attribute
//! two keys for one slot                    the usable one of better rank fills it, the other is an attribute
//! a value its slot cannot use              attribute
//! "attributes": {..}                       each member an attribute
//! "resource": {..}                         each member an attribute of the resource
//! null                                     nothing
//! ```

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};

use crate::batch::{Reason, Signal};
use crate::otlp::wire::{Value, fields};

use super::failure::{Checked, Failure, quote};
use super::json_text::{AnyValue, Held, Hold, Key, Left, failure_of, put_attribute, put_member, put_text_attribute};
use crate::otlp::write::put_envelope;

mod logs;
mod metrics;
pub(super) mod time;
mod traces;

/// The most slots any signal has.
const SLOTS_MAX: usize = 16;

/// Keys this long or longer are no names of slots.
const NAME_LEN_END: usize = 32;

/// One slot of a signal: its names, best first, and whether a value can fill it.
struct Slot {
    names: &'static [&'static str],
    usable: fn(&Held<'_>) -> bool,
}

/// What a top-level key means.
#[derive(Clone, Copy)]
enum Meaning {
    Slot { slot: usize, rank: usize },
    Attributes,
    Resource,
    Otlp,
}

/// The keys of one signal, by length: a key is compared with the few names as long as itself.
struct Keys {
    by_len: [Vec<(&'static str, Meaning)>; NAME_LEN_END],
    slots: &'static [Slot],
    /// The field of the item's message that holds attributes.
    attribute_field: u32,
}

impl Keys {
    fn new(slots: &'static [Slot], attribute_names: &[&'static str], attribute_field: u32) -> Self {
        assert!(slots.len() <= SLOTS_MAX, "a signal has more slots than a record has room for");
        let mut by_len: [Vec<_>; NAME_LEN_END] = Default::default();
        let mut add = |name: &'static str, meaning| by_len[name.len()].push((name, meaning));
        for (slot, Slot { names, .. }) in slots.iter().enumerate() {
            for (rank, name) in names.iter().enumerate() {
                add(name, Meaning::Slot { slot, rank });
            }
        }
        attribute_names.iter().for_each(|name| add(name, Meaning::Attributes));
        add("resource", Meaning::Resource);
        super::otlp_json::data_keys().for_each(|name| add(name, Meaning::Otlp));
        Keys { by_len, slots, attribute_field }
    }

    #[inline]
    fn find(&self, key: &str) -> Option<(&'static str, Meaning)> {
        self.by_len.get(key.len())?.iter().find(|(name, _)| *name == key).copied()
    }
}

/// What became of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was written.
    Written,
    /// It is OTLP JSON; nothing was written.
    Otlp,
}

/// Writes flat JSON objects as OTLP protobuf. Keeps its buffers between records.
pub(super) struct Writer {
    logs: Keys,
    traces: Keys,
    metrics: Keys,
    scratch: Scratch,
    depth_max: u32,
}

/// The parts of the record at hand that have no place in the output yet.
#[derive(Default)]
struct Scratch {
    /// Attributes of the item, as fields of its message.
    attributes: Vec<u8>,
    /// Attributes of the resource, as fields of its message.
    resource: Vec<u8>,
    /// The item's other fields.
    item: Vec<u8>,
}

impl Writer {
    /// `depth_max` as in the limits.
    pub fn new(depth_max: u32) -> Self {
        let (logs, traces, metrics) = (logs::keys(), traces::keys(), metrics::keys());
        Writer { logs, traces, metrics, scratch: Scratch::default(), depth_max }
    }

    /// Appends `text`, one JSON object, as protobuf of `signal`. `stop_at_otlp`: a key like `resourceSpans` ends the attempt.
    pub fn write(&mut self, text: &str, options: Options<'_>, stop_at_otlp: bool, out: &mut Vec<u8>) -> Checked<Outcome> {
        let keys = match options.signal {
            Signal::Logs => &self.logs,
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
        };
        let scratch = &mut self.scratch;
        scratch.attributes.clear();
        scratch.resource.clear();
        scratch.item.clear();
        for (name, value) in options.attributes {
            put_text_attribute(&mut scratch.attributes, keys.attribute_field, name, value);
        }
        let (mut left, mut otlp) = (None, false);
        let mut record = Record { keys, slots: Default::default(), scratch };
        let reader =
            Reader { record: &mut record, depth_max: self.depth_max, left: &mut left, otlp: stop_at_otlp.then_some(&mut otlp) };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        match deserializer.deserialize_map(reader).and_then(|()| deserializer.end()) {
            Ok(()) => {}
            Err(_) if otlp => return Ok(Outcome::Otlp),
            Err(error) => return Err(failure_of(&error, left)),
        }
        match options.signal {
            Signal::Logs => logs::write(&mut record, options, out),
            Signal::Traces => traces::write(&mut record, out)?,
            Signal::Metrics => metrics::write(&mut record, options.record_nanos, out)?,
        }
        Ok(Outcome::Written)
    }

    /// Gives back what a huge record made the buffers grow to.
    pub fn shrink(&mut self, bytes_max: usize) {
        for buffer in [&mut self.scratch.attributes, &mut self.scratch.resource, &mut self.scratch.item] {
            buffer.clear();
            buffer.shrink_to(bytes_max);
        }
    }
}

/// How to write one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options<'a> {
    pub signal: Signal,
    /// The message's time; 0 if unknown.
    pub kafka_nanos: u64,
    /// The time of a record that tells none; 0 if unknown.
    pub record_nanos: u64,
    /// What the message's headers add to each record.
    pub attributes: &'a [(&'static str, Cow<'a, str>)],
}

/// What fills a slot, under the name it came by.
struct Candidate<'de> {
    name: &'static str,
    rank: usize,
    value: Held<'de>,
}

/// One object whose slots are filled and whose other members are written as attributes.
struct Record<'de, 'w> {
    keys: &'w Keys,
    slots: [Option<Candidate<'de>>; SLOTS_MAX],
    scratch: &'w mut Scratch,
}

impl<'de> Record<'de, '_> {
    /// Fills `slot`, unless something better did; what loses becomes an attribute.
    fn fill(&mut self, slot: usize, candidate: Candidate<'de>) {
        let usable = self.keys.slots[slot].usable;
        let loser = match &self.slots[slot] {
            Some(present) => {
                let place = |candidate: &Candidate<'_>| (!usable(&candidate.value), candidate.rank);
                if place(&candidate) < place(present) { self.slots[slot].replace(candidate) } else { Some(candidate) }
            }
            None => self.slots[slot].replace(candidate),
        };
        if let Some(loser) = loser {
            put_attribute(&mut self.scratch.attributes, self.keys.attribute_field, loser.name, &loser.value);
        }
    }

    /// What `read` makes of the slot's name and value. What it cannot use becomes an attribute.
    fn take_named<T>(&mut self, slot: usize, read: impl Fn(&str, &Held<'de>) -> Option<T>) -> Option<T> {
        let candidate = self.slots[slot].take()?;
        let taken = read(candidate.name, &candidate.value);
        if taken.is_none() {
            put_attribute(&mut self.scratch.attributes, self.keys.attribute_field, candidate.name, &candidate.value);
        }
        taken
    }

    fn take<T>(&mut self, slot: usize, read: impl Fn(&Held<'de>) -> Option<T>) -> Option<T> {
        self.take_named(slot, |_, value| read(value))
    }

    /// As `take_named`, for what a record cannot do without.
    fn require<T>(&mut self, slot: usize, wanted: &str, read: impl Fn(&str, &Held<'de>) -> Option<T>) -> Checked<T> {
        let name = self.keys.slots[slot].names[0];
        let Some(candidate) = self.slots[slot].take() else {
            return Err(Failure::new(Reason::InvalidField, format_args!("{name} is missing")));
        };
        read(candidate.name, &candidate.value).ok_or_else(|| {
            let found = candidate.value.text().map(quote).unwrap_or_default();
            Failure::new(Reason::InvalidField, format_args!("{} {found} is not {wanted}", candidate.name))
        })
    }

    /// Writes the name of the service as an attribute of the resource, unless the resource names one itself.
    fn name_service(&mut self, slot: usize) {
        let named = fields(&self.scratch.resource).flatten().any(|(_, attribute)| is_service_name(attribute));
        let service = self.take(slot, |value| match value {
            Held::Text(name) if !named => Some(name.clone()),
            _ => None,
        });
        if let Some(name) = service {
            put_text_attribute(&mut self.scratch.resource, 1, "service.name", &name);
        }
    }

    /// Appends the whole record, once its slots are written to `scratch.item`.
    fn finish(&mut self, out: &mut Vec<u8>) {
        let Scratch { attributes, resource, item } = &*self.scratch;
        put_envelope(out, resource, item.len() + attributes.len());
        out.extend_from_slice(item);
        out.extend_from_slice(attributes);
    }
}

fn is_service_name(attribute: Value<'_>) -> bool {
    let Value::Bytes(attribute) = attribute else { return false };
    matches!(fields(attribute).next(), Some(Ok((1, Value::Bytes(b"service.name")))))
}

/// Reads the outermost object into a record, which stays where it is: it is too large to be handed up by value.
struct Reader<'de, 'w, 's> {
    record: &'s mut Record<'de, 'w>,
    depth_max: u32,
    left: &'s mut Left,
    /// Set when the object turns out to be OTLP JSON; `None` where that does not matter.
    otlp: Option<&'s mut bool>,
}

impl<'de> Visitor<'de> for Reader<'de, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Reader { record, depth_max, left, otlp } = self;
        let attribute_field = record.keys.attribute_field;
        while let Some(key) = map.next_key_seed(Key)? {
            let Some((name, meaning)) = record.keys.find(&key) else {
                let out = &mut record.scratch.attributes;
                put_member(&mut map, attribute_field, &key, AnyValue { out, depth_left: depth_max, left: &mut *left })?;
                continue;
            };
            let lift = match meaning {
                Meaning::Attributes => Some((&mut record.scratch.attributes, attribute_field)),
                Meaning::Resource => Some((&mut record.scratch.resource, 1)),
                Meaning::Slot { .. } => None,
                Meaning::Otlp => {
                    if let Some(otlp) = otlp {
                        *otlp = true;
                        return Err(serde::de::Error::custom("otlp"));
                    }
                    None
                }
            };
            let Some(value) = map.next_value_seed(Hold { depth_max, left: &mut *left, lift })? else { continue };
            match meaning {
                Meaning::Slot { slot, rank } => record.fill(slot, Candidate { name, rank, value }),
                _ => put_attribute(&mut record.scratch.attributes, attribute_field, name, &value),
            }
        }
        Ok(())
    }
}

/// Always usable.
fn anything(_: &Held<'_>) -> bool {
    true
}

fn is_text(value: &Held<'_>) -> bool {
    value.text().is_some()
}

/// The bytes of an id of `N` bytes, written as hex; none at all for an empty text.
fn id_of<const N: usize>(value: &Held<'_>) -> Option<Option<[u8; N]>> {
    let text = value.text()?;
    if text.is_empty() { Some(None) } else { super::hex::bytes_of(text).map(Some) }
}

fn owned_text<'de>(value: &Held<'de>) -> Option<Cow<'de, str>> {
    match value {
        Held::Text(text) => Some(text.clone()),
        _ => None,
    }
}
