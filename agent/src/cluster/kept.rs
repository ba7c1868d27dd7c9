//! A value that outlives the agent: every change is on disk before it holds, but for what
//! would be found out again, and is told to those who watch.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};

use super::disk::{self, Dir};

/// The value of one file of the data directory.
pub(super) struct Kept<T> {
    dir: Arc<Dir>,
    file: &'static str,
    /// Held while a change is written.
    turn: Mutex<()>,
    value: watch::Sender<T>,
}

impl<T> Kept<T>
where
    T: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Reads what an earlier run left behind; without a file, the default.
    ///
    /// # Errors
    /// If the file is damaged, naming it.
    pub(super) fn open(path: &Path, file: &'static str, dir: Arc<Dir>) -> Result<Self> {
        let value = disk::read_json(&path.join(file))?.unwrap_or_default();
        Ok(Self { dir, file, turn: Mutex::default(), value: watch::Sender::new(value) })
    }

    /// The value now, and every one that it becomes.
    pub(super) fn subscribe(&self) -> watch::Receiver<T> {
        self.value.subscribe()
    }

    /// Changes the value, on disk first: if that fails, nothing has changed.
    pub(super) async fn edit<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R> {
        let _turn = self.turn.lock().await;
        let mut new = self.value.borrow().clone();
        let answer = change(&mut new);
        if new != *self.value.borrow() {
            self.write(&new).await?;
            self.value.send_replace(new);
        }
        Ok(answer)
    }

    /// Changes the value even if that cannot be written; then it is by the next change that can.
    pub(super) async fn note(&self, change: impl FnOnce(&mut T)) {
        let _turn = self.turn.lock().await;
        let mut new = self.value.borrow().clone();
        change(&mut new);
        if new != *self.value.borrow() {
            if let Err(error) = self.write(&new).await {
                tracing::warn!("{error:#}; it is kept in memory");
            }
            self.value.send_replace(new);
        }
    }

    async fn write(&self, new: &T) -> Result<()> {
        let (dir, file, new) = (self.dir.clone(), self.file, new.clone());
        tokio::task::spawn_blocking(move || dir.write_json(file, &new)).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is not there takes no file, as a full disk does.
    #[tokio::test]
    async fn what_cannot_be_written_holds_only_if_it_is_noted() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let kept = Kept::<u32>::open(&path, "value.json", Arc::new(Dir::new(&path))).unwrap();
        let now = || *kept.subscribe().borrow();
        assert!(kept.edit(|value| *value = 1).await.is_err());
        assert_eq!(now(), 0);
        kept.note(|value| *value = 2).await;
        assert_eq!(now(), 2);
        std::fs::create_dir(&path).unwrap();
        kept.edit(|value| *value += 1).await.unwrap();
        assert_eq!(disk::read_json(&path.join("value.json")).unwrap(), Some(3));
    }
}
