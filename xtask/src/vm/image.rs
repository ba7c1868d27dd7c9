//! The first file system of a test machine: this machine's own programs with their
//! libraries, a kernel's modules, and the tests, each a layer of its own. What the tests
//! know by its path in the checkout is there at the same path.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{CommandExt, find};

use super::cpio::Archive;
use super::kernel::Kernel;

/// Programs that the tests and the first process call.
const PROGRAMS: &str = "
    awk basename bash bpftool bridge cat chmod conntrack cp curl cut date dd df dig dirname echo env
    ethtool expr false find grep head hostname id ip iperf3 ipvsadm kill ln ls mkdir mktemp modprobe
    mount mv nc.openbsd nft nsenter nstat od pgrep ping printf ps readlink rm rmdir sed seq setsid sh
    sha256sum sleep sort ss stat stty sysctl tail tc tcpdump tee test timeout touch tr true umount
    uname uniq unshare wc xargs
";

/// Directories that are there though nothing is in them.
const DIRECTORIES: &[&str] =
    &["/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var/lib", "/var/tmp"];

const FILES: &[(&str, &str)] = &[
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    ("/etc/nsswitch.conf", "hosts: files dns\n"),
    ("/etc/resolv.conf", "nameserver 127.0.0.1\n"),
];

/// What a machine does.
pub(super) struct Content {
    /// Programs of this machine's that it calls besides those which all do, and other files.
    pub(super) tools: Vec<PathBuf>,
    /// What was built here, and is there at the same path; the agent is always.
    pub(super) programs: Vec<PathBuf>,
    /// Shell script that calls it.
    pub(super) script: String,
}

/// Writes the file system with this content and `kernel` to `path`.
///
/// # Errors
/// If a program is missing or something cannot be read or written.
pub(super) fn write(path: &Path, kernel: &Kernel, content: &Content) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    tools(&mut archive, &content.tools).context("cannot pack the programs for the test machine")?;
    let mut archive = Archive::new(archive.finish()?);
    kernel.modules(&mut archive).context("cannot pack the kernel's modules")?;
    let mut archive = Archive::new(archive.finish()?);
    built(&mut archive, content).context("cannot pack what was built")?;
    archive.finish().map(drop)
}

fn tools<W: Write>(archive: &mut Archive<W>, more: &[PathBuf]) -> Result<()> {
    for place in ["bin", "lib", "lib64", "sbin"] {
        archive.link(&Path::new("/").join(place), &Path::new("usr").join(place))?;
    }
    for directory in DIRECTORIES {
        archive.directory(Path::new(directory))?;
    }
    for (path, text) in FILES {
        archive.file(Path::new(path), 0o644, text.as_bytes())?;
    }
    // Users, for what gives up root.
    for path in ["/etc/group", "/etc/passwd"].map(Path::new) {
        archive.copy(path, path)?;
    }
    archive.file(Path::new("/init"), 0o755, include_bytes!("init.sh"))?;
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS.split_whitespace() {
        let program = find(name).with_context(|| format!("there is no `{name}`"))?;
        libraries.extend(needed(&program)?);
        archive.copy(&program, &merged(&program))?;
        if name == "modprobe" {
            // Where the kernel looks for it.
            archive.copy(&program, Path::new("/usr/sbin/modprobe"))?;
        }
    }
    for path in more {
        libraries.extend(needed(path)?);
        archive.copy(path, &merged(path))?;
    }
    // Of the tests and the agent, which is built on this machine.
    libraries.extend(needed(&std::env::current_exe()?)?);
    libraries.iter().try_for_each(|library| archive.copy(library, &merged(library)))
}

/// The libraries of a program, with the loader.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let text = Command::new("ldd").arg(program).collect()?;
    // A static one has none, and ldd says so by failing.
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// The path with `/usr` before it: on the test machine `/bin` and the like lead there, as
/// on every distribution of today.
fn merged(path: &Path) -> PathBuf {
    let usr = Path::new("/usr");
    let top = ["/bin", "/sbin", "/lib", "/lib64"].iter().any(|top| path.starts_with(top));
    match path.strip_prefix("/") {
        Ok(rest) if top => usr.join(rest),
        _ => path.to_owned(),
    }
}

fn built<W: Write>(archive: &mut Archive<W>, content: &Content) -> Result<()> {
    for program in &content.programs {
        stripped(archive, program)?;
    }
    // Such as NETAGENT_LB, which says how all agents balance.
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("NETAGENT_"));
    let mut script: String =
        variables.map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    script += &content.script;
    archive.file(Path::new("/tests"), 0o644, script.as_bytes())?;
    stripped(archive, &crate::build::binary(crate::build::Profile::Debug))?;
    let object = crate::build::object();
    archive.copy(&object, &object)
}

/// A program at its own path, without what only a debugger needs: the file system is the
/// machine's memory.
fn stripped<W: Write>(archive: &mut Archive<W>, program: &Path) -> Result<()> {
    let small = program.with_added_extension("stripped");
    Command::new("strip").arg("-o").arg(&small).arg(program).read()?;
    let bytes = fs::read(&small).with_context(|| format!("cannot read {}", small.display()))?;
    fs::remove_file(&small).with_context(|| format!("cannot remove {}", small.display()))?;
    archive.file(program, 0o755, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_root_is_under_usr() {
        for (path, expected) in [
            ("/bin/sh", "/usr/bin/sh"),
            ("/lib64/ld-linux-x86-64.so.2", "/usr/lib64/ld-linux-x86-64.so.2"),
            ("/usr/lib/x", "/usr/lib/x"),
            ("/opt/x", "/opt/x"),
            ("/library/x", "/library/x"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn a_program_needs_a_library_and_the_loader() {
        let needed = needed(&std::env::current_exe().unwrap()).unwrap();
        assert!(needed.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{needed:?}");
        assert!(needed.iter().any(|path| path.to_string_lossy().contains("ld-")), "{needed:?}");
    }
}
