//! The rules for one list of attributes.
//!
//! ```text
//! key > is it a name or alias of a field?        -> that field
//!     > brought into one form, is it one?        -> that field
//!     > else it is unknown                       -> kept (in that form), dropped, or refused
//! ```
//! Where several attributes are of one field, the name goes before its aliases, these in their order, and all before what only is of the
//! field once names are in one form; of equal rank the first. What loses is unknown, under the key it has. A field's empty value is as
//! good as none.

use crate::arrow_encode::promoted;
use crate::batch::{Reason, Signal};
use crate::dataset::keys::Keys;
use crate::dataset::names::RENAMES;
use crate::dataset::{Level, Names, Scalar, Schema, Unknown};
use crate::otlp::value::{Any, any, key_value, plain_text};
use crate::otlp::wire::{Value, fields};

use super::value::{Judged, Rule, found};
use crate::normalize::failure::{Checked, Failure, quote};
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

/// The rank of what is of a field only once names are in one form.
const BY_FORM: u8 = u8::MAX;

/// Which field a key is of, and how well it names it: 0 by its name.
#[derive(Clone, Copy, Debug)]
struct Claim {
    field: u8,
    rank: u8,
}

/// What a key is.
enum Resolved {
    Field(Claim),
    Unknown,
    /// Unknown, and in one form it is this.
    Renamed(String),
}

/// The rules for one list of attributes, compiled.
pub(super) struct Rules {
    exact: Keys<Claim>,
    forms: Forms,
    fields: Vec<Rule>,
    /// A bit for each field that every list must have in the end.
    needed: u128,
    unknown: Unknown,
}

/// How names are brought into one form.
struct Forms {
    names: Names,
    /// Fields by their names' form.
    fields: Keys<u8>,
    /// Names that have a column in every schema: they stay.
    fixed: Keys<()>,
    /// Positions in `RENAMES`.
    renames: Keys<u8>,
}

impl Rules {
    /// For attributes of spans, log records and data points.
    pub fn of_rows(schema: &Schema) -> Self {
        let fixed = promoted::ROW.iter().filter(|_| schema.signal != Signal::Metrics);
        Rules::new(&schema.attributes, schema.names, Keys::new(fixed.map(|promoted| (promoted.key, ()))))
    }

    /// For attributes of resources.
    pub fn of_resources(schema: &Schema) -> Self {
        let fixed = promoted::RESOURCE.iter().map(|promoted| (promoted.key, ()));
        Rules::new(&schema.resource, schema.names, Keys::new(fixed))
    }

    fn new(level: &Level, names: Names, fixed: Keys<()>) -> Self {
        // `rules::problems` bounds the number of fields, so their positions fit a byte.
        let claims = level.fields.iter().zip(0u8..).flat_map(|(field, index)| {
            let aliases =
                field.aliases.iter().zip(1..BY_FORM).map(move |(alias, rank)| (alias.as_str(), Claim { field: index, rank }));
            std::iter::once((field.name.as_str(), Claim { field: index, rank: 0 })).chain(aliases)
        });
        let exact = Keys::new(claims.clone());
        let forms: Vec<(String, u8)> = claims.map(|(name, claim)| (names.normal(name).into_owned(), claim.field)).collect();
        let renames = RENAMES.iter().zip(0u8..).filter(|_| names.semantic_conventions);
        let bit_of = |(field, index): (&crate::dataset::Field, u32)| match field.required || field.default.is_some() {
            true => 1u128 << index,
            false => 0,
        };
        Rules {
            exact,
            forms: Forms {
                names,
                fields: Keys::new(forms.iter().map(|(name, field)| (name.as_str(), *field))),
                fixed,
                renames: Keys::new(renames.map(|((old, _), index)| (*old, index))),
            },
            fields: level.fields.iter().map(Rule::new).collect(),
            needed: level.fields.iter().zip(0..).map(bit_of).fold(0, |mask, bit| mask | bit),
            unknown: level.unknown,
        }
    }

    /// True if every list of attributes obeys.
    pub fn is_trivial(&self) -> bool {
        self.fields.is_empty() && self.unknown == Unknown::Keep && !self.forms.names.is_active()
    }

    /// True if nothing is to be changed or refused of the attributes in field `number` of `message`.
    #[inline]
    pub fn conforms(&self, message: &[u8], number: u32) -> bool {
        let mut seen = 0u128;
        for field in fields(message) {
            let attribute = match field {
                Ok((found, Value::Bytes(attribute))) if found == number => attribute,
                Ok(_) => continue,
                Err(_) => return false,
            };
            let conforms = match plain_text(attribute) {
                Some((key, text)) => self.attribute_conforms(key, &Any::Text(text), &mut seen),
                None => self.any_conforms(attribute, &mut seen),
            };
            if !conforms {
                return false;
            }
        }
        seen & self.needed == self.needed
    }

    fn any_conforms(&self, attribute: &[u8], seen: &mut u128) -> bool {
        let Ok(attribute) = key_value(attribute) else { return false };
        let Ok(value) = any(&attribute.value) else { return false };
        self.attribute_conforms(attribute.key, &value, seen)
    }

    #[inline(always)]
    fn attribute_conforms(&self, key: &[u8], value: &Any<'_>, seen: &mut u128) -> bool {
        let Some(Claim { field, rank }) = self.exact.find(key) else {
            let is_in_form =
                || !self.forms.names.is_active() || matches!(self.forms.resolve(key, &self.exact), Resolved::Unknown);
            return self.unknown == Unknown::Keep && is_in_form();
        };
        let bit = 1u128 << field;
        let is_only_one = *seen & bit == 0;
        *seen |= bit;
        rank == 0 && is_only_one && self.fields[usize::from(field)].conforms(value)
    }

    fn resolve(&self, key: &[u8]) -> Resolved {
        match self.exact.find(key) {
            Some(claim) => Resolved::Field(claim),
            None if self.forms.names.is_active() => self.forms.resolve(key, &self.exact),
            None => Resolved::Unknown,
        }
    }

    /// Appends the fields of `message`, the attributes in field `number` as the rules ask.
    pub fn rewrite(&self, message: &[u8], number: u32, out: &mut Vec<u8>) -> Checked<()> {
        let best = self.best(message, number)?;
        let mut index = 0;
        for field in fields(message) {
            match field? {
                (found, Value::Bytes(attribute)) if found == number => {
                    self.rewrite_attribute(index, &best, attribute, number, out)?;
                    index += 1;
                }
                (other, value) => crate::otlp::write::put_value(out, other, value),
            }
        }
        for (rule, best) in self.fields.iter().zip(&best) {
            match (best, &rule.default) {
                (Some(_), _) => {}
                (None, Some(default)) => put(out, number, rule.name.as_bytes(), |out| put_scalar(default, out)),
                (None, None) if rule.required => return Err(missing(rule)),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// For each field the attribute that is of it: its rank and its position in the list.
    fn best(&self, message: &[u8], number: u32) -> Checked<Vec<Option<(u8, usize)>>> {
        let mut best: Vec<Option<(u8, usize)>> = vec![None; self.fields.len()];
        if best.is_empty() {
            return Ok(best);
        }
        for (index, attribute) in super::messages(message, number).enumerate() {
            let attribute = key_value(attribute)?;
            if let Resolved::Field(Claim { field, rank }) = self.resolve(attribute.key)
                && !matches!(any(&attribute.value)?, Any::Empty)
            {
                let known = &mut best[usize::from(field)];
                *known = Some(known.map_or((rank, index), |known| known.min((rank, index))));
            }
        }
        Ok(best)
    }

    fn rewrite_attribute(
        &self,
        index: usize,
        best: &[Option<(u8, usize)>],
        attribute: &[u8],
        number: u32,
        out: &mut Vec<u8>,
    ) -> Checked<()> {
        let key_and_value = key_value(attribute)?;
        let (key, value) = (key_and_value.key, any(&key_and_value.value)?);
        let renamed = match self.resolve(key) {
            Resolved::Field(Claim { field, rank }) => {
                let rule = &self.fields[usize::from(field)];
                if best[usize::from(field)] == Some((rank, index)) {
                    let judged = rule.judge(&value)?;
                    put(out, number, rule.name.as_bytes(), |out| match judged {
                        Judged::Same => out.extend_from_slice(&key_and_value.value),
                        changed => put_judged(changed, out),
                    });
                    return Ok(());
                }
                // A second one under the very name, which can only be dropped; or an empty one, which is none.
                if key == rule.name.as_bytes() || matches!(value, Any::Empty) {
                    return Ok(());
                }
                None
            }
            Resolved::Unknown => None,
            Resolved::Renamed(name) => Some(name),
        };
        match (self.unknown, renamed) {
            (Unknown::Keep, None) => put_bytes(out, number, attribute),
            (Unknown::Keep, Some(name)) => {
                put(out, number, name.as_bytes(), |out| out.extend_from_slice(&key_and_value.value));
            }
            (Unknown::Drop, _) => {}
            (Unknown::Reject, _) => return Err(unknown(key, &value)),
        }
        Ok(())
    }
}

impl Forms {
    /// What `key` is that is no name or alias of a field as it stands.
    fn resolve(&self, key: &[u8], exact: &Keys<Claim>) -> Resolved {
        // The walk has proved it.
        let Ok(key) = std::str::from_utf8(key) else { return Resolved::Unknown };
        if self.fixed.find(key.as_bytes()).is_some() {
            return Resolved::Unknown;
        }
        let form = self.names.normal(key);
        let renamed = self.renames.find(key.as_bytes()).or_else(|| self.renames.find(form.as_bytes()));
        let form = renamed.map_or(form, |index| RENAMES[usize::from(index)].1.into());
        let claimed = exact.find(form.as_bytes()).map(|claim| claim.field);
        if let Some(field) = claimed.or_else(|| self.fields.find(self.names.normal(&form).as_bytes())) {
            return Resolved::Field(Claim { field, rank: BY_FORM });
        }
        if form == key { Resolved::Unknown } else { Resolved::Renamed(form.into_owned()) }
    }
}

/// Appends a `KeyValue` as field `number`; `value` appends the content of its `AnyValue`.
fn put(out: &mut Vec<u8>, number: u32, key: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
    let attribute = open(out, number);
    put_bytes(out, 1, key);
    let any_value = open(out, 2);
    value(out);
    close(out, any_value);
    close(out, attribute);
}

fn put_scalar(value: &Scalar, out: &mut Vec<u8>) {
    match value {
        Scalar::Text(text) => put_bytes(out, 1, text.as_bytes()),
        Scalar::Bool(flag) => put_number(out, 2, u64::from(*flag)),
        Scalar::Int(number) => put_number(out, 3, *number as u64),
        Scalar::Double(number) => put_fixed64(out, 4, number.to_bits()),
    }
}

fn put_judged(value: Judged, out: &mut Vec<u8>) {
    match value {
        Judged::Same => {}
        Judged::Text(text) => put_bytes(out, 1, text.as_bytes()),
        Judged::Bool(flag) => put_number(out, 2, u64::from(flag)),
        Judged::Int(number) => put_number(out, 3, number as u64),
        Judged::Double(number) => put_fixed64(out, 4, number.to_bits()),
        Judged::Bytes(bytes) => put_bytes(out, 7, &bytes),
    }
}

#[cold]
fn missing(rule: &Rule) -> Box<Failure> {
    Failure::new(Reason::MissingField, format_args!("{} is missing, should be {}", rule.name, rule.expected()))
}

#[cold]
fn unknown(key: &[u8], value: &Any<'_>) -> Box<Failure> {
    let key = quote(&String::from_utf8_lossy(key));
    Failure::new(
        Reason::UnknownField,
        format_args!("{key} is no field of the dataset, which refuses others; found {}", found(value)),
    )
}
