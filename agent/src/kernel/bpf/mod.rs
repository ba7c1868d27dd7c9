//! The eBPF datapath's programs and maps. All of it is pinned, so it works on while no
//! agent runs, and an agent that starts finds it again:
//!
//! ```text
//! BPF_DIR/v<ABI version>/maps/NAME
//!                        progs-<digest of the object>/NAME
//!                        links/<interface index>-<hook>
//! ```
//!
//! The pins are the only owners; nothing here keeps a program or a link open. (A name
//! in a BPF file system has no dots, hence indexes.) Nothing is loaded before the first
//! change that needs it.

mod batch;
mod carry;
mod clsact;
mod flows;
mod hook;
mod load;
mod logs;
mod maps;
mod mount;
mod pins;
mod probes;
mod services;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use netagent_common::{Count, Counter};
use sha2::{Digest, Sha256};

use crate::plan::{Hook, MapKey, State, Value};

use super::KernelConfig;
use super::ledger::Ledger;
use super::link::index;
use super::netns::Netns;

use maps::Maps;
use pins::{Pins, remove};

pub use flows::{Flows, Swept};
pub use logs::Logs;
pub(super) use maps::links_in;
pub use probes::Probes;

/// The eBPF object that this agent carries; empty if it was built without.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netagent.bpf.o"))
}

/// Digest of [`object`]: tells its programs from another build's.
#[must_use]
pub fn object_digest() -> String {
    digest(object())
}

fn digest(object: &[u8]) -> String {
    hex::encode(Sha256::digest(object))[..16].to_owned()
}

pub(super) struct Bpf {
    pins: Pins,
    object: &'static [u8],
    max_flows: Option<u32>,
    /// Whether programs are attached by TCX, as soon as that is known.
    tcx: Option<bool>,
    maps: Option<Maps>,
    /// The datapath was seen to be whole.
    whole: bool,
}

impl Bpf {
    pub(super) fn new(config: &KernelConfig) -> Self {
        let KernelConfig { object, max_flows, .. } = *config;
        let pins = Pins { root: config.bpf_dir.clone(), digest: digest(object) };
        let tcx = config.without_tcx.then_some(false);
        Self { pins, object, max_flows, tcx, maps: None, whole: false }
    }

    /// What is ours, given the names of the host's links by index. Also removes pins that
    /// nothing needs any more: of links whose interface is gone, of former programs.
    pub(super) async fn observe(
        &mut self,
        host: &Netns,
        ledger: &mut Ledger,
        names: BTreeMap<u32, String>,
    ) -> Result<State> {
        // Look at the pins again before the next change: somebody may have removed one.
        self.forget();
        let filters = if self.tcx(host).await? {
            clsact::Found::default()
        } else {
            let found = clsact::look(&host.netlink).await?;
            clsact::forget(&found, &names, ledger)?;
            found
        };
        let pins = self.pins.clone();
        host.run(move || observe(&pins, &names, &filters)).await?
    }

    async fn tcx(&mut self, host: &Netns) -> Result<bool> {
        if self.tcx.is_none() {
            self.tcx = Some(host.run(hook::has_tcx).await?);
        }
        Ok(self.tcx == Some(true))
    }

    /// The maps, for a change; loads the datapath if it is not there.
    async fn maps(&mut self, host: &Netns) -> Result<&mut Maps> {
        if !self.whole {
            let (pins, object, flows) = (self.pins.clone(), self.object, self.max_flows);
            self.maps = Some(host.run(move || load::load(&pins, object, flows)).await??);
            self.whole = true;
        }
        self.maps.as_mut().context("the maps were just opened")
    }

    /// Writes a map entry; `indexes` are those of the links that it names.
    pub(super) async fn put_entry(
        &mut self,
        host: &Netns,
        key: &MapKey,
        value: &Value,
        indexes: &BTreeMap<String, u32>,
    ) -> Result<()> {
        self.maps(host).await?.put(key, value, indexes)
    }

    /// Removes a map entry; `index` is that of the link that it names, if there is one.
    /// Without the node's own entry there is no datapath: with it go all pins.
    pub(super) fn delete_entry(&mut self, key: &MapKey, index: Option<u32>) -> Result<()> {
        if *key == MapKey::Config {
            return self.remove();
        }
        if self.maps.is_none() {
            self.maps = Maps::open(&self.pins)?;
        }
        match &mut self.maps {
            Some(maps) => maps.delete(key, index),
            None => Ok(()),
        }
    }

    pub(super) async fn put_hook(
        &mut self,
        host: &Netns,
        ledger: &mut Ledger,
        link: &str,
        hook: Hook,
        digest: &str,
    ) -> Result<()> {
        ensure!(digest == self.pins.digest, "this agent does not carry the program {digest}");
        self.maps(host).await?;
        if self.tcx(host).await? {
            let (pins, link) = (self.pins.clone(), link.to_owned());
            return host.run(move || hook::put(&pins, &link, hook)).await?;
        }
        let at = clsact::At { netlink: &host.netlink, link, index: index(host, link).await?, hook };
        clsact::put(&at, ledger, &self.pins.program(hook)).await
    }

    pub(super) async fn delete_hook(
        &mut self,
        host: &Netns,
        ledger: &mut Ledger,
        (link, index): (&str, u32),
        hook: Hook,
    ) -> Result<()> {
        if self.tcx(host).await? {
            return remove(&hook::pin(&self.pins, index, hook));
        }
        clsact::delete(&clsact::At { netlink: &host.netlink, link, index, hook }, ledger).await
    }

    /// Removes all pins, of other versions too, and with them all programs, maps and
    /// links.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.forget();
        for version in self.pins.versions()? {
            remove(&version)?;
        }
        match std::fs::remove_dir(&self.pins.root) {
            // What is in there yet is not ours.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("removing {}", self.pins.root.display())),
        }
    }

    fn forget(&mut self) {
        self.maps = None;
        self.whole = false;
    }
}

/// The counters, summed over the processors; none if no datapath is loaded.
///
/// # Errors
/// If the map cannot be read.
pub fn counters(bpf_dir: &Path) -> Result<Vec<(Counter, Count)>> {
    let pins = Pins { root: bpf_dir.to_owned(), digest: String::new() };
    maps::counters(&pins)
}

fn observe(pins: &Pins, names: &BTreeMap<u32, String>, filters: &clsact::Found) -> Result<State> {
    let mut state = State::new();
    if !pins.version().exists() && filters.is_empty() {
        return Ok(state);
    }
    if let Some(maps) = Maps::open(pins)? {
        maps.observe(names, &mut state).context("reading the BPF maps")?;
    }
    let programs = pins::whole_programs(pins)?;
    let mut used = hook::observe(pins, names, &programs, &mut state)?;
    used.extend(clsact::observe(filters, names, &programs, &mut state));
    for digest in pins.digests()? {
        if digest != pins.digest && !used.contains(&digest) {
            remove(&pins.programs(&digest))?;
        }
    }
    if state.is_empty() {
        // Loaded by an agent that came no further.
        remove(&pins.version())?;
    }
    if used.contains(&pins.digest) {
        // Of an agent with other maps. What ran of it was replaced.
        for version in pins.others()? {
            remove(&version.join("links"))?;
            carry::last(pins, &version)?;
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_sixteen_hex_digits_of_the_content() {
        assert_eq!(digest(b""), "e3b0c44298fc1c14");
        assert_ne!(digest(b"a"), digest(b""));
    }
}
