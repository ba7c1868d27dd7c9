//! `cargo xtask lint`: form and clippy, for the host and for the BPF machine. A
//! warning is an error.

use anyhow::Result;

use crate::build::ebpf_cargo;
use crate::command::{CommandExt, cargo};
use crate::setup::{self, Need};

/// Checks everything.
///
/// # Errors
/// At the first check that finds something.
pub fn all() -> Result<()> {
    setup::ensure(Need::Build)?;
    cargo().args(["fmt", "--all", "--check"]).run()?;
    ebpf_cargo(&["clippy"]).args(["--", "-Dwarnings"]).run()?;
    let mut host = cargo();
    host.args(["clippy", "--workspace", "--exclude", "netagent-ebpf", "--all-targets"]);
    host.args(["--", "-Dwarnings"]).run()
}
