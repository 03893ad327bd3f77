//! Applies dataset schemas to payloads that passed the walk of `otlp_proto`.
//!
//! ```text
//! payload > conforms? --yes-------------------------------> as it is, not copied
//!                     \-no > rewrite > the walk once more > Arena::Written
//!                                    \ the first field that cannot be brought into form > Reject
//! ```
//! A schema is compiled once per process, and found once per topic: a dataset without one costs a comparison a message. `conforms` only
//! reads, and stops at the first thing to be changed or refused; which it is, `rewrite` finds out. So what conforms, which is nearly
//! everything once producers are in order, is read one more time and nothing else.
//!
//! ```text
//! dataset      what of a message is ruled: resources, and rows by their signal
//!  +- level    one list of attributes: names, unknown ones, required ones, defaults
//!  +- value    one value: types, coercion, allowed values, sizes
//! ```

use std::sync::Arc;

use crate::batch::{Group, Signal};
use crate::dataset::{Schema, Stamp, rules};
use crate::kafka_source::topics::Glob;
use crate::otlp::wire::{Fields, Value, fields};

use super::failure::Checked;
use crate::otlp::write::{close, open, put_value};

mod level;
mod value;

use level::Rules;

/// All schemas, compiled.
pub(super) struct Datasets {
    plans: Vec<(Vec<Glob>, Arc<Plan>)>,
}

impl Datasets {
    /// Compiles `schemas`, which must be without problems.
    pub fn new(schemas: &[Schema]) -> Result<Self, String> {
        let mut plans = Vec::with_capacity(schemas.len());
        for schema in schemas {
            if let Some(problem) = rules::problems(schema).into_iter().next() {
                return Err(format!("dataset {}: {}: {}", schema.name, problem.path, problem.message));
            }
            let globs = schema.indexes.iter().filter_map(|pattern| Glob::new(pattern).ok()).collect();
            plans.push((globs, Arc::new(Plan::new(schema))));
        }
        Ok(Datasets { plans })
    }

    /// The plan of `group`: the first whose signal is the same and one of whose patterns fits.
    pub fn plan(&self, group: &Group) -> Option<Arc<Plan>> {
        let fits = |(globs, plan): &&(Vec<Glob>, Arc<Plan>)| {
            plan.signal == group.signal && globs.iter().any(|glob| glob.matches(&group.index))
        };
        self.plans.iter().find(fits).map(|(_, plan)| plan.clone())
    }
}

/// One schema, compiled.
pub(super) struct Plan {
    /// What travels with the rows.
    pub stamp: Arc<Stamp>,
    signal: Signal,
    attributes: Rules,
    resource: Rules,
}

impl Plan {
    fn new(schema: &Schema) -> Self {
        Plan {
            stamp: Arc::new(schema.stamp()),
            signal: schema.signal,
            attributes: Rules::of_rows(schema),
            resource: Rules::of_resources(schema),
        }
    }

    /// True if nothing of `payload`, which passed the walk, is to be changed or refused.
    pub fn conforms(&self, payload: &[u8]) -> bool {
        all_messages(fields(payload), 1, |group| self.group_conforms(group))
    }

    fn group_conforms(&self, group: &[u8]) -> bool {
        if !self.resource.is_trivial() {
            let mut resources = messages(group, 1);
            let conforms = match (resources.next(), resources.next()) {
                (None, _) => self.resource.conforms(b"", RESOURCE_ATTRIBUTES),
                (Some(resource), None) => self.resource.conforms(resource, RESOURCE_ATTRIBUTES),
                // A message in pieces is rare, and read as it will be written.
                (Some(_), Some(_)) => self.resource.conforms(&joined(group), RESOURCE_ATTRIBUTES),
            };
            if !conforms {
                return false;
            }
        }
        self.attributes.is_trivial()
            || all_messages(fields(group), 2, |scope| all_messages(fields(scope), 2, |item| self.item_conforms(item)))
    }

    #[inline]
    fn item_conforms(&self, item: &[u8]) -> bool {
        match self.signal {
            Signal::Traces => self.attributes.conforms(item, SPAN_ATTRIBUTES),
            Signal::Logs => self.attributes.conforms(item, LOG_ATTRIBUTES),
            Signal::Metrics => fields(item).all(|field| match field {
                Ok((kind, Value::Bytes(data))) => match point_attributes(kind) {
                    Some(number) => all_messages(fields(data), 1, |point| self.attributes.conforms(point, number)),
                    None => true,
                },
                other => other.is_ok(),
            }),
        }
    }

    /// Appends `payload` in the form that the schema asks for.
    pub fn rewrite(&self, payload: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        each_message(payload, 1, out, |index, group, out| {
            self.rewrite_group(group, out).map_err(|failure| failure.within(format_args!("resources[{index}]")))
        })
    }

    fn rewrite_group(&self, group: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        // Several occurrences of a resource are one, in pieces: rules hold for the whole.
        let resource = open(out, 1);
        let start = out.len();
        let rewritten = self.resource.rewrite(&joined(group), RESOURCE_ATTRIBUTES, out);
        rewritten.map_err(|failure| failure.within("resource"))?;
        let is_absent = out.len() == start && messages(group, 1).next().is_none();
        close(out, resource);
        if is_absent {
            // The tag and a length of 0.
            out.truncate(start - 2);
        }
        let mut scopes = 0usize;
        for field in fields(group) {
            match field? {
                (1, _) => {}
                (2, Value::Bytes(scope)) => {
                    let message = open(out, 2);
                    let rewritten = self.rewrite_scope(scope, out);
                    rewritten.map_err(|failure| failure.within(format_args!("scopes[{scopes}]")))?;
                    close(out, message);
                    scopes += 1;
                }
                (number, value) => put_value(out, number, value),
            }
        }
        Ok(())
    }

    fn rewrite_scope(&self, scope: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        each_message(scope, 2, out, |index, item, out| {
            self.rewrite_item(item, out).map_err(|failure| failure.within(format_args!("items[{index}]")))
        })
    }

    fn rewrite_item(&self, item: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        match self.signal {
            Signal::Traces => self.attributes.rewrite(item, SPAN_ATTRIBUTES, out),
            Signal::Logs => self.attributes.rewrite(item, LOG_ATTRIBUTES, out),
            Signal::Metrics => self.rewrite_metric(item, out),
        }
    }

    fn rewrite_metric(&self, metric: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        for field in fields(metric) {
            let (kind, value) = field?;
            match (point_attributes(kind), value) {
                (Some(number), Value::Bytes(data)) => {
                    let message = open(out, kind);
                    each_message(data, 1, out, |index, point, out| {
                        let rewritten = self.attributes.rewrite(point, number, out);
                        rewritten.map_err(|failure| failure.within(format_args!("data_points[{index}]")))
                    })?;
                    close(out, message);
                }
                _ => put_value(out, kind, value),
            }
        }
        Ok(())
    }
}

/// The fields that hold attributes.
const RESOURCE_ATTRIBUTES: u32 = 1;
const SPAN_ATTRIBUTES: u32 = 9;
const LOG_ATTRIBUTES: u32 = 6;

/// The same for the points in a metric's field `kind`; `None` where that holds no points.
fn point_attributes(kind: u32) -> Option<u32> {
    match kind {
        // Gauge, Sum and Summary; Histogram; ExponentialHistogram.
        5 | 7 | 11 => Some(7),
        9 => Some(9),
        10 => Some(1),
        _ => None,
    }
}

/// True if `holds` for every message in field `number`, and all of it can be read.
#[inline(always)]
fn all_messages(mut fields: Fields<'_>, number: u32, mut holds: impl FnMut(&[u8]) -> bool) -> bool {
    fields.all(|field| match field {
        Ok((found, Value::Bytes(message))) if found == number => holds(message),
        other => other.is_ok(),
    })
}

/// The messages in field `number`.
fn messages(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    fields(message).flatten().filter_map(move |field| match field {
        (found, Value::Bytes(message)) if found == number => Some(message),
        _ => None,
    })
}

/// All occurrences of a group's resource: for protobuf a message in pieces is the pieces one after the other.
fn joined(group: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let mut whole = std::borrow::Cow::Borrowed(&b""[..]);
    messages(group, 1).for_each(|piece| crate::otlp::value::merge(&mut whole, piece));
    whole
}

/// Copies `message`, but for the messages in field `number`, whose contents `rewrite` appends; it is given their position, too.
fn each_message(
    message: &[u8],
    number: u32,
    out: &mut Vec<u8>,
    mut rewrite: impl FnMut(usize, &[u8], &mut Vec<u8>) -> Checked<()>,
) -> Checked<()> {
    let mut index = 0;
    for field in fields(message) {
        match field? {
            (found, Value::Bytes(content)) if found == number => {
                let opened = open(out, number);
                rewrite(index, content, out)?;
                close(out, opened);
                index += 1;
            }
            (other, value) => put_value(out, other, value),
        }
    }
    Ok(())
}
