#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| estiba_runtime::fuzzing::profile(bytes));
