//! A value that outlives the agent: every change is on disk before it holds, and is
//! told to those who watch.

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
            let (dir, file, written) = (self.dir.clone(), self.file, new.clone());
            tokio::task::spawn_blocking(move || dir.write_json(file, &written)).await??;
            self.value.send_replace(new);
        }
        Ok(answer)
    }
}
