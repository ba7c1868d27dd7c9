//! The embedded store: one SQLite file in WAL mode, synced on every commit. A
//! transaction is one SQLite transaction; watchers read the `log` table, which
//! keeps the last [`HISTORY`] revisions, so a slow watcher costs no memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::watch;

use super::{Batch, Compare, Event, Kv, Op, Outcome, Range, Store, StoreError, Watch};

/// Revisions that a watcher may be behind before it has to read anew.
const HISTORY: u64 = 10_000;
/// Batches that a watcher reads at once.
const PAGE: u64 = 256;
/// `PRAGMA application_id` of our files: "ntag".
pub(super) const APPLICATION: i64 = 0x6e74_6167;
/// `PRAGMA user_version`: layout of the tables.
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE kv (
        key TEXT PRIMARY KEY, value BLOB NOT NULL,
        created INTEGER NOT NULL, modified INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- value and created are NULL for a removal
    CREATE TABLE log (
        revision INTEGER NOT NULL, position INTEGER NOT NULL,
        key TEXT NOT NULL, value BLOB, created INTEGER,
        PRIMARY KEY (revision, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE head (revision INTEGER NOT NULL, compacted INTEGER NOT NULL) STRICT;
    INSERT INTO head VALUES (0, 0);
";

struct Inner {
    file: PathBuf,
    /// None once it is closed.
    db: Mutex<Option<Connection>>,
    /// Revision of the last commit; sent while `db` is held, so never backwards.
    head: watch::Sender<u64>,
}

/// A store in one file. Cloning shares it.
#[derive(Clone)]
pub struct Sqlite(Arc<Inner>);

impl Sqlite {
    /// Makes a store in `file` (mode 0600), or opens the one that is there.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the file if it is not a sound store.
    pub fn create(file: &Path) -> Result<Self, StoreError> {
        create_private(file).map_err(|e| failed(file, &e))?;
        Self::start(file, make_tables)
    }

    /// Opens the store in `file`, which must be one.
    ///
    /// # Errors
    /// As for [`Sqlite::create`]; also if the file is missing or empty.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        // SQLite would make a file that is missing.
        std::fs::metadata(file).map_err(|e| damaged(file, e))?;
        Self::start(file, |_| Ok(()))
    }

    fn start(
        file: &Path,
        first: impl FnOnce(&mut Connection) -> rusqlite::Result<()>,
    ) -> Result<Self, StoreError> {
        let mut db = Connection::open(file).map_err(|e| unusable(file, &e))?;
        first(&mut db).map_err(|e| unusable(file, &e))?;
        check(&db, file, APPLICATION, "quick_check")?;
        let head = begin(&mut db).map_err(|e| unusable(file, &e))?;
        let (head, _) = watch::channel(head);
        Ok(Self(Arc::new(Inner { file: file.to_owned(), db: Mutex::new(Some(db)), head })))
    }

    /// Runs `work` on a thread that may block. It runs to its end even if the
    /// caller does not wait for it.
    async fn with<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner, &mut Connection) -> Result<T, Failure> + Send + 'static,
    {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            // A panic while the lock was held rolled its transaction back.
            let mut db = inner.db.lock().unwrap_or_else(PoisonError::into_inner);
            let db = db.as_mut().ok_or(StoreError::Closed)?;
            work(&inner, db).map_err(|e| match e {
                Failure::Sql(e) => failed(&inner.file, &e),
                Failure::Store(e) => e,
            })
        });
        done.await.map_err(|e| {
            // Never begun, because the runtime is going.
            if e.is_cancelled() { StoreError::Closed } else { failed(&self.0.file, &e) }
        })?
    }
}

#[cfg(test)]
impl Sqlite {
    /// Makes the disk seem full after so many pages.
    pub(super) async fn limit_pages(&self, pages: u32) {
        let limit = move |_: &Inner, db: &mut Connection| {
            Ok(db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?)
        };
        self.with(limit).await.expect("a pragma");
    }
}

enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let prefix = prefix.to_owned();
        self.with(move |_, db| {
            // One transaction, so that keys and revision belong together.
            let txn = db.transaction()?;
            let (revision, _) = bounds(&txn)?;
            let mut rows = txn.prepare_cached(
                "SELECT key, value, created, modified FROM kv
                 WHERE key >= ?1 AND key < ?1 || char(0x10ffff) ORDER BY key",
            )?;
            let kvs = rows
                .query_map([&prefix], |row| {
                    Ok(Kv {
                        key: row.get(0)?,
                        value: row.get(1)?,
                        create_revision: row.get(2)?,
                        mod_revision: row.get(3)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Range { kvs, revision })
        })
        .await
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        self.with(move |inner, db| {
            let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for compare in &compares {
                if !holds(&txn, compare)? {
                    return Ok(Outcome::Conflict);
                }
            }
            let (head, _) = bounds(&txn)?;
            let revision = head + 1;
            if write(&txn, revision, &ops)? == 0 {
                return Ok(Outcome::Committed(head));
            }
            txn.execute("UPDATE head SET revision = ?1", [revision])?;
            forget(&txn, revision.saturating_sub(HISTORY))?;
            txn.commit()?;
            inner.head.send_replace(revision);
            Ok(Outcome::Committed(revision))
        })
        .await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        self.with(move |_, db| {
            let (_, compacted) = bounds(&db.transaction()?)?;
            if after < compacted { Err(StoreError::Compacted(compacted).into()) } else { Ok(()) }
        })
        .await?;
        let watcher = Watcher {
            head: self.0.head.subscribe(),
            store: self.clone(),
            prefix: prefix.to_owned(),
            after,
            page: Vec::new().into_iter(),
        };
        Ok(Box::pin(stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(Some(batch)) => Some((Ok(batch), Some(watcher))),
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        })))
    }

    async fn copy_to(&self, file: &Path) -> Result<(), StoreError> {
        let copy = file.to_owned();
        self.with(move |_, db| {
            let written = db.execute("VACUUM INTO ?1", [show(&copy)]);
            written.map(drop).map_err(|e| failed(&copy, &e).into())
        })
        .await
    }

    async fn close(&self) {
        let inner = self.0.clone();
        let close = move || inner.db.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Fails only if closing panics, and then it is closed as well.
        let _ = tokio::task::spawn_blocking(close).await;
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.with(move |_, db| {
            let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let (head, _) = bounds(&txn)?;
            forget(&txn, revision.min(head))?;
            Ok(txn.commit()?)
        })
        .await
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Watcher {
    head: watch::Receiver<u64>,
    store: Sqlite,
    prefix: String,
    /// Everything up to here is delivered or in `page`.
    after: u64,
    page: std::vec::IntoIter<Batch>,
}

impl Watcher {
    /// The next batch; None once the store is gone.
    async fn next(&mut self) -> Result<Option<Batch>, StoreError> {
        loop {
            if let Some(batch) = self.page.next() {
                return Ok(Some(batch));
            }
            let after = self.after;
            if self.head.wait_for(|head| *head > after).await.is_err() {
                return Ok(None);
            }
            let prefix = self.prefix.clone();
            let (page, after) = self.store.with(move |_, db| read_log(db, &prefix, after)).await?;
            (self.page, self.after) = (page.into_iter(), after);
        }
    }
}

/// Batches of up to [`PAGE`] revisions after `after`, and the last revision read.
fn read_log(db: &mut Connection, prefix: &str, after: u64) -> Result<(Vec<Batch>, u64), Failure> {
    let txn = db.transaction()?;
    let (head, compacted) = bounds(&txn)?;
    if after < compacted {
        return Err(StoreError::Compacted(compacted).into());
    }
    let last = head.min(after + PAGE);
    let mut rows = txn.prepare_cached(
        "SELECT revision, key, value, created FROM log
         WHERE revision > ?1 AND revision <= ?2 AND key >= ?3 AND key < ?3 || char(0x10ffff)
         ORDER BY revision, position",
    )?;
    let mut rows = rows.query(params![after, last, prefix])?;
    let mut batches: Vec<Batch> = Vec::new();
    while let Some(row) = rows.next()? {
        let revision = row.get(0)?;
        let key = row.get(1)?;
        let event = match (row.get(2)?, row.get(3)?) {
            (Some(value), Some(create_revision)) => {
                Event::Put(Kv { key, value, create_revision, mod_revision: revision })
            }
            _ => Event::Delete(key),
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(Batch { revision, events: vec![event] }),
        }
    }
    Ok((batches, last))
}

/// Applies `ops` as `revision` and returns how many of them changed anything.
fn write(txn: &Transaction<'_>, revision: u64, ops: &[Op]) -> Result<usize, Failure> {
    let mut seen = std::collections::HashSet::new();
    let mut position = 0;
    for op in ops {
        let (Op::Put(key, _) | Op::Delete(key)) = op;
        if !seen.insert(key) {
            return Err(StoreError::DuplicateKey(key.clone()).into());
        }
        let (value, created) = match op {
            Op::Put(key, value) => {
                let created: u64 = txn
                    .prepare_cached(
                        "INSERT INTO kv VALUES (?1, ?2, ?3, ?3) ON CONFLICT (key)
                         DO UPDATE SET value = ?2, modified = ?3 RETURNING created",
                    )?
                    .query_row(params![key, value, revision], |row| row.get(0))?;
                (Some(value), Some(created))
            }
            Op::Delete(key) => {
                if txn.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key])? == 0 {
                    continue;
                }
                (None, None)
            }
        };
        txn.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![revision, position, key, value, created])?;
        position += 1;
    }
    Ok(position)
}

fn holds(txn: &Transaction<'_>, compare: &Compare) -> rusqlite::Result<bool> {
    let (Compare::Absent(key) | Compare::ModRevision(key, _)) = compare;
    let modified: Option<u64> = txn
        .prepare_cached("SELECT modified FROM kv WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(match compare {
        Compare::Absent(_) => modified.is_none(),
        Compare::ModRevision(_, revision) => modified == Some(*revision),
    })
}

/// Head and compacted revision.
fn bounds(txn: &Transaction<'_>) -> rusqlite::Result<(u64, u64)> {
    txn.prepare_cached("SELECT revision, compacted FROM head")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn forget(txn: &Transaction<'_>, upto: u64) -> rusqlite::Result<()> {
    txn.prepare_cached("DELETE FROM log WHERE revision <= ?1")?.execute([upto])?;
    txn.prepare_cached("UPDATE head SET compacted = max(compacted, ?1)")?.execute([upto])?;
    Ok(())
}

/// Creates the tables in an empty file.
fn make_tables(db: &mut Connection) -> rusqlite::Result<()> {
    let tables: u64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables > 0 {
        return Ok(());
    }
    let txn = db.transaction()?;
    txn.execute_batch(TABLES)?;
    txn.pragma_update(None, "application_id", APPLICATION)?;
    txn.pragma_update(None, "user_version", LAYOUT)?;
    txn.commit()
}

/// Whether the file is sound, and what it should be; changes nothing. `depth` is
/// `quick_check` or `integrity_check`.
pub(super) fn check(
    db: &Connection,
    file: &Path,
    application: i64,
    depth: &str,
) -> Result<(), StoreError> {
    let text = |query: &str| db.query_row(query, [], |row| row.get::<_, String>(0));
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let ask = || {
        let tables: u64 =
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((tables, number("application_id")?, number("user_version")?))
    };
    let reason = match ask().map_err(|e| unusable(file, &e))? {
        (0, _, _) => "it is empty".to_owned(),
        (_, found, _) if found != application => "it is a file of another kind".to_owned(),
        (_, _, layout) if layout != LAYOUT => {
            format!("its layout is {layout}, this agent knows {LAYOUT}")
        }
        _ => match text(&format!("PRAGMA {depth}(1)")).map_err(|e| unusable(file, &e))? {
            sound if sound == "ok" => return Ok(()),
            unsound => unsound,
        },
    };
    Err(damaged(file, reason))
}

/// Readies a sound store for use, and returns the head.
fn begin(db: &mut Connection) -> rusqlite::Result<u64> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    let txn = db.transaction()?;
    bounds(&txn).map(|(head, _)| head)
}

/// Makes sure that the file exists and that only its owner reads it: it holds the
/// CA's key. SQLite gives its side files the same mode.
fn create_private(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file).map(drop)
}

fn show(file: &Path) -> String {
    file.display().to_string()
}

pub(super) fn damaged(file: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { file: show(file), reason: reason.to_string() }
}

/// Damaged, if what SQLite says is about the content of the file and not about the disk
/// or memory.
pub(super) fn unusable(file: &Path, error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{
        CannotOpen, DiskFull, FileLockingProtocolFailed, OutOfMemory, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    match error.sqlite_error_code() {
        Some(
            CannotOpen
            | DiskFull
            | FileLockingProtocolFailed
            | OutOfMemory
            | PermissionDenied
            | ReadOnly
            | SystemIoFailure,
        ) => failed(file, error),
        _ => damaged(file, error),
    }
}

pub(super) fn failed(file: &Path, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed { file: show(file), reason: reason.to_string() }
}
