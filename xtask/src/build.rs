//! Compiling: the eBPF programs for the BPF machine, then the agent, whose build
//! script takes them in. Says nothing that cargo does not say.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::{CommandExt, cargo, checkout};
use crate::setup::{self, Need};

/// How the agent is compiled. The eBPF programs are always optimised.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quickly.
    Debug,
    /// As it is installed.
    Release,
}

impl Profile {
    /// That of a `--release` flag.
    pub fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Debug }
    }
}

/// Builds everything; the agent's binary.
///
/// # Errors
/// If the set-up is incomplete or something does not compile.
pub fn all(profile: Profile) -> Result<PathBuf> {
    ebpf()?;
    let mut build = cargo();
    build.args(["build", "--package", "netagent"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    build.run()?;
    Ok(binary(profile))
}

/// Builds the eBPF programs.
///
/// # Errors
/// As [`all`].
pub fn ebpf() -> Result<()> {
    setup::ensure(Need::Build)?;
    ebpf_cargo(&["build", "--release", "--bins"]).run()
}

/// The object file that [`ebpf`] makes.
pub fn object() -> PathBuf {
    checkout().join("target/bpf/bpfel-unknown-none/release/netagent")
}

/// Cargo for the eBPF crate: `core` from source, for the BPF machine, by the stable
/// compiler, with BTF in the object so that the kernel knows types and lines.
pub(crate) fn ebpf_cargo(verb: &[&str]) -> std::process::Command {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut command = cargo();
    command
        .args(verb)
        .args(["--package", "netagent-ebpf"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(checkout().join("target/bpf"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", setup::path_with_tools());
    command
}

/// Where cargo puts the agent.
pub fn binary(profile: Profile) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    let directory = match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    };
    checkout().join(Path::new(&target)).join(directory).join("netagent")
}
