//! The list of this node's workloads: published to whoever follows it, and on disk
//! before that, so that an agent that restarts takes up exactly what it had.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{Mutex, watch};
use tracing::info;

use super::hold;
use crate::cluster::{Error, disk};
use crate::model::Workload;

/// File under the data directory.
const FILE: &str = "workloads.json";

/// The workloads of this node.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    list: watch::Sender<Arc<Vec<Workload>>>,
    turn: Mutex<()>,
}

impl Records {
    /// Reads the records that an earlier run left in `data_dir`, less the workloads
    /// that are gone since. Whoever follows the list sees it from the first moment:
    /// a loop that saw an empty one would tear down what runs.
    ///
    /// # Errors
    /// If the file cannot be read or makes no sense. It is never guessed at: taking
    /// running workloads for gone ones would give their addresses away.
    pub fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE);
        let all: Vec<Workload> = disk::read_json(&path)
            .context(
                "the records of this node's workloads; without the file they are all released",
            )?
            .unwrap_or_default();
        let (held, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(hold::is_held);
        for workload in gone {
            info!(workload = %workload.name, "ended while the agent was away");
        }
        Ok(Self { path, list: watch::Sender::new(Arc::new(held)), turn: Mutex::default() })
    }

    /// Follows the list.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<Workload>>> {
        self.list.subscribe()
    }

    /// The list now.
    pub(super) fn list(&self) -> Arc<Vec<Workload>> {
        self.list.borrow().clone()
    }

    /// Changes the list, on disk first: if `change` or writing fails, nothing has
    /// changed. Changes come one after the other.
    pub(super) async fn edit<T>(
        &self,
        change: impl FnOnce(&mut Vec<Workload>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _turn = self.turn.lock().await;
        let mut list = Vec::clone(&self.list());
        let result = change(&mut list)?;
        if list != **self.list.borrow() {
            let list = Arc::new(list);
            let (path, written) = (self.path.clone(), Arc::clone(&list));
            tokio::task::spawn_blocking(move || disk::write_json(&path, &*written))
                .await
                .map_err(anyhow::Error::from)??;
            self.list.send_replace(list);
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Hold;
    use crate::workload::tests::workload;

    #[tokio::test]
    async fn a_restart_finds_what_still_runs() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::load(dir.path()).unwrap();
        let follower = records.subscribe();
        let runs = workload("runs", &["10.0.0.2"]);
        let mut ended = workload("ended", &["10.0.0.3"]);
        ended.hold = Hold::Process { pid: std::process::id().cast_signed(), start: 1 };
        records
            .edit(|list| {
                list.extend([runs.clone(), ended]);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(follower.borrow().len(), 2);
        assert_eq!(**Records::load(dir.path()).unwrap().subscribe().borrow(), [runs]);
    }

    #[tokio::test]
    async fn what_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::load(dir.path()).unwrap();
        let refused: Result<(), _> = records
            .edit(|list| {
                list.push(workload("a", &[]));
                Err(Error::Conflict("no".to_owned()))
            })
            .await;
        assert!(refused.is_err());
        assert!(records.list().is_empty());

        std::fs::write(dir.path().join(FILE), "[{]").unwrap();
        let error = format!("{:#}", Records::load(dir.path()).unwrap_err());
        assert!(error.contains("workloads.json"), "{error}");
    }
}
