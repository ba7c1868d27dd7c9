//! Where a manager keeps the cluster's objects: keys and values under one
//! revision that only grows, in the shape of etcd's API so that etcd can stand
//! behind the same trait. It owns durability, atomicity and the history that
//! watchers need; it knows nothing of what the values mean.

mod archive;
#[cfg(test)]
mod conformance;
mod sqlite;

use std::path::Path;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use archive::{Files, pack, unpack};
pub use sqlite::Sqlite;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision that wrote the value.
    pub mod_revision: u64,
}

/// The keys under a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// In order of the keys.
    pub kvs: Vec<Kv>,
    /// Revision of the store that this is.
    pub revision: u64,
}

/// What must hold for a transaction to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key was last written by this revision.
    ModRevision(String, u64),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates the key or replaces its value.
    Put(String, Vec<u8>),
    /// Removes the key; one that does not exist stays so.
    Delete(String),
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is written and on disk. The revision is unchanged if there was
    /// nothing to write.
    Committed(u64),
    /// A comparison failed; nothing is written.
    Conflict,
}

/// What happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(Kv),
    /// It was removed.
    Delete(String),
}

/// The events of one revision under the watched prefix; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: u64,
    /// In the order of the transaction's operations.
    pub events: Vec<Event>,
}

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The history no longer reaches back that far: read the range anew.
    #[error("revisions up to {0} are compacted")]
    Compacted(u64),
    /// A transaction names a key twice.
    #[error("a transaction names key {0:?} twice")]
    DuplicateKey(String),
    /// The file is not a store, or not a sound one.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// Path of the file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is being closed: what was asked for was not done.
    #[error("the store is closed: this agent is stopping")]
    Closed,
    /// Reading or writing failed.
    #[error("store {file}: {reason}")]
    Failed {
        /// Path of the file.
        file: String,
        /// What failed.
        reason: String,
    },
}

/// A stream of batches in order of revision, without gaps. It ends after an error.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// The store's contract; `conformance` is its test.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The keys that start with `prefix`, all as of one revision.
    async fn range(&self, prefix: &str) -> Result<Range, StoreError>;

    /// Writes all of `ops` as one new revision if all of `compares` hold, else nothing.
    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError>;

    /// What happened under `prefix` since `after`, and from now on. Together with
    /// a range at revision `after` it misses nothing and repeats nothing.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError>;

    /// Writes the keys as they are at one revision into `file`, which is empty or missing, as
    /// a store that [`Sqlite::open`] opens. (etcd calls it a snapshot.)
    async fn copy_to(&self, file: &Path) -> Result<(), StoreError>;

    /// Ends all use: what comes later fails. Files can be removed then.
    async fn close(&self);

    /// Forgets the history up to and including `revision`; keys stay.
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;
}
