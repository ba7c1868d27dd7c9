//! One look at everything that is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::plan::{self, Key, Ns, State, Value};

use super::link::{self, Scene};
use super::netns::Netns;
use super::{Kernel, address, ipvs, neighbour, netns, route, sysctl};

impl Kernel {
    /// Everything of ours in the host's namespace, in namespaces of our own, and in
    /// `namespaces`, those of the workloads; one that is gone holds nothing. What no
    /// agent can use any more (pins of interfaces that are gone, former programs) is
    /// removed in passing.
    ///
    /// # Errors
    /// If some part of the kernel cannot be read: then nothing is known.
    pub async fn observe(&mut self, namespaces: &BTreeSet<PathBuf>) -> Result<State> {
        let mut state = State::new();
        let own = self.observe_own_namespaces(&mut state)?;
        let is_outer = |ns: &Ns| *ns == Ns::Host || own.contains(ns);
        let open = self.open_namespaces(namespaces, &own).await?;
        let mut scenes = BTreeMap::new();
        for (ns, netns) in &open {
            let scene = look(ns, netns, &open, is_outer(ns)).await;
            scenes.insert(ns.clone(), scene.with_context(|| format!("looking into {ns}"))?);
        }
        let mut seen = link::observe(&scenes, &own);
        state.append(&mut seen.state);
        for (ns, netns) in &open {
            let links = seen.links.remove(ns).unwrap_or_default();
            let context = || format!("looking into {ns}");
            if !links.is_empty() {
                address::observe(netns, ns, &links, &mut state).await.with_context(context)?;
            }
            route::observe(netns, ns, &scenes[ns].links, &mut state).await.with_context(context)?;
            if !is_outer(ns) {
                continue;
            }
            if !links.is_empty() {
                neighbour::observe(netns, ns, &links, &mut state).await.with_context(context)?;
            }
            if plan::is_balancer(ns) {
                ipvs::observe(netns, ns, &mut state).await.with_context(context)?;
            }
            if let Some(ruleset) = self.tables.observe(ns, netns).await.with_context(context)? {
                state.insert(Key::Nftables(ns.clone()), Value::Ruleset(ruleset));
            }
        }
        self.observe_sysctls(&mut state).await?;
        self.xfrm.observe(&self.namespaces.host(), &mut state).await?;
        let host = scenes.remove(&Ns::Host).unwrap_or_default();
        let names = host.links.into_iter().map(|(index, view)| (index, view.name)).collect();
        let host = self.namespaces.host();
        state.append(&mut self.bpf.observe(&host, &mut self.ledger, names).await?);
        Ok(state)
    }

    /// The namespaces of the ledger; one that somebody else removed is struck out.
    fn observe_own_namespaces(&mut self, state: &mut State) -> Result<Vec<Ns>> {
        let mut own = Vec::new();
        for name in self.ledger.entries().namespaces.clone() {
            if netns::exists(&name)? {
                own.push(Ns::At(netns::path_of(&name)));
                state.insert(Key::Namespace(name), Value::Present);
            } else {
                self.ledger.change(|e| e.namespaces.remove(&name))?;
            }
        }
        Ok(own)
    }

    /// Opens all namespaces there are, and lets go of all others.
    async fn open_namespaces(
        &mut self,
        workloads: &BTreeSet<PathBuf>,
        own: &[Ns],
    ) -> Result<BTreeMap<Ns, Arc<Netns>>> {
        let workloads = workloads.iter().cloned().map(Ns::At);
        let wanted: BTreeSet<Ns> =
            [Ns::Host].into_iter().chain(own.iter().cloned()).chain(workloads).collect();
        self.namespaces.keep(|path| wanted.contains(&Ns::At(path.to_owned())));
        let mut open = BTreeMap::new();
        for ns in wanted {
            if let Some(netns) = self.namespaces.get(&ns).await? {
                open.insert(ns, netns);
            }
        }
        Ok(open)
    }

    /// Switches of links that are not ours and that we turned on.
    async fn observe_sysctls(&mut self, state: &mut State) -> Result<()> {
        let host = self.namespaces.host();
        for (switch, links) in self.ledger.entries().sysctls.clone() {
            for link in links.into_keys() {
                match sysctl::get(&host, &link, switch).await? {
                    Some(true) => {
                        state.insert(Key::Sysctl(Ns::Host, link, switch), Value::Present);
                    }
                    Some(false) => {}
                    // With the link went what there was to restore.
                    None => self.ledger.change(|e| e.restored(switch, &link))?,
                }
            }
        }
        Ok(())
    }
}

/// The links of one namespace. Veths are found from their outer ends, so only there the
/// other namespaces must be known by the identifiers that links carry.
async fn look(
    ns: &Ns,
    netns: &Netns,
    open: &BTreeMap<Ns, Arc<Netns>>,
    outer: bool,
) -> Result<Scene> {
    let others = open.iter().filter(|(other, _)| outer && *other != ns);
    link::scene(netns, others.map(|(ns, netns)| (ns, &**netns))).await
}
