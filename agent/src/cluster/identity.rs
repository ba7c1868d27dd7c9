//! What this node knows of its own membership, in its data directory. It is a
//! member exactly if `node.json` is there: that file is written last and removed
//! first, so a crash in between leaves leftovers but no half membership.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::ca::{self, Credentials};
use super::disk;
use crate::facts::Addresses;
use crate::model::{ClusterInfo, NodeId, Role};
use crate::store::Files;

const RECORD: &str = "node.json";
const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
/// The key that comes with the next certificate, while that is being fetched.
const NEXT_KEY: &str = "node.key.next";
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
    /// The address that its host has, if it is behind NAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_address: Option<Ipv4Addr>,
    /// Managers' API addresses, `HOST:PORT`; empty on a manager.
    pub managers: Vec<String>,
}

impl Record {
    /// Its address, as the others and as this host know it.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses { advertised: self.address, local: self.local_address }
    }
}

impl Identity {
    /// Reads it, None if this node is in no cluster.
    ///
    /// # Errors
    /// If a file is missing or damaged, naming it.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        if disk::read(&dir.join(RECORD))?.is_none() {
            return Ok(None);
        }
        let path = |name: &str| dir.join(name).display().to_string();
        let mut identity = Self::of(|name| disk::read(&dir.join(name)), path)?;
        // A renewal that did not come to its end: the certificate says how far it got.
        if let Some(next) = disk::read(&dir.join(NEXT_KEY))?
            && ca::fits(&identity.credentials.certificate, &next)
        {
            identity.credentials.key = next;
        }
        Ok(Some(identity))
    }

    /// The same from texts by the names of their files.
    ///
    /// # Errors
    /// As for [`Identity::load`].
    pub(super) fn from_files(files: &Files) -> Result<Self> {
        Self::of(|name| Ok(files.get(name).cloned()), str::to_owned)
    }

    /// What [`Identity::from_files`] takes.
    ///
    /// # Errors
    /// If JSON cannot be written.
    pub(super) fn files(&self) -> Result<Files> {
        let Credentials { certificate, key, ca } = self.credentials.clone();
        let record = serde_json::to_string(&self.record).context("cannot encode JSON")?;
        let all = [(RECORD, record), (CERTIFICATE, certificate), (KEY, key), (CA, ca)];
        Ok(all.into_iter().map(|(name, text)| (name.to_owned(), text)).collect())
    }

    /// `path` is how errors call a file.
    fn of(
        read: impl Fn(&str) -> Result<Option<String>>,
        path: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let file = |name: &str, check: &dyn Fn(&str) -> Result<()>| {
            let text = read(name)?.with_context(|| format!("{} is missing", path(name)))?;
            check(&text).with_context(|| format!("{} is damaged", path(name)))?;
            Ok::<_, anyhow::Error>(text)
        };
        let json = |text: &str| Ok(serde_json::from_str::<Record>(text).map(drop)?);
        let certificate = |text: &str| ca::certificate(text).map(drop);
        let record = serde_json::from_str(&file(RECORD, &json)?).context("it was read once")?;
        let credentials = Credentials {
            certificate: file(CERTIFICATE, &certificate)?,
            key: file(KEY, &|text| ca::private_key(text).map(drop))?,
            ca: file(CA, &certificate)?,
        };
        Ok(Self { record, credentials })
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

/// Puts a new certificate with its key in place of the old. At every moment one of the keys
/// on disk fits the certificate.
///
/// # Errors
/// If a file cannot be written, naming it.
pub(super) fn renew(dir: &Path, new: &Credentials) -> Result<()> {
    let Credentials { certificate, key, ca } = new;
    for (name, text) in [(NEXT_KEY, key), (CA, ca), (CERTIFICATE, certificate), (KEY, key)] {
        disk::write(&dir.join(name), text.as_bytes())?;
    }
    disk::remove(&dir.join(NEXT_KEY))
}

/// Forgets the membership and everything that belongs to it.
///
/// # Errors
/// If a file cannot be removed, naming it.
pub(super) fn erase(dir: &Path) -> Result<()> {
    let store = [STORE.to_owned(), format!("{STORE}-wal"), format!("{STORE}-shm")];
    let rest = [CERTIFICATE, KEY, NEXT_KEY, CA, SNAPSHOT, RELEASES, UPDATES].map(str::to_owned);
    for name in [RECORD.to_owned()].into_iter().chain(store).chain(rest) {
        disk::remove(&dir.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ca::{Authority, Subject};

    #[test]
    fn a_renewal_that_ends_anywhere_leaves_a_key_that_fits() {
        let authority = Authority::new("c").unwrap();
        let (node, cluster) = (NodeId::new(), "c".to_owned());
        let subject = Subject { node: node.clone(), role: Role::Worker, cluster };
        let [old, new] = [0, 1].map(|_| authority.issue(&subject).unwrap());
        let (id, created) = ("c".to_owned(), String::new());
        let cluster = ClusterInfo { id, data_path_port: 4789, created, restored: None };
        let address = Ipv4Addr::LOCALHOST;
        let role = Role::Worker;
        let record = Record { cluster, node, role, address, local_address: None, managers: vec![] };
        let steps = [(NEXT_KEY, &new.key), (CERTIFICATE, &new.certificate), (KEY, &new.key)];
        for done in 0..=steps.len() {
            let dir = tempfile::tempdir().unwrap();
            let identity = Identity { record: record.clone(), credentials: old.clone() };
            identity.save(dir.path()).unwrap();
            for (name, text) in &steps[..done] {
                disk::write(&dir.path().join(name), text.as_bytes()).unwrap();
            }
            let found = Identity::load(dir.path()).unwrap().unwrap().credentials;
            assert!(ca::fits(&found.certificate, &found.key), "after {done} steps");
            renew(dir.path(), &new).unwrap();
            let found = Identity::load(dir.path()).unwrap().unwrap().credentials;
            assert_eq!((found.certificate, found.key), (new.certificate.clone(), new.key.clone()));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        }
    }
}
