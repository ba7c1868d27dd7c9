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
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::command::checkout;
use crate::setup::{self, Need};
use crate::test::{self, Count};

use image::Content;
use kernel::Kernel;
pub use kernel::Line;
use machine::{Clock, Machine};
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

/// Runs a command of this very program on a kernel, where `tools` are too, and gives each line
/// that it prints to `read`. The clock there counts instructions.
///
/// # Errors
/// If something is missing and cannot be fetched or built, or the command fails.
pub(crate) fn command(
    line: Line,
    words: &str,
    tools: Vec<PathBuf>,
    mut read: impl FnMut(&str),
) -> Result<()> {
    let program = std::env::current_exe().context("this program has no path")?;
    // No bar that moves: what it prints is read by lines.
    let script = format!("TERM=dumb {} {words}\necho \"vm: status $?\"\n", program.display());
    let content = Content { tools, programs: vec![program], script };
    let directory = directory()?;
    let mut failed = false;
    let kernel = Kernel::get(line, &directory)?;
    on(&kernel, &content, &directory, Clock::Instructions, |line| {
        match line.strip_prefix("vm: status ") {
            Some(status) => failed = status != "0",
            None => read(line),
        }
    })?;
    if failed {
        bail!("`{words}` failed there");
    }
    Ok(())
}

/// Runs these suites on each of these kernels, one after the other.
fn all(lines: &[Line], suites: &[String], count: &mut Count) -> Result<()> {
    let known: Vec<_> = test::targets()?.into_iter().collect();
    let (suites, programs) = Suite::build(suites, &known)?;
    let names: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
    let (content, directory) = (suite::content(&suites, &programs), directory()?);
    for line in lines {
        let kernel = Kernel::get(*line, &directory)?;
        println!("vm: Linux {}: {}", kernel.release, names.join(", "));
        tests(&kernel, &content, count, &directory);
    }
    Ok(())
}

/// Where kernels are kept, and what machines leave behind.
fn directory() -> Result<PathBuf> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the test machines are x86-64, and run what is built on such a machine");
    }
    let directory = checkout().join("target/vm");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

fn tests(kernel: &Kernel, content: &Content, count: &mut Count, directory: &Path) {
    let release = &kernel.release;
    let start = Instant::now();
    let before = count.finished();
    count.at = Some(release.clone());
    let mut failed = None;
    let ran = on(kernel, content, directory, Clock::Time, |line| {
        match line.strip_prefix("vm: status ") {
            // A process of tests that failed has said so, if it came to its end.
            Some("0" | "101") => {}
            Some(status) => failed = Some(format!("a suite ended with status {status}")),
            None => count.take(line),
        }
    });
    count.at = None;
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
}

/// Boots a machine with this content.
fn on(
    kernel: &Kernel,
    content: &Content,
    directory: &Path,
    clock: Clock,
    read: impl FnMut(&str),
) -> Result<()> {
    let machine = Machine {
        image: kernel.image()?,
        initrd: directory.join(format!("initrd-{}", std::process::id())),
        console: directory.join(format!("console-{}", kernel.release)),
        clock,
    };
    image::write(&machine.initrd, kernel, content)?;
    let ran = machine.run(read);
    // It is large, and of no use any more.
    let _ = fs::remove_file(&machine.initrd);
    ran
}
