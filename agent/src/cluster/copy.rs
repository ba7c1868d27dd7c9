//! A worker's copy of the snapshot on disk: a line that is a snapshot, then a line for each
//! change since, as in the watch stream. So a change costs what it is long, and not what the
//! cluster is large. When the changes are as long as the snapshot, one that is whole takes
//! the place of both.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::changes;
use super::disk::{self, Dir};
use super::identity::SNAPSHOT;
use crate::api::types::WatchEvent;
use crate::model::Snapshot;

/// Writes the copy.
pub(super) struct Copy {
    dir: Arc<Dir>,
    /// None until there is one that changes can be added to.
    kept: Option<Kept>,
}

/// What is on disk, whole.
struct Kept {
    file: File,
    snapshot: Arc<Snapshot>,
    /// Bytes of the line with the snapshot, and of those after it.
    whole: usize,
    changes: usize,
}

impl Copy {
    pub(super) fn new(dir: Arc<Dir>) -> Self {
        Self { dir, kept: None }
    }

    /// Brings the copy up to `snapshot`; it is on disk when this returns. After a failure
    /// what was there is there still.
    ///
    /// # Errors
    /// If it cannot be written, naming the file.
    pub(super) fn write(&mut self, snapshot: &Arc<Snapshot>) -> Result<()> {
        // A line that could not be written whole is the last one.
        let kept = self.kept.take().filter(|kept| kept.leads_to(snapshot));
        self.dir.clone().within(|dir| {
            let path = dir.join(SNAPSHOT);
            let written = match kept {
                Some(kept) => kept.add(snapshot),
                None => Kept::begin(&path, snapshot),
            };
            self.kept = Some(written.with_context(|| format!("cannot write {}", path.display()))?);
            Ok(())
        })
    }

    /// The same as one line: what an agent leaves behind that stops can be read by any.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn write_whole(&mut self, snapshot: &Arc<Snapshot>) -> Result<()> {
        self.kept = None;
        self.write(snapshot)
    }
}

impl Kept {
    fn begin(path: &Path, snapshot: &Arc<Snapshot>) -> Result<Self> {
        let line = line(&**snapshot)?;
        disk::write(path, &line)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { file, snapshot: snapshot.clone(), whole: line.len(), changes: 0 })
    }

    /// Whether a line more leads there. Keys that are given up do not stay on disk.
    fn leads_to(&self, snapshot: &Snapshot) -> bool {
        self.changes < self.whole
            && self.snapshot.cluster == snapshot.cluster
            && self.snapshot.keyring == snapshot.keyring
    }

    fn add(mut self, snapshot: &Arc<Snapshot>) -> Result<Self> {
        let changes = changes::between(&self.snapshot, snapshot);
        let line = line(&WatchEvent::Delta { revision: snapshot.revision, changes })?;
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.changes += line.len();
        self.snapshot = snapshot.clone();
        Ok(self)
    }
}

fn line(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).context("cannot encode JSON")?;
    line.push(b'\n');
    Ok(line)
}

/// The snapshot that is in the copy; None if there is none. A last line that is not whole was
/// being written when the agent was killed, and counts for nothing.
///
/// # Errors
/// If it is damaged, naming it.
pub(super) fn read(dir: &Path) -> Result<Option<Snapshot>> {
    let path = dir.join(SNAPSHOT);
    let Some(text) = disk::read(&path)? else { return Ok(None) };
    parse(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

fn parse(text: &str) -> Result<Snapshot> {
    // Older agents ended it without a line break.
    let (whole, changes) = text.split_once('\n').unwrap_or((text, ""));
    let mut snapshot = serde_json::from_str(whole)?;
    for line in changes.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let WatchEvent::Delta { revision, changes } = serde_json::from_str(line)? else {
            bail!("a line is no change");
        };
        changes::apply(&mut snapshot, revision, changes);
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Keyring;
    use crate::plan::fixture;

    fn lines(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join(SNAPSHOT)).unwrap().lines().count()
    }

    fn grown(snapshot: &Arc<Snapshot>, n: u8) -> Arc<Snapshot> {
        let mut snapshot = snapshot.clone();
        fixture::add_remote(Arc::make_mut(&mut snapshot), n);
        snapshot
    }

    #[test]
    fn a_change_is_a_line_until_they_are_as_long_as_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let mut copy = Copy::new(Arc::new(Dir::new(dir.path())));
        let mut snapshot = Arc::new(fixture::two_nodes().snapshot);
        copy.write(&snapshot).unwrap();
        let mut counts = vec![];
        for n in 50..80 {
            snapshot = grown(&snapshot, n);
            copy.write(&snapshot).unwrap();
            assert_eq!(read(dir.path()).unwrap().as_ref(), Some(&*snapshot));
            counts.push(lines(dir.path()));
        }
        assert_eq!(counts[..2], [2, 3]);
        assert!(counts[2..].contains(&1), "it grows for ever: {counts:?}");
        copy.write_whole(&snapshot).unwrap();
        assert_eq!(lines(dir.path()), 1);
        copy.write(&grown(&snapshot, 80)).unwrap();
        Arc::make_mut(&mut snapshot).keyring = Some(Keyring::default());
        copy.write(&snapshot).unwrap();
        assert_eq!(lines(dir.path()), 1, "former keys stay on disk");
    }

    #[test]
    fn what_was_cut_off_is_not_there_and_what_is_damaged_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut copy = Copy::new(Arc::new(Dir::new(dir.path())));
        let first = Arc::new(fixture::two_nodes().snapshot);
        let second = grown(&first, 50);
        copy.write(&first).unwrap();
        copy.write(&second).unwrap();
        let path = dir.path().join(SNAPSHOT);
        let text = std::fs::read_to_string(&path).unwrap();
        let end = text.find('\n').unwrap();
        // Without a line break it is an older agent's.
        for cut in [end, end + 1, end + 2, text.len() - 1] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert_eq!(read(dir.path()).unwrap().as_ref(), Some(&*first), "cut at {cut}");
        }
        for damaged in [&text[..end / 2], &format!("{}\n", &text[..text.len() - 2])] {
            std::fs::write(&path, damaged).unwrap();
            let said = format!("{:#}", read(dir.path()).unwrap_err());
            assert!(said.contains("snapshot.json is damaged"), "{said}");
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_whole_the_next_time() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let mut copy = Copy::new(Arc::new(Dir::new(&dir)));
        let first = Arc::new(fixture::two_nodes().snapshot);
        assert!(copy.write(&first).is_err(), "there is no directory");
        std::fs::create_dir(&dir).unwrap();
        copy.write(&first).unwrap();
        // Nothing can be written to what is open for reading.
        copy.kept.as_mut().unwrap().file = File::open(dir.join(SNAPSHOT)).unwrap();
        let second = grown(&first, 50);
        assert!(copy.write(&second).is_err());
        copy.write(&second).unwrap();
        assert_eq!((lines(&dir), read(&dir).unwrap().as_ref()), (1, Some(&*second)));
    }
}
