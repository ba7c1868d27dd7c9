//! Running other programs so that a failure explains itself: the command line as
//! one would type it, how it ended, and what it said. Owns no process beyond the
//! call.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// What this crate does with commands.
pub trait CommandExt {
    /// The command line as one would type it.
    fn line(&self) -> String;

    /// Runs it to its end, with output to the terminal.
    ///
    /// # Errors
    /// If it cannot be started or does not succeed.
    fn run(&mut self) -> Result<()>;

    /// Runs it to its end without input and collects what it prints, whether it succeeds or not.
    ///
    /// # Errors
    /// If it cannot be started.
    fn collect(&mut self) -> Result<Output>;

    /// Runs it to its end without input; what it printed to stdout, without the last newline.
    ///
    /// # Errors
    /// If it cannot be started or does not succeed; the error carries its stderr.
    fn read(&mut self) -> Result<String>;
}

impl CommandExt for Command {
    fn line(&self) -> String {
        let words = std::iter::once(self.get_program()).chain(self.get_args());
        words.map(quote).collect::<Vec<_>>().join(" ")
    }

    fn run(&mut self) -> Result<()> {
        let status = self.status().with_context(|| format!("cannot start `{}`", self.line()))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.line());
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<Output> {
        self.stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", self.line()))
    }

    fn read(&mut self) -> Result<String> {
        let output = self.collect()?;
        if !output.status.success() {
            let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
            let said = String::from_utf8_lossy(said);
            bail!("`{}` failed: {}: {}", self.line(), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    }
}

/// A word as a shell needs it.
fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where a program is: on `PATH`, or where distributions keep those of the administrator.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Root directory of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ is in the checkout")
}

/// Cargo, to be run in the checkout. It is of the toolchain that built us, for rustup
/// hands its choice on in the environment.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(checkout());
    // What `cargo run` told us of this package: build scripts that look at it would run
    // again whenever cargo is called by hand in between, and take ring with them.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_can_be_pasted_into_a_shell() {
        let mut command = Command::new("psql");
        command.args(["-h", "psql", "-c", "select 'a b'", ""]);
        assert_eq!(command.line(), r"psql -h psql -c 'select '\''a b'\''' ''");
    }

    #[test]
    fn a_failure_carries_line_and_stderr() {
        let error = Command::new("sh").args(["-c", "echo gone >&2; exit 3"]).read().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c 'echo gone >&2; exit 3'"), "{text}");
        assert!(text.ends_with("exit status: 3: gone"), "{text}");
    }
}
