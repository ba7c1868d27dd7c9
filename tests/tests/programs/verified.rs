//! How much the verifier has to look at, and how much stack is left, held against the
//! table that is written down: a change of either is to be seen.

use std::process::Command;

use netagent_tests::verified::{Row, STACK, TABLE, kernel};

const WRITTEN: &str = include_str!("../../../ebpf/verified.md");

/// In percent.
const TOLERANCE: u32 = 15;

#[test]
fn the_verifier_says_what_is_written_down() {
    let output = Command::new(env!("CARGO_BIN_EXE_verified")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let now: Vec<_> = said.lines().filter_map(Row::parse).collect();
    assert!(!now.is_empty(), "no rows in {said:?}");
    for row in &now {
        assert!(row.stack <= STACK, "Linux 6.1 would refuse it, for its stack: {row}");
    }
    let kernel = kernel();
    let written: Vec<_> =
        WRITTEN.lines().filter_map(Row::parse).filter(|row| row.kernel == kernel).collect();
    if written.is_empty() {
        println!("SKIP: the_verifier_says_what_is_written_down: {TABLE} has no Linux {kernel}");
        return;
    }
    let near = |now: &Row| {
        written.iter().filter(|row| row.program == now.program).any(|row| {
            let change = now.instructions.abs_diff(row.instructions);
            change * 100 <= row.instructions * TOLERANCE && now.stack <= row.stack
        })
    };
    let far: Vec<_> = now.iter().filter(|row| !near(row)).map(ToString::to_string).collect();
    assert!(
        far.is_empty(),
        "{TABLE} has other figures than\n{}\nIf that is meant: `cargo xtask verified`",
        far.join("\n")
    );
}
