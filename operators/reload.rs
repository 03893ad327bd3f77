//! Files that are read again while a process runs: producers' tokens, quotas.

use std::fmt::Debug;

/// A file that is looked at again and again.
pub trait File<T>: Send + Sync + Debug {
    /// What the file holds, if that is not what it held the last time: its content, or all that is wrong with it.
    fn changed(&self) -> Option<Result<T, String>>;
}
