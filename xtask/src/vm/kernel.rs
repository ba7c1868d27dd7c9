//! Kernels of Debian, taken out of their packages into `target/vm` and kept there; none is
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::apt::Suite;
use crate::command::CommandExt;

use super::cpio::Archive;

/// Package that depends on a suite's kernel: the small one, without drivers of hardware.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// Packages that a kernel is in, each followed by its release.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Directories of modules that the machine gets; it loads from them what is asked for.
const MODULES: [&str; 5] =
    ["kernel/arch/x86/crypto", "kernel/crypto", "kernel/drivers/net", "kernel/lib", "kernel/net"];

/// A line of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Line {
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has
    Newest,
}

impl Line {
    /// All, oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Newest];

    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }
}

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    root: PathBuf,
}

impl Kernel {
    /// The kernel of this line: kept from an earlier run, or fetched.
    ///
    /// # Errors
    /// If it cannot be fetched or is not what we know of Debian's kernels.
    pub(super) fn get(line: Line, directory: &Path) -> Result<Self> {
        let root = directory.join(line.suite());
        if !root.exists() {
            fetch(line, directory, &root)
                .with_context(|| format!("cannot get the kernel of Debian {}", line.suite()))?;
        }
        let modules = modules(&root)?;
        let release = modules.file_name().context("a directory that was listed has a name")?;
        Ok(Self { release: release.to_string_lossy().into_owned(), root })
    }

    /// The kernel's image.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let boot = self.root.join("boot").join(format!("vmlinuz-{}", self.release));
        let beside = modules(&self.root)?.join("vmlinuz");
        [boot, beside]
            .into_iter()
            .find(|path| path.exists())
            .with_context(|| format!("there is no kernel image under {}", self.root.display()))
    }

    /// Writes the modules as a layer of the machine's first file system.
    pub(super) fn modules<W: std::io::Write>(&self, archive: &mut Archive<W>) -> Result<()> {
        let from = modules(&self.root)?;
        let to = Path::new("/lib/modules").join(&self.release);
        for entry in fs::read_dir(&from)? {
            let name = entry?.file_name();
            if name.to_string_lossy().starts_with("modules.") {
                archive.copy(&from.join(&name), &to.join(&name))?;
            }
        }
        for directory in MODULES {
            tree(archive, &from.join(directory), &to.join(directory))?;
        }
        Ok(())
    }
}

fn tree<W: std::io::Write>(archive: &mut Archive<W>, from: &Path, to: &Path) -> Result<()> {
    let listing = || format!("cannot list {}", from.display());
    for entry in fs::read_dir(from).with_context(listing)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            tree(archive, &from, &to)?;
        } else {
            archive.copy(&from, &to)?;
        }
    }
    Ok(())
}

fn fetch(line: Line, directory: &Path, root: &Path) -> Result<()> {
    eprintln!("vm: fetching the kernel of Debian {}", line.suite());
    let suite = Suite::fetch(line.suite(), &directory.join("apt").join(line.suite()))?;
    let packages = suite.dependencies(PACKAGE, is_part)?;
    if packages.is_empty() {
        bail!("{PACKAGE} depends on no package that is called as a kernel is");
    }
    let new = root.with_added_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    suite.unpack(&packages, &new)?;
    let modules = modules(&new)?;
    let base = modules.ancestors().nth(3).context("modules are under a lib directory")?;
    let release = modules.file_name().context("a directory that was listed has a name")?;
    Command::new("depmod").arg("-b").arg(base).arg(release).read()?;
    fs::rename(&new, root).with_context(|| format!("cannot make {}", root.display()))
}

/// Whether a package is a part of a kernel: of a certain release, not the package that
/// stands for the suite's.
fn is_part(package: &str) -> bool {
    PARTS.iter().any(|part| {
        let release = package.strip_prefix(part);
        release.is_some_and(|release| release.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// The directory of the only release of which there are modules.
fn modules(root: &Path) -> Result<PathBuf> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place));
    let directories = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten();
    let found: Vec<_> = directories.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("{} should have the modules of one kernel, and has {found:?}", root.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kernel_are_known_by_name() {
        for name in [
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ] {
            assert!(is_part(name), "{name}");
        }
        for name in ["linux-image-cloud-amd64", "linux-base-7.2.13+deb14-cloud-amd64", "kmod"] {
            assert!(!is_part(name), "{name}");
        }
    }
}
