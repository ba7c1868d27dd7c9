//! What this node knows of its own membership, in its data directory. It is a
//! member exactly if `node.json` is there: that file is written last and removed
//! first, so a crash in between leaves leftovers but no half membership.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::ca::{self, Credentials};
use super::disk;
use crate::model::{ClusterInfo, NodeId, Role};

const RECORD: &str = "node.json";
const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";
/// The store of a manager.
pub(super) const STORE: &str = "store.db";
/// The last snapshot that a worker has seen.
pub(super) const SNAPSHOT: &str = "snapshot.json";
/// Endpoints that this node gave up and the manager does not know of yet.
pub(super) const RELEASES: &str = "releases.json";
/// What this node has to tell of its endpoints and the manager does not know yet.
pub(super) const UPDATES: &str = "updates.json";

/// A node's membership.
#[derive(Clone)]
pub(super) struct Identity {
    /// The part that is no secret.
    pub(super) record: Record,
    /// Certificate and key.
    pub(super) credentials: Credentials,
}

/// What `node.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The cluster.
    pub cluster: ClusterInfo,
    /// This node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// The address that it advertises.
    pub address: Ipv4Addr,
    /// Managers' API addresses, `HOST:PORT`; empty on a manager.
    pub managers: Vec<String>,
}

impl Identity {
    /// Reads it, None if this node is in no cluster.
    ///
    /// # Errors
    /// If a file is missing or damaged, naming it.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let Some(record) = disk::read_json(&dir.join(RECORD))? else { return Ok(None) };
        let file = |name: &str, check: fn(&str) -> Result<()>| {
            let path = dir.join(name);
            let text = disk::read(&path)?;
            let text = text.with_context(|| format!("{} is missing", path.display()))?;
            check(&text).with_context(|| format!("{} is damaged", path.display()))?;
            Ok::<_, anyhow::Error>(text)
        };
        let certificate = |text: &str| ca::certificate(text).map(drop);
        let credentials = Credentials {
            certificate: file(CERTIFICATE, certificate)?,
            key: file(KEY, |text| ca::private_key(text).map(drop))?,
            ca: file(CA, certificate)?,
        };
        Ok(Some(Self { record, credentials }))
    }

    /// Makes this node a member.
    ///
    /// # Errors
    /// If a file cannot be written, naming it.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let Credentials { certificate, key, ca } = &self.credentials;
        for (name, text) in [(CERTIFICATE, certificate), (KEY, key), (CA, ca)] {
            disk::write(&dir.join(name), text.as_bytes())?;
        }
        disk::write_json(&dir.join(RECORD), &self.record)
    }
}

/// Forgets the membership and everything that belongs to it.
///
/// # Errors
/// If a file cannot be removed, naming it.
pub(super) fn erase(dir: &Path) -> Result<()> {
    let store = [STORE.to_owned(), format!("{STORE}-wal"), format!("{STORE}-shm")];
    let rest = [CERTIFICATE, KEY, CA, SNAPSHOT, RELEASES, UPDATES].map(str::to_owned);
    for name in [RECORD.to_owned()].into_iter().chain(store).chain(rest) {
        disk::remove(&dir.join(name))?;
    }
    Ok(())
}
