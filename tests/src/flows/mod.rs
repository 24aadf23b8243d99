//! The flow table: cases as folders that an operator can read, and what holds in each.

mod case;
mod node;
mod row;

pub use case::{Case, RESTART, Step, documents, with_node};
pub use node::{Node, PODS, UPLINK};
pub use row::{Expect, Row, parse};
