//! A file with a form of its own that is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use openwit_operators::reload::File;

use super::problem::{Place, Problem, Problems};
use super::read_text;

/// The content of the text of the file of this name, or all problems of it.
pub(super) type Parse<T> = fn(&str, &str) -> Result<T, Problems>;

/// A file that is looked at again and again.
#[derive(Debug)]
pub struct WatchedFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    /// What was there the last time: its text, or why it could not be read.
    seen: Mutex<Result<String, String>>,
}

impl<T> WatchedFile<T> {
    /// The file and what it holds.
    pub(super) fn watch(path: &Path, parse: Parse<T>) -> Result<(Self, T), Problems> {
        let text = read_text(path).map_err(|message| unreadable(path, message))?;
        let content = parse(&path.display().to_string(), &text)?;
        Ok((WatchedFile { path: path.to_owned(), parse, seen: Mutex::new(Ok(text)) }, content))
    }
}

impl<T: std::fmt::Debug> File<T> for WatchedFile<T> {
    /// The whole text is compared: it is small, and times of files tell less than they seem to (mounted secrets, coarse clocks).
    fn changed(&self) -> Option<Result<T, String>> {
        let now = read_text(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return None;
        }
        let read = match &now {
            Ok(text) => (self.parse)(&self.path.display().to_string(), text),
            Err(message) => Err(unreadable(&self.path, message.clone())),
        };
        *seen = now;
        Some(read.map_err(|problems| problems.to_string()))
    }
}

fn unreadable(path: &Path, message: String) -> Problems {
    let mut problems = Problems::new(path.display().to_string());
    problems.push(Problem::error(Place::File(0), "", message));
    problems
}
