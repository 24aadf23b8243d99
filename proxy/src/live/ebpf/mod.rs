//! Following packets through the programs, which tell of what the filter says for as long as somebody asks them to.

pub mod assemble;
pub mod tap;
