#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeferry::fuzzing::traces::live_events(bytes));
