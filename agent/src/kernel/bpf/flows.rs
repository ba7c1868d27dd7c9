//! The flows that the programs remember, gone through by the agent. What is to become of
//! them [`plan::flow`](crate::plan::flow) decides. Needs no hold of the datapath: where none
//! is loaded there are no flows.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, MapData};
use netagent_common::{Affinity, AffinityKey, EndpointKey, Flow, FlowKey, Load, maps as names};
use nix::time::{ClockId, clock_gettime};

use crate::kernel::poke;
use crate::plan::flow::{self, Lost, Sweep, Tables};

use super::batch;
use super::maps::of;
use super::pins::{Pins, map_info, open_map};
use super::services::gone;

/// The flows of the datapath under one BPF directory.
#[derive(Clone, Debug)]
pub struct Flows {
    pins: Pins,
}

/// What going through the flows came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries that were looked at.
    pub seen: usize,
    /// Of these, entries removed.
    pub removed: usize,
    /// Clients that were told that their backend is gone.
    pub told: usize,
}

impl Flows {
    /// Those of the programs under `bpf_dir`, whether there are any yet or not.
    #[must_use]
    pub fn new(bpf_dir: &Path) -> Self {
        Self { pins: Pins { root: bpf_dir.to_owned(), digest: String::new() } }
    }

    /// How many flows to the endpoint with address `backend`, which is on this node, are
    /// running: TCP and SCTP connections that have not begun to end, and flows of UDP with a
    /// packet within the last half minute. Those by the endpoint's own address count too.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub async fn running(&self, backend: Ipv4Addr) -> Result<usize> {
        let of_it = move |this: &Self| {
            let flows = this.entries(names::FLOWS)?;
            Ok(flow::running(&flows, &this.tables()?, backend, now()?))
        };
        Ok(self.blocking(of_it).await?.unwrap_or(0))
    }

    /// The backends that the programs know of, each with its network and what it serves;
    /// without those on nodes that are `lost`, while there are others.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub async fn backends(&self, lost: Lost) -> Result<HashSet<(u32, Ipv4Addr, Ipv4Addr)>> {
        let all = move |this: &Self| Ok(Tables { lost, ..this.tables()? }.backends());
        Ok(self.blocking(all).await?.unwrap_or_default())
    }

    /// Goes through all flows once: removes what is over or leads nowhere, counts anew what
    /// each backend has to do, and tells TCP clients whose backend is gone. Backends on nodes
    /// that are `lost` are left, as long as there are others.
    ///
    /// # Errors
    /// If a map cannot be read or written. Who could not be told is logged.
    pub async fn sweep(&self, lost: Lost) -> Result<Swept> {
        Ok(self.blocking(|this| this.sweep_now(lost)).await?.unwrap_or_default())
    }

    /// Entries that the table of flows has room for; `None` where no datapath is loaded.
    ///
    /// # Errors
    /// If the map cannot be looked at.
    pub async fn capacity(&self) -> Result<Option<u32>> {
        let size = |this: &Self| Ok(map_info(&this.pins, names::FLOWS)?.map(|i| i.max_entries()));
        Ok(self.blocking(size).await?.flatten())
    }

    /// Runs `work` where it may take its time; nothing where no datapath is loaded.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let this = self.clone();
        let run = move || match names::ALL.iter().all(|name| this.pins.map(name).exists()) {
            true => work(&this).map(Some),
            false => Ok(None),
        };
        tokio::task::spawn_blocking(run).await?.context("going through the flows")
    }

    fn sweep_now(&self, lost: Lost) -> Result<Swept> {
        // In this order: what a flow leads to was there when the flow began.
        let flows = self.entries(names::FLOWS)?;
        let affinities = self.entries::<AffinityKey, Affinity>(names::AFFINITY)?;
        let loads = self.entries::<EndpointKey, Load>(names::LOAD)?;
        let (tables, now) = (Tables { lost, ..self.tables()? }, now()?);
        let sweep = flow::sweep(&flows, &tables, now);
        let removed = self.remove(&sweep, &tables)?;
        let mut affinity = self.open::<AffinityKey, Affinity>(names::AFFINITY)?;
        for (key, value) in &affinities {
            if flow::is_forgotten(key, value, &tables, now) {
                gone(affinity.remove(key))?;
            }
        }
        self.count(&sweep, &loads, &tables)?;
        let told = poke::poke(&sweep.orphans)?;
        Ok(Swept { seen: flows.len(), removed, told })
    }

    /// Removes entries, but not such as packets have brought back to life since.
    fn remove(&self, sweep: &Sweep, tables: &Tables) -> Result<usize> {
        let mut map = self.open::<FlowKey, Flow>(names::FLOWS)?;
        let mut removed = 0;
        for (key, flow) in &sweep.remove {
            if map.get(key, 0).is_ok_and(|now| flow::is_to_go(key, flow, &now, tables)) {
                gone(map.remove(key))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Sets right what the programs have counted, of backends and of those that are none
    /// any more.
    fn count(&self, sweep: &Sweep, loads: &[(EndpointKey, Load)], tables: &Tables) -> Result<()> {
        let mut map = self.open::<EndpointKey, Load>(names::LOAD)?;
        let mut uncounted = sweep.load.clone();
        for (key, load) in loads {
            let counted = Load { turn: load.turn, ..uncounted.remove(key).unwrap_or_default() };
            let endpoint = tables.endpoints.get(key);
            if !endpoint.is_some_and(|endpoint| endpoint.is_vip() || endpoint.is_backend()) {
                gone(map.remove(key))?;
            } else if counted != *load {
                map.insert(key, counted, 0)?;
            }
        }
        for (key, load) in uncounted {
            map.insert(key, load, 0)?;
        }
        Ok(())
    }

    fn tables(&self) -> Result<Tables> {
        Ok(Tables {
            endpoints: self.entries(names::ENDPOINTS)?.into_iter().collect(),
            services: self.entries(names::SERVICES)?.into_iter().collect(),
            published: self.entries(names::PUBLISHED)?.into_iter().collect(),
            lost: Lost::default(),
        })
    }

    fn entries<K: Pod, V: Pod>(&self, name: &str) -> Result<Vec<(K, V)>> {
        let path = self.pins.map(name);
        let map =
            MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        batch::entries(&map).with_context(|| format!("reading {}", path.display()))
    }

    fn open<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        of(name, open_map(&self.pins, name)?.try_into())
    }
}

/// Seconds of the clock that the programs go by.
fn now() -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    // As the programs do, it begins again after 136 years.
    Ok(time.tv_sec() as u32)
}
