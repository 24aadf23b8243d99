//! Faults of the process and of the API server under running traffic, on both datapaths: every request of every client is
//! checked, and after each fault the kernel has to have what is wanted. Each test prints what clients saw and how long it took
//! until all was right again (`cargo xtask test faults_process -- --nocapture`).
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod kill;
