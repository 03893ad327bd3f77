//! Schemas as people write them: the example loads, and what is wrong is told at once, each problem with its line and key.

use super::*;

const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config/datasets/shop-logs.yaml"));

fn problems(text: &str) -> Vec<String> {
    match parse("s.yaml", text) {
        Ok(schema) => panic!("{text} was accepted: {schema:?}"),
        Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
    }
}

/// A schema with `fields`, each a line, in front of which it stands at line 7.
fn with_fields(fields: &str) -> String {
    format!("dataset: d\nversion: 1\nindex: i\nsignal: logs\nattributes:\n  fields:\n{fields}")
}

#[test]
fn the_example_is_a_schema_that_says_what_its_comments_promise() {
    let schema = parse("shop-logs.yaml", EXAMPLE).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((&*schema.name, schema.version, schema.signal), ("shop-logs", 1, Signal::Logs));
    assert_eq!(schema.indexes, ["shop", "shop-*"]);
    let field = |name: &str| schema.attributes.fields.iter().find(|field| field.name == name).unwrap();
    assert_eq!(field("order.id").aliases, ["order_id", "orderId", "order"]);
    assert_eq!(field("order.items").coerce, [Kind::String]);
    assert_eq!(field("order.paid_at").formats, [TimeFormat::Rfc3339, TimeFormat::UnixMillis]);
    assert_eq!(field("order.gift").default, Some(Scalar::Bool(false)));
    assert_eq!(field("order.signature").bytes_max, Some(4_096));
    assert!(schema.resource.fields[0].required);
    let columns: Vec<_> = schema.stamp().columns.into_iter().map(|column| column.name).collect();
    assert_eq!(columns, ["order_id", "order_total", "order_items", "order_paid_at", "is_gift", "cell"]);
    let kinds: std::collections::BTreeSet<Kind> = schema.attributes.fields.iter().map(|field| field.kind).collect();
    assert_eq!(kinds.len(), Kind::ALL.len() - 1, "a field of every kind but a map: {kinds:?}");
}

#[test]
fn layout_and_comments_do_not_change_the_hash() {
    let changed = EXAMPLE.replace("  # orderId becomes order_id", "").replace("[shop, \"shop-*\"]", "\n  - shop\n  - shop-*");
    let changed = changed.replace("The order a line is about", "Another text");
    assert_ne!(changed, EXAMPLE);
    assert_eq!(parse("a", &changed).unwrap().hash(), parse("b", EXAMPLE).unwrap().hash());
}

#[test]
fn every_problem_is_told_at_once_with_line_and_path() {
    let text = "\
dataset: Shop
verison: 1
index: [\"a b\"]
signal: log
names:
  case: upper
  seperators: dot
attributes:
  unknown: ignore
  fields:
    a: {type: text}
    b: {required: true}
    c: {type: int, default: x, allowed: []}
    d: {type: string, promote: yes, column: d}
    e: 5
";
    assert_eq!(
        problems(text),
        [
            "s.yaml:1: version: must be given",
            "s.yaml:2: verison: unknown key: did you mean version?",
            "s.yaml:4: signal: value \"log\": must be one of traces, logs, metrics",
            "s.yaml:6: names.case: value \"upper\": must be one of keep, lower, snake",
            "s.yaml:7: names.seperators: unknown key: did you mean separators?",
            "s.yaml:9: attributes.unknown: value \"ignore\": must be one of keep, drop, reject",
            "s.yaml:11: attributes.fields.\"a\".type: value \"text\": must be one of string, int, double, bool, timestamp, bytes, list, map",
            "s.yaml:12: attributes.fields.\"b\": must have a type",
            "s.yaml:13: attributes.fields.\"c\".default: value \"x\": must be an int",
            "s.yaml:13: attributes.fields.\"c\".allowed: must have at least one value; leave the key out to allow any",
            "s.yaml:14: attributes.fields.\"d\".promote: value \"yes\": must be one of true, false",
            "s.yaml:15: attributes.fields.\"e\": must be a map",
        ]
    );
    assert_eq!(problems("- a\n"), ["s.yaml:1: must be a map"]);
    assert_eq!(problems("").len(), 1);
}

/// Fields whose rules cannot hold, and what is said of them.
const UNUSABLE: &[(&str, &str)] = &[
    ("    a: {type: int, bytes_max: 3}", "s.yaml:7: attributes.fields.\"a\".bytes_max: is for string and bytes, the type is int"),
    (
        "    a: {type: string, items_max: 3}",
        "s.yaml:7: attributes.fields.\"a\".items_max: is for list and map, the type is string",
    ),
    (
        "    a: {type: int, coerce: [map]}",
        "s.yaml:7: attributes.fields.\"a\".coerce: map cannot become int: possible are string, double, bool",
    ),
    ("    a: {type: list, coerce: [string]}", "s.yaml:7: attributes.fields.\"a\".coerce: string cannot become list: nothing can"),
    (
        "    a: {type: timestamp, coerce: [int]}",
        "s.yaml:7: attributes.fields.\"a\".coerce: int cannot become timestamp: `formats` says what is read as a timestamp",
    ),
    ("    a: {type: int, formats: [unix_s]}", "s.yaml:7: attributes.fields.\"a\".formats: is for timestamp, the type is int"),
    ("    a: {type: timestamp, formats: []}", "s.yaml:7: attributes.fields.\"a\".formats: must have at least one format"),
    (
        "    a: {type: timestamp, formats: [unix_s, unix_ms]}",
        "s.yaml:7: attributes.fields.\"a\".formats: a number cannot be told apart by its unit: give one of unix_s, unix_ms, unix_us, unix_ns",
    ),
    ("    a: {type: timestamp, default: 0}", "s.yaml:7: attributes.fields.\"a\".default: not supported for timestamp"),
    (
        "    a: {type: int, required: true, default: 1}",
        "s.yaml:7: attributes.fields.\"a\".default: a field that is required needs no default",
    ),
    ("    a: {type: int, allowed: [1], default: 2}", "s.yaml:7: attributes.fields.\"a\".default: is none of the allowed values"),
    ("    a: {type: string, bytes_max: 1, default: ab}", "s.yaml:7: attributes.fields.\"a\".default: is longer than bytes_max"),
    (
        "    a: {type: double, allowed: [1.5]}",
        "s.yaml:7: attributes.fields.\"a\".allowed: is supported for string and int, the type is double",
    ),
    (
        "    a: {type: map, promote: true}",
        "s.yaml:7: attributes.fields.\"a\".promote: not supported: a map has no column of its own",
    ),
    (
        "    a: {type: int, column: a}",
        "s.yaml:7: attributes.fields.\"a\".column: names a column, which only a field with `promote: true` has",
    ),
    (
        "    a: {type: int, promote: true, column: A}",
        "s.yaml:7: attributes.fields.\"a\".column: 'A' must match [a-z][a-z0-9_]{0,62}",
    ),
    (
        "    a: {type: int, promote: true, column: body}",
        "s.yaml:7: attributes.fields.\"a\".column: logs have a column body already",
    ),
    (
        "    a.b: {type: int, promote: true}\n    a_b: {type: int, promote: true}",
        "s.yaml:8: attributes.fields.\"a_b\".column: 'a_b' is the column of 'a.b' already",
    ),
    (
        "    http.route: {type: string, promote: true}",
        "s.yaml:7: attributes.fields.\"http.route\".promote: the attribute has the column http_route in every schema",
    ),
    (
        "    server.port: {type: string}",
        "s.yaml:7: attributes.fields.\"server.port\".type: must be int: the attribute has the column server_port in every schema",
    ),
    (
        "    a: {type: int}\n    b: {type: int, aliases: [c, a]}",
        "s.yaml:8: attributes.fields.\"b\".aliases: 'a' is a name of 'a' already",
    ),
    (
        "    a: {type: int, promote: true}\nresource: {fields: {A: {type: int, promote: true}}}",
        "s.yaml:8: resource.fields.\"A\".column: 'a' is the column of 'a' already",
    ),
    (
        "    a: {type: int}\nresource: {fields: {host.name: {type: string, promote: true}}}",
        "s.yaml:8: resource.fields.\"host.name\".promote: the attribute has the column host_name in every schema",
    ),
    (
        "    Ab: {type: int}\n    aB: {type: int}\nnames: {case: lower}",
        "s.yaml:8: attributes.fields.\"aB\": 'aB' and a name of 'Ab' are both 'ab' once names are in one form",
    ),
];

#[test]
fn rules_that_cannot_hold_are_refused_at_their_key() {
    for (fields, expected) in UNUSABLE {
        assert_eq!(problems(&with_fields(fields)), [*expected], "{fields}");
    }
    let many: String = (0..129).map(|n| format!("    f{n}: {{type: int}}\n")).collect();
    assert_eq!(problems(&with_fields(&many)), ["s.yaml:6: attributes.fields: has 129 fields, at most 128 are possible"]);
    let head = "dataset: _x\nversion: 0\nindex: []\nsignal: logs\n";
    assert_eq!(problems(head).len(), 3);
    assert_eq!(
        problems(&head.replace("_x", "x").replace("[]", "'a*'").replace("0", "99999999999")),
        ["s.yaml:2: version: is too large"]
    );
    assert!(
        problems(&head.replace("_x", "x").replace("[]", "'^a'").replace("0", "1"))[0]
            .contains("s.yaml:3: index: '^a' is no glob")
    );
}

#[test]
fn a_folder_is_read_in_the_order_of_names_and_datasets_must_be_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(load(folder.path()).unwrap_err().to_string().ends_with("holds no dataset schema: no *.yaml file is in it"));
    write("b.yaml", "dataset: b\nversion: 1\nindex: x\nsignal: logs\n");
    write("a.yml", "dataset: a\nversion: 1\nindex: x\nsignal: traces\n");
    write(".hidden.yaml", "nonsense");
    write("readme.md", "nonsense");
    let names: Vec<String> = load(folder.path()).unwrap().iter().map(|schema| schema.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(load(&folder.path().join("b.yaml")).unwrap().len(), 1);
    write("c.yaml", "dataset: b\nversion: 1\nindex: [y, x]\nsignal: logs\n");
    write("d.yaml", "dataset: d\n");
    let refused = load(folder.path()).unwrap_err().to_string();
    let lines: Vec<&str> = refused.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "c.yaml: dataset: 'b' is the name of another file's dataset",
            "c.yaml: index: 'x' of logs is of the dataset b already, which comes first",
            "d.yaml:1: version: must be given",
            "d.yaml:1: index: must be given",
            "d.yaml:1: signal: must be given",
        ]
    );
    assert!(load(&folder.path().join("none.yaml")).unwrap_err().to_string().contains("none.yaml: cannot be read"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(shaped in "(dataset|version|index|signal|attributes|fields|type|[ \\[\\]{}:,#\\-a\n]){0,40}") {
        let _ = parse("s.yaml", &shaped);
        let _ = parse("s.yaml", &with_fields(&shaped));
    }
}
