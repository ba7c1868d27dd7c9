//! Archives as the kernel unpacks them into its first file system (cpio, format "newc";
//! Documentation/driver-api/early-userspace/buffer-format.rst). Several may follow one another
//! in a file, each a layer over those before. Files come with their directories; modes are kept,
//! owners are root, times are 0.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// One archive, being written.
pub(super) struct Archive<W> {
    out: W,
    /// Of the bytes written so far, for padding.
    length: usize,
    entries: u32,
    directories: BTreeSet<Box<Path>>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, length: 0, entries: 0, directories: BTreeSet::new() }
    }

    /// An empty directory at an absolute path.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none() || self.directories.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        self.directories.insert(path.into());
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// A file of these bytes.
    pub(super) fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.parent(path)?;
        self.entry(path, FILE | (mode & 0o7777), bytes)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &Path) -> Result<()> {
        self.parent(path)?;
        self.entry(path, LINK | 0o777, to.as_os_str().as_bytes())
    }

    /// A file of this machine, under another path.
    pub(super) fn copy(&mut self, from: &Path, path: &Path) -> Result<()> {
        let reading = || format!("cannot read {}", from.display());
        let bytes = fs::read(from).with_context(reading)?;
        let mode = fs::metadata(from).with_context(reading)?.permissions().mode();
        self.file(path, mode, &bytes)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        // So that another archive can follow.
        self.pad(512)?;
        self.out.flush().context("cannot write an archive")?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |parent| self.directory(parent))
    }

    fn entry(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        // Without the first slash; the root is the kernel's already.
        let name: std::path::PathBuf =
            path.components().filter(|part| *part != Component::RootDir).collect();
        let name = name.as_os_str().as_bytes();
        let size = u32::try_from(bytes.len()).context("a file of 4 GiB fits no archive")?;
        let name_size = u32::try_from(name.len() + 1).context("a path fits an archive")?;
        self.entries += 1;
        let links = 1;
        let (owner, time, device) = (0, 0, 0);
        let fields = [
            self.entries,
            mode,
            owner,
            owner,
            links,
            time,
            size,
            device,
            device,
            device,
            device,
            name_size,
            0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08x}").bytes());
        }
        header.extend(name);
        header.push(0);
        self.write(&header)?;
        self.pad(4)?;
        self.write(bytes)?;
        self.pad(4)
    }

    fn pad(&mut self, to: usize) -> Result<()> {
        let missing = self.length.next_multiple_of(to) - self.length;
        self.write(&vec![0; missing])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len();
        let written: io::Result<()> = self.out.write_all(bytes);
        written.context("cannot write an archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::new(vec![]);
        archive.file(Path::new("/a/b/c"), 0o755, b"12345").unwrap();
        archive.link(Path::new("/a/d"), Path::new("b/c")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let names = names(&bytes);
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]);
    }

    /// Reads the archive as the kernel does.
    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = vec![];
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = (at + 110 + name_size).next_multiple_of(4);
            at = (at + size).next_multiple_of(4);
            if names.last().unwrap() == "TRAILER!!!" {
                return names;
            }
        }
    }
}
