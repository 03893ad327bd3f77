//! Values as expected and as found: whether they agree, and how they are shown.

use openwit_operators::row_values::Value;

use crate::config::cases::Wanted;
use crate::generate::time;

/// Characters of a value that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// The key of a map that, where a text is expected, asks for a part of it.
const CONTAINS: &str = "contains";

/// Where `found`, the value at `path`, is not as it is wanted: a line for each place.
pub fn differences(path: &str, wanted: &Wanted, found: Option<&Value>, told: &mut Vec<String>) {
    let found = found.unwrap_or(&Value::Null);
    match (wanted, found) {
        (Wanted::Null, Value::Null) => {}
        (Wanted::Text(text), found) if agrees(text, found) => {}
        (Wanted::List(wanted), Value::List(found)) if wanted.len() == found.len() => {
            for (position, (wanted, found)) in wanted.iter().zip(found).enumerate() {
                differences(&format!("{path}[{position}]"), wanted, Some(found), told);
            }
        }
        (Wanted::Map(wanted), Value::Map(found)) => {
            for (name, wanted) in wanted {
                let found = found.iter().find(|(known, _)| known == name).map(|(_, value)| value);
                differences(&format!("{path}.{name}"), wanted, found, told);
            }
        }
        (Wanted::Map(wanted), Value::Text(found)) if part(wanted).is_some_and(|part| found.contains(part)) => {}
        _ => told.push(format!("{path}: expected {}, found {}", wanted_text(wanted, found), value_text(found))),
    }
}

/// The part of a text that a map asks for.
fn part(wanted: &[(String, Wanted)]) -> Option<&str> {
    match wanted {
        [(name, Wanted::Text(part))] if name == CONTAINS => Some(part),
        _ => None,
    }
}

/// True if the scalar, read as the type of `found`, is its value.
fn agrees(text: &str, found: &Value) -> bool {
    match found {
        Value::Null | Value::List(_) | Value::Map(_) => false,
        Value::Bool(found) => text.parse() == Ok(*found),
        Value::Int(found) => text.parse() == Ok(*found),
        Value::Double(found) => text.parse::<f64>().is_ok_and(|wanted| wanted == *found || (wanted.is_nan() && found.is_nan())),
        Value::Text(found) => text == found,
        Value::Time(found) => nanoseconds(text) == Some(*found),
        Value::Bytes(found) => text.eq_ignore_ascii_case(&hex(found)),
    }
}

/// RFC 3339 in UTC, or Unix nanoseconds.
fn nanoseconds(text: &str) -> Option<i128> {
    if text.contains('T') { time::parse(text).ok().map(i128::from) } else { text.parse().ok() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is wanted in the place of `found`, as it is shown.
fn wanted_text(wanted: &Wanted, found: &Value) -> String {
    match (wanted, found) {
        (Wanted::Null, _) => "nothing".to_owned(),
        (Wanted::Text(text), Value::Text(_) | Value::Null) => short(&quoted(text)),
        (Wanted::Text(text), _) => short(text),
        (Wanted::List(items), _) => {
            let items: Vec<String> = items.iter().map(|item| wanted_text(item, &Value::Null)).collect();
            short(&format!("[{}]", items.join(", ")))
        }
        (Wanted::Map(members), _) if part(members).is_some() => {
            format!("a text with {}", short(&quoted(part(members).unwrap_or_default())))
        }
        (Wanted::Map(members), _) => {
            let members = members.iter().map(|(name, value)| format!("{name}: {}", wanted_text(value, &Value::Null)));
            short(&format!("{{{}}}", members.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// A value as it is shown.
pub fn value_text(value: &Value) -> String {
    short(&whole_text(value))
}

fn whole_text(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Double(value) => value.to_string(),
        Value::Text(value) => quoted(value),
        Value::Time(value) => time_text(*value),
        Value::Bytes(value) => hex(value),
        Value::List(items) => format!("[{}]", items.iter().map(whole_text).collect::<Vec<_>>().join(", ")),
        Value::Map(members) => {
            let members = members.iter().map(|(name, value)| format!("{name}: {}", whole_text(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Without the zeros at the end of the second.
fn time_text(unix_ns: i128) -> String {
    let Ok(unix_ns) = u64::try_from(unix_ns) else { return unix_ns.to_string() };
    let mut text = Vec::new();
    time::push_rfc3339(&mut text, unix_ns);
    let text = String::from_utf8_lossy(&text);
    format!("{}Z", text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.'))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn short(text: &str) -> String {
    let left = text.chars().count().saturating_sub(SHOWN_CHARS_MAX);
    if left == 0 {
        return text.to_owned();
    }
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{shown}... and {left} characters more")
}

/// True for a value that says nothing: it is left out where a whole row is shown.
pub fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) | Value::Time(_) => false,
        Value::Int(value) => *value == 0,
        Value::Double(value) => *value == 0.0,
        Value::Text(value) => value.is_empty(),
        Value::Bytes(value) => value.iter().all(|byte| *byte == 0),
        Value::List(items) => items.is_empty(),
        Value::Map(members) => members.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Wanted {
        Wanted::Text(text.to_owned())
    }

    fn told(wanted: &Wanted, found: &Value) -> Vec<String> {
        let mut told = Vec::new();
        differences("c", wanted, Some(found), &mut told);
        told
    }

    #[test]
    fn a_scalar_is_read_as_the_type_of_its_column() {
        let time = Value::Time(1_767_225_600_500_000_000);
        for (wanted, found) in [
            ("true", Value::Bool(true)),
            ("7", Value::Int(7)),
            ("18446744073709551615", Value::Int(u64::MAX.into())),
            ("1e3", Value::Double(1_000.0)),
            ("NaN", Value::Double(f64::NAN)),
            ("7", Value::Text("7".into())),
            ("2026-01-01T00:00:00.5Z", time.clone()),
            ("1767225600500000000", time.clone()),
            ("0AfF", Value::Bytes(vec![10, 255])),
        ] {
            assert_eq!(told(&text(wanted), &found), Vec::<String>::new(), "{wanted}");
        }
        for (wanted, found, says) in [
            ("yes", Value::Bool(true), "c: expected yes, found true"),
            ("7.0", Value::Int(7), "c: expected 7.0, found 7"),
            ("a", Value::Text("b".into()), "c: expected \"a\", found \"b\""),
            ("a", Value::Null, "c: expected \"a\", found nothing"),
            ("2026", time, "c: expected 2026, found 2026-01-01T00:00:00.5Z"),
            ("0a", Value::Bytes(vec![11]), "c: expected 0a, found 0b"),
        ] {
            assert_eq!(told(&text(wanted), &found), [says], "{wanted}");
        }
    }

    #[test]
    fn maps_are_held_against_the_names_that_are_given_and_lists_against_all_items() {
        let found = Value::Map(vec![("a".into(), Value::Text("1".into())), ("b".into(), Value::List(vec![Value::Int(1)]))]);
        let map = |name: &str, wanted: Wanted| Wanted::Map(vec![(name.to_owned(), wanted)]);
        assert_eq!(told(&map("a", text("1")), &found), Vec::<String>::new());
        assert_eq!(told(&map("c", Wanted::Null), &found), Vec::<String>::new());
        assert_eq!(told(&map("a", Wanted::Null), &found), ["c.a: expected nothing, found \"1\""]);
        assert_eq!(told(&map("b", Wanted::List(vec![text("2")])), &found), ["c.b[0]: expected 2, found 1"]);
        assert_eq!(told(&map("b", Wanted::List(vec![])), &found), ["c.b: expected [], found [1]"]);
        assert_eq!(told(&map("contains", text("el")), &Value::Text("hello".into())), Vec::<String>::new());
        assert_eq!(
            told(&map("contains", text("x")), &Value::Text("hello".into())),
            ["c: expected a text with \"x\", found \"hello\""]
        );
    }
}
