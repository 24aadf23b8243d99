//! Files that others write, read so that nothing in them can hold the reader up or fill the memory: manifests and the
//! configuration.

pub(crate) mod documents;
pub(crate) mod file;
pub(crate) mod yaml;
