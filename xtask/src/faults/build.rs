//! Another build of the agent, as far as the agent can tell: the same binary, but a letter of
//! what its eBPF object says of its compiler differs. So its programs have another digest and
//! replace those of the first, and do the same.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::object;
use crate::command::checkout;

/// Of the object's debug information; the linker wrote it, nobody reads it.
const SAYS: &[u8] = b"clang LLVM (rustc version";
/// So much of an object tells it from others.
const HEAD: usize = 4096;

/// Makes it, unless it is newer than `binary`.
///
/// # Errors
/// If `binary` does not carry the object that was built last.
pub(super) fn another_build(binary: &Path) -> Result<PathBuf> {
    let directory = checkout().join("target/faults");
    let other = directory.join("netagent");
    let changed = |path: &Path| fs::metadata(path).and_then(|about| about.modified());
    if changed(&other).is_ok_and(|other| changed(binary).is_ok_and(|binary| binary < other)) {
        return Ok(other);
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let (mut bytes, object) = (read(binary)?, read(&object())?);
    let head = object.get(..HEAD).context("the eBPF object is empty")?;
    let within = find(&bytes, head).context("the agent carries another eBPF object: build it")?;
    let says = find(&object, SAYS).context("the eBPF object does not name its compiler")?;
    bytes[within + says] = b'C';
    fs::create_dir_all(&directory)?;
    fs::write(&other, bytes).with_context(|| format!("write {}", other.display()))?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    Ok(other)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
