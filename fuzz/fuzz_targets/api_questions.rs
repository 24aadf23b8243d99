#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeferry::fuzzing::text::api_questions(bytes));
