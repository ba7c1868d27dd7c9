#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| netagent_fuzz::token(data));
