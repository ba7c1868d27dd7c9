//! What every store must do, run against each backend.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;

use super::*;

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.to_owned(), value.as_bytes().to_vec())
}

fn delete(key: &str) -> Op {
    Op::Delete(key.to_owned())
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> u64 {
    match store.txn(vec![], ops).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("conflict without a comparison"),
    }
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.range(prefix).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect()
}

async fn next(watch: &mut Watch) -> Batch {
    let wait = Duration::from_secs(10);
    tokio::time::timeout(wait, watch.next()).await.expect("a batch").unwrap().unwrap()
}

async fn ranges_and_revisions(store: &dyn Store) {
    let empty = store.range("").await.unwrap();
    assert_eq!(empty.kvs, []);
    let first = commit(store, vec![put("a/1", "one"), put("a/2", "two"), put("b", "three")]).await;
    assert!(first > empty.revision);
    let second = commit(store, vec![put("a/2", "TWO"), delete("b")]).await;
    assert_eq!(second, first + 1);
    let range = store.range("a/").await.unwrap();
    assert_eq!(range.revision, second);
    let seen: Vec<_> = range
        .kvs
        .iter()
        .map(|kv| (kv.key.as_str(), kv.value.as_slice(), kv.create_revision, kv.mod_revision))
        .collect();
    assert_eq!(seen, [("a/1", b"one".as_slice(), first, first), ("a/2", b"TWO", first, second)]);
    // Nothing to write is no revision.
    assert_eq!(commit(store, vec![]).await, second);
    assert_eq!(commit(store, vec![delete("nothing")]).await, second);
    // A prefix is text, not a pattern, and not a key's length.
    commit(store, vec![put("a_", "x"), put("a", "x"), put("ä/1", "x")]).await;
    assert_eq!(keys(store, "a/").await, ["a/1", "a/2"]);
    assert_eq!(keys(store, "ä/").await, ["ä/1"]);
    assert_eq!(keys(store, "%").await, [""; 0]);
}

async fn comparisons(store: &dyn Store) {
    let absent = || vec![Compare::Absent("c".to_owned())];
    let at = |revision| vec![Compare::ModRevision("c".to_owned(), revision)];
    let before = store.range("").await.unwrap().revision;
    assert_eq!(store.txn(at(before), vec![put("c", "0")]).await.unwrap(), Outcome::Conflict);
    assert_eq!(store.range("").await.unwrap().revision, before);
    let Outcome::Committed(one) = store.txn(absent(), vec![put("c", "1")]).await.unwrap() else {
        panic!("conflict")
    };
    let both = vec![put("c", "2"), put("other", "2")];
    assert_eq!(store.txn(absent(), both.clone()).await.unwrap(), Outcome::Conflict);
    assert_eq!(store.txn(at(one + 1), both.clone()).await.unwrap(), Outcome::Conflict);
    assert_eq!(keys(store, "other").await, [""; 0], "a conflict writes nothing");
    assert_eq!(store.txn(at(one), both).await.unwrap(), Outcome::Committed(one + 1));
    let twice = store.txn(vec![], vec![put("d", "1"), delete("d")]).await;
    assert!(matches!(twice, Err(StoreError::DuplicateKey(_))), "{twice:?}");
    assert_eq!(store.range("").await.unwrap().revision, one + 1);
}

async fn watches(store: &dyn Store) {
    let start = store.range("w/").await.unwrap().revision;
    let one = commit(store, vec![put("w/1", "1"), put("x", "1"), put("w/2", "1")]).await;
    commit(store, vec![put("x", "2")]).await;
    let mut watch = store.watch("w/", start).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!((batch.revision, batch.events.len()), (one, 2));
    let three = commit(store, vec![delete("w/1"), put("w/2", "2")]).await;
    let kv = Kv {
        key: "w/2".to_owned(),
        value: b"2".to_vec(),
        create_revision: one,
        mod_revision: three,
    };
    let events = vec![Event::Delete("w/1".to_owned()), Event::Put(kv)];
    assert_eq!(next(&mut watch).await, Batch { revision: three, events });
    // A second watcher from a later revision sees only what came after it.
    let mut late = store.watch("w/", one).await.unwrap();
    assert_eq!(next(&mut late).await.revision, three);
}

async fn compaction(store: &dyn Store) {
    let start = commit(store, vec![put("k/1", "1")]).await;
    let two = commit(store, vec![put("k/2", "2")]).await;
    let three = commit(store, vec![put("k/3", "3")]).await;
    store.compact(two).await.unwrap();
    match store.watch("k/", start).await {
        Err(StoreError::Compacted(upto)) => assert_eq!(upto, two),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("a watch through compacted history"),
    }
    let mut watch = store.watch("k/", two).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, three);
    assert_eq!(keys(store, "k/").await, ["k/1", "k/2", "k/3"], "keys outlive their history");
    // A watcher that falls behind compaction is told so, and never skips silently.
    let mut slow = store.watch("k/", three).await.unwrap();
    commit(store, vec![put("k/4", "4")]).await;
    let five = commit(store, vec![put("k/5", "5")]).await;
    store.compact(five).await.unwrap();
    let told = slow.next().await.unwrap();
    assert!(matches!(told, Err(StoreError::Compacted(_))), "{told:?}");
    assert!(slow.next().await.is_none());
}

/// Tasks that all increment one counter by compare and swap lose no increment.
async fn concurrent_swaps(store: std::sync::Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const EACH: u64 = 20;
    commit(&*store, vec![put("n", "0")]).await;
    let start = store.range("").await.unwrap().revision;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let kv = store.range("n").await.unwrap().kvs.remove(0);
                    let n: u64 = String::from_utf8(kv.value).unwrap().parse().unwrap();
                    let compare = Compare::ModRevision(kv.key, kv.mod_revision);
                    let op = put("n", &(n + 1).to_string());
                    if store.txn(vec![compare], vec![op]).await.unwrap() != Outcome::Conflict {
                        done += 1;
                    }
                }
            })
        })
        .collect();
    let mut watch = store.watch("n", start).await.unwrap();
    for n in 1..=TASKS * EACH {
        let batch = next(&mut watch).await;
        assert_eq!(batch.revision, start + n);
        let [Event::Put(kv)] = &batch.events[..] else { panic!("{batch:?}") };
        assert_eq!(kv.value, n.to_string().as_bytes());
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn closing(store: &dyn Store) {
    store.close().await;
    store.range("").await.unwrap_err();
    store.txn(vec![], vec![put("late", "1")]).await.unwrap_err();
}

/// What was committed is there after reopening, and revisions go on from there.
async fn reopening<S: Store>(open: impl Fn() -> S) {
    let store = open();
    let one = commit(&store, vec![put("r/1", "1"), put("r/2", "2")]).await;
    let two = commit(&store, vec![delete("r/1")]).await;
    drop(store);
    let store = open();
    assert_eq!(keys(&store, "r/").await, ["r/2"]);
    assert_eq!(store.range("").await.unwrap().revision, two);
    let mut watch = store.watch("r/", one).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, two, "history outlives the process");
    assert_eq!(commit(&store, vec![put("r/3", "3")]).await, two + 1);
}

mod sqlite {
    use super::*;

    fn open(dir: &tempfile::TempDir) -> Sqlite {
        Sqlite::create(&dir.path().join("store.db")).unwrap()
    }

    #[tokio::test]
    async fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        ranges_and_revisions(&store).await;
        comparisons(&store).await;
        watches(&store).await;
        compaction(&store).await;
        reopening(|| open(&dir)).await;
        closing(&store).await;
        assert_eq!(keys(&open(&dir), "late").await, [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn swaps_concurrently() {
        let dir = tempfile::tempdir().unwrap();
        concurrent_swaps(std::sync::Arc::new(open(&dir))).await;
    }

    /// Copies the files while the store is open: what a power cut leaves behind.
    #[tokio::test]
    async fn survives_a_crash_after_any_commit() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        for n in 1..=20u64 {
            commit(&store, vec![put("n", &n.to_string()), put(&format!("k/{n}"), "")]).await;
            let crashed = tempfile::tempdir().unwrap();
            for file in ["store.db", "store.db-wal"] {
                std::fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
            }
            let copy = open(&crashed);
            assert_eq!(copy.range("n").await.unwrap().kvs[0].value, n.to_string().as_bytes());
            assert_eq!(keys(&copy, "k/").await.len(), usize::try_from(n).unwrap());
        }
    }

    /// Names the store to the process that the test below starts to be killed.
    const VICTIM: &str = "NETAGENT_TEST_STORE";

    /// Commits for ever and says so.
    async fn victim(path: &Path) {
        use std::io::Write as _;
        let store = Sqlite::create(path).unwrap();
        for n in 0u64.. {
            commit(&store, vec![put("n", &n.to_string()), put(&format!("k/{n}"), "")]).await;
            println!("committed {n}");
            std::io::stdout().flush().unwrap();
        }
    }

    #[tokio::test]
    async fn survives_kill_9() {
        use std::io::{BufRead as _, BufReader};
        use std::process::{Command, Stdio};
        if let Some(path) = std::env::var_os(VICTIM) {
            return victim(Path::new(&path)).await;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        for round in 1..=5usize {
            let _ = std::fs::remove_file(&path);
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::conformance::sqlite::survives_kill_9", "--nocapture"])
                .env(VICTIM, &path)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let said = lines.map_while(Result::ok).filter_map(|line| {
                line.rsplit_once("committed ").and_then(|(_, n)| n.parse::<u64>().ok())
            });
            let last = said.take(round * 7).last().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let store = open(&dir);
            let n = store.range("n").await.unwrap().kvs.remove(0).value;
            let n: u64 = String::from_utf8(n).unwrap().parse().unwrap();
            assert!(n >= last, "revision of {last} was acknowledged and is lost");
            let all = keys(&store, "k/").await.len();
            assert_eq!(all, usize::try_from(n).unwrap() + 1, "a transaction is there in part");
            store.close().await;
            for file in ["store.db", "store.db-wal", "store.db-shm"] {
                let _ = std::fs::remove_file(dir.path().join(file));
            }
        }
    }

    #[tokio::test]
    async fn a_full_disk_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        let before = commit(&store, vec![put("k", "1")]).await;
        store.limit_pages(20).await;
        let large = vec![put("large", &"x".repeat(1 << 20)), put("k", "2")];
        let error = store.txn(vec![], large).await.unwrap_err().to_string();
        assert!(error.contains("store.db") && error.contains("full"), "{error}");
        let range = store.range("k").await.unwrap();
        assert_eq!((range.revision, range.kvs[0].value.as_slice()), (before, b"1".as_slice()));
        assert_eq!(commit(&store, vec![put("k", "3")]).await, before + 1);
    }

    fn refusal(path: &Path) -> String {
        match Sqlite::open(path) {
            Ok(_) => panic!("{} was opened", path.display()),
            Err(e) => e.to_string(),
        }
    }

    #[tokio::test]
    async fn names_a_file_that_it_cannot_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        std::fs::write(&path, "not a database, but long enough to be looked at").unwrap();
        let text = refusal(&path);
        assert!(text.contains("store.db"), "{text}");

        std::fs::remove_file(&path).unwrap();
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE t (x); PRAGMA user_version = 1").unwrap();
        drop(other);
        let text = refusal(&path);
        assert!(text.contains("another kind"), "{text}");

        // What was cut off, and what is not there, is never taken for an empty one.
        std::fs::write(&path, "").unwrap();
        let text = refusal(&path);
        assert!(text.contains("store.db is damaged: it is empty"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), b"", "it was changed");
        std::fs::remove_file(&path).unwrap();
        refusal(&path);
        assert!(!path.exists());

        // A torn page.
        let store = open(&dir);
        for n in 0..200 {
            commit(&store, vec![put(&format!("k/{n}"), &"x".repeat(100))]).await;
        }
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        let text = refusal(&path);
        assert!(text.contains("store.db"), "{text}");
    }

    #[test]
    fn keeps_others_from_reading() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let _store = open(&dir);
        for file in ["store.db", "store.db-wal"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
}
