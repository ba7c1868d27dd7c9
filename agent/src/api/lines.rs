//! Lines of the watch streams, made once for all who read the same. What a thousand workers
//! are told of a change is one thing; to compare two snapshots for each of them, and to encode
//! the difference, would take a manager seconds.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::Bytes;

use super::types::WatchEvent;
use crate::cluster::between;
use crate::model::Snapshot;

/// Lines that are kept. Who reads so slowly that his is none of them gets one of his own.
const KEPT: usize = 16;

/// Makes lines, and keeps those that lead to the newest snapshot.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Newest>>);

#[derive(Default)]
struct Newest {
    to: Weak<Snapshot>,
    /// By what the reader has.
    from: Vec<(Weak<Snapshot>, Bytes)>,
}

impl Lines {
    /// The line that leads a reader who has `old`, or nothing, to `new`.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub(super) fn between(
        &self,
        old: Option<&Arc<Snapshot>>,
        new: &Arc<Snapshot>,
    ) -> serde_json::Result<Bytes> {
        let from = old.map(Arc::downgrade).unwrap_or_default();
        // Held while a line is made: the others want the same.
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !newest.to.ptr_eq(&Arc::downgrade(new)) {
            *newest = Newest { to: Arc::downgrade(new), from: Vec::new() };
        }
        if let Some((_, line)) = newest.from.iter().find(|(known, _)| known.ptr_eq(&from)) {
            return Ok(line.clone());
        }
        let line = encode(&match old {
            Some(old) => WatchEvent::Delta { revision: new.revision, changes: between(old, new) },
            None => WatchEvent::Snapshot { snapshot: Box::new(Snapshot::clone(new)) },
        })?;
        if newest.from.len() < KEPT {
            newest.from.push((from, line.clone()));
        }
        Ok(line)
    }
}

/// An event as a line.
pub(super) fn encode(event: &WatchEvent) -> serde_json::Result<Bytes> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { revision, ..Snapshot::default() })
    }

    #[test]
    fn a_line_is_made_once_for_all_who_have_the_same() {
        let lines = Lines::default();
        let [old, other, new] = [1, 2, 3].map(snapshot);
        let line = lines.between(Some(&old), &new).unwrap();
        assert!(line.starts_with(br#"{"event":"delta","revision":3"#), "{line:?}");
        assert_eq!(line.as_ptr(), lines.between(Some(&old), &new).unwrap().as_ptr());
        let whole = lines.between(None, &new).unwrap();
        assert!(whole.starts_with(br#"{"event":"snapshot""#), "{whole:?}");
        assert_eq!(whole.as_ptr(), lines.between(None, &new).unwrap().as_ptr());
        // Equal is not the same: another's line may lead from somewhere else.
        assert_ne!(line.as_ptr(), lines.between(Some(&other), &new).unwrap().as_ptr());
        let newer = snapshot(4);
        assert!(
            lines
                .between(Some(&old), &newer)
                .unwrap()
                .starts_with(br#"{"event":"delta","revision":4"#)
        );
    }

    #[test]
    fn what_is_kept_has_a_limit_and_holds_no_snapshot() {
        let lines = Lines::default();
        let new = snapshot(100);
        for revision in 0..50 {
            lines.between(Some(&snapshot(revision)), &new).unwrap();
        }
        assert_eq!(lines.0.lock().unwrap().from.len(), KEPT);
        assert_eq!(Arc::strong_count(&new), 1);
    }
}
