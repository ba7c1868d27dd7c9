//! A manager's state in one file: the store, and with it the CA, and the node's own
//! identity. It is made while the agent runs, and put back while it does not: then it
//! does not matter what has become of the data directory.
//!
//! The restored store goes on at a revision that no store of this cluster has had, and
//! says when it was made and restored, so that nodes can tell what was forgotten
//! ([`Restored::forgot`]) from what was removed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::identity::{self, Identity, STORE};
use super::view::{self, Settings};
use super::{Cluster, Error, decide, disk, keys};
use crate::model::{Keyring, Restored, Role};
use crate::store::{self, Files, Op, Sqlite, Store};

/// File of an archive that says what it is.
const ABOUT: &str = "about.json";
/// Of what [`ABOUT`] says: raised when what is beside it changes its meaning.
const VERSION: u32 = 1;
/// More than the revisions that a manager makes in a second, so that one which continues
/// from the clock is ahead of all that came before.
const A_SECOND: u64 = 1 << 10;

/// One backup at a time: they share the name of a file.
static TURN: Mutex<()> = Mutex::const_new(());

#[derive(Serialize, Deserialize)]
struct About {
    version: u32,
    /// When it was made.
    created: String,
    /// Version of the agent that made it.
    agent: String,
}

impl Cluster {
    /// The content of a backup file.
    ///
    /// # Errors
    /// On a worker, or if the disk has no room for another copy of the store.
    pub async fn backup(&self) -> Result<Vec<u8>, Error> {
        let (member, manager) = (self.member()?, self.manager()?);
        let about = About {
            version: VERSION,
            created: decide::now(),
            agent: self.0.config.version.clone(),
        };
        let credentials = member.credentials.borrow().clone();
        let mut files = Identity { credentials, ..member.identity.clone() }.files()?;
        files.insert(ABOUT.to_owned(), serde_json::to_string(&about).context("JSON")?);
        let _turn = TURN.lock().await;
        let copy = Temporary::new(&self.0.config.data_dir.join("backup.new"))?;
        manager.copy_store(&copy.0).await?;
        let bytes = tokio::task::spawn_blocking(move || {
            store::pack(&copy.0, &files)?;
            Ok(fs::read(&copy.0).with_context(|| format!("cannot read {}", copy.0.display()))?)
        });
        bytes.await.map_err(anyhow::Error::from)?
    }
}

/// What was restored, for people to read.
#[derive(Debug)]
pub struct Report {
    /// Identifier of the cluster.
    pub cluster: String,
    /// When the backup was made.
    pub backup: String,
}

/// Puts the backup in `file` into the data directory of an agent that does not run.
///
/// # Errors
/// If the file is no sound backup, or the directory holds a membership already, unless
/// `force`: then nothing has changed.
pub async fn restore(data_dir: &Path, file: &Path, force: bool) -> Result<Report> {
    let kept = ["node.json", STORE].map(|name| data_dir.join(name));
    if let Some(there) = kept.iter().find(|path| path.exists())
        && !force
    {
        bail!(
            "{} is there: this node is, or was, in a cluster. --force gives that up for what the \
             backup holds",
            there.display()
        );
    }
    let copy = Temporary::new(&data_dir.join("restore.new"))?;
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&copy.0, bytes).with_context(|| format!("cannot write {}", copy.0.display()))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let files = store::unpack(&copy.0, now.as_secs() * A_SECOND)
        .with_context(|| format!("{} is not a sound backup", file.display()))?;
    let (identity, about) = read(&files)
        .with_context(|| format!("{} is not a backup that can be used", file.display()))?;
    let restored = Restored { backup: about.created, at: decide::now() };
    note(&copy.0, &restored).await?;
    disk::sync(&copy.0)?;

    identity::erase(data_dir)?;
    let place = data_dir.join(STORE);
    fs::rename(&copy.0, &place).with_context(|| format!("cannot make {}", place.display()))?;
    identity.save(data_dir)?;
    Ok(Report { cluster: identity.record.cluster.id, backup: restored.backup })
}

fn read(files: &Files) -> Result<(Identity, About)> {
    let about = files.get(ABOUT).context("it does not say what it is")?;
    let about: About = serde_json::from_str(about).context("it does not say what it is")?;
    ensure!(
        about.version == VERSION,
        "its version is {}, made by netagent {}; this one knows version {VERSION}",
        about.version,
        about.agent
    );
    let identity = Identity::from_files(files)?;
    ensure!(identity.record.role == Role::Manager, "it is a worker's");
    Ok((identity, about))
}

/// Writes into the store that it was restored, and keys of encrypted networks that nobody has
/// used.
async fn note(file: &Path, restored: &Restored) -> Result<()> {
    let store = Sqlite::open(file)?;
    let settings: Option<Settings> = stored(&store, view::CLUSTER).await?;
    let mut settings = settings.context("it holds no cluster")?;
    settings.info.restored = Some(restored.clone());
    let keyring: Option<Keyring> = stored(&store, view::KEYRING).await?;
    let mut ops: Vec<Op> = vec![view::put(view::CLUSTER, &settings)];
    ops.extend(keyring.as_ref().and_then(keys::restored));
    store.txn(vec![], ops).await?;
    store.close().await;
    Ok(())
}

/// The value of one key.
async fn stored<T: DeserializeOwned>(store: &Sqlite, key: &str) -> Result<Option<T>> {
    let range = store.range(key).await?;
    let value = range.kvs.iter().find(|kv| kv.key == key).map(|kv| kv.value.as_slice());
    Ok(view::decode(key, value)?)
}

/// An empty file that only its owner reads; removed when dropped, with what SQLite makes
/// beside it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: &Path) -> Result<Self> {
        let this = Self(path.to_owned());
        this.remove().with_context(|| format!("cannot remove {}", path.display()))?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(this)
    }

    fn remove(&self) -> std::io::Result<()> {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            if let Err(e) = fs::remove_file(path)
                && e.kind() != ErrorKind::NotFound
            {
                return Err(e);
            }
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = self.remove() {
            tracing::warn!("cannot remove {}: {e}", self.0.display());
        }
    }
}
