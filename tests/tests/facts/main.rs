//! What a running proxy tells of itself: `/api/v1/` beside its own description, `/status` and `/metrics`.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod api;
mod asking;
mod counters;
mod lasting;
mod one_source;
mod polled;
mod wire;
