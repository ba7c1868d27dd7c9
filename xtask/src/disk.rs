//! A small file system of its own for one directory: what a disk that is full is to a program.
//! It knows nothing of who writes there.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system that can be filled. It stays mounted until its directory's owner unmounts it
/// ([`unmount_below`]); a playground does.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of so many MiB at a directory, which is made if it does not exist.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount(at: &Path, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("cannot make {}", at.display()))?;
        let options = format!("size={megabytes}m,mode=700");
        mount(Some("netagent-test"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("cannot mount a tmpfs at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    /// Writes a file until nothing more fits.
    ///
    /// # Errors
    /// If it cannot be written for another reason.
    pub fn fill(&self) -> Result<()> {
        let path = self.ballast();
        let full = |error: std::io::Error| match error.kind() {
            ErrorKind::StorageFull => Ok(()),
            _ => Err(error).with_context(|| format!("cannot write {}", path.display())),
        };
        let mut file = match File::create(&path) {
            Ok(file) => file,
            Err(error) => return full(error),
        };
        loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                return full(error);
            }
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    /// If it was not full.
    pub fn free(&self) -> Result<()> {
        let path = self.ballast();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

/// Unmounts what is mounted at a directory and below it.
pub(crate) fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for point in points.filter(|point| point.starts_with(directory)) {
        // Lazily: a file of it may still be open.
        umount2(point, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}
