//! What is wrong with a configuration: every problem with its place, key, value, and what is allowed.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, from 1; 0 where the file as a whole is meant.
    File(usize),
    /// The n-th `--set`, from 0.
    Override(usize),
    /// Nobody gave one: the default of the code.
    Default,
}

/// Whether a problem stops the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It works, but probably not as meant.
    Warning,
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops the program.
    pub severity: Severity,
    /// Where the value was given.
    pub place: Place,
    /// Dotted path of the key; empty where no key is at fault.
    pub key: String,
    /// The value as given, redacted where it is secret; `None` where the value does not matter.
    pub value: Option<String>,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Problem {
    /// A problem that stops the program.
    pub fn error(place: Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, key: key.into(), value: None, message: message.into() }
    }

    /// A problem that is only reported.
    pub fn warning(place: Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, key, message) }
    }

    /// The same problem, showing the value that was given.
    pub fn with_value(self, value: impl Into<String>) -> Self {
        Self { value: Some(value.into()), ..self }
    }
}

/// All problems of one configuration, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name, as it was given.
    pub file: String,
    /// The problems.
    pub list: Vec<Problem>,
}

impl Problems {
    /// No problem yet in `file`.
    pub fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), list: Vec::new() }
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.list.push(problem);
    }

    /// Number of problems that stop the program.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    /// True where nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// True where `key`, or something under it, already has an error.
    pub(super) fn blames(&self, key: &str) -> bool {
        self.list.iter().any(|problem| {
            let rest = problem.key.strip_prefix(key);
            let at_or_under = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            problem.severity == Severity::Error && at_or_under
        })
    }

    /// Brings the problems into the order in which a reader meets their places.
    pub(super) fn sorted(mut self) -> Self {
        self.list.sort_by(|left, right| left.place.cmp(&right.place));
        self
    }
}

impl fmt::Display for Problems {
    /// One line each: `file:line: key.path: value "x": what is allowed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match problem.place {
                Place::File(0) => write!(f, "{}: ", self.file)?,
                Place::File(line) => write!(f, "{}:{line}: ", self.file)?,
                Place::Override(_) => write!(f, "--set: ")?,
                Place::Default => write!(f, "{} (by default): ", self.file)?,
            }
            if problem.severity == Severity::Warning {
                write!(f, "warning: ")?;
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            if let Some(value) = &problem.value {
                write!(f, "value {}: ", quoted(value))?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// `text` in quotes on one line, shortened: a value may be a whole file pasted into the wrong place.
fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// The candidate that `word` was probably meant to be: the nearest one, if it is near enough to be a slip.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is still a slip; more is another word.
    let slips_max = (word.chars().count() / 3).max(1);
    let ranked = candidates.into_iter().map(|candidate| (edit_distance(word, candidate), candidate));
    ranked.filter(|(distance, _)| *distance <= slips_max).min().map(|(_, candidate)| candidate)
}

/// Letters to insert, delete, replace or swap with their neighbour to turn `left` into `right`.
fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = last[j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if swapped {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_slips() {
        for (left, right, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("topics", "topics", 0),
            ("topcis", "topics", 1),
            ("brokrs", "brokers", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(left, right), expected, "{left} {right}");
            assert_eq!(edit_distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn nearest_name_is_offered_only_for_a_slip() {
        let names = ["brokers", "topics", "group_id"];
        assert_eq!(nearest("topic", names), Some("topics"));
        assert_eq!(nearest("gruop_id", names), Some("group_id"));
        assert_eq!(nearest("compression", names), None);
    }

    #[test]
    fn long_and_control_text_stays_on_one_short_line() {
        let shown = quoted(&"a\n".repeat(1_000));
        assert!(!shown.contains('\n') && shown.len() < 200, "{shown}");
    }
}
