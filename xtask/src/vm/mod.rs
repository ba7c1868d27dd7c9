//! `cargo xtask vm-test`: tests on other kernels than this machine's. The tests are those
//! of the `tests` crate, as they are; the kernels are Debian's, each in a machine of its
//! own. What a kernel lacks a test says by `SKIP`, as everywhere.
//!
//! ```text
//! suite (cargo) ─┐
//! kernel (apt) ──┼─▶ image (cpio) ─▶ machine (QEMU) ─▶ lines ─▶ test::Count
//! programs ──────┘
//! ```

mod cpio;
mod image;
mod kernel;
mod machine;
mod suite;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::command::checkout;
use crate::setup::{self, Need};
use crate::test::{self, Count};

use kernel::Kernel;
pub use kernel::Line;
use machine::Machine;
use suite::Suite;

/// What runs on every kernel if nothing is named.
const SUITES: &[&str] =
    &["programs", "kernel", "wire", "service", "encryption", "cluster::isolation"];

/// What a run of all tests has of it: what this kernel may lack. Under emulation every test
/// that loads the programs takes seconds.
const USUAL: [&str; 2] = ["kernel::clsact", "kernel::ipvs"];

/// Runs these suites on these kernels; all if none is named. The last line says how many tests
/// passed, failed and were skipped. Whether none failed.
///
/// # Errors
/// If a suite is unknown, or something is missing and cannot be fetched or built.
pub fn run(lines: &[Line], suites: &[String]) -> Result<bool> {
    setup::ensure(Need::Machines)?;
    build::all(Profile::Debug)?;
    let lines = if lines.is_empty() { &Line::ALL[..] } else { lines };
    let defaults: Vec<String> = SUITES.iter().map(|suite| (*suite).to_owned()).collect();
    let suites = if suites.is_empty() { &defaults[..] } else { suites };
    let mut count = Count::default();
    all(lines, suites, &mut count)?;
    count.show();
    Ok(count.failed == 0)
}

/// Runs the suites that every run of all tests has, on the oldest kernel: it differs most from
/// that of whoever develops. What cannot be fetched or started is a failure.
pub(crate) fn usual(count: &mut Count) {
    let suites = USUAL.map(str::to_owned);
    if let Err(error) = all(&[Line::V6_1], &suites, count) {
        println!("vm: {error:#}");
        count.failed += 1;
    }
}

/// Runs these suites on each of these kernels, one after the other.
fn all(lines: &[Line], suites: &[String], count: &mut Count) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the test machines are x86-64, and run what is built on such a machine");
    }
    let known: Vec<_> = test::targets()?.into_iter().collect();
    let built = Suite::build(suites, &known)?;
    let directory = checkout().join("target/vm");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    for line in lines {
        let kernel = Kernel::get(*line, &directory)?;
        on(&kernel, &built, count, &directory)?;
    }
    Ok(())
}

fn on(
    kernel: &Kernel,
    (suites, programs): &(Vec<Suite>, Vec<PathBuf>),
    count: &mut Count,
    directory: &std::path::Path,
) -> Result<()> {
    let release = &kernel.release;
    let names: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
    println!("vm: Linux {release}: {}", names.join(", "));
    let machine = Machine {
        image: kernel.image()?,
        initrd: directory.join(format!("initrd-{}", std::process::id())),
        console: directory.join(format!("console-{release}")),
    };
    image::write(&machine.initrd, kernel, suites, programs)?;
    let start = Instant::now();
    let before = count.finished();
    count.at = Some(release.clone());
    let mut failed = None;
    let ran = machine.run(|line| match line.strip_prefix("vm: status ") {
        // A process of tests that failed has said so, if it came to its end.
        Some("0" | "101") => {}
        Some(status) => failed = Some(format!("a suite ended with status {status}")),
        None => count.take(line),
    });
    count.at = None;
    let _ = fs::remove_file(&machine.initrd);
    if let Err(error) = ran {
        failed = Some(format!("{error:#}"));
    }
    if let Some(why) = failed {
        println!("vm: Linux {release}: {why}");
        count.failed += 1;
    }
    println!(
        "vm: Linux {release}: {} tests in {} s\n",
        count.finished() - before,
        start.elapsed().as_secs()
    );
    Ok(())
}
