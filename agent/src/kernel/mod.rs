//! The only module that changes the kernel. It observes what is ours there as
//! [`State`](crate::plan::State), and carries out the [`Op`]s that the plan asks for, by netlink, sysctls,
//! `nft` and BPF. It decides nothing, knows no cluster, and never changes a link, route
//! or rule that does not carry our mark.
//!
//! | ours is | by |
//! |---|---|
//! | a link in the host's namespace | its name `na-*`, if it is a veth or vxlan |
//! | a namespace | the ledger in the run directory |
//! | a link in such a namespace | its kind: veth, vxlan or bridge |
//! | a link in a workload | being the other end of a veth of ours |
//! | a route | its protocol, [`ROUTE_PROTOCOL`] |
//! | an address, a permanent neighbour or FDB entry | being on a link of ours |
//! | a switch (sysctl) of a link that is not ours | the ledger, which has the former value |
//! | an IPsec association; a policy | its `reqid`; its priority |
//! | servers and settings of IPVS | being in a namespace of ours for IPVS |
//! | rules | the nftables table `ip netagent` |
//! | maps, programs and their links | their pins under the BPF directory |
//! | without TCX: a filter | its priority and handle, and its program's name `netagent_*` |
//! | without TCX: a qdisc on a link that is not ours | the ledger |

mod address;
mod bpf;
mod exchange;
mod ipvs;
mod ledger;
mod link;
mod neighbour;
mod netlink;
mod netns;
mod nft;
mod observe;
mod poke;
mod route;
mod sysctl;
mod xfrm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::model::Ipsec;
use crate::plan::{Key, LINK_PREFIX, MapKey, Ns, Op, Sysctl, Value};

pub use bpf::{Flows, Logs, Probes, Swept, counters, object, object_digest};
pub use ipvs::Error as IpvsError;
pub use route::ROUTE_PROTOCOL;
pub use xfrm::follow as follow_ipsec;

use bpf::Bpf;
use ledger::Ledger;
use netns::{Namespaces, Netns};
use nft::Tables;
use xfrm::Xfrm;

/// First link of every namespace.
const LOOPBACK: &str = "lo";

/// Where the kernel module keeps its things.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Directory of the ledger: must not outlive a boot (a tmpfs such as `/run`).
    pub run_dir: PathBuf,
    /// Directory of all pins, in a BPF file system; made when the first is needed.
    pub bpf_dir: PathBuf,
    /// The eBPF object to load: [`object`].
    pub object: &'static [u8],
    /// Entries that the table of flows shall have; as the host's memory allows if it is not
    /// said. One that is there already keeps its size.
    pub max_flows: Option<u32>,
    /// Attach programs as a kernel without TCX needs it, whatever this one has.
    pub without_tcx: bool,
}

/// What could not be done, and why. Print it with `{:#}`.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op}")]
pub struct ApplyError {
    /// The change.
    pub op: Op,
    #[source]
    source: anyhow::Error,
}

/// The kernel, as far as it is ours. Host's namespace is that of the thread that
/// [`open`](Self::open)ed it; needs a tokio runtime and root.
pub struct Kernel {
    namespaces: Namespaces,
    ledger: Ledger,
    tables: Tables,
    bpf: Bpf,
    xfrm: Xfrm,
}

impl Kernel {
    /// Takes hold of the host's namespace; changes nothing.
    ///
    /// # Errors
    /// If the run directory cannot be written, or without root.
    pub async fn open(config: KernelConfig) -> Result<Self> {
        let ledger = Ledger::open(&config.run_dir)?;
        Ok(Self {
            namespaces: Namespaces::open().await?,
            tables: Tables::default(),
            bpf: Bpf::new(&config),
            xfrm: Xfrm::new(&ledger),
            ledger,
        })
    }

    /// Makes one change; one that is made already is made again without harm.
    ///
    /// # Errors
    /// Names the change and why the kernel refused it.
    pub async fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let result = match op {
            Op::Put(key, value) => self.put(key, value).await,
            Op::Delete(key) => self.delete(key).await,
        };
        result.map_err(|source| ApplyError { op: op.clone(), source })
    }

    async fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        match (key, value) {
            (Key::Namespace(name), Value::Present) => self.put_namespace(name).await,
            (Key::Association(to, index), Value::Association(want)) => {
                let (host, ledger) = (self.namespaces.host(), &mut self.ledger);
                self.xfrm.put_association(&host, ledger, (*to, *index), want).await
            }
            (Key::Policy(way, other), Value::Policy(want)) => {
                let host = self.namespaces.host();
                self.xfrm.put_policy(&host, (*way, *other), want).await
            }
            (Key::Link(ns, name), Value::Link(want)) => {
                let outside = self.outside().await?;
                link::put(&mut self.namespaces, &outside, ns, name, want).await
            }
            (Key::Address(ns, link, address), Value::Present) => {
                let (netns, index) = self.our_link(ns, link).await?;
                address::put(&netns, index, *address).await
            }
            (Key::Sysctl(ns, link, switch), Value::Present) => {
                self.put_sysctl(ns, link, *switch).await
            }
            (Key::Route(ns, to), Value::Route { link, gateway, source }) => {
                let (netns, index) = self.our_link(ns, link).await?;
                let wanted = route::Wanted {
                    to: *to,
                    index,
                    gateway: *gateway,
                    source: *source,
                    local: false,
                };
                route::put(&netns, &wanted).await
            }
            (Key::Route(ns, to), Value::Local) => {
                let (netns, index) = self.our_link(ns, LOOPBACK).await?;
                let wanted =
                    route::Wanted { to: *to, index, gateway: None, source: None, local: true };
                route::put(&netns, &wanted).await
            }
            (Key::Ipvs(ns), Value::Ipvs(settings)) => {
                ipvs::put(&*self.own(ns).await?, settings).await
            }
            (Key::VirtualServer(ns, socket), Value::VirtualServer(server)) => {
                Ok(ipvs::put_virtual(&*self.own(ns).await?, *socket, server).await?)
            }
            (Key::RealServer(ns, socket, address), Value::RealServer(server)) => {
                Ok(ipvs::put_real(&*self.own(ns).await?, *socket, *address, server).await?)
            }
            (Key::Neighbour(ns, link, ip), Value::Mac(mac)) => {
                let (netns, index) = self.our_link(ns, link).await?;
                neighbour::put(&netns, index, *ip, *mac).await
            }
            (Key::Fdb(ns, link, mac), Value::Vtep(vtep)) => {
                let (netns, index) = self.our_link(ns, link).await?;
                neighbour::put_fdb(&netns, index, *mac, *vtep).await
            }
            (Key::Nftables(ns), Value::Ruleset(ruleset)) => {
                let netns = self.namespaces.need(ns).await?;
                self.tables.put(ns, &netns, ruleset).await
            }
            (Key::Map(entry), value) => {
                let host = self.namespaces.host();
                let mut indexes = BTreeMap::new();
                for link in bpf::links_in(entry, value) {
                    indexes.insert(link.to_owned(), link::index(&host, link).await?);
                }
                self.bpf.put_entry(&host, entry, value, &indexes).await
            }
            (Key::Hook(link, hook), Value::Program(digest)) => {
                let host = self.namespaces.host();
                self.bpf.put_hook(&host, &mut self.ledger, link, *hook, digest).await
            }
            (_, value) => bail!("it cannot be {value:?}"),
        }
    }

    async fn delete(&mut self, key: &Key) -> Result<()> {
        let ns = match key {
            Key::Namespace(name) => return self.delete_namespace(name).await,
            Key::Link(ns, _)
            | Key::Address(ns, ..)
            | Key::Sysctl(ns, ..)
            | Key::Route(ns, _)
            | Key::Neighbour(ns, ..)
            | Key::Fdb(ns, ..)
            | Key::Nftables(ns)
            | Key::Ipvs(ns)
            | Key::VirtualServer(ns, _)
            | Key::RealServer(ns, ..) => ns,
            Key::Map(_) | Key::Hook(..) | Key::Association(..) | Key::Policy(..) => &Ns::Host,
        };
        // With a namespace goes all that was in it.
        let Some(netns) = self.namespaces.get(ns).await? else { return Ok(()) };
        let index = async |link: &str| -> Result<Option<u32>> {
            Ok(link::by_name(&netns, link).await?.map(|view| view.index))
        };
        match key {
            Key::Link(_, name) => link::delete(&netns, ns, name).await,
            Key::Route(_, to) => route::delete(&netns, *to).await,
            Key::Nftables(_) => self.tables.delete(ns, &netns).await,
            Key::Sysctl(_, link, switch) => self.delete_sysctl(ns, &netns, link, *switch).await,
            Key::Address(_, link, address) => match index(link).await? {
                Some(index) => address::delete(&netns, index, *address).await,
                None => Ok(()),
            },
            Key::Neighbour(_, link, ip) => match index(link).await? {
                Some(index) => neighbour::delete(&netns, index, *ip).await,
                None => Ok(()),
            },
            Key::Fdb(_, link, mac) => match index(link).await? {
                Some(index) => neighbour::delete_fdb(&netns, index, *mac).await,
                None => Ok(()),
            },
            Key::Association(to, index) => {
                self.xfrm.delete_association(&netns, &mut self.ledger, (*to, *index)).await
            }
            Key::Policy(way, other) => self.xfrm.delete_policy(&netns, *way, *other).await,
            Key::Ipvs(_) => ipvs::reset(&netns).await,
            Key::VirtualServer(_, socket) => Ok(ipvs::delete_virtual(&netns, *socket).await?),
            Key::RealServer(_, socket, address) => {
                Ok(ipvs::delete_real(&netns, *socket, *address).await?)
            }
            Key::Map(entry) => {
                let index = match entry {
                    MapKey::Port(link) => index(link).await?,
                    _ => None,
                };
                self.bpf.delete_entry(entry, index)
            }
            Key::Hook(link, hook) => match index(link).await? {
                Some(index) => {
                    let (ledger, at) = (&mut self.ledger, (link.as_str(), index));
                    self.bpf.delete_hook(&netns, ledger, at, *hook).await
                }
                // With the link went its qdisc.
                None => self.ledger.change(|entries| entries.qdiscs.remove(link)),
            },
            Key::Namespace(_) => Ok(()),
        }
    }

    async fn put_namespace(&mut self, name: &str) -> Result<()> {
        if !self.ledger.entries().namespaces.contains(name) && netns::exists(name)? {
            bail!("there is one of that name that is not ours: remove it (`ip netns del {name}`)");
        }
        let new = !netns::exists(name)?;
        self.ledger.change(|e| e.namespaces.insert(name.to_owned()))?;
        netns::create(name).await?;
        let netns = self.namespaces.need(&Ns::At(netns::path_of(name))).await?;
        if new {
            // It has the host's settings; who forwards here is for the plan to say.
            sysctl::set(&netns, "all", Sysctl::Forwarding, false).await?;
        }
        link::loopback_up(&netns).await
    }

    async fn delete_namespace(&mut self, name: &str) -> Result<()> {
        if !self.ledger.entries().namespaces.contains(name) {
            return Ok(());
        }
        let path = netns::path_of(name);
        self.namespaces.keep(|kept| kept != path);
        netns::delete(name)?;
        self.ledger.change(|e| e.namespaces.remove(name))
    }

    /// A namespace of our own.
    async fn own(&mut self, ns: &Ns) -> Result<Arc<Netns>> {
        if !self.is_own(ns) {
            bail!("{ns} is not ours");
        }
        self.namespaces.need(ns).await
    }

    /// Whether the kernel has IPVS, which it may have to load.
    ///
    /// # Errors
    /// [`IpvsError::Missing`] if not.
    pub async fn has_ipvs(&self) -> Result<(), IpvsError> {
        ipvs::probe(&self.namespaces.host()).await
    }

    /// Finds out whether the kernel can encrypt, for which it may have to load modules; what
    /// is `missing` otherwise is known already.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn find_ipsec(&self, missing: Option<String>) -> Result<()> {
        let missing = match missing {
            None => xfrm::missing().await.context("asking the kernel for IPsec")?,
            known => known,
        };
        self.xfrm.facts().send_modify(|facts| facts.missing = missing);
        Ok(())
    }

    /// What the kernel does for encrypted networks, and what changes in that.
    #[must_use]
    pub fn ipsec(&self) -> tokio::sync::watch::Receiver<Ipsec> {
        self.xfrm.facts().subscribe()
    }

    /// The link that a change is about, which must be ours.
    async fn our_link(&mut self, ns: &Ns, name: &str) -> Result<(Arc<Netns>, u32)> {
        let netns = self.namespaces.need(ns).await?;
        let view = link::by_name(&netns, name)
            .await?
            .with_context(|| format!("there is no link {name}"))?;
        let ours = match ns {
            Ns::Host => view.is_ours(),
            Ns::At(_) if self.is_own(ns) => true,
            Ns::At(_) => {
                let outside = self.outside().await?;
                link::is_inner_end(&netns, &view, &outside).await?
            }
        };
        if !ours {
            bail!("the link {name} is not ours");
        }
        Ok((netns, view.index))
    }

    /// Namespaces that outer ends of our veths can be in.
    async fn outside(&mut self) -> Result<Vec<Arc<Netns>>> {
        let mut outside = vec![self.namespaces.host()];
        for name in self.ledger.entries().namespaces.clone() {
            outside.extend(self.namespaces.get(&Ns::At(netns::path_of(&name))).await?);
        }
        Ok(outside)
    }

    fn is_own(&self, ns: &Ns) -> bool {
        matches!(ns, Ns::At(path) if self.ledger.entries().namespaces.iter()
            .any(|name| netns::path_of(name) == *path))
    }

    async fn put_sysctl(&mut self, ns: &Ns, link: &str, switch: Sysctl) -> Result<()> {
        let netns = self.namespaces.need(ns).await?;
        let gone = || format!("there is no link {link}");
        if is_others(ns, link) {
            let found = sysctl::get(&netns, link, switch).await?.with_context(gone)?;
            self.ledger.change(|e| e.found(switch, link, found))?;
        }
        if !sysctl::set(&netns, link, switch, true).await? {
            bail!(gone());
        }
        Ok(())
    }

    async fn delete_sysctl(
        &mut self,
        ns: &Ns,
        netns: &Netns,
        link: &str,
        switch: Sysctl,
    ) -> Result<()> {
        if is_others(ns, link) {
            let Some(was) = self.ledger.entries().was(switch, link) else { return Ok(()) };
            sysctl::set(netns, link, switch, was).await?;
            return self.ledger.change(|e| e.restored(switch, link));
        }
        sysctl::set(netns, link, switch, false).await.map(|_| ())
    }

    /// Removes everything of ours, whatever any cluster says; returns what there was.
    ///
    /// # Errors
    /// All that could not be removed; the rest is.
    pub async fn teardown(&mut self) -> Result<Vec<Key>> {
        let state = self.observe(&BTreeSet::new()).await?;
        let mut removed = Vec::new();
        let mut errors = Vec::new();
        for key in state.into_keys().rev() {
            match self.apply(&Op::Delete(key.clone())).await {
                Ok(()) => removed.push(key),
                Err(error) => errors.push(format!("{:#}", anyhow::Error::from(error))),
            }
        }
        if let Err(error) = self.bpf.remove() {
            errors.push(format!("{error:#}"));
        }
        if errors.is_empty() { Ok(removed) } else { bail!(errors.join("; ")) }
    }
}

/// Whether a link is none of ours.
fn is_others(ns: &Ns, link: &str) -> bool {
    *ns == Ns::Host && !link.starts_with(LINK_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop that drives the kernel moves between the runtime's threads.
    #[expect(dead_code, reason = "only to compile")]
    fn is_send(kernel: &mut Kernel, op: &Op, config: KernelConfig) {
        fn check(_: impl Send) {}
        check(Kernel::open(config));
        check(kernel.apply(op));
        check(kernel.observe(&BTreeSet::new()));
        check(kernel.teardown());
    }
}
