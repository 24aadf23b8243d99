//! What is bytes and nothing else.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Types whose values are their bytes: every bit pattern is one, there is no padding, and no pointer. The compiler sees to it
/// where zerocopy's traits are derived. Map rows and headers of packets are such.
pub trait Plain: FromBytes + IntoBytes + Immutable + Copy + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Plain for T {}
