//! The BPF file system, which pins need.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where the BPF file system is mounted by custom.
const CUSTOMARY: &str = "/sys/fs/bpf";

/// Creates `directory` in a BPF file system, which is mounted if it is missing from its
/// customary place. That mount stays: it is the machine's, others may come to use it.
pub(super) fn ensure(directory: &Path) -> Result<()> {
    if directory.starts_with(CUSTOMARY) {
        mount_customary()
            .with_context(|| format!("mounting the BPF file system at {CUSTOMARY}"))?;
    }
    std::fs::create_dir_all(directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    ensure!(
        is_bpf(directory)?,
        "{} is not in a BPF file system: choose another --bpf-dir, or mount one there \
         (`mount -t bpf bpf {0}`)",
        directory.display()
    );
    Ok(())
}

fn is_bpf(path: &Path) -> Result<bool> {
    let found = statfs(path).with_context(|| format!("statfs of {}", path.display()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_customary() -> Result<()> {
    let place = Path::new(CUSTOMARY);
    if is_bpf(place)? {
        return Ok(());
    }
    // Agents that start together must not mount over each other's pins.
    let directory = File::open(place)?;
    directory.lock()?;
    if !is_bpf(place)? {
        mount(Some("bpf"), place, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    }
    Ok(())
}
