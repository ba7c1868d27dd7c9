//! `cargo xtask install`: puts the release build, its manual, completions and systemd
//! unit under a prefix. Starts nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::command::{CommandExt, checkout};

/// Shells with the place of their completions under the prefix.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/netagent"),
    ("zsh", "share/zsh/site-functions/_netagent"),
    ("fish", "share/fish/vendor_completions.d/netagent.fish"),
];

/// Installs; prints each file.
///
/// # Errors
/// If something does not build or a file cannot be written.
pub fn all(prefix: &Path) -> Result<()> {
    let built = build::all(Profile::Release)?;
    let binary = prefix.join("bin/netagent");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    write(&binary, &bytes, 0o755)?;

    let manual = prefix.join("share/man/man8");
    make_directory(&manual)?;
    println!("{}", Command::new(&binary).arg("man").arg(&manual).read()?);

    for (shell, file) in SHELLS {
        let script = Command::new(&binary).args(["completion", shell]).read()? + "\n";
        write(&prefix.join(file), script.as_bytes(), 0o644)?;
    }

    let unit = checkout().join("agent/systemd/netagent.service");
    let unit =
        fs::read_to_string(&unit).with_context(|| format!("cannot read {}", unit.display()))?;
    let unit = unit.replace("/usr/local/bin/netagent", &binary.display().to_string());
    write(&prefix.join("lib/systemd/system/netagent.service"), unit.as_bytes(), 0o644)
}

/// Writes a file in one step, for the old one may be running.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    make_directory(path.parent().context("an installed file has a directory")?)?;
    let new = path.with_added_extension("new");
    let write = || {
        fs::write(&new, bytes)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}
