//! What became of one packet, step by step.

use std::fmt;

use super::packet::Ends;

/// A packet's way through the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Journey {
    /// As it came.
    pub came: Ends,
    /// The interface that it came in by; `None`: the node itself sent it.
    pub iif: Option<String>,
    /// What was done with it, in order.
    pub steps: Vec<Step>,
    /// What became of it.
    pub end: End,
}

/// Something that decided about a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which table and chain, or which program.
    pub place: String,
    /// What was decided.
    pub decision: String,
    /// What that means, where it is ours to say.
    pub reason: Option<String>,
}

/// The last that was seen of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It went on, as it is then.
    Went {
        /// With addresses and ports rewritten, or not.
        ends: Ends,
        /// Where.
        way: Way,
    },
    /// A TCP reset or an ICMP error was sent back.
    Refused,
    /// Our datapath threw it away.
    Dropped,
    /// Another's rules threw it away.
    Stopped {
        /// Whose: `table/chain`, and the rule's handle.
        by: String,
    },
    /// It was not seen again: routing, the check of the reverse path or a lack of memory has taken it.
    Unseen,
}

/// Where a packet went on to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// Out of this interface.
    Out(String),
    /// To a process of this node.
    Here,
    /// To wherever the node's routes say: it was not looked at again.
    On,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Out(interface) => write!(f, "out by {interface}"),
            Self::Here => f.write_str("to a process here"),
            Self::On => f.write_str("on"),
        }
    }
}

impl fmt::Display for Journey {
    /// A paragraph; lines behind the first are indented by two spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.iif {
            _ if !self.came.has_source() => writeln!(f, "{}", self.came)?,
            Some(iif) => writeln!(f, "{}, in by {iif}", self.came)?,
            None => writeln!(f, "{}, from this node", self.came)?,
        }
        let width = self.steps.iter().map(|step| step.place.chars().count()).max().unwrap_or_default();
        for step in &self.steps {
            write!(f, "  {:width$}  {}", step.place, step.decision)?;
            match &step.reason {
                Some(reason) => writeln!(f, " ({reason})")?,
                None => writeln!(f)?,
            }
        }
        write!(f, "  {}", self.end_text())
    }
}

impl Journey {
    /// One line about the end, with what was rewritten.
    pub fn end_text(&self) -> String {
        match &self.end {
            End::Went { ends, way } => {
                let rewritten = match (ends.to != self.came.to, ends.from != self.came.from) {
                    (true, true) => "destination and source rewritten",
                    (true, false) => "destination rewritten",
                    (false, true) => "source rewritten",
                    (false, false) => "as it came",
                };
                format!("went {way}: {ends} ({rewritten})")
            }
            End::Refused => "refused".to_owned(),
            End::Dropped => "dropped".to_owned(),
            End::Stopped { by } => format!("dropped by {by}, which is not ours"),
            End::Unseen => {
                "not seen again: look at routes, rp_filter, and the interface that it should leave by".to_owned()
            }
        }
    }
}
