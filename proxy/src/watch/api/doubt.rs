//! Which lists are believed. A list is the truth about the cluster, so a wrong one would take Services away on every node at
//! once: from a server that lags behind the others, a proxy in between that answers for it, a store that was emptied.

use std::cmp::Ordering;

/// How often in a row a server has to say what is not believed: with the pauses between tries, some 15 s.
const INSIST: u32 = 6;

/// How often in a row a server has to say that it does not have, or does not show, what it has told before: with the pauses
/// between tries, half a minute to one. One that is starting up says so until it knows its kinds and roles.
const INSIST_UNSERVED: u32 = 8;

/// The order of two resource versions of one kind: decimal numbers without bounds (KEP-5504). `None`: one is none.
pub(super) fn order(one: &str, other: &str) -> Option<Ordering> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(one) || !digits(other) {
        return None;
    }
    let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
    Some(one.len().cmp(&other.len()).then_with(|| one.cmp(other)))
}

/// A list as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    /// Its resource version.
    pub version: &'a str,
    /// How many objects it has.
    pub objects: usize,
}

/// What of the lists of one kind has not been believed.
#[derive(Default, Debug)]
pub(super) struct Doubts {
    in_a_row: u32,
    /// A list was believed, and what it said holds.
    served: bool,
    unserved_in_a_row: u32,
}

impl Doubts {
    /// Why a list is not to be believed yet; `None`: it is. `newest` is the highest version that was seen, `known` how many
    /// objects are in force. A cluster always has the Service `kubernetes` and its slice, and we run on
    /// a Node, so that none at all is strange; ServiceCIDRs may go.
    pub fn about(&mut self, list: Listed<'_>, newest: &str, known: usize, may_be_empty: bool) -> Option<String> {
        let why = if order(list.version, newest) == Some(Ordering::Less) {
            format!("it is of version {}, and {newest} has been seen", list.version)
        } else if list.objects == 0 && known > 0 && !may_be_empty {
            format!("it is empty, and there were {known}")
        } else {
            self.believed();
            return None;
        };
        self.in_a_row += 1;
        if self.in_a_row < INSIST {
            return Some(why);
        }
        tracing::warn!("the API server insists on a list that was not believed ({why}): it is the truth now");
        self.believed();
        None
    }

    /// A list is the truth.
    pub fn believed(&mut self) {
        *self = Self { served: true, ..Self::default() };
    }

    /// Whether it is believed that a kind is not served at all, or not to us: at once where it never was.
    pub fn believes_unserved(&mut self) -> bool {
        self.unserved_in_a_row += 1;
        if self.served && self.unserved_in_a_row < INSIST_UNSERVED {
            return false;
        }
        if self.served {
            tracing::warn!(
                "the API server insists that it does not have a kind, or not for us: there are none of it now"
            );
        }
        *self = Self::default();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_without_bounds() {
        assert_eq!(order("9", "10"), Some(Ordering::Less));
        assert_eq!(order("0010", "10"), Some(Ordering::Equal));
        assert_eq!(order("100000000000000000000000000000000000000000", "2"), Some(Ordering::Greater));
        assert_eq!((order("", "1"), order("1", "x"), order("-1", "1")), (None, None, None));
    }

    #[test]
    fn a_list_that_is_older_or_empty_has_to_be_insisted_on() {
        for (list, newest) in
            [(Listed { version: "99", objects: 3 }, "100"), (Listed { version: "101", objects: 0 }, "100")]
        {
            let mut doubts = Doubts::default();
            let good = Listed { version: "100", objects: 1 };
            assert_eq!(doubts.about(good, newest, 3, false), None, "fewer than before, but not none");
            for _ in 1..INSIST {
                assert!(doubts.about(list, newest, 3, false).is_some(), "{list:?}");
            }
            assert_eq!(doubts.about(good, newest, 3, false), None, "one that is well makes all forgotten");
            for _ in 1..INSIST {
                assert!(doubts.about(list, newest, 3, false).is_some(), "{list:?}");
            }
            assert_eq!(doubts.about(list, newest, 3, false), None, "{list:?}: the server insists");
        }
    }

    #[test]
    fn what_was_served_has_to_be_refused_again_and_again() {
        let mut doubts = Doubts::default();
        assert!(doubts.believes_unserved(), "an older cluster");
        for _ in 0..2 {
            doubts.believed();
            for _ in 1..INSIST_UNSERVED {
                assert!(!doubts.believes_unserved());
            }
        }
        assert!(doubts.believes_unserved() && doubts.believes_unserved(), "and then at once, until it is served again");
    }

    #[test]
    fn some_kinds_may_be_empty() {
        let none = Listed { version: "101", objects: 0 };
        assert_eq!(Doubts::default().about(none, "100", 1, true), None);
        assert_eq!(Doubts::default().about(none, "100", 0, false), None, "there were none before");
        assert_eq!(Doubts::default().about(Listed { version: "x", objects: 1 }, "100", 1, false), None);
    }
}
