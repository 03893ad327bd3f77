//! Which commits may still be registered after one of their group was refused.
//!
//! A delivery may be listed in a commit that covers only a part of it, when the rest is in an earlier commit of its group. If the
//! earlier one is refused, the later one must not be registered either: it would acknowledge rows that nobody stored. But the later
//! one may be anywhere on its way by then. So every closed commit names its *generation*, which the roller raises when it learns of a
//! refusal:
//!
//! ```text
//! roller    closes c1(0)  c2(0)          c3(0) | learns of c1's refusal: gives up c1, c2, c3 and what is open | closes c4(1)
//! catalog                 c1(0) refused: from here on nothing of generation 0
//!                                c2(0) refused  c3(0) refused                                     c4(1) registered
//! ```

use std::collections::BTreeMap;

use crate::batch::Group;
use crate::parquet_roll::ClosedCommit;

/// The greatest refused generation of each group that had a refusal.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<Group, u64>);

impl Refusals {
    /// False if an earlier commit of the same group and generation, or of a later one, was refused.
    pub fn admits(&self, commit: &ClosedCommit) -> bool {
        self.0.get(&commit.group).is_none_or(|refused| commit.generation > *refused)
    }

    /// Notes that `commit` is refused, and with it all of its generation that come after it.
    pub fn refuse(&mut self, commit: &ClosedCommit) {
        let refused = self.0.entry(commit.group.clone()).or_default();
        *refused = commit.generation.max(*refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Signal;
    use ulid::Ulid;

    #[test]
    fn nothing_of_a_refused_generation_is_admitted_and_everything_of_the_next_is() {
        let commit = |index: &str, generation| ClosedCommit {
            commit_id: Ulid::from_parts(1, 1),
            group: Group { index: index.into(), signal: Signal::Logs },
            generation,
            node: "node".into(),
            files: vec![],
            coverage: vec![],
            deliveries: vec![],
        };
        let mut refusals = Refusals::default();
        assert!(refusals.admits(&commit("a", 0)));
        refusals.refuse(&commit("a", 0));
        assert!(!refusals.admits(&commit("a", 0)) && refusals.admits(&commit("a", 1)) && refusals.admits(&commit("b", 0)));
        refusals.refuse(&commit("a", 3));
        refusals.refuse(&commit("a", 2));
        assert!(!refusals.admits(&commit("a", 3)) && refusals.admits(&commit("a", 4)));
    }
}
