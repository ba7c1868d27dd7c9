//! What the kernel cannot tell by itself: which named namespaces are ours, on which links of
//! others we made a qdisc, which IPsec associations were ever made, and what a sysctl of such a
//! link was before. Written before the change is made, so a crash leaves no trace unaccounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::{self, Sysctl};

/// More epochs than a keyring ever spans.
const RECENT: u8 = 32;

/// Name of the file in the run directory.
const FILE: &str = "kernel.json";

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entries {
    /// Namespaces we made, by name.
    pub(super) namespaces: BTreeSet<String>,
    /// Links in the host's namespace, not ours, whose clsact qdisc we made.
    #[serde(default)]
    pub(super) qdiscs: BTreeSet<String>,
    /// IPsec associations we made, whether they are still there or not, by receiver and index.
    #[serde(default)]
    pub(super) associations: BTreeSet<String>,
    /// Of these, see `Ipsec`.
    #[serde(default)]
    pub(super) generation: Option<u64>,
    /// Switches of links in the host's namespace as we found them, by link.
    #[serde(flatten)]
    pub(super) sysctls: BTreeMap<Sysctl, BTreeMap<String, bool>>,
}

impl Entries {
    /// Notes that an association is made. Those of long ago are struck out: their keys are in no
    /// keyring any more.
    pub(super) fn make(&mut self, generation: u64, to: Ipv4Addr, index: u32) {
        self.generation = Some(generation);
        let now = plan::epoch_of(index);
        self.associations.retain(|name| {
            let index = name.rsplit("0x").next().and_then(|hex| u32::from_str_radix(hex, 16).ok());
            index.map(plan::epoch_of).is_some_and(|then| {
                now.wrapping_sub(then) < RECENT || then.wrapping_sub(now) < RECENT
            })
        });
        self.associations.insert(association(to, index));
    }

    /// Whether an association was made.
    pub(super) fn has_made(&self, to: Ipv4Addr, index: u32) -> bool {
        self.associations.contains(&association(to, index))
    }

    /// Notes what a switch was before it is changed for the first time.
    pub(super) fn found(&mut self, switch: Sysctl, link: &str, was: bool) {
        self.sysctls.entry(switch).or_default().entry(link.to_owned()).or_insert(was);
    }

    /// What a switch was, if it was changed.
    pub(super) fn was(&self, switch: Sysctl, link: &str) -> Option<bool> {
        self.sysctls.get(&switch)?.get(link).copied()
    }

    /// Strikes out a switch that is again what it was.
    pub(super) fn restored(&mut self, switch: Sysctl, link: &str) {
        if let Some(links) = self.sysctls.get_mut(&switch) {
            links.remove(link);
            if links.is_empty() {
                self.sysctls.remove(&switch);
            }
        }
    }
}

fn association(to: Ipv4Addr, index: u32) -> String {
    format!("{to} {index:#010x}")
}

pub(super) struct Ledger {
    path: PathBuf,
    entries: Entries,
}

impl Ledger {
    /// Reads the ledger in `directory`, which is created if need be.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let path = directory.join(FILE);
        let entries = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Entries::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        Ok(Self { path, entries })
    }

    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Changes the entries; on disk when this returns.
    pub(super) fn change<R>(&mut self, change: impl FnOnce(&mut Entries) -> R) -> Result<()> {
        let mut entries = self.entries.clone();
        // Whether there was such an entry is of no interest here.
        let _ = change(&mut entries);
        if entries != self.entries {
            self.write(&entries).with_context(|| format!("writing {}", self.path.display()))?;
            self.entries = entries;
        }
        Ok(())
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        if *entries == Entries::default() {
            return Ok(std::fs::remove_file(&self.path)?);
        }
        let new = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(entries)?)?;
        file.sync_all()?;
        Ok(std::fs::rename(&new, &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_across_restarts_and_leaves_no_file_when_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        ledger.change(|e| assert!(e.namespaces.insert("na-x".into()))).unwrap();
        ledger.change(|e| e.found(Sysctl::Forwarding, "eth0", false)).unwrap();
        ledger.change(|e| e.found(Sysctl::AcceptLocal, "lo", true)).unwrap();
        // The first look counts.
        ledger.change(|e| e.found(Sysctl::AcceptLocal, "lo", false)).unwrap();
        let mut again = Ledger::open(directory.path()).unwrap();
        assert_eq!(again.entries(), ledger.entries());
        assert_eq!(again.entries().was(Sysctl::AcceptLocal, "lo"), Some(true));
        assert_eq!(again.entries().was(Sysctl::Forwarding, "lo"), None);
        again.change(|e| e.namespaces.clear()).unwrap();
        again.change(|e| e.restored(Sysctl::Forwarding, "eth0")).unwrap();
        again.change(|e| e.restored(Sysctl::AcceptLocal, "lo")).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn associations_are_known_for_longer_than_any_keyring() {
        let to = Ipv4Addr::new(192, 0, 2, 1);
        let mut entries = Entries::default();
        for epoch in 0..=300_u32 {
            let index = 0xabcd_ef00 | (epoch & 0xff);
            assert!(!entries.has_made(to, index), "the one of 256 epochs ago is forgotten");
            entries.make(7, to, index);
        }
        assert!(entries.has_made(to, 0xabcd_ef00 | (290 & 0xff)));
        assert_eq!(entries.associations.len(), usize::from(RECENT));
        assert!(!entries.has_made(Ipv4Addr::LOCALHOST, 0xabcd_ef00 | (300 & 0xff)));
        assert_eq!(entries.generation, Some(7));
    }

    #[test]
    fn a_ledger_of_the_first_version_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"namespaces":["na-x"],"forwarding":{"eth0":false}}"#;
        std::fs::write(directory.path().join(FILE), text).unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        assert_eq!(ledger.entries().was(Sysctl::Forwarding, "eth0"), Some(false));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        let error = Ledger::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
