//! How much the verifier has to look at. It counts instructions on every path, so one
//! more branch in the wrong place doubles the number: such a change is to be seen. Most of
//! it is services, which are verified apart (`apart.rs`), once for each program.

use netagent_common::programs;
use netagent_tests::object::Object;

/// The kernel whose verifier has counted. Others look at more or less.
const KERNEL: &str = "6.18.";

/// Verified instructions of each program.
const VERIFIED: [(&str, u32); 5] = [
    (programs::FROM_ENDPOINT, 113_597),
    (programs::FROM_OVERLAY, 47_324),
    (programs::FROM_UPLINK, 94_188),
    (programs::FROM_HOST, 71_487),
    (programs::FROM_LB, 24_538),
];

/// In percent.
const TOLERANCE: u32 = 15;

#[test]
fn programs_have_the_size_written_down() {
    let running = nix::sys::utsname::uname().expect("the kernel says its name");
    let running = running.release().to_string_lossy();
    if !running.starts_with(KERNEL) {
        println!(
            "SKIP: programs_have_the_size_written_down: the numbers are of Linux {KERNEL}*, \
             this is {running}"
        );
        return;
    }
    let mut object = Object::load();
    let now = VERIFIED.map(|(name, _)| {
        let info = object.program(name).info().expect("a loaded program has information");
        (name, info.verified_instruction_count().expect("the kernel says so since 5.16"))
    });
    let near = VERIFIED
        .iter()
        .zip(&now)
        .all(|((_, written), (_, now))| now.abs_diff(*written) * 100 <= written * TOLERANCE);
    assert!(near, "written down: {VERIFIED:?}\nnow:          {now:?}");
}
