//! How what deleted rows had counted is learned: from the kernel's word with their deletion (`NLM_F_ECHO`), or by reading
//! the counters just before.

use std::collections::BTreeSet;

use super::kernel::RowCount;
use super::rows::Key;

/// Deleted rows that the kernel says the counts of in one transaction: what it says has to fit into the socket's buffer. For
/// more, all counters are read just before.
const AT_ONCE: usize = 1_000;

/// Whether this kernel says what the rows of a deletion had counted; `None`: it was not asked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taking(Option<bool>);

/// What is done about the counts of one transaction's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// All counters are read beforehand. What goes by until the commit is not in them.
    pub reads: bool,
    /// The kernel is asked with the deletions.
    pub asks: bool,
}

impl Taking {
    /// For a transaction that deletes so many rows which count. The first time the counters are read as well: nothing depends
    /// on whether the kernel answers.
    pub fn plan(self, rows: usize) -> Plan {
        let asks = (1..=AT_ONCE).contains(&rows) && self.0 != Some(false);
        Plan { asks, reads: rows > 0 && (!asks || self.0.is_none()) }
    }

    /// What the rows of a transaction had counted: as the kernel said, or else as it was read before. A kernel that says less
    /// than it was asked is not asked again.
    pub fn counts(
        &mut self,
        plan: Plan,
        rows: &BTreeSet<Key>,
        read: Vec<RowCount>,
        said: Vec<RowCount>,
    ) -> Vec<RowCount> {
        if plan.asks {
            let answers = said.len() >= rows.len();
            if !answers {
                tracing::warn!(
                    rows = rows.len(),
                    said = said.len(),
                    "this kernel does not say what deleted rows had counted: from now on counters are read before rows are \
                     deleted, and connections of the moment between are not counted"
                );
            }
            self.0 = Some(answers);
        }
        let known: BTreeSet<Key> = said.iter().map(|count| count.key).collect();
        let read = read.into_iter().filter(|count| rows.contains(&count.key) && !known.contains(&count.key));
        let mut counts: Vec<RowCount> = read.collect();
        counts.extend(said);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::rows::Part;
    use crate::desired::target::Frontend;
    use crate::state::objects::{Family, Protocol};

    fn count(slot: u32, connections: u64) -> RowCount {
        let frontend = Frontend::NodePort { family: Family::V4, protocol: Protocol::Tcp, port: 30_080 };
        let endpoint = "10.244.1.1:8080".parse().unwrap();
        RowCount { key: Key::Of(frontend, Part::Endpoint(slot)), endpoint, connections }
    }

    #[test]
    fn a_kernel_that_says_nothing_is_noticed_and_nothing_is_lost() {
        let rows: BTreeSet<Key> = [count(0, 0).key, count(1, 0).key].into();
        let read = || vec![count(0, 5), count(1, 6), count(2, 7)];
        let mut taking = Taking::default();
        assert_eq!(taking.plan(0), Plan { reads: false, asks: false });
        let first = taking.plan(2);
        assert_eq!(first, Plan { reads: true, asks: true });
        // It says one, or none.
        let counts = taking.counts(first, &rows, read(), vec![count(1, 8)]);
        assert_eq!(counts, [count(0, 5), count(1, 8)]);
        let second = taking.plan(2);
        assert_eq!(second, Plan { reads: true, asks: false });
        assert_eq!(taking.counts(second, &rows, read(), Vec::new()), [count(0, 5), count(1, 6)]);
        assert_eq!(taking.plan(2), second);
    }

    #[test]
    fn a_kernel_that_answers_is_asked_alone_but_for_too_many_rows() {
        let rows: BTreeSet<Key> = [count(0, 0).key].into();
        let mut taking = Taking::default();
        let counts = taking.counts(taking.plan(1), &rows, vec![count(0, 5)], vec![count(0, 9)]);
        assert_eq!(counts, [count(0, 9)], "what came after the reading, too");
        assert_eq!(taking.plan(AT_ONCE), Plan { reads: false, asks: true });
        assert_eq!(taking.plan(AT_ONCE + 1), Plan { reads: true, asks: false });
        assert_eq!(taking.counts(taking.plan(AT_ONCE + 1), &rows, vec![count(0, 5)], Vec::new()), [count(0, 5)]);
        assert_eq!(taking.plan(1), Plan { reads: false, asks: true });
    }
}
