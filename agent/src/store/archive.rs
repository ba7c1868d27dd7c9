//! A store with a few small files beside it, in one file that can be carried away: an
//! SQLite database like the store itself, with one more table and a number of its own,
//! so that neither is taken for the other. It knows nothing of what the files mean.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::sqlite::{APPLICATION, check, damaged, failed, unusable};

/// `PRAGMA application_id` of an archive: "ntab".
const ARCHIVE: i64 = 0x6e74_6162;

/// Names and contents.
pub type Files = BTreeMap<String, String>;

/// Makes the copy of a store in `file` an archive with `files`.
///
/// # Errors
/// If it cannot be written.
pub fn pack(file: &Path, files: &Files) -> Result<(), StoreError> {
    let write = || {
        let mut db = Connection::open(file)?;
        let txn = db.transaction()?;
        // The history is for watchers of this store, which do not come along.
        txn.execute_batch(
            "DELETE FROM log;
             CREATE TABLE files (name TEXT PRIMARY KEY, content TEXT NOT NULL) STRICT",
        )?;
        for (name, content) in files {
            txn.execute("INSERT INTO files VALUES (?1, ?2)", [name, content])?;
        }
        txn.pragma_update(None, "application_id", ARCHIVE)?;
        txn.commit()
    };
    write().map_err(|e| failed(file, &e))
}

/// Makes the archive in `file` a store again, which goes on at `revision` or after its own,
/// whichever is later. Gives the files.
///
/// # Errors
/// [`StoreError::Damaged`] if it is not a sound archive; then it is as it was.
pub fn unpack(file: &Path, revision: u64) -> Result<Files, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(file, flags).map_err(|e| unusable(file, &e))?;
    check(&db, file, ARCHIVE, "integrity_check")?;
    let files = read(&db).map_err(|e| damaged(file, e))?;
    let mut write = || {
        let txn = db.transaction()?;
        txn.execute_batch("DROP TABLE files")?;
        // Watchers begin anew: nothing leads from what they have to what is here.
        txn.execute("UPDATE head SET revision = max(revision + 1, ?1)", [revision])?;
        txn.execute("UPDATE head SET compacted = revision", [])?;
        txn.pragma_update(None, "application_id", APPLICATION)?;
        txn.commit()
    };
    write().map_err(|e: rusqlite::Error| failed(file, &e))?;
    Ok(files)
}

fn read(db: &Connection) -> rusqlite::Result<Files> {
    let mut rows = db.prepare("SELECT name, content FROM files")?;
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Op, Outcome, Sqlite, Store as _};

    #[tokio::test]
    async fn what_comes_back_is_what_went_in_and_goes_on_later() {
        let dir = tempfile::tempdir().unwrap();
        let [here, there] = ["store.db", "archive"].map(|name| dir.path().join(name));
        let store = Sqlite::create(&here).unwrap();
        let put = |value: &str| vec![Op::Put("k".to_owned(), value.as_bytes().to_vec())];
        store.txn(vec![], put("1")).await.unwrap();
        store.copy_to(&there).await.unwrap();
        store.txn(vec![], put("2")).await.unwrap();
        let files = Files::from([("a".to_owned(), "text".to_owned())]);
        pack(&there, &files).unwrap();
        assert!(Sqlite::open(&there).is_err(), "an archive is no store");
        let error = unpack(&here, 9).unwrap_err().to_string();
        assert!(error.contains("store.db is damaged: it is a file of another kind"), "{error}");

        assert_eq!(unpack(&there, 9).unwrap(), files);
        let back = Sqlite::open(&there).unwrap();
        let range = back.range("").await.unwrap();
        assert_eq!((range.revision, range.kvs[0].value.as_slice()), (9, b"1".as_slice()));
        assert_eq!(back.txn(vec![], put("3")).await.unwrap(), Outcome::Committed(10));
        assert!(back.watch("", 8).await.is_err(), "there is no way from before");
        assert!(unpack(&there, 9).is_err(), "it is a store now");
    }

    #[tokio::test]
    async fn damage_is_found_before_anything_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let [here, there] = ["store.db", "archive"].map(|name| dir.path().join(name));
        let store = Sqlite::create(&here).unwrap();
        for n in 0..200 {
            let op = Op::Put(format!("k/{n}"), vec![b'x'; 100]);
            store.txn(vec![], vec![op]).await.unwrap();
        }
        store.copy_to(&there).await.unwrap();
        pack(&there, &Files::new()).unwrap();
        let good = std::fs::read(&there).unwrap();
        let half = good.len() / 2;
        let mut torn = good.clone();
        torn[half..half + 4096].fill(0xff);
        for bad in [&[][..], b"no archive", &good[..half], &torn] {
            std::fs::write(&there, bad).unwrap();
            let error = unpack(&there, 9).unwrap_err();
            assert!(matches!(&error, StoreError::Damaged { .. }), "{error}");
            assert_eq!(std::fs::read(&there).unwrap(), bad);
        }
        std::fs::remove_file(&there).unwrap();
        unpack(&there, 9).unwrap_err();
        assert!(!there.exists());
    }
}
