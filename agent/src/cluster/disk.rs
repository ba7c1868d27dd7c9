//! Files that are whole or absent: written beside their place, synced, renamed.
//! And a directory that stops taking them, so that nothing that was still running
//! brings a file back after its membership has ended.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces `path` with `bytes`, on disk when it returns. Only the owner reads it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_added_extension("new");
    let replace = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_parent(path)
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

/// [`write`] as JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write(path, &serde_json::to_vec(value).context("cannot encode JSON")?)
}

/// The data directory as long as one membership lasts.
pub(super) struct Dir {
    path: PathBuf,
    sealed: Mutex<bool>,
}

impl Dir {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), sealed: Mutex::new(false) }
    }

    /// Replaces a file in it with `value` as JSON; once sealed, does nothing.
    pub(super) fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        if *sealed { Ok(()) } else { write_json(&self.path.join(name), value) }
    }

    /// Does `work` on the directory; once sealed, nothing.
    pub(super) fn within(&self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        if *sealed { Ok(()) } else { work(&self.path) }
    }

    /// Nothing is written any more when this returns.
    pub(super) fn seal(&self) {
        *self.sealed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// The text of a file, None if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The value in a JSON file, None if there is none; a damaged file is an error.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

/// Removes a file; one that is not there stays so.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => sync_parent(path).with_context(|| format!("cannot sync {}", path.display())),
    }
}

/// Brings a file to disk that somebody else has written.
pub(super) fn sync(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().with_context(|| format!("cannot sync {}", path.display()))
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &7).unwrap();
        write_json(&path, &8).unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside");
        fs::write(&path, "{").unwrap();
        let text = format!("{:#}", read_json::<u32>(&path).unwrap_err());
        assert!(text.contains("value.json is damaged"), "{text}");
        remove(&path).unwrap();
        remove(&path).unwrap();
        let sealed = Dir::new(dir.path());
        sealed.seal();
        sealed.write_json("value.json", &9).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
