//! YAML text to a tree that knows the line of every key, and back.
//!
//! Built on the parser's events rather than on a ready tree: so a key given twice is one problem among all the others instead of
//! the only one, nesting is bounded, and scalars stay the text that was written (`true` is a bool only where a bool is wanted).
//! Anchors, aliases, merge keys, tags and a second document are refused: nothing here needs them, and each can surprise.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::problem::{Place, Problem};

/// Deeper than any key of the table; what goes beyond is a mistake or an attack on the stack.
const DEPTH_MAX: usize = 16;
/// The same where documents hold data of other programs, such as OTLP in JSON.
const DATA_DEPTH_MAX: usize = 100;

/// A value and the line it begins at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) content: Content,
    /// A scalar without quotes: where no key decides the type, its text does.
    pub(super) is_plain: bool,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No value: nothing, `~` or `null` without quotes.
    Null,
    /// Any other scalar, as text.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order written, each key once.
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Node,
}

/// A collection whose end was not seen yet.
struct Open {
    node: Node,
    /// The key of a map whose value comes next, with its line.
    key: Option<(String, usize)>,
}

struct Builder<'a> {
    depth_max: usize,
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    problems: &'a mut Vec<Problem>,
}

/// Reads one document. `None` where it is not YAML at all; everything else that is wrong is reported and left out.
pub(super) fn parse(text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    parse_to(DEPTH_MAX, text, problems)
}

/// The same for a document that holds data, which may be nested deeper.
pub(super) fn parse_data(text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    parse_to(DATA_DEPTH_MAX, text, problems)
}

fn parse_to(depth_max: usize, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder { depth_max, open: Vec::new(), root: None, documents: 0, problems };
    while let Some(event) = parser.next_event() {
        let (event, line) = match event {
            Ok((event, span)) => (event, span.start.line()),
            Err(error) => {
                let message = format!("not YAML: {} (column {})", error.info(), error.marker().col() + 1);
                builder.problems.push(Problem::error(Place::File(error.marker().line()), "", message));
                return None;
            }
        };
        if !builder.take(event, line) {
            return None;
        }
    }
    let empty = Node { line: 1, content: Content::Null, is_plain: true };
    Some(builder.root.unwrap_or(empty))
}

impl Builder<'_> {
    /// Takes one event; false where reading cannot go on.
    fn take(&mut self, event: Event<'_>, line: usize) -> bool {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(line, anchor, tag.is_some());
                self.scalar(text.into_owned(), style, line);
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_extras(line, anchor, tag.is_some());
                return self.open(line, Content::List(Vec::new()));
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_extras(line, anchor, tag.is_some());
                return self.open(line, Content::Map(Vec::new()));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(closed) = self.open.pop() {
                    self.place(closed.node);
                }
            }
            Event::Alias(_) => {
                self.problem(line, "aliases (*name) are not supported: write the value out");
                self.place(Node { line, content: Content::Null, is_plain: true });
            }
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.problem(line, "a second document begins here: one file holds one configuration");
                    return false;
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        true
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, line: usize) {
        if let Some(Open { node: Node { content: Content::Map(_), .. }, key: key @ None }) = self.open.last_mut() {
            *key = Some((text, line));
            return;
        }
        let is_null = style == ScalarStyle::Plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
        let content = if is_null { Content::Null } else { Content::Scalar(text) };
        self.place(Node { line, content, is_plain: style == ScalarStyle::Plain });
    }

    fn open(&mut self, line: usize, content: Content) -> bool {
        if self.open.len() == self.depth_max {
            self.problem(line, &format!("nested deeper than {} levels", self.depth_max));
            return false;
        }
        let is_key = matches!(self.open.last(), Some(Open { node: Node { content: Content::Map(_), .. }, key: None }));
        if is_key {
            self.problem(line, "a list or map cannot be a key");
            return false;
        }
        self.open.push(Open { node: Node { line, content, is_plain: false }, key: None });
        true
    }

    /// Puts a finished value into the collection that is open, or makes it the root.
    fn place(&mut self, value: Node) {
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(value);
            return;
        };
        match (&mut parent.node.content, parent.key.take()) {
            (Content::List(values), _) => values.push(value),
            (Content::Map(entries), Some((key, line))) => {
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    let message = format!("given twice: first in line {}", first.line);
                    let path = self.path_of(&key);
                    self.problems.push(Problem::error(Place::File(line), path, message));
                } else {
                    entries.push(Entry { key, line, value });
                }
            }
            // An alias in the place of a key: reported where it was met.
            (Content::Map(_) | Content::Null | Content::Scalar(_), _) => {}
        }
    }

    /// The dotted path of `key` in the innermost open map.
    fn path_of(&self, key: &str) -> String {
        let outer = self.open.iter().filter_map(|open| open.key.as_ref()).map(|(key, _)| key.as_str());
        outer.chain([key]).collect::<Vec<_>>().join(".")
    }

    fn refuse_extras(&mut self, line: usize, anchor: usize, has_tag: bool) {
        if anchor != 0 {
            self.problem(line, "anchors (&name) are not supported: write the value out");
        }
        if has_tag {
            self.problem(line, "tags (!name) are not supported: the key decides the type");
        }
    }

    fn problem(&mut self, line: usize, message: &str) {
        self.problems.push(Problem::error(Place::File(line), "", message));
    }
}

/// `text` as a YAML scalar that reads back as the same text: plain where that is safe, else in double quotes.
pub(super) fn scalar(text: &str) -> String {
    let is_plain_start = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '.');
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./+-".contains(c));
    let is_null = matches!(text, "null" | "Null" | "NULL");
    if is_plain_start && is_plain && !is_null {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' || c == '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", c as u32))
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> (Option<Node>, Vec<Problem>) {
        let mut problems = Vec::new();
        (parse(text, &mut problems), problems)
    }

    #[test]
    fn keys_know_their_lines() {
        let (root, problems) = parsed("a:\n  b: 1\n\n  c: [x,\n    y]\n");
        assert_eq!(problems, []);
        let Content::Map(top) = root.unwrap().content else { panic!("a map") };
        let Content::Map(inner) = &top[0].value.content else { panic!("a map") };
        let lines: Vec<_> = inner.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(lines, [("b", 2), ("c", 4)]);
    }

    #[test]
    fn what_could_surprise_is_refused_with_its_line() {
        for (text, line, says) in [
            ("a: 1\nb: 2\na: 3\n", 3, "given twice: first in line 1"),
            ("a: &x 1\n", 1, "anchors"),
            ("a: &x 1\nb: *x\n", 2, "aliases"),
            ("a: !!int 1\n", 1, "tags"),
            ("a: 1\n---\nb: 2\n", 2, "second document"),
            ("? [a, b]\n: 1\n", 1, "cannot be a key"),
            ("a: [1\nb: 2\n", 2, "not YAML"),
        ] {
            let (_, problems) = parsed(text);
            let found = problems.iter().any(|problem| problem.place == Place::File(line) && problem.message.contains(says));
            assert!(found, "{text:?}: {problems:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_before_the_stack_suffers() {
        let block: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        for text in [format!("a: {}", "[".repeat(200_000)), block] {
            let (root, problems) = parsed(&text);
            assert_eq!((root, problems.len()), (None, 1));
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_being_written_and_read(text in any::<String>()) {
            let (root, problems) = parsed(&format!("key: {}\n", scalar(&text)));
            prop_assert_eq!(problems, []);
            let Some(Content::Map(entries)) = root.map(|root| root.content) else { panic!("a map") };
            prop_assert_eq!(&entries[0].value.content, &Content::Scalar(text));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>(), shaped in "[ \\[\\]{}:,&*!|>'\"#\\-?a\n\t]{0,60}") {
            parsed(&text);
            parsed(&shaped);
        }
    }
}
