//! Each change of a schema, beside the verdict on it.

use super::*;
use crate::batch::Signal;
use crate::dataset::{Names, TimeFormat, Unknown};

fn base() -> Schema {
    let field = Field {
        aliases: vec!["x".into(), "y".into()],
        allowed: vec![Scalar::Text("a".into()), Scalar::Text("b".into())],
        bytes_max: Some(10),
        column: Some("state".into()),
        ..Field::new("state", Kind::String)
    };
    let count = Field { default: Some(Scalar::Int(1)), ..Field::new("count", Kind::Int) };
    let tags = Field { items_max: Some(3), ..Field::new("tags", Kind::List) };
    Schema {
        name: "d".into(),
        version: 2,
        indexes: vec!["one".into(), "two".into()],
        signal: Signal::Logs,
        names: Names::default(),
        attributes: Level { unknown: Unknown::Drop, fields: vec![field, count, tags, Field::new("at", Kind::Timestamp)] },
        resource: Level { unknown: Unknown::Keep, fields: vec![Field::new("service.name", Kind::String)] },
    }
}

/// What is forbidden of `change`, made together with a rise of the version.
fn verdict(change: impl Fn(&mut Schema)) -> Vec<String> {
    let mut new = base();
    new.version += 1;
    change(&mut new);
    forbidden(&[base()], &[new]).iter().map(ToString::to_string).collect()
}

fn field<'s>(schema: &'s mut Schema, name: &str) -> &'s mut Field {
    schema.attributes.fields.iter_mut().find(|field| field.name == name).unwrap()
}

#[test]
fn what_accepts_all_that_was_accepted_is_allowed() {
    let allowed: [(&str, fn(&mut Schema)); 15] = [
        ("nothing but the version", |_| {}),
        ("an optional field", |new| {
            new.attributes.fields.push(Field { column: Some("n".into()), ..Field::new("n", Kind::Bool) })
        }),
        ("a default for a new field", |new| {
            new.resource.fields.push(Field { default: Some(Scalar::Bool(true)), ..Field::new("n", Kind::Bool) });
        }),
        ("an index", |new| new.indexes.push("three".into())),
        ("an alias, and another order", |new| field(new, "state").aliases = vec!["z".into(), "y".into(), "x".into()]),
        ("an allowed value", |new| field(new, "state").allowed.push(Scalar::Text("c".into()))),
        ("any value", |new| field(new, "state").allowed.clear()),
        ("a higher limit", |new| field(new, "state").bytes_max = Some(11)),
        ("no limit", |new| field(new, "tags").items_max = None),
        ("a column", |new| field(new, "count").column = Some("count".into())),
        ("int to double", |new| {
            *field(new, "count") = Field { default: Some(Scalar::Double(1.0)), ..Field::new("count", Kind::Double) };
        }),
        ("a time format", |new| field(new, "at").formats.push(TimeFormat::UnixMillis)),
        ("a looser policy", |new| new.attributes.unknown = Unknown::Keep),
        ("a default where none was", |new| field(new, "state").default = Some(Scalar::Text("a".into()))),
        ("another order of fields", |new| new.attributes.fields.reverse()),
    ];
    for (what, change) in allowed {
        assert_eq!(verdict(change), Vec::<String>::new(), "{what}");
    }
    let added = Schema { name: "new".into(), ..base() };
    assert_eq!(forbidden(&[base()], &[base(), added]), []);
    let mut required = base();
    field(&mut required, "at").required = true;
    let free = Schema { version: 3, ..base() };
    assert_eq!(forbidden(&[required], &[free]), []);
}

#[test]
fn every_other_change_is_named_with_its_key() {
    let cases: [(fn(&mut Schema), &str); 22] = [
        (|new| new.version = 1, "d: version: went back from 2 to 1"),
        (
            |new| {
                new.version = 2;
                new.attributes.unknown = Unknown::Keep
            },
            "d: version: is 2 still, but the schema was changed: raise it",
        ),
        (|new| new.signal = Signal::Traces, "d: signal: was changed from logs to traces"),
        (|new| drop(new.indexes.remove(0)), "d: index: 'one' was removed: its rows would lose their columns and rules"),
        (|new| new.names.semantic_conventions = true, "d: names: was changed: attributes would go on under other names"),
        (|new| new.attributes.unknown = Unknown::Reject, "d: attributes.unknown: was tightened from drop to reject"),
        (|new| new.resource.unknown = Unknown::Drop, "d: resource.unknown: was tightened from keep to drop"),
        (|new| drop(new.attributes.fields.remove(2)), "d: attributes.fields.\"tags\": the field was removed"),
        (|new| new.resource.fields.clear(), "d: resource.fields.\"service.name\": the field was removed"),
        (
            |new| new.attributes.fields.push(Field { required: true, ..Field::new("n", Kind::Int) }),
            "d: attributes.fields.\"n\".required: a new field cannot be required: what producers send today lacks it",
        ),
        (
            |new| field(new, "at").required = true,
            "d: attributes.fields.\"at\".required: was added: rows without the field are accepted today",
        ),
        (
            |new| field(new, "at").kind = Kind::String,
            "d: attributes.fields.\"at\".type: timestamp was changed to string; only int may become double",
        ),
        (|new| drop(field(new, "state").aliases.remove(0)), "d: attributes.fields.\"state\".aliases: 'x' was removed"),
        (
            |new| field(new, "count").default = None,
            "d: attributes.fields.\"count\".default: was changed: rows without the field would mean something else than before",
        ),
        (
            |new| field(new, "count").allowed = vec![Scalar::Int(1)],
            "d: attributes.fields.\"count\".allowed: was added: other values are accepted today",
        ),
        (|new| drop(field(new, "state").allowed.remove(1)), "d: attributes.fields.\"state\".allowed: \"b\" was removed"),
        (|new| field(new, "state").bytes_max = Some(9), "d: attributes.fields.\"state\".bytes_max: was lowered"),
        (|new| field(new, "tags").items_max = Some(0), "d: attributes.fields.\"tags\".items_max: was lowered"),
        (
            |new| field(new, "count").coerce = vec![Kind::String, Kind::Double],
            "d: attributes.fields.\"count\".coerce: bool was removed",
        ),
        (|new| field(new, "at").formats.truncate(1), "d: attributes.fields.\"at\".formats: unix_ns was removed"),
        (|new| field(new, "state").column = None, "d: attributes.fields.\"state\".promote: the column was removed or renamed"),
        (
            |new| field(new, "state").column = Some("other".into()),
            "d: attributes.fields.\"state\".promote: the column was removed or renamed",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(verdict(change), [expected]);
    }
    let removed = forbidden(&[base()], &[]).remove(0).to_string();
    assert_eq!(removed, "d: the dataset was removed: its rows would lose their columns and rules");
    let several = verdict(|new| {
        new.attributes.fields.clear();
        new.signal = Signal::Metrics;
    });
    assert_eq!(several.len(), 5, "{several:?}");
}

#[test]
fn the_hash_is_that_of_the_meaning_and_stays_the_same_over_versions_of_the_program() {
    let mut reordered = base();
    reordered.attributes.fields.reverse();
    reordered.attributes.fields.iter_mut().for_each(|field| field.coerce.reverse());
    assert_eq!(reordered.hash(), base().hash());
    let mut changed = base();
    field(&mut changed, "state").bytes_max = Some(11);
    assert_ne!(changed.hash(), base().hash());
    // Golden: a change here would begin new files for schemas that nobody touched.
    assert_eq!(base().stamp().hash_text(), "78feff5a3babeabb");
}
